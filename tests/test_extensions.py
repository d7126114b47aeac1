"""Extension modules in workers: private copies, the lock API, policies, and bad input.

Modules are built here. What loads them runs in processes of its own: a mistake there would take
the test run along, and copies stay mapped as long as their process lives.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import subinterp
from _extbuild import build, build_library, missing
from _extsources import (
    EXPORTING,
    IMPORTING,
    LIBRARY,
    LINKED,
    OUTER_LIBRARY,
    RUNS,
    STATEFUL,
    THREADED,
    UNIQUE,
    WITH_SUBMODULE,
    WRONG,
)
from _support import HERE, SANITIZED, ScriptResult, run_script
from subinterp import interpreters

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PRELUDE = """\
import json, os, sys, time
import _extwork as w
from subinterp import InterpreterPool, interpreters
SITE = sys.argv[1]
"""

PLAIN, NESTED, UNLOCKED = range(3)  # as in THREADED


class Site:
    """A folder with modules to import, and scripts that import them.

    Each script has a temp folder of its own, in which nothing may be left.
    """

    def __init__(self, folder: Path):
        self.path = folder / "site"
        self.path.mkdir()
        self.temp = folder / "tmp"
        self.temp.mkdir()

    def build(self, name: str, source: str = STATEFUL, *flags: str, **options) -> Path:
        return build(self.path, name, source, flags=flags, **options)

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def run(self, script: str, *args: str, env=None, timeout=90.0) -> ScriptResult:
        """Run a script that prints nothing on stderr and ends with exit code 0."""
        result = run_script(
            PRELUDE + textwrap.dedent(script) + "\nprint('all done')\n",
            args=[str(self.path), *args],
            env={
                "PYTHONPATH": os.pathsep.join(map(str, (self.path, HERE))),
                "TMPDIR": str(self.temp),
                # Which Pythons before 3.14.1 say.
                "PYTHONWARNINGS": "ignore:max_tasks_per_child:RuntimeWarning",
                **(env or {}),
            },
            timeout=timeout,
        ).clean()
        assert result.stdout.endswith("all done\n"), str(result)
        assert sorted(self.temp.iterdir()) == []
        return result


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


# Kinds of modules ---------------------------------------------------------------------

NOT_SUPPORTED = "-DDECLARES=Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED"
SHARED_LOCK_ONLY = "-DDECLARES=Py_MOD_MULTIPLE_INTERPRETERS_SUPPORTED"
SUPPORTED = "-DDECLARES=Py_MOD_PER_INTERPRETER_GIL_SUPPORTED"
EXPORTS = pytest.mark.skipif(sys.version_info < (3, 15), reason="PyModExport_* is new in 3.15")

KINDS = [
    pytest.param(("-DSINGLE",), id="single-phase"),
    pytest.param(("-DSINGLE", "-DSIZE=0"), id="single-phase-size-0"),
    pytest.param(("-DSINGLE", "-DSIZE=16"), id="single-phase-size-16"),
    pytest.param((), id="multi-phase"),
    pytest.param((NOT_SUPPORTED,), id="multi-phase-refuses"),
    pytest.param((SHARED_LOCK_ONLY,), id="multi-phase-shared-lock"),
    pytest.param(("-DEXPORTS",), id="exports", marks=EXPORTS),
    pytest.param(("-DEXPORTS", NOT_SUPPORTED), id="exports-refuses", marks=EXPORTS),
]


@pytest.mark.parametrize("flags", KINDS)
def test_each_interpreter_has_its_own_copy(site, flags):
    path = site.build("ext", STATEFUL, *flags)
    site.run(
        """
        import ext
        single = sys.argv[2] == "single"
        mine = ext.bump()
        with InterpreterPool(2) as pool:
            # At once, and main too: static types, exceptions and objects of each do not mix.
            running = [pool.submit(w.use_boxes, "ext", 3000) for _ in range(2)]
            here = w.use_boxes("ext", 3000)
            for task in running:
                task.result(60)
            assert here == (mine + 1, mine + 2, single), here
        with InterpreterPool(2) as pool:
            counts = pool.broadcast(w.use, "ext", "bump")
            again = pool.broadcast(w.use, "ext", "bump")
            assert [b - a for a, b in zip(counts, again)] == [1, 1], (counts, again)
            assert pool.broadcast(w.loaded) == [{"ext": "copy"}] * 2, pool.broadcast(w.loaded)
            # PyState_FindModule knows modules of one phase only.
            results = pool.broadcast(w.use_boxes, "ext", 10)
            assert [found for _, _, found in results] == [single] * 2, results
        assert ext.bump() == mine + 3
        """,
        "single" if "-DSINGLE" in flags else "multi",
    )
    assert path.exists()


def test_counts_start_afresh_in_a_fresh_interpreter(site):
    """One that was parked keeps what C keeps; one that replaces a worker's does not have it."""
    site.build("ext")
    site.run("""
        import ext
        ext.bump(), ext.bump()
        with InterpreterPool(1, max_tasks_per_child=3) as pool:
            for _ in range(3):
                assert pool.submit(w.use, "ext", "bump").result() == 1
                assert pool.submit(w.use, "ext", "bump").result() == 2
                assert pool.submit(w.loaded).result() == {"ext": "copy"}
        assert ext.bump() == 3
    """)


@pytest.mark.parametrize(
    "flags", [(SUPPORTED,), pytest.param(("-DEXPORTS", SUPPORTED), marks=EXPORTS)]
)
def test_declared_support_is_believed(site, flags):
    """Such a module need not be copied; from the second interpreter on it is known."""
    site.build("ext", STATEFUL, "-DABI3", *flags)
    site.run("""
        with InterpreterPool(1) as first, InterpreterPool(1) as second:
            first.submit(w.use, "ext", "bump").result()
            assert list(first.submit(w.loaded).result()) == ["ext"]
            second.submit(w.use, "ext", "bump").result()
            assert second.submit(w.loaded).result() == {"ext": "native"}
    """)


def test_declared_support_is_not_believed_of_users_of_another_modules_c_api(site):
    """As NumPy's, which modules that declare their support keep in static variables."""
    site.build("exporting", EXPORTING)
    site.build("importing", IMPORTING)
    site.run("""
        import importing
        assert importing.bump() == 1
        for _ in range(2):
            with InterpreterPool(2) as pool:
                first = pool.broadcast(w.use, "importing", "bump")
                assert importing.bump() > 1
                again = pool.broadcast(w.use, "importing", "bump")
                assert [b - a for a, b in zip(first, again)] == [1, 1], (first, again)
                assert pool.broadcast(w.loaded) == [
                    {"importing": "copy", "exporting": "copy"}] * 2, pool.broadcast(w.loaded)
        assert importing.bump() == 4
    """)


def test_main_and_a_native_worker_share_what_is_not_copied(site):
    site.build("ext", STATEFUL, "-DABI3", SUPPORTED)
    site.run("""
        with InterpreterPool(1, extensions={"ext": "native"}) as pool:
            assert pool.submit(w.use, "ext", "bump").result() == 1
            import ext
            assert ext.bump() == 2
            assert pool.submit(w.use, "ext", "bump").result() == 3
            assert pool.submit(w.loaded).result() == {"ext": "native"}
    """)


def test_abi3(site):
    site.build("ext", STATEFUL, "-DABI3", "-DPy_LIMITED_API=0x030c0000", suffix=".abi3.so")
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "ext", "bump") == [1, 1]
            assert pool.broadcast(w.use, "ext", "bump") == [2, 2]
            [file, _] = [p["file"] for p in pool.broadcast(w.places, "ext")]
            assert file == os.path.join(SITE, "ext.abi3.so"), file
    """)


def test_name_that_is_not_ascii(site):
    # Punycode, but spelt as C can.
    init = "PyInitU_" + "grün".encode("punycode").decode().replace("-", "_")
    path = site.build("mod", STATEFUL, "-DABI3", "-UINIT", f"-DINIT={init}")
    path.rename(site.path / "grün.so")
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "grün", "bump") == [1, 1]
            assert pool.broadcast(w.loaded) == [{"grün": "copy"}] * 2
    """)


def test_cpp_statics_that_are_unique_in_a_process(site):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    source = site.write("unique.cpp", "#include <Python.h>\n" + UNIQUE)
    path = site.build("ext", "", "-xc++", str(source), "-xnone")
    if shutil.which("readelf") is not None:
        symbols = subprocess.run(
            ["readelf", "--symbols", "--wide", str(path)], capture_output=True, text=True
        ).stdout
        assert "UNIQUE" in symbols, "the compiler makes no such symbols: nothing is tested"
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "ext", "bump") == [(1, 1)] * 2
            assert pool.broadcast(w.use, "ext", "bump") == [(2, 2)] * 2
        import ext
        assert ext.bump() == (1, 1)
    """)


# What a module says of itself -----------------------------------------------------------


@pytest.mark.parametrize("flags", [("-DSINGLE",), ()], ids=["single-phase", "multi-phase"])
@pytest.mark.parametrize("name", ["ext", "package.ext"])
def test_a_copy_shows_its_original_place(site, name, flags):
    path = site.build(name, STATEFUL, *flags)
    if "." in name:
        site.write("package/__init__.py", "")
    site.run(
        """
        name, path = sys.argv[2:]
        with InterpreterPool(2) as pool:
            ours = pool.broadcast(w.places, name)
        theirs = w.places(name)
        assert ours == [theirs] * 2, (ours, theirs)
        assert theirs["file"] == theirs["origin"] == path
        """,
        name,
        str(path),
    )


@pytest.mark.parametrize("flags", [("-DSINGLE",), ()], ids=["single-phase", "multi-phase"])
def test_functions_and_types_of_a_copy_can_be_sent(site, flags):
    """They go by the name of their module, which single-phase modules do not know themselves."""
    site.build("package.ext", STATEFUL, *flags)
    site.write("package/__init__.py", "")
    site.write(
        "sends.py",
        """
        def function():
            import package.ext
            return package.ext.bump

        def name_of_its_module():
            import package.ext
            return package.ext.bump.__module__

        def fails():
            import package.ext
            package.ext.fail("told")
        """,
    )
    site.run("""
        import package.ext, sends
        with InterpreterPool(2) as pool:
            assert pool.broadcast(sends.name_of_its_module) == [sends.name_of_its_module()] * 2
            assert pool.submit(sends.function).result() is package.ext.bump
            # And there.
            assert isinstance(pool.submit(package.ext.bump).result(), int)
    """)


def test_a_module_knows_its_place_while_it_is_made(site):
    path = site.build("ext", RUNS, '-DCODE="raise ValueError(__file__, __spec__.origin)"')
    site.run(
        """
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "ext"):
                assert told["type"] == "ValueError", told
                assert told["text"] == repr((sys.argv[2],) * 2), told
        """,
        str(path),
    )


# Packages and finders ---------------------------------------------------------------


def test_namespace_package(site):
    site.build("spread.first")
    elsewhere = site.path / "elsewhere"
    build(elsewhere, "spread.second", STATEFUL)
    site.run("""
        sys.path.append(os.path.join(SITE, "elsewhere"))
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "spread.first", "bump") == [1, 1]
            assert pool.broadcast(w.use, "spread.second", "bump") == [1, 1]
            assert pool.broadcast(w.loaded) == [
                {"spread.first": "copy", "spread.second": "copy"}] * 2
    """)


def test_editable_installs_and_loaders_made_by_hand(site):
    """A finder maps names to files elsewhere, under another name, and makes the spec itself."""
    elsewhere = site.path.parent / "build"
    path = build(elsewhere, "ext", STATEFUL)
    site.write(
        "editable.py",
        f"""
        import importlib.machinery, importlib.util, sys

        PATH = {str(path)!r}

        class Finder:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == "mapped.ext":
                    return importlib.util.spec_from_file_location(name, PATH)
                if name == "mapped":
                    return importlib.machinery.ModuleSpec(name, None, is_package=True)

        def install():
            sys.meta_path.insert(0, Finder)

        def by_loader(name):
            loader = importlib.machinery.ExtensionFileLoader(name, PATH)
            spec = importlib.util.spec_from_file_location(name, PATH, loader=loader)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.__name__, module.__file__ == PATH, module.filled, module.bump()
        """,
    )
    site.run("""
        import editable
        with InterpreterPool(2, initializer=editable.install) as pool:
            assert pool.broadcast(w.use, "mapped.ext", "bump") == [1, 1]
            assert pool.broadcast(w.loaded) == [{"mapped.ext": "copy"}] * 2
            # The same file under another name is another module.
            results = pool.broadcast(editable.by_loader, "ext")
            assert [r[:3] for r in results] == [("ext", True, 1)] * 2, results
            assert pool.broadcast(w.use, "mapped.ext", "bump") in ([2, 2], [3, 3])
    """)


def test_zipped_package_beside_an_extension(site):
    with zipfile.ZipFile(site.path / "pure.zip", "w") as archive:
        archive.writestr(
            "zipped/__init__.py",
            "import os, sys\n__path__.append(os.path.join(os.path.dirname(os.path.dirname("
            "__path__[0])), 'beside'))\nfrom zipped.ext import bump\n",
        )
    build(site.path / "beside", "ext", STATEFUL)
    site.run("""
        sys.path.insert(0, os.path.join(SITE, "pure.zip"))
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "zipped", "bump") == [1, 1]
            assert pool.broadcast(w.loaded) == [{"zipped.ext": "copy"}] * 2
    """)


def test_symbolic_link_to_a_module(site):
    path = build(site.path / "store", "ext", STATEFUL)
    link = site.path / path.name
    link.symlink_to(path)
    site.run(
        """
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "ext", "bump") == [1, 1]
            assert [p["file"] for p in pool.broadcast(w.places, "ext")] == sys.argv[2:] * 2
        """,
        str(link),
    )


@pytest.mark.parametrize("flags", [(), ("-DFROM_SPEC",)], ids=["created", "from-spec"])
def test_submodules_that_a_module_registers_itself(site, flags):
    site.build("package.core", WITH_SUBMODULE, *flags)
    site.write("package/__init__.py", "from package.core import inner\n")
    site.run("""
        import package
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "package.core.inner", "bump") == [1, 1]
            assert pool.broadcast(w.use, "package.core.inner", "bump") == [2, 2]
            assert pool.broadcast(w.loaded) == [{"package.core": "copy"}] * 2
        assert package.inner.bump() == 1
    """)


@pytest.fixture(scope="module")
def cythonized(tmp_path_factory):
    """Cython modules whose utility code is in a module that they share."""
    pytest.importorskip("Cython", reason="needs Cython")
    folder = tmp_path_factory.mktemp("cython")
    text = """
        # cython: language_level=3
        cdef int count = 0
        cache = {}

        cdef class Box:
            cdef public object value
            def __init__(self, value):
                self.value = value

        def bump():
            global count
            count += 1
            return count

        def total(double[:] values):
            cdef double sum = 0
            for i in range(values.shape[0]):
                sum += values[i]
            cache[len(cache)] = Box(sum)
            return sum

        def generate(n):
            for i in range(n):
                yield Box(i).value
            cython_lambda = lambda: n
            yield cython_lambda()

        def fail():
            raise ValueError("from Cython")
        """
    commands = [["--generate-shared", "shared.c"]]
    for name in ("first", "second"):
        (folder / f"{name}.pyx").write_text(textwrap.dedent(text))
        commands.append(["--shared=package.shared", f"{name}.pyx", "-o", f"{name}.c"])
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "cython", *command], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            pytest.fail(f"{shlex.join(command)}\n{done.stderr}", pytrace=False)
    for name in ("shared", "first", "second"):
        # The sources include Python.h themselves, and know no macros of ours.
        build(
            folder / "site",
            f"package.{name}",
            "",
            flags=[str(folder / f"{name}.c"), "-w", "-UNAME", "-UINIT", "-UEXPORT"],
        )
    (folder / "site/package/__init__.py").touch()
    return folder / "site"


def test_cython_modules_with_shared_utilities(site, cythonized):
    shutil.copytree(cythonized, site.path, dirs_exist_ok=True)
    site.write(
        "uses.py",
        """
        import array

        def both():
            from package import first, second
            data = array.array("d", range(1000))
            for module in (first, second):
                for _ in range(200):
                    assert module.total(data) == 499500
                assert list(module.generate(3)) == [0, 1, 2, 3]
            return [first.bump(), second.bump(), first.bump(), second.bump()]

        def line():
            from package import first
            import traceback
            try:
                first.fail()
            except ValueError as error:
                return traceback.extract_tb(error.__traceback__)[-1].filename
        """,
    )
    site.run("""
        import uses
        with InterpreterPool(2) as pool:
            # A memory of their own each.
            assert pool.broadcast(uses.both) == [[1, 1, 2, 2]] * 2
            running = [pool.submit(uses.both) for _ in range(4)]
            assert uses.both() == [1, 1, 2, 2]
            for task in running:
                task.result()
            assert pool.broadcast(uses.line) == [uses.line()] * 2
            assert set(pool.submit(w.loaded).result()) == {
                "package.shared", "package.first", "package.second"}
    """)


# Wheels' own libraries -----------------------------------------------------------------


def wheel(site, *flags, outer=False, folder="package.libs"):
    """Build a package as auditwheel lays it out: its libraries in a folder beside it."""
    library = build_library(site.path / folder, "libinner-1a2b3c4d.so.1", LIBRARY, flags=flags)
    libs = [library]
    if outer:
        libs = [
            build_library(site.path / folder, "libouter-5e6f.so.1", OUTER_LIBRARY, libs=[library])
        ]
        flags = (*flags, "-DBUMP=outer_bump")
        if "-DPYTHON" in flags:
            libs.append(library)
    for name in ("package.first", "package.second"):
        site.build(name, LINKED, *flags, libs=libs)
    site.write("package/__init__.py", "")


@pytest.mark.parametrize("folder", ["package.libs", "package", "package/deep/libs"])
@pytest.mark.parametrize("outer", [False, True], ids=["direct", "through another"])
def test_libraries_that_use_python_are_copied(site, folder, outer):
    wheel(site, "-DPYTHON", outer=outer, folder=folder)
    site.run(
        """
        more = int(sys.argv[2])
        with InterpreterPool(2) as pool:
            # One library of an interpreter serves all of its modules.
            assert pool.broadcast(w.use, "package.first", "bump") == [more + 1] * 2
            assert pool.broadcast(w.use, "package.second", "bump") == [more + 2] * 2
            assert pool.broadcast(w.use, "package.first", "keep", ["a"]) == [None] * 2
            assert pool.broadcast(w.use, "package.second", "keep", None) == [["a"]] * 2
        import package.first, package.second
        assert package.first.bump() == more + 1
        assert package.second.bump() == more + 2
        assert package.first.keep("main") is None
        with InterpreterPool(2) as pool:
            assert set(pool.broadcast(w.use, "package.second", "keep", None)) == {None}
        assert package.second.keep(None) == "main"
        """,
        "100" if outer else "0",
    )


def test_libraries_without_python_are_shared(site):
    """They are mapped once, as their copies would cost memory for nothing."""
    wheel(site)
    site.run("""
        with InterpreterPool(2) as pool:
            counts = pool.broadcast(w.use, "package.first", "bump")
            counts += pool.broadcast(w.use, "package.second", "bump")
            assert sorted(counts) == [1, 2, 3, 4], counts
            assert set(pool.submit(w.loaded).result().values()) == {"copy"}
        import package.first
        assert package.first.bump() == 5
        assert w.mapped("libinner-1a2b3c4d.so.1") <= 6
    """)


def test_missing_library(site):
    wheel(site, "-DPYTHON")
    (site.path / "package.libs/libinner-1a2b3c4d.so.1").unlink()
    site.run("""
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "package.first"):
                assert "ImportError" in told["bases"], told
                assert "libinner-1a2b3c4d.so.1" in told["text"], told
                assert not told["left"]
            assert pool.broadcast(w.attempt, "json", "dumps", 1) == [("ok", "1")] * 2
    """)


def test_broken_library(site):
    wheel(site, "-DPYTHON")
    library = site.path / "package.libs/libinner-1a2b3c4d.so.1"
    content = library.read_bytes()
    for damaged in (b"", b"text", content[:100], content[: len(content) // 3]):
        library.unlink()
        library.write_bytes(damaged)
        site.run("""
            with InterpreterPool(2) as pool:
                for told in pool.broadcast(w.explain, "package.first"):
                    assert "ImportError" in told["bases"], told
                    assert "libinner-1a2b3c4d.so.1" in told["text"], told
        """)


# The lock API ----------------------------------------------------------------------------

PHASES = pytest.mark.parametrize("flags", [("-DSINGLE",), ()], ids=["single-phase", "multi-phase"])


@PHASES
@pytest.mark.parametrize("how", [PLAIN, NESTED, UNLOCKED], ids=["plain", "nested", "unlocked"])
def test_foreign_threads_reach_their_interpreter(site, flags, how):
    site.build("ext", THREADED, *flags)
    site.run(
        """
        how = int(sys.argv[2])
        with InterpreterPool(2) as pool:
            for _ in range(3):
                assert pool.broadcast(w.call_back, "ext", 4, 200, how) == [True, True]
            # Main's own module and its threads are as ever, and at the same time.
            running = [pool.submit(w.call_back, "ext", 4, 300, how) for _ in range(4)]
            assert w.call_back("ext", 4, 300, how)
            assert [task.result(60) for task in running] == [True] * 4
            assert pool.broadcast(w.call_back_here, "ext") == [True, True]
            assert w.call_back_here("ext")
        """,
        str(how),
    )


def test_foreign_threads_in_created_interpreters(site):
    site.build("ext", THREADED)
    site.run("""
        made = [interpreters.create() for _ in range(3)]
        for interp in made:
            assert interp.call(w.call_back, "ext", 2, 100, 1)
        for interp in reversed(made):
            interp.close()
        assert w.call_back("ext", 2, 100, 1)
    """)


def test_pending_calls_come_to_their_interpreter(site):
    site.build("ext", THREADED)
    site.run("""
        with InterpreterPool(2) as pool:
            for _ in range(20):
                assert pool.broadcast(w.pend, "ext") == [True, True]
    """)


@PHASES
def test_a_thread_that_needs_the_lock_while_its_module_is_made(site, flags):
    site.build("ext", THREADED, "-DGREETS", *flags)
    site.write("tells.py", "def greeting():\n    import ext\n    return ext.greeting\n")
    site.run("""
        import tells
        with InterpreterPool(2) as pool:
            assert pool.broadcast(tells.greeting) == ["from the thread"] * 2
            assert pool.broadcast(w.call_back, "ext", 2, 50, 0) == [True, True]
    """)


STRAYS = """
    def drain(seconds=0.3):
        import select
        text = b""
        while select.select([told], [], [], seconds)[0]:
            text += os.read(told, 10_000)
        return text.decode()

    def wait_for(what, count):
        text, deadline = "", time.monotonic() + 20
        while text.count(what) < count:
            assert time.monotonic() < deadline, text
            text += drain(0.01)
        return text

    asked, ask = os.pipe()
    told, tell = os.pipe()
    count = 3
"""


def test_a_thread_that_asks_for_an_interpreter_that_is_gone(site):
    """It is cut off: it never comes back, and nothing of it runs any more."""
    site.build("ext", THREADED)
    site.run(
        STRAYS
        + """
    with InterpreterPool(1, max_tasks_per_child=count) as pool:
        for _ in range(count):
            pool.submit(w.use, "ext", "leave", asked, tell, 0.0).result()
        assert pool.submit(w.loaded).result() == {}
        wait_for("<", count)
        os.write(ask, b"x" * count)
        text = drain()
        assert "(" not in text and ">" not in text, text
        assert pool.submit(w.call_back, "ext", 2, 20, 0).result()
    text = drain()
    assert "(" not in text and ">" not in text, text
    """
    )


@pytest.mark.parametrize("end", ["pool", "close"])
def test_a_thread_that_asks_for_an_interpreter_that_is_parked(site, end):
    """It may enter, as the interpreter is there; what it does is whole, up to the program's end."""
    site.build("ext", THREADED)
    site.run(
        STRAYS
        + """
    if sys.argv[2] == "close":
        interp = interpreters.create()
        for _ in range(count):
            interp.call(w.use, "ext", "leave", asked, tell, 0.0)
        interp.close()
    else:
        with InterpreterPool(1) as pool:
            for _ in range(count):
                pool.submit(w.use, "ext", "leave", asked, tell, 0.0).result()
    wait_for("<", count)
    for _ in range(3):
        os.write(ask, b"x" * count)
        text = drain()
        assert text.count("(") == text.count(")") == text.count(">"), text
        with InterpreterPool(1) as pool:
            assert pool.submit(w.call_back, "ext", 2, 20, 0).result()
    # They are about to enter, or within, when the program ends.
    os.write(ask, b"x" * 1000)
    """,
        end,
    )


@pytest.mark.parametrize("end", ["pool", "close"])
def test_the_end_waits_for_threads_that_are_inside(site, end):
    site.build("ext", THREADED)
    site.run(
        STRAYS
        + """
    def leave(call):
        for _ in range(count):
            call(w.use, "ext", "leave", asked, tell, 0.4)
        os.write(ask, b"x" * count * 100)
        return wait_for("(", count)

    if sys.argv[2] == "close":
        interp = interpreters.create()
        text = leave(interp.call)
        interp.close()
    else:
        with InterpreterPool(1) as pool:
            text = leave(lambda *args: pool.submit(*args).result())
    text += drain(0.01)
    assert text.count("(") == text.count(")") == text.count(">"), text
    # Each has more to do, and no interpreter to do it in.
    assert drain(1.0) == ""
    """,
        end,
    )


def test_the_process_ends_with_foreign_threads_about(site):
    site.build("ext", THREADED)
    site.run(
        STRAYS
        + """
    pool = InterpreterPool(2)
    for _ in range(count):
        pool.broadcast(w.use, "ext", "leave", asked, tell, 0.01)
    os.write(ask, b"x" * 1000)
    wait_for(")", 20)
    """
    )


# Importing again, in circles, and at once ---------------------------------------------


@pytest.mark.parametrize("flags", KINDS)
def test_import_after_removal_and_reload(site, flags):
    site.build("ext", STATEFUL, *flags)
    site.write(
        "again.py",
        """
        import importlib, sys

        def reload():
            import ext
            assert importlib.reload(ext) is ext
            assert ext.filled == 1
            return ext.bump() > 0

        def remove():
            import ext as first
            del sys.modules["ext"]
            import ext as second
            assert second.filled == 1
            assert second.bump() > 0 and first.bump() > 0
            assert isinstance(second.Box(5), second.Box)
            return True
        """,
    )
    site.run("""
        import again
        with InterpreterPool(2) as pool:
            assert pool.broadcast(again.reload) == [True, True]
            assert pool.broadcast(again.remove) == [True, True]
            assert pool.broadcast(again.reload) == [True, True]
            # The copy is there already.
            grown = pool.submit(w.reload_repeatedly, "ext", 100).result()
            assert grown < 50, grown
    """)


def test_import_cycle(site):
    site.build("ext", RUNS, '-DCODE="import partner\\nvalue = partner.value"')
    site.write("partner.py", "import ext\nvalue = 42\n")
    site.write("reads.py", "import ext\ndef value():\n    return ext.value\n")
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "reads", "value") == [42, 42]
    """)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        # Such a module is not there for others until its init function is done.
        (("-DSINGLE",), "is imported by what its own init function imports"),
        ((), "cannot import name 'value'"),
    ],
    ids=["single-phase", "multi-phase"],
)
def test_import_cycle_that_cannot_be(site, flags, text):
    site.build("ext", RUNS, '-DCODE="import partner"', *flags)
    site.write("partner.py", "from ext import value\n")
    site.run(
        """
        with InterpreterPool(2) as pool:
            for _ in range(2):
                for told in pool.broadcast(w.explain, "ext"):
                    assert told["type"] == "ImportError" and sys.argv[2] in told["text"], told
                    assert told["name"] == "ext" and not told["left"], told
            assert pool.broadcast(w.attempt, "json", "dumps", 1) == [("ok", "1")] * 2
        """,
        text,
    )


@PHASES
def test_threads_of_one_interpreter_import_at_once(site, flags):
    """While one module is made, others are, by the same interpreter's other threads."""
    names = [f"ext{number}" for number in range(6)]
    for name in names:
        site.build(
            name, RUNS, '-DCODE="import time\\ntime.sleep(0.02)\\nmade = module.__name__"', *flags
        )
    site.build("strict")
    site.run(
        """
        names = sys.argv[2:]
        with InterpreterPool(2) as pool:
            for errors, same, count in pool.broadcast(w.import_in_threads, names, 8):
                assert errors == [] and same and count == 8, (errors, same, count)
            for ways in pool.broadcast(w.loaded):
                assert sorted(ways) == sorted(names) and set(ways.values()) == {"copy"}, ways
        # What is refused stays refused while others are being made.
        with InterpreterPool(2, extensions={"strict": "refuse"}) as pool:
            for errors, _, count in pool.broadcast(w.import_in_threads, [*names, "strict"], 7):
                assert count == 0 and len(errors) == 7, (errors, count)
                assert all("ImportError" in error and "strict" in error for error in errors)
        """,
        *names,
    )


def test_modules_that_import_each_other_while_they_are_made(site):
    site.build("outer", RUNS, '-DCODE="import middle\\nvalue = middle.value + 1"', "-DSINGLE")
    site.build("middle", RUNS, '-DCODE="import inner\\nvalue = inner.filled + 1"')
    site.build("inner", STATEFUL, "-DSINGLE")
    site.write("reads.py", "import outer\ndef value():\n    return outer.value\n")
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "reads", "value") == [3, 3]
            for ways in pool.broadcast(w.loaded):
                assert ways == dict.fromkeys(["outer", "middle", "inner"], "copy"), ways
    """)


# What goes wrong ---------------------------------------------------------------------------

UNHARMED = """
            assert pool.broadcast(w.attempt, "good", "bump")[0][0] == "ok"
            assert w.temp_files() == ([], []), w.temp_files()
"""

# What an init function does, and what is told of it. What a module raises while it is executed
# is raised as it is, as elsewhere; what its init function raises is the cause.
WRONGS = {
    "NOTHING": ("ImportError", "without raising an exception"),
    "RAISES": ("ImportError", "ZeroDivisionError: made to fail"),
    "NO_MODULE": ("ImportError", "did not return an extension module"),
    "UNINITIALIZED": ("ImportError", "PyModuleDef_Init"),
    "RESULT_AND_ERROR": ("ImportError", "ZeroDivisionError: made to fail"),
    "EXEC_FAILS": ("ZeroDivisionError", "made to fail"),
    "EXEC_SILENT": ("SystemError", "bad"),
    "EXEC_RESULT_AND_ERROR": ("SystemError", "ZeroDivisionError: made to fail"),
    "CREATE_SILENT": ("SystemError", "without setting an exception"),
    "BAD_SLOT": ("SystemError", "slot"),
}


@pytest.mark.parametrize("how", WRONGS)
def test_a_module_that_is_made_wrongly(site, how):
    site.build("bad", WRONG, f"-DHOW={how}")
    site.build("good")
    kind, text = WRONGS[how]
    site.run(
        """
        kind, text = sys.argv[2:]
        with InterpreterPool(2) as pool:
            for _ in range(3):
                for told in pool.broadcast(w.explain, "bad"):
                    assert told["type"] == kind and text in told["traceback"], told
                    assert not told["left"]
                    if kind == "ImportError":
                        assert told["name"] == "bad" and "bad" in told["text"], told
                        assert told["path"].startswith(SITE), told
"""
        + UNHARMED,
        kind,
        text,
    )


def test_no_init_function(site):
    site.build("bad", "int nothing_here;")
    site.build("good")
    site.run(
        """
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "bad"):
                assert "ImportError" in told["bases"] and "PyInit_bad" in told["text"], told
                assert told["name"] == "bad" and told["path"].startswith(SITE), told
"""
        + UNHARMED
    )


def test_undefined_symbol(site):
    site.build(
        "bad",
        "PyObject *nowhere(void);\nPyMODINIT_FUNC INIT(void) { return nowhere(); }",
        "-Wl,-z,now",
    )
    site.build("good")
    site.run(
        """
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "bad"):
                assert "ImportError" in told["bases"] and "nowhere" in told["text"], told
                assert "bad" in told["text"], told
"""
        + UNHARMED
    )


def interesting_lengths(content: bytes) -> list[int]:
    """Return lengths at which an ELF file lacks something new."""
    (program_at,) = struct.unpack_from("<Q", content, 32)
    (sections_at,) = struct.unpack_from("<Q", content, 40)
    program_size, program_count, section_size, section_count = struct.unpack_from(
        "<HHHH", content, 54
    )
    edges = {0, 1, 4, 16, 20, 63, 64, program_at, sections_at, len(content)}
    for number in range(program_count):
        at = program_at + number * program_size
        offset, size = struct.unpack_from("<8xQ16xQ", content, at)
        edges |= {at, offset, offset + size // 2, offset + size}
    for number in range(section_count):
        at = sections_at + number * section_size
        kind, offset, size = struct.unpack_from("<4xI16xQQ", content, at)
        if kind != 8:  # SHT_NOBITS has no bytes
            edges |= {offset, offset + size}
    lengths = {edge + more for edge in edges for more in (-1, 0, 1)}
    return sorted(length for length in lengths if 0 <= length < len(content))


@pytest.mark.parametrize("flags", [("-g0", "-s"), ()], ids=["stripped", "with symbols"])
def test_truncated_module(site, flags):
    """Whole pages may be missing: to touch them would kill the process."""
    content = site.build("ext", STATEFUL, *flags).read_bytes()
    lengths = interesting_lengths(content)
    assert len(lengths) > 50
    names = []
    suffix = next(site.path.glob("ext*")).name.removeprefix("ext")
    for length in lengths:
        folder = site.path / f"cut{length}"
        folder.mkdir()
        (folder / f"ext{suffix}").write_bytes(content[:length])
        names.append(f"cut{length}.ext")
    site.build("good")
    result = site.run(
        """
        with InterpreterPool(1) as pool:
            for name in sys.argv[2:]:
                print(name, end=" ", flush=True)
                kind, text = pool.submit(w.attempt, name, "bump").result()
                print(kind, flush=True)
                if kind != "ok":
                    assert kind == "ImportError", (kind, text)
                    assert name.partition(".")[0] in text, text
                    assert w.temp_files() == ([], []), w.temp_files()
"""
        + UNHARMED,
        *names,
        timeout=200,
    )
    kinds = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("cut")]
    # What is only missing its sections' names may load.
    assert kinds[0] == "ImportError" and kinds.count("ImportError") > len(kinds) // 2


DAMAGES = {
    "empty": lambda content: b"",
    "text": lambda content: b"#!/bin/sh\nexit 0\n" * 100,
    "zeros": lambda content: bytes(len(content)),
    "not_elf": lambda content: b"\xcf\xfa\xed\xfe" + content[4:],
    "class_32": lambda content: content[:4] + b"\x01" + content[5:],
    "big_endian": lambda content: content[:5] + b"\x02" + content[6:],
    "version": lambda content: content[:6] + b"\x07" + content[7:],
    "executable": lambda content: content[:16] + b"\x02\x00" + content[18:],
    "relocatable": lambda content: content[:16] + b"\x01\x00" + content[18:],
    "aarch64": lambda content: content[:18] + (183).to_bytes(2, "little") + content[20:],
    "program_headers_far": lambda content: content[:32] + b"\xff" * 8 + content[40:],
    "program_headers_outside": lambda content: (
        content[:32] + (len(content) - 8).to_bytes(8, "little") + content[40:]
    ),
    "program_headers_size": lambda content: content[:54] + b"\x01\x00" + content[56:],
    "program_headers_none": lambda content: content[:56] + b"\x00\x00" + content[58:],
    "program_headers_many": lambda content: content[:56] + b"\xff\xff" + content[58:],
}


def test_files_that_are_no_modules(site):
    path = site.build("ext", STATEFUL)
    content = path.read_bytes()
    suffix = path.name.removeprefix("ext")
    for name, damage in DAMAGES.items():
        (site.path / f"{name}{suffix}").write_bytes(damage(content))
    (site.path / f"a_folder{suffix}").mkdir()
    (site.path / f"dangling{suffix}").symlink_to(site.path / "nowhere")
    site.build("good")
    result = site.run(
        """
        with InterpreterPool(2) as pool:
            for name in [*sys.argv[2:], "a_folder", "dangling"]:
                for told in pool.broadcast(w.explain, name):
                    print(name, told["text"], flush=True)
                    assert "ImportError" in told["bases"], told
                    assert name in told["text"] and not told["left"], told
"""
        + UNHARMED,
        *DAMAGES,
    )
    told = dict(line.split(" ", 1) for line in result.stdout.splitlines()[:-1])
    assert "aarch64" in told["aarch64"].lower() or "machine" in told["aarch64"].lower(), told


def test_a_file_that_cannot_be_read(site):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    site.build("bad").chmod(0)
    site.run("""
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "bad"):
                assert "ImportError" in told["bases"] and SITE in told["text"], told
    """)


def test_a_file_that_is_replaced_while_it_is_in_use(site):
    """An upgrade puts a new file in the old one's place; running workers keep what they have."""
    site.build("ext", STATEFUL)
    other = build(site.path.parent / "new", "ext", STATEFUL.replace("++count", "count += 1000"))
    site.run(
        """
        with InterpreterPool(1) as pool:
            assert pool.submit(w.use, "ext", "bump").result() == 1
            os.replace(sys.argv[2], os.path.join(SITE, os.path.basename(sys.argv[2])))
            with InterpreterPool(1) as fresh:
                assert fresh.submit(w.use, "ext", "bump").result() == 1000
            assert pool.submit(w.use, "ext", "bump").result() == 2
        """,
        str(other),
    )


# Machines that lack something ---------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """Mount a small file system of its own, where that is allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("needs to be allowed to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


LOADS_OR_SAYS_WHY = """
    with InterpreterPool(2) as pool:
        for kind, what in pool.broadcast(w.attempt, "ext", "bump"):
            print(kind, what)
            assert (kind, what) == ("ok", 1) or (kind == "ImportError" and "ext" in what), what
        assert pool.broadcast(w.attempt, "json", "dumps", 1) == [("ok", "1")] * 2
    import ext
    assert ext.bump() == 1
"""


@pytest.mark.parametrize("options", ["noexec", "size=16k", "ro"])
def test_temp_folder_that_will_not_do(site, tmp_path, options):
    site.build("ext", STATEFUL)
    assert next(site.path.glob("ext*.so")).stat().st_size > 16 * 1024
    with mounted(tmp_path / "mounted", options) as folder:
        site.run(LOADS_OR_SAYS_WHY, env={"TMPDIR": str(folder)})
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("where", ["missing", "file"])
def test_temp_folder_that_is_none(site, tmp_path, where):
    site.build("ext", STATEFUL)
    (tmp_path / "file").touch()
    site.run(LOADS_OR_SAYS_WHY, env={"TMPDIR": str(tmp_path / where)})


LIMITED = """
    import resource

    def limited(what, value):
        soft, hard = resource.getrlimit(what)
        resource.setrlimit(what, (value, hard))
        try:
            return pool.broadcast(w.attempt, "ext", "bump")
        finally:
            resource.setrlimit(what, (soft, hard))
"""


def test_files_cannot_grow(site):
    """As on a full disk, wherever the copy is written."""
    site.build("ext", STATEFUL)
    site.run(
        LIMITED
        + """
    with InterpreterPool(2) as pool:
        pool.broadcast(w.temp_files)
        for kind, text in limited(resource.RLIMIT_FSIZE, 4096):
            assert kind == "ImportError" and "ext" in text, (kind, text)
        assert w.temp_files() == ([], []), w.temp_files()
        assert pool.broadcast(w.attempt, "ext", "bump") == [("ok", 1)] * 2
    """
    )


def test_no_more_file_descriptors(site):
    site.build("ext", STATEFUL)
    site.run(
        LIMITED
        + """
    with InterpreterPool(2) as pool:
        pool.broadcast(w.temp_files)
        for kind, text in limited(resource.RLIMIT_NOFILE, 0):
            assert kind in ("ImportError", "ModuleNotFoundError", "OSError"), (kind, text)
        time.sleep(0.01)
        assert pool.broadcast(w.attempt, "ext", "bump") == [("ok", 1)] * 2
    """
    )


def test_no_more_address_space(site):
    site.build("ext", STATEFUL + "\nstatic char room[1 << 30];\nchar *room_at = room;\n")
    site.run(
        LIMITED
        + """
    def size():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()

    with InterpreterPool(2) as pool:
        pool.broadcast(w.temp_files)
        for kind, text in limited(resource.RLIMIT_AS, size() + (256 << 20)):
            assert kind == "ImportError" and "ext" in text, (kind, text)
        assert w.temp_files() == ([], []), w.temp_files()
        assert pool.broadcast(w.attempt, "ext", "bump") == [("ok", 1)] * 2
    """
    )


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="a sanitizer wants mappings, too")
def test_no_more_memory_maps(site):
    """The kernel's limit on the maps of a process is reached at each step of loading."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit > 200_000:
        pytest.skip(f"vm.max_map_count is {limit}: it would take too long to reach")
    path = site.build("n0.ext", STATEFUL)
    for number in range(1, 24):
        (site.path / f"n{number}").mkdir()
        shutil.copy(path, site.path / f"n{number}" / path.name)
    site.run("""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

        # One big map, cut into many by taking the rights to every other page away.
        pages = 220_000
        base = libc.mmap(None, pages * 4096, 3, 0x4022, -1, 0)  # private, anonymous, no reserve
        assert base not in (None, 2**64 - 1)
        taken = []

        def exhaust():
            for page in range(1, pages, 2):
                if libc.mprotect(base + page * 4096, 4096, 0):
                    return
                taken.append(page)
            raise AssertionError("the limit was not reached")

        def give_back(count):
            for _ in range(count):
                libc.mprotect(base + taken.pop() * 4096, 4096, 3)

        with InterpreterPool(1) as pool:
            # What else Python may need is there already.
            assert pool.submit(w.attempt, "n0.ext").result() == ("ok", None)
            held = pool.submit(w.use, "builtins", "bytearray", 5_000_000).result()
            del held
            outcomes = []
            exhaust()
            for number in range(1, 24):
                try:
                    outcomes.append(pool.submit(w.attempt, f"n{number}.ext").result(60))
                except MemoryError as error:
                    outcomes.append(("MemoryError", str(error)))
                give_back(1)
            give_back(len(taken))
            libc.munmap(base, pages * 4096)
            kinds = [kind for kind, _ in outcomes]
            assert set(kinds) <= {"ok", "ImportError", "MemoryError"}, outcomes
            assert "ImportError" in kinds, outcomes
            assert all("ext" in what for kind, what in outcomes if kind == "ImportError"), outcomes
            for number in range(1, 24):
                assert pool.submit(w.attempt, f"n{number}.ext").result() == ("ok", None)
            assert pool.submit(w.temp_files).result() == ([], [])
    """)


# Builtin modules ------------------------------------------------------------------------------


def test_what_the_process_has_once_is_switched_in_main_only(site):
    site.write(
        "switches.py",
        """
        import _tracemalloc, faulthandler

        def attempt(module, name, *args):
            try:
                getattr({"f": faulthandler, "t": _tracemalloc}[module], name)(*args)
            except RuntimeError as error:
                return str(error)
            return "done"

        def asks():
            return faulthandler.is_enabled(), _tracemalloc.is_tracing()
        """,
    )
    site.run("""
        import faulthandler, switches
        faulthandler.enable()
        for enabled in (True, False):
            with InterpreterPool(2) as pool:
                assert pool.broadcast(switches.asks) == [(enabled, False)] * 2
                for told in pool.broadcast(switches.attempt, "f", "enable"):
                    assert (told == "done") if enabled else ("main interpreter" in told), told
                for module, name, *args in (
                    ("f", "disable"), ("f", "register", 10), ("f", "unregister", 10),
                    ("f", "dump_traceback_later", 60), ("f", "cancel_dump_traceback_later"),
                    ("t", "start"), ("t", "stop"),
                ):
                    for told in pool.broadcast(switches.attempt, module, name, *args):
                        assert "main interpreter" in told, told
            faulthandler.disable()
    """)


# Policies ------------------------------------------------------------------------------------


def test_strict_is_the_rule_of_cpython(site):
    site.build("ext", STATEFUL)
    site.build("declares", STATEFUL, "-DABI3", SUPPORTED)
    site.run("""
        for way in ("strict", {"*": "strict"}):
            with InterpreterPool(2, extensions=way) as pool:
                for told in pool.broadcast(w.explain, "ext"):
                    assert "ImportError" in told["bases"] and "ext" in told["text"], told
                    assert "does not support loading in subinterpreters" in told["traceback"], told
                assert pool.broadcast(w.attempt, "declares", "bump")[0][0] == "ok"
                assert "copy" not in pool.submit(w.loaded).result().values()
        interp = interpreters.create(extensions="strict")
        assert interp.call(w.explain, "ext")["type"] == "ImportError"
        interp.close()
        with InterpreterPool(2, extensions={"*": "strict", "ext": "copy"}) as pool:
            assert pool.broadcast(w.use, "ext", "bump") == [1, 1]
    """)


def test_native_shares_memory(site):
    """It is for modules that keep nothing in C, whatever they declare."""
    site.build("ext", STATEFUL, "-DABI3")
    site.build("other", STATEFUL, "-DABI3")
    site.run("""
        with InterpreterPool(2, extensions="native") as pool:
            assert sorted(pool.broadcast(w.use, "ext", "bump")) == [1, 2]
            assert pool.broadcast(w.loaded) == [{"ext": "native"}] * 2
        with InterpreterPool(2, extensions={"*": "native", "other": "copy"}) as pool:
            assert sorted(pool.broadcast(w.use, "ext", "bump")) == [3, 4]
            assert pool.broadcast(w.use, "other", "bump") == [1, 1]
            assert pool.broadcast(w.loaded) == [{"ext": "native", "other": "copy"}] * 2
        interp = interpreters.create(extensions={"ext": "native"})
        assert interp.call(w.use, "ext", "bump") == 5
        assert interp.call(w.use, "other", "bump") == 1
        interp.close()
    """)


def test_names_cover_their_submodules(site):
    for name in ("a.b.first", "a.b.second", "a.third", "a.bc"):
        site.build(name, STATEFUL, "-DABI3")
    for name in ("a", "a/b"):
        site.write(f"{name}/__init__.py", "")
    site.run("""
        rules = {"a": "refuse", "a.b": "native", "a.b.second": "copy", "a.bc": "auto"}
        with InterpreterPool(2, extensions=rules) as pool:
            assert sorted(pool.broadcast(w.use, "a.b.first", "bump")) == [1, 2]
            assert pool.broadcast(w.use, "a.b.second", "bump") == [1, 1]
            assert pool.broadcast(w.use, "a.bc", "bump") == [1, 1]
            for told in pool.broadcast(w.explain, "a.third"):
                assert "ImportError" in told["bases"], told
                assert "a.third" in told["text"] and "refuse" in told["text"], told
                assert told["name"] == "a.third"
            assert pool.broadcast(w.loaded) == [
                {"a.b.first": "native", "a.b.second": "copy", "a.bc": "copy"}] * 2
        # All but what is named, and but what Python itself is made of.
        with InterpreterPool(2, extensions={"*": "refuse", "a.b": "copy"}) as pool:
            assert pool.broadcast(w.attempt, "a.third", "bump")[0][0] == "ImportError"
            assert pool.broadcast(w.attempt, "_opcode") == [("ok", None)] * 2
            assert pool.broadcast(w.attempt, "a.b.first", "bump")[0][0] == "ok"
        # What was passed is copied, and a copy is no longer ours to change.
        rules = {"a": "refuse"}
        with InterpreterPool(1, extensions=rules) as pool:
            rules["a"] = "copy"
            assert pool.submit(w.attempt, "a.third", "bump").result()[0] == "ImportError"
    """)


def test_copy_even_of_what_declares_support(site):
    site.build("ext", STATEFUL, "-DABI3", SUPPORTED)
    site.run("""
        for _ in range(2):
            with InterpreterPool(2, extensions={"ext": "copy"}) as pool:
                assert len(set(pool.broadcast(w.use, "ext", "bump"))) == 1
                assert pool.broadcast(w.loaded) == [{"ext": "copy"}] * 2
    """)


def test_where_copies_are_not_to_be_had(site):
    """As on other platforms: the rule of CPython holds, and what it refuses is explained."""
    site.build("ext")
    site.run("""
        from subinterp import _core
        _core.extensions_unsupported = lambda: "this system is made up"
        for way in ("auto", "strict", {"ext": "auto"}, {"*": "strict"}, {"ext": "refuse"}):
            with InterpreterPool(2, extensions=way) as pool:
                for told in pool.broadcast(w.explain, "ext"):
                    assert "ImportError" in told["bases"] and "ext" in told["text"], told
                try:
                    pool.submit(w.use, "ext", "bump").result()
                except ImportError as error:
                    text = str(error) + "".join(getattr(error, "__notes__", ()))
                    assert "threads or processes" in text, text
                    assert way != "auto" or "this system is made up" in text, text
                else:
                    raise AssertionError("did not raise")
        for way in ("native", {"ext": "copy"}, {"*": "copy"}):
            try:
                InterpreterPool(2, extensions=way)
            except ValueError as error:
                assert "this system is made up" in str(error), error
            else:
                raise AssertionError("did not raise")
    """)


@pytest.mark.parametrize("make", [subinterp.InterpreterPool, interpreters.create])
@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ("sometimes", ValueError, "'sometimes'"),
        ("", ValueError, "''"),
        ("copy", ValueError, "'copy'"),
        ("Auto", ValueError, "'Auto'"),
        (5, TypeError, "int"),
        (None, TypeError, "NoneType"),
        (b"auto", TypeError, "bytes"),
        (["numpy"], TypeError, "list"),
        ({"numpy": "always"}, ValueError, "'always'"),
        ({"numpy": None}, TypeError, "numpy"),
        ({5: "copy"}, TypeError, "5"),
        ({"": "copy"}, ValueError, "''"),
        ({"numpy.": "copy"}, ValueError, "'numpy.'"),
        ({".numpy": "copy"}, ValueError, "'.numpy'"),
        ({"num py": "copy"}, ValueError, "'num py'"),
        ({"numpy.*": "copy"}, ValueError, "'numpy.*'"),
        ({"*": "sometimes"}, ValueError, "'sometimes'"),
    ],
    ids=repr,
)
def test_values_that_are_none(make, value, error, said):
    with pytest.raises(error) as caught:
        make(extensions=value)
    assert "extensions" in str(caught.value)
    assert said in str(caught.value)
