"""Every example in README.md runs as it stands and prints what its comments say."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def examples():
    """Number each example; those that need a package are skipped without it."""
    for number, example in enumerate(EXAMPLES):
        named = re.findall(r"^ *(?:import|from) (\w+)", example, flags=re.MULTILINE)
        missing = [name for name in named if find_spec(name) is None]
        yield pytest.param(
            number, marks=pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
        )


def run(tmp_path, *command, **options):
    """Run Python outside of the checkout, so that the installed package is what it finds."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        **options,
    )


def expected(example):
    """What the comments after print() calls say, line by line."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", example, flags=re.MULTILINE)


def test_there_are_examples():
    assert len(EXAMPLES) >= 4
    assert all(expected(example) for example in EXAMPLES)


@pytest.mark.parametrize("number", list(examples()))
def test_example_as_a_script(number, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number])
    done = run(tmp_path, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected(EXAMPLES[number])
    assert done.stderr == ""


@pytest.mark.parametrize("number", list(examples()))
def test_example_from_standard_input(number, tmp_path):
    done = run(tmp_path, "-", input=EXAMPLES[number])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected(EXAMPLES[number])


def test_every_public_name_in_the_table_exists():
    import subinterp

    named = set(re.findall(r"^\| `(?:subinterp\.)?(\w+)", README, flags=re.MULTILINE))
    methods = {"send"}
    assert named - methods <= set(subinterp.__all__)
    for method in re.findall(r"`\.(\w+)", "\n".join(re.findall(r"^\|.*", README, re.MULTILINE))):
        assert hasattr(subinterp.InterpreterPool, method)


def test_every_linked_file_exists():
    for link in re.findall(r"\]\(([^):#]+)\)", README):
        assert (ROOT / link).exists()


def test_every_named_command_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)(?:\w+=\S+ )?make ([a-z-]+)", README, flags=re.MULTILINE)
    assert {"demo", "test", "bench"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_block_of_figures_is_marked():
    assert README.count("<!-- figures -->") == README.count("<!-- /figures -->") == 1
