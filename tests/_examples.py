"""Examples in Markdown pages: finds them, runs them as scripts, and checks what they print."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest


def examples(page):
    """Return the text of each block of Python in a page that is to be run.

    A comment in the line above the block says if it is not a script of its own: one that
    continues is run after the one before it, one with "not run" is left out.
    """
    found = []
    for comment, text in re.findall(
        r"(?:^<!-- (continues|not run: [^>]+) -->\n)?^```python\n(.*?)^```$",
        page.read_text(),
        flags=re.DOTALL | re.MULTILINE,
    ):
        if comment == "continues":
            found[-1] += text
        elif not comment:
            found.append(text)
    return found


def expected(example):
    """Return what the comments after print() and calls of loggers say, line by line."""
    return re.findall(
        r"^ *(?:print|.*\.(?:info|warning))\(.*\)  # (.*)$", example, flags=re.MULTILINE
    )


def parameters(*pages):
    """Return a parameter for each example, skipped where a package that it imports is missing."""
    found = []
    for page in pages:
        for number, example in enumerate(examples(page)):
            missing = missing_packages(example)
            found.append(
                pytest.param(
                    example,
                    id=f"{page.stem}-{number}",
                    marks=pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
                )
            )
    return found


def missing_packages(example):
    named = set()
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            named.add(node.module)
    return sorted(n for n in {name.partition(".")[0] for name in named} if not find_spec(n))


def run(folder, *command, **options):
    """Run Python outside of the checkout, so that the installed package is what it finds."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1", "TMPDIR": str(folder)},
        **options,
    )


def run_script(folder, example):
    """Run an example as a script; it must end well, and say nothing on standard error."""
    script = folder / "example.py"
    script.write_text(example)
    done = run(folder, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done


def check_output(done, example):
    """Compare what was printed with the comments, where `...` stands for anything."""
    said, lines = expected(example), done.stdout.splitlines()
    assert len(lines) == len(said), (lines, said)
    for line, comment in zip(lines, said, strict=True):
        pattern = ".*".join(map(re.escape, comment.split("...")))
        assert re.fullmatch(pattern, line), (line, comment)
