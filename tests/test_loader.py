"""The loader of extension modules: how files hang together, and how interpreters' threads do.

What every user of extensions meets is in test_extensions; here are the corners.
"""

from __future__ import annotations

import json
import shlex
import struct
import subprocess
import sysconfig

import pytest

import subinterp
from _extbuild import build_library, missing
from test_extensions import STRAYS, Site

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def module(function: str, before: str = "") -> str:
    """Return the source of a module with one function, `f`, of this body."""
    return f"""
    {before}
    static PyObject *f(PyObject *module, PyObject *args) {{
        {function}
    }}
    static PyMethodDef methods[] = {{{{"f", f, METH_VARARGS}}, {{NULL}}}};
    static PyModuleDef_Slot slots[] = {{{{0, NULL}}}};
    static struct PyModuleDef def = {{
        PyModuleDef_HEAD_INIT, .m_name = NAME, .m_methods = methods, .m_slots = slots,
    }};
    PyMODINIT_FUNC INIT(void) {{
        return PyModuleDef_Init(&def);
    }}
    """


def calls(name: str) -> str:
    """Return the source of a module whose `f` returns what a library's function does."""
    return module(f"return PyLong_FromLong({name}());", f"int {name}(void);")


# A library that counts, and has a Python object in a static variable.
COUNTS = """
#include <Python.h>
static PyObject *kept;
static int number;
int count(void) {
    if (kept == NULL)
        kept = PyList_New(0);
    return ++number;
}
"""


# Files that need each other ---------------------------------------------------------------


def test_a_module_that_another_module_is_linked_to(site):
    name = "first" + sysconfig.get_config_var("EXT_SUFFIX")
    first = site.build(
        "first",
        module("return PyLong_FromLong(++number);", "int number;"),
        f"-Wl,-soname,{name}",
    )
    site.build(
        "second",
        module("return PyLong_FromLong(++number);", "extern int number;"),
        libs=[first],
    )
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "first", "f") == [1, 1]
            assert pool.broadcast(w.use, "second", "f") == [2, 2]
            assert pool.broadcast(w.use, "first", "f") == [3, 3]
        # The linker finds what is loaded by its name: main finds its own, no copy.
        import second
        assert second.f() == 1
        import first
        assert first.f() == 2
        # Other options: not one of those that are parked.
        with InterpreterPool(1, extensions={"nothing": "copy"}) as pool:
            assert pool.submit(w.use, "second", "f").result() == 1
            assert pool.submit(w.use, "first", "f").result() == 2
    """)


def test_libraries_of_libraries_are_found_by_the_modules_rpath(site):
    """DT_RPATH holds for what a library needs that names no folder itself."""
    inner = build_library(site.path / "libs", "libcounting.so", COUNTS)
    outer = build_library(
        site.path / "libs",
        "libaround.so",
        "int count(void); int around(void) { return count(); }",
        flags=[str(inner)],
    )
    site.build(
        "ext",
        calls("around"),
        "-Wl,--disable-new-dtags,-rpath,$ORIGIN/libs",
        "-Wl,--no-as-needed",
        str(outer),
    )
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.attempt, "ext", "f") == [("ok", 1)] * 2
        import ext
        assert ext.f() == 1
    """)


def test_modules_that_share_a_copied_library(site):
    """A library without Python is copied with one that uses both; and so for later modules."""
    base = build_library(
        site.path / "libs", "libbase.so.1", "static int n; int base(void) { return ++n; }"
    )
    uses = build_library(
        site.path / "libs",
        "libuses.so.1",
        COUNTS + "int base(void); int uses(void) { count(); return base(); }",
        libs=[base],
    )
    site.build("both", calls("uses"), libs=[uses, base])
    site.build("single", calls("base"), libs=[base])
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "both", "f") == [1, 1]
            assert pool.broadcast(w.use, "single", "f") == [2, 2]
    """)


@pytest.mark.parametrize("known", [False, True], ids=["only", "also"])
def test_a_library_that_is_needed_by_another_name(site, known):
    """Its copy cannot be found by a name that is not its own: that is said."""
    library = build_library(site.path / "libs", "libcounting.so.1", COUNTS)
    build_library(site.path / "stub", "libcount.so", COUNTS)
    (site.path / "libs/libcount.so").symlink_to(library)
    site.build("first", calls("count"), libs=[library])
    site.build(
        "second",
        calls("count"),
        str(site.path / "stub/libcount.so"),
        "-Wl,-rpath,$ORIGIN/libs",
    )
    site.run(
        """
        with InterpreterPool(2) as pool:
            if sys.argv[2] == "True":
                assert pool.broadcast(w.use, "first", "f") == [1, 1]
            for told in pool.broadcast(w.explain, "second"):
                assert told["type"] == "ImportError", told
                assert "libcounting.so.1 says that its name is" in told["text"], told
            assert pool.broadcast(w.use, "first", "f") == [1 + known] * 2
        """.replace("known", str(int(known))),
        str(known),
    )


def test_a_wrong_number_of_needed_versions(site):
    """The linker does not read it; neither is it believed here."""
    library = build_library(site.path / "libs", "libcounting.so.1", COUNTS)
    source = module(
        'return PyLong_FromLong(getenv("PATH") ? count() : 0);',
        "#include <stdlib.h>\nint count(void);",
    )
    path = site.build("ext", source, libs=[library])
    change_dynamic(path, 0x6FFFFFFF, 1 << 62)  # DT_VERNEEDNUM
    site.run("""
        with InterpreterPool(2) as pool:
            assert pool.broadcast(w.use, "ext", "f") == [1, 1]
    """)


def change_dynamic(path, tag, value):
    """Change an entry of the dynamic table; it must be there."""
    content = bytearray(path.read_bytes())
    (headers,) = struct.unpack_from("<Q", content, 32)
    (count,) = struct.unpack_from("<H", content, 56)
    for header in range(headers, headers + count * 56, 56):
        kind, _, at, _, _, size = struct.unpack_from("<IIQQQQ", content, header)
        if kind == 2:  # PT_DYNAMIC
            for entry in range(at, at + size, 16):
                if struct.unpack_from("<q", content, entry)[0] == tag:
                    struct.pack_into("<Q", content, entry + 8, value)
                    path.write_bytes(content)
                    return
    raise AssertionError(f"{path} has no entry {tag:#x}")


def test_code_that_is_not_position_independent(site):
    site.build(
        "ext",
        module(
            "return PyLong_FromLong(check());",
            r"""
            __asm__(".text\n.globl check\ncheck: .quad PyGILState_Check\n");
            extern int (*check)(void);
            """,
        ),
        "-Wl,-z,notext",
    )
    site.run("""
        import ext
        assert ext.f() == 1
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "ext"):
                assert told["type"] == "ImportError", told
                assert "not position-independent" in told["text"], told
    """)


def test_a_module_in_a_file_without_a_name(site):
    site.build("ext", module("Py_RETURN_NONE;"))
    site.write(
        "unnamed.py",
        """
        import glob, importlib.util, os
        from importlib.machinery import ExtensionFileLoader

        def load(site):
            fd = os.memfd_create("ext")
            [name] = glob.glob(site + "/ext*.so")
            with open(name, "rb") as file:
                os.write(fd, file.read())
            path = f"/proc/self/fd/{fd}"
            loader = ExtensionFileLoader("ext", path)
            spec = importlib.util.spec_from_file_location("ext", path, loader=loader)
            ext = importlib.util.module_from_spec(spec)
            loader.exec_module(ext)
            os.close(fd)
            return ext.f()
        """,
    )
    site.run("""
        import unnamed
        unnamed.load(SITE)
        with InterpreterPool(2) as pool:
            assert pool.broadcast(unnamed.load, SITE) == [None, None]
    """)


def test_proc_is_not_mounted(site, tmp_path):
    """The linker's own words would be that the module's file does not exist."""
    empty = tmp_path / "empty"
    empty.mkdir()
    hide = f"mount --bind {shlex.quote(str(empty))} /proc"
    hidden = ["unshare", "--mount", "--map-root-user", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    try:
        possible = subprocess.run([*hidden, "true"], capture_output=True, timeout=30).returncode
    except FileNotFoundError:
        possible = -1
    if possible != 0:
        pytest.skip("needs a mount namespace")
    site.build("ext", module("Py_RETURN_NONE;"))
    site.write(
        "without_proc.py",
        """
        import _extwork as w
        from subinterp import InterpreterPool
        with InterpreterPool(2) as pool:
            for told in pool.broadcast(w.explain, "ext"):
                assert told["type"] == "ImportError", told
                assert "/proc/self/fd cannot be used" in told["text"], told
        """,
    )
    site.run(
        """
        import json, subprocess
        command = [*json.loads(sys.argv[2]), sys.executable, SITE + "/without_proc.py"]
        subprocess.run(command, check=True, timeout=60)
        """,
        json.dumps(hidden),
    )


# Init functions -----------------------------------------------------------------------------

IMPORTS = """
static PyObject *f(PyObject *module, PyObject *args) {
    Py_RETURN_NONE;
}
static PyMethodDef methods[] = {{"f", f, METH_VARARGS}, {NULL}};
static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, .m_name = NAME, .m_methods = methods, .m_size = -1,
};
PyMODINIT_FUNC INIT(void) {
    PyObject *needed = PyImport_ImportModule(NEEDS);
    if (needed == NULL)
        return NULL;
    Py_DECREF(needed);
    return PyModule_Create(&def);
}
"""


def test_an_init_function_imports_what_another_thread_is_importing(site):
    site.build("first", IMPORTS, '-DNEEDS="between"')
    site.build("second", IMPORTS, '-DNEEDS="json"')
    site.write("between.py", "import wait\nwait.one.set()\nwait.two.wait(20)\nimport shared\n")
    site.write("shared.py", "import wait, time\nwait.two.set()\ntime.sleep(0.3)\nimport second\n")
    site.write(
        "wait.py",
        """
        import threading

        one, two = threading.Event(), threading.Event()

        def first():
            import first

        def shared():
            one.wait(20)
            import shared

        def both():
            running = [threading.Thread(target=f, daemon=True) for f in (first, shared)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join(20)
            return [thread.is_alive() for thread in running]
        """,
    )
    site.run("""
        import wait
        pool = InterpreterPool(1, extensions="native")
        stuck = pool.submit(wait.both).result(60)
        if any(stuck):
            os._exit(3)
        pool.shutdown()
    """)


def test_what_is_no_error_is_not_made_one(site):
    site.build(
        "ext",
        """
        PyMODINIT_FUNC INIT(void) {
            PyErr_SetNone(PyExc_KeyboardInterrupt);
            return NULL;
        }
        """,
    )
    site.write(
        "interrupted.py",
        """
        def run():
            try:
                import ext
            except KeyboardInterrupt:
                return True
        """,
    )
    site.run("""
        import interrupted
        assert interrupted.run()
        with InterpreterPool(1) as pool:
            assert pool.submit(interrupted.run).result()
    """)


# Threads --------------------------------------------------------------------------------------


def test_a_thread_that_makes_its_own_state_comes_too_late(site):
    """What pybind11's threads do instead of PyGILState_Ensure."""
    site.build(
        "ext",
        module(
            """
            pthread_t thread;
            if (!PyArg_ParseTuple(args, "ii", &asked, &tell))
                return NULL;
            interp = PyInterpreterState_Get();
            if (pthread_create(&thread, NULL, run, NULL) == 0)
                pthread_detach(thread);
            Py_RETURN_NONE;
            """,
            """
            #include <pthread.h>
            #include <unistd.h>
            static PyInterpreterState *interp;
            static int asked, tell;

            static void say(char c) {
                if (write(tell, &c, 1) != 1)
                    _exit(9);
            }

            static void *run(void *arg) {
                char c;
                say('s');
                while (read(asked, &c, 1) == 1) {
                    say('<');
                    PyThreadState *ts = PyThreadState_New(interp);
                    PyEval_AcquireThread(ts);
                    PyObject *list = PyList_New(3);
                    Py_DECREF(list);
                    PyThreadState_Clear(ts);
                    PyThreadState_DeleteCurrent();
                    say('>');
                }
                return NULL;
            }
            """,
        ),
    )
    site.run(
        STRAYS
        + """
    with InterpreterPool(1, max_tasks_per_child=2) as pool:
        pool.submit(w.use, "ext", "f", asked, tell).result()
        wait_for("s", 1)
        os.write(ask, b"xxx")
        wait_for(">", 3)
        for _ in range(7):
            pool.submit(w.loaded).result()
        assert pool.submit(w.loaded).result() == {}
        os.write(ask, b"x")
        text = wait_for("<", 1) + drain()
        assert ">" not in text, text
    """
    )


def test_a_thread_that_goes_to_and_fro_between_interpreters(site):
    """By callbacks that a library without Python keeps for both, with the lock held."""
    library = build_library(
        site.path / "libs",
        "libcallbacks.so.1",
        """
        typedef void callback(int);
        static callback *callbacks[2];
        void keep(int i, callback *c) { callbacks[i] = c; }
        void call(int i, int depth) { callbacks[i](depth); }
        """,
    )
    site.build(
        "ext",
        module(
            """
            int depth;
            if (!PyArg_ParseTuple(args, "ii", &me, &depth))
                return NULL;
            wrong = NULL;
            interp = PyInterpreterState_Get();
            home = PyThreadState_Get();
            keep(me, visit);
            if (depth)
                call(1 - me, depth - 1);
            if (PyThreadState_Get() != home)
                wrong = "another thread state came back";
            if (wrong) {
                PyErr_SetString(PyExc_RuntimeError, wrong);
                return NULL;
            }
            return PyLong_FromLong(visits);
            """,
            """
            void keep(int i, void callback(int));
            void call(int i, int depth);
            static int me, visits;
            static const char *wrong;
            static PyInterpreterState *interp;
            static PyThreadState *home;

            static void visit(int depth) {
                PyGILState_STATE state = PyGILState_Ensure();
                PyThreadState *here = PyThreadState_Get();
                visits++;
                if (PyThreadState_GetInterpreter(here) != interp || !PyGILState_Check())
                    wrong = "not in its interpreter";
                if (me == 0 && here != home)
                    wrong = "not the thread state that it left by";
                if (PyGILState_GetThisThreadState() != here)
                    wrong = "GetThisThreadState is another one";
                if (depth) {
                    call(1 - me, depth - 1);
                    if (PyThreadState_Get() != here)
                        wrong = "another thread state came back from a visit";
                    PyThreadState *saved = PyEval_SaveThread();
                    call(1 - me, 0);
                    PyEval_RestoreThread(saved);
                }
                PyObject *list = PyList_New(3);
                Py_XDECREF(list);
                PyGILState_Release(state);
            }
            """,
        ),
        libs=[library],
    )
    site.run("""
        one, two = interpreters.create(), interpreters.create()
        assert two.call(w.use, "ext", "f", 1, 0) == 0
        for _ in range(3):
            for depth in range(8):
                one.call(w.use, "ext", "f", 0, depth)
        assert two.call(w.use, "ext", "f", 1, 0) > 0
        two.close()
        one.close()
    """)


# Libraries that ctypes opens ---------------------------------------------------------------


def count_in(path: str, prefix: str) -> tuple[int, int]:
    """Count once, and once more in another opening of the same library."""
    import ctypes
    import sys

    sys.modules["subinterp._extensions"]._COPIED_LIBRARIES = (prefix,)
    return ctypes.CDLL(path).count(), ctypes.CDLL(path).count()


@pytest.mark.parametrize(
    ("prefix", "extensions", "found"),
    [
        ("libours.", "auto", [(1, 2), (1, 2)]),
        ("libtheirs.", "auto", [(1, 2), (3, 4)]),
        ("libours.", "native", [(1, 2), (3, 4)]),
    ],
)
def test_a_listed_library_is_copied(tmp_path, prefix, extensions, found):
    path = build_library(tmp_path, "libours.so", "static int n; int count(void) { return ++n; }")
    # One after the other: what they share is not atomic.
    with (
        subinterp.InterpreterPool(1, extensions=extensions) as one,
        subinterp.InterpreterPool(1, extensions=extensions) as other,
    ):
        assert [
            pool.submit(count_in, str(path), prefix).result(60) for pool in (one, other)
        ] == found


def test_a_listed_library_that_is_no_library(tmp_path):
    (tmp_path / "libours.so").write_text("text")
    with subinterp.InterpreterPool(1) as pool:
        with pytest.raises(OSError, match=r"libours\.so is not a shared object"):
            pool.submit(count_in, str(tmp_path / "libours.so"), "libours.").result(60)
        assert pool.submit(abs, -1).result(60) == 1
