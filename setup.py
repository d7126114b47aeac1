"""Build the extension module, or say in one sentence why this Python cannot have it.

Everything declarative is in pyproject.toml and setup.cfg. This file must stay readable by
old Pythons, so that they reach the refusal; it does not need setuptools until then.

Environment variables for developers:

SUBINTERP_DEBUG=1
    No optimisation, debug information, assertions on (also defines SI_DEBUG for the C code).
SUBINTERP_SANITIZE=thread or address
    Build with that sanitizer; its run-time library must then be preloaded into Python.
"""

import os
import sys
import sysconfig
from glob import glob

SANITIZERS = ("thread", "address")


def describe_python():
    """Return what decides whether subinterp can run on this Python, as a dict."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):  # not POSIX, or a C library without the name
        libc = ""
    return {
        "platform": sys.platform,
        "glibc": libc.startswith("glibc"),
        "implementation": sys.implementation.name,
        "version": tuple(sys.version_info[:3]),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    }


def refusal(python=None):
    """Return one sentence that says what is needed instead of this Python, or None if it will do.

    Parameters
    ----------
    python : dict, optional
        What `describe_python` returned; by default, of the running Python.
    """
    if python is None:
        python = describe_python()
    version = ".".join(str(part) for part in python["version"])
    if not python["platform"].startswith("linux"):
        return (
            "subinterp needs Linux with glibc, and this is {}: "
            "use it in a Linux container or virtual machine."
        ).format(python["platform"])
    if not python["glibc"]:
        return (
            "subinterp needs Linux with glibc (as in Debian, Ubuntu or Fedora), and this Python "
            "uses another C library, such as musl in Alpine: use a Python built for glibc."
        )
    if python["implementation"] != "cpython":
        return "subinterp needs CPython 3.13 or newer, and this is {}: use CPython.".format(
            python["implementation"]
        )
    if python["version"] < (3, 13):
        return (
            "subinterp needs CPython 3.13 or newer, and this is CPython {}: "
            "install a newer Python, such as 3.14, and use that one."
        ).format(version)
    if python["free_threaded"]:
        return (
            "subinterp needs a CPython with the GIL, and this is the free-threaded build of "
            "{}: use the ordinary build (python{}.{} without the t)."
        ).format(version, *python["version"][:2])
    return None


def build_options(environ=os.environ):
    """Return what the environment variables ask for.

    Returns
    -------
    flavour : str
        A name for this kind of build; empty for the ordinary one.
    macros : list of tuple
        Further macros to define.
    compile_args, link_args : list of str
        Further arguments of the compiler and the linker.
    """
    sanitizer = environ.get("SUBINTERP_SANITIZE", "")
    debug = environ.get("SUBINTERP_DEBUG", "") not in ("", "0")
    if sanitizer and sanitizer not in SANITIZERS:
        sys.exit(
            "SUBINTERP_SANITIZE is {!r}; it can be {}.".format(sanitizer, " or ".join(SANITIZERS))
        )
    macros = []
    compile_args = ["-O3"]
    link_args = []
    if sanitizer:
        compile_args = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=" + sanitizer]
        link_args = ["-fsanitize=" + sanitizer]
    if debug:
        macros = [("SI_DEBUG", "1")]
        # After the flags that Python itself was built with, which define NDEBUG.
        compile_args += ["-O0", "-g3", "-UNDEBUG", "-Wextra", "-Wno-unused-parameter"]
    flavour = "-".join(filter(None, (sanitizer, "debug" if debug else "")))
    return flavour, macros, compile_args, link_args


def python_macros():
    """Return macros that this Python was built with and that its internal headers ask for.

    They decide about members of its structures (a JIT's), and are in no header.
    """
    flags = (sysconfig.get_config_var("PY_CORE_CFLAGS") or "").split()
    prefix = "-D_Py_TIER2="
    return [("_Py_TIER2", flag[len(prefix) :]) for flag in flags if flag.startswith(prefix)][:1]


def missing_headers():
    """Return one sentence if this Python came without its C headers, or None if it has them."""
    include = sysconfig.get_path("include")
    if os.path.exists(os.path.join(include, "internal", "pycore_interp.h")):
        return None
    return (
        "subinterp needs the C headers of Python, and there are none in {}: install them "
        "(python{}.{}-dev on Debian and Ubuntu, python3-devel on Fedora)."
    ).format(include, *sys.version_info[:2])


def main():
    """Run setuptools, which calls this file for every step of a build."""
    problem = refusal()
    if problem:
        sys.exit(problem)
    try:
        from Cython import __version__ as cython_version
        from Cython.Distutils import build_ext
    except ImportError:
        cython_version = "0.0"
    if tuple(int(part) for part in cython_version.split(".")[:2]) < (3, 3):
        sys.exit("subinterp needs Cython 3.3 to build: install it, or build with isolation.")
    from setuptools import Extension, setup

    flavour, macros, compile_args, link_args = build_options()

    class BuildExt(build_ext):
        def finalize_options(self):
            super().finalize_options()
            # The generated C must not land among the sources. Said here, because an editable
            # install forgets what setup.cfg says of it.
            self.cython_c_in_temp = True

        def run(self):
            problem = missing_headers()
            if problem:
                sys.exit(problem)
            super().run()

    core = Extension(
        "subinterp._core",
        sources=["subinterp/_core.pyx", *sorted(glob("subinterp/_runtime/*.c"))],
        depends=[*sorted(glob("subinterp/*.pxd")), *sorted(glob("subinterp/_runtime/*.h"))],
        include_dirs=["subinterp/_runtime"],
        define_macros=[
            # Both are needed where each interpreter has its own lock. Without the second,
            # extension types are static, and interpreters corrupt each other's memory.
            ("CYTHON_USE_MODULE_STATE", "1"),
            ("CYTHON_USE_TYPE_SPECS", "1"),
            ("_GNU_SOURCE", "1"),
            *python_macros(),
            *macros,
        ],
        extra_compile_args=[
            "-std=gnu11",
            "-pthread",
            "-fvisibility=hidden",
            # Structures embedded in others: by this si_fields.c finds out that one has no
            # field of a name.
            "-fms-extensions",
            # Errors from gcc 14 on; so that older ones do not let them through.
            "-Werror=incompatible-pointer-types",
            "-Werror=implicit-function-declaration",
            "-Werror=int-conversion",
            *compile_args,
        ],
        extra_link_args=["-pthread", *link_args],
    )
    setup(
        ext_modules=[core],
        cmdclass={"build_ext": BuildExt},
        # Objects of 3.13.0 must not be taken for those of 3.13.5, nor plain ones for
        # sanitized ones: each Python and each kind of build has a folder of its own.
        options={
            "build": {
                "build_base": os.path.join(
                    "build", "-".join(filter(None, (sys.version.split()[0], flavour)))
                )
            }
        },
    )


# setuptools runs this file as __main__; the tests and tools/find-python only import it.
if __name__ == "__main__":
    main()
