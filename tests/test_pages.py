"""Every example in docs/ and in docstrings runs as it stands and prints what it says."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import subinterp
from _examples import check_output, examples, parameters, run_script

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("example", parameters(*PAGES))
def test_example_runs_as_a_script(example, tmp_path):
    check_output(run_script(tmp_path, example), example)


def test_the_pages_are_found():
    with_examples = {page.relative_to(DOCS).as_posix() for page in PAGES if examples(page)}
    assert {"tutorial.md", "observing.md", "howto/numpy.md"} <= with_examples


def docstrings():
    """Return the examples of each docstring that has some."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [import_module(f"subinterp.{name}") for name in (*subinterp._MODULES, "_core")]
    found = [test for module in modules for test in finder.find(module) if test.examples]
    return [pytest.param(test, id=test.name) for test in found]


@pytest.mark.parametrize("test", docstrings())
def test_example_of_a_docstring(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert failures == []


def test_docstrings_have_examples():
    assert len(docstrings()) >= 3


PAGE = """
```python
x = 6
print(x)  # 6
```
<!-- continues -->
```python
print(x * 7, "or so")  # 42 ...
```
<!-- not run: needs a cluster -->
```python
client.run(x)
```
"""


def test_blocks_that_are_no_scripts(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    [example] = examples(page)
    check_output(run_script(tmp_path, example), example)


@pytest.mark.parametrize("line", ["print(2)", "print(2)  # 3", "print(2)  # 2 ...", "x = 2\n"])
def test_other_output_is_noticed(line, tmp_path):
    example = f"print(1)  # ...\n{line}\n"
    done = run_script(tmp_path, example)
    if "print" in line:
        with pytest.raises(AssertionError):
            check_output(done, example)
    else:
        check_output(done, example)
