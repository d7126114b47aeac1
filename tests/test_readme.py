"""Every example in README.md runs as it stands and prints what its comments say."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from _examples import check_output, examples, expected, parameters, run, run_script

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
README = PAGE.read_text()


def test_there_are_examples():
    assert len(examples(PAGE)) >= 4
    assert all(expected(example) for example in examples(PAGE))


@pytest.mark.parametrize("example", parameters(PAGE))
def test_example_as_a_script(example, tmp_path):
    check_output(run_script(tmp_path, example), example)


@pytest.mark.parametrize("example", parameters(PAGE))
def test_example_from_standard_input(example, tmp_path):
    done = run(tmp_path, "-", input=example)
    assert done.returncode == 0, done.stderr
    check_output(done, example)


def test_every_public_name_in_the_table_exists():
    import subinterp

    named = set(re.findall(r"^\| `(?:subinterp\.)?(\w+)", README, flags=re.MULTILINE))
    assert named - {"send", "integrations"} <= set(subinterp.__all__)
    for module in re.findall(r"^\| `(subinterp(?:\.\w+)+)`", README, flags=re.MULTILINE):
        assert find_spec(module), module
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
