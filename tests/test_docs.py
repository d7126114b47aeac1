"""The tables in docs/architecture.md, of roots and of shared state, name everything there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "subinterp" / "_runtime"

# What is never reached by two interpreters: values on a stack, and layouts of CPython's.
PRIVATE = {"si_encoder", "si_reader", "si_debug_offsets", "si_hooks", "si_live_counts", "si_spin"}
PRIVATE |= {"si_mutex", "after_unlock", "wake_up", "chunk_results"}
PRIVATE |= {"si_elf", "si_file_facts", "source", "chain", "patch", "file_id", "redirected", "piece"}


def without_comments(text):
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def structs():
    """Every struct of the C layer that is shared, with its fields."""
    found = {}
    for path in sorted([*RUNTIME.glob("*.h"), *RUNTIME.glob("*.c")]):
        text = without_comments(path.read_text())
        for match in re.finditer(
            r"(?:^typedef struct(?: \w+)?|^struct (\w+)) \{\n(.*?)^\}(?: (\w+))?;",
            text,
            flags=re.DOTALL | re.MULTILINE,
        ):
            name = match[1] or match[3]
            if name not in PRIVATE:
                body = re.sub(r"\{[^{}]*\}", "", match[2])
                found[name] = fields(body)
    return found


def fields(body):
    names = []
    for declaration in body.split(";"):
        plain = re.sub(r"_Atomic\(([^()]*)\)|_Alignas\(\d+\)", r"\1 ", declaration)
        for part in plain.split(","):
            name = re.search(r"(\w+)\s*(?:\[\w*\])*\s*$", part)
            if name:
                names.append(name[1])
    return names


def statics():
    """Every variable of the C layer with static storage, except constants."""
    found = []
    for path in sorted(RUNTIME.glob("*.c")):
        text = without_comments(path.read_text())
        found += re.findall(
            r"^(?: *static(?! inline| const \w+(?: \w+)* (?:\*const )?\w+\[)|_Atomic|int|si_\w+)"
            r" [^(){}\n]*?"
            r"(\w+)(?:\[\w*\])?(?: = [^\n]*)?; *$",
            text,
            flags=re.MULTILINE,
        )
        found += re.findall(r"^static struct \{.*?^\} (\w+);$", text, re.MULTILINE | re.DOTALL)
    return found


def table():
    """(heading, names in the first cell) of each row of the tables."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = []
    heading = ""
    for line in text[text.index("## What is shared between interpreters") :].splitlines():
        if line.startswith("### "):
            heading = line
        elif line.startswith("| `"):
            rows.append((heading, re.findall(r"`([\w.]+)`", line.split("|")[1])))
    return rows


def guarded(struct):
    """Fields of a struct that a table names."""
    found = set()
    for heading, names in table():
        if struct in names:  # "all fields"
            return set(structs()[struct])
        owner = heading if f"`{struct}`" in heading else ""
        for name in names:
            first, _, field = name.rpartition(".")
            owner = first or owner
            if owner == struct or f"`{struct}`" in owner:
                found.add(field)
    return found


def test_the_parsers_see_the_code():
    assert structs()["si_pool"][:3] == ["refs", "generation", "id"]
    assert "n_spare" in structs()["si_channel"]
    assert {"channels", "exec_mu", "this_worker", "si_live", "layout", "done"} <= set(statics())


@pytest.mark.parametrize("name", sorted(structs()))
def test_every_field_of_a_shared_struct_has_its_guard(name):
    assert set(structs()[name]) - guarded(name) == set()


@pytest.mark.parametrize("name", sorted(statics()))
def test_every_static_has_its_guard(name):
    assert any(name in names for heading, names in table() if heading == "### C statics")


def test_the_table_names_nothing_that_is_gone():
    there = {field for names in structs().values() for field in names}
    there |= set(structs()) | set(statics())
    named = {part for _, names in table() for name in names for part in name.split(".")}
    gone = {n for n in named - there if not n.startswith(("_", "si_runtime", "si_maybe"))}
    assert gone == set()


# ---- roots -----------------------------------------------------------------------------

# Names of what finds a "current" thread state, interpreter, worker or context.
LOOK_UP = re.compile(
    r"\b(PyThreadState_Get\w*|_PyThreadState_G\w+|PyInterpreterState_Get(?!\w)|_PyInterpreterState_GET"
    r"|PyGILState_(?:GetThisThreadState|Ensure|Check)|PyEval_GetFrame|PyFrame_GetCurrent"
    r"|si_worker_self|si_context_of|si_is_main_thread|_context(?!\w)"
    # Thread-local variables, but where they are set.
    r"|this_worker(?! = )|visits(?! = ))\b"
)
# Of an object that is given.
GIVEN = {"PyThreadState_GetInterpreter", "PyThreadState_GetFrame", "PyThreadState_GetDict"}


def look_ups_in_c(path):
    """(look-up, function) of each use; declarations and definitions are none."""
    text = re.sub(
        r'/\*.*?\*/|"(?:[^"\\\n]|\\.)*"',
        lambda match: "\n" * match[0].count("\n"),
        path.read_text(),
        flags=re.DOTALL,
    )
    function = ""
    for line in text.splitlines():
        begun = re.match(r"(?:[A-Za-z_][\w *]*[ *])(\w+)\([^;]*$", line)
        if begun:
            function = begun[1]
        elif line.startswith((" ", "\t")):
            yield from ((name, function) for name in LOOK_UP.findall(line) if name not in GIVEN)


def look_ups_in_cython(path):
    text = re.sub(r'"""[\s\S]*?"""', lambda match: "\n" * match[0].count("\n"), path.read_text())
    inside = []
    for line in text.splitlines():
        code = line.split("#")[0]
        indent = len(code) - len(code.lstrip())
        if code.strip():
            inside = [(at, name) for at, name in inside if at < indent]
        begun = re.match(r"\s*(?:def|cdef|cpdef|class)\b[^=(]*?(\w+)\s*(?:\(.*)?[:,(]\s*$", code)
        if begun:
            inside.append((indent, begun[1]))
        for name in LOOK_UP.findall(code):
            if name not in GIVEN and not re.match(r"_context = ", code):
                yield name, ".".join(name for _, name in inside) or path.name


def look_ups():
    found = set(look_ups_in_cython(ROOT / "subinterp" / "_core.pyx"))
    for path in [*RUNTIME.glob("*.c"), *RUNTIME.glob("*.h")]:
        found |= set(look_ups_in_c(path))
    return found


def roots():
    text = (ROOT / "docs" / "architecture.md").read_text()
    part = text[text.index("### The roots") : text.index("## The path of a task")]
    for line in part.splitlines():
        if line.startswith("| `"):
            names, askers = (re.findall(r"`([\w.]+)`", cell) for cell in line.split("|")[1:3])
            yield set(names), set(askers)


def test_the_parser_sees_look_ups():
    assert ("si_context_of", "create_interpreter") in look_ups()
    assert ("visits", "ensure") in look_ups()
    assert ("_context", "PoolCore._open") in look_ups()
    assert ("PyThreadState_Get", "_core.pyx") in look_ups()


def test_only_roots_look_up_what_is_current():
    listed = {(name, asker) for names, askers in roots() for name in names for asker in askers}
    assert look_ups() - listed == set()


def test_every_root_still_looks_something_up():
    found = look_ups()
    for names, askers in roots():
        for asker in askers - {
            "_core._context",
            "si_worker.cx",
            "sys.stdout",
            "sys.unraisablehook",
        }:
            assert any((name, asker) in found for name in names), asker
        for name in names:
            assert any((name, asker) in found for asker in askers), name
