"""The table of shared state in docs/architecture.md names everything there is."""

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
