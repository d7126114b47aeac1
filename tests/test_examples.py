"""The examples: as scripts, against serial computations, and with input that will not do."""

from __future__ import annotations

import ast
import contextlib
import gzip
import itertools
import re
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import log_analysis
import parallel_lint
import pipeline
from _support import in_thread, run_script, script_env, wait_until
from subinterp import Event

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
JOBS = ["log_analysis", "monte_carlo", "parallel_lint", "pipeline", "thumbnails"]


def start(name, *args, folder, status=0):
    """Run an example as a script, as a user would; return what it prints on stdout and stderr."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=script_env(),
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def need(name):
    """Skip the test if the package that an example needs is not installed."""
    package = {"monte_carlo": "numpy", "thumbnails": "PIL"}.get(name)
    if package is not None and find_spec(package) is None:
        pytest.skip(f"could not import {package!r}")


# ---- all of them ------------------------------------------------------------------------


def test_the_index_names_every_example():
    named = re.findall(r"^\| \[(\S+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    there = [p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb")]
    # What the servers compute is no example of its own.
    assert sorted([*named, "primes.py"]) == sorted(there)


def test_links_of_the_index_lead_somewhere():
    for document in (EXAMPLES / "README.md", EXAMPLES.parent / "docs" / "servers.md"):
        for link in re.findall(r"\]\(([^):#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_say_what_they_show_and_are_short(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert name == "primes" or f"python examples/{name}.py" in docstring
    assert len(text.splitlines()) < 190


@pytest.mark.parametrize("name", JOBS)
def test_command_lines_that_make_no_sense(name, tmp_path):
    need(name)
    special = {"monte_carlo": ["--paths", "0"], "thumbnails": ["no-such-folder", "small"]}
    wrong = special.get(name, ["--demo", "input"])
    assert "error: " in start(name, *wrong, folder=tmp_path, status=2)[1]
    if name != "pipeline":
        errors = start(name, "--demo", "--workers", "0", folder=tmp_path, status=2)[1]
        assert "max_workers must be greater than 0" in errors


# ---- log analysis -----------------------------------------------------------------------


def summarise_serially(paths):
    total = log_analysis.Summary()
    for path in paths:
        total.add(log_analysis.summarise(path))
    return total


def test_logs_as_a_script(tmp_path, capsys):
    shown, _ = start("log_analysis", "--demo", "--workers", "2", folder=tmp_path)
    log_analysis.show(summarise_serially(log_analysis.make_logs(tmp_path)), 5)
    assert shown == capsys.readouterr().out
    assert shown.startswith("60,000 requests of ")


def test_logs_are_summed_up_as_serially(tmp_path):
    paths = log_analysis.make_logs(tmp_path, 5, 200)
    summary = log_analysis.analyse(paths, 2)
    assert summary == summarise_serially(paths)
    assert summary.requests == 1000 and summary.bad_lines == 5


def test_logs_that_cannot_be_read_are_named_and_the_others_count(tmp_path):
    whole = log_analysis.make_logs(tmp_path, 1, 100)[0]
    cut, plain = tmp_path / "cut.log.gz", tmp_path / "plain.log.gz"
    cut.write_bytes(Path(whole).read_bytes()[:-20])
    plain.write_text("not compressed")
    (tmp_path / "text.log").write_bytes(gzip.decompress(Path(whole).read_bytes()) + b"\xff\n")
    missing = str(tmp_path / "missing.log")
    names = [whole, str(cut), str(plain), missing, str(tmp_path / "text.log")]
    shown, errors = start("log_analysis", *names, folder=tmp_path, status=1)
    for name in (cut, plain, missing):
        assert f"not read to its end: {name}: " in errors
    assert whole not in errors
    assert int(shown.split()[0]) in range(200, 301)


# ---- Monte Carlo ------------------------------------------------------------------------


# In a process of its own: importing NumPy starts threads.
SERIAL_MONTE_CARLO = """
import sys
from functools import partial

sys.path.insert(0, sys.argv[1])
import monte_carlo

work = partial(monte_carlo.simulate, monte_carlo.Option())
mean, error = monte_carlo.estimate(map(work, monte_carlo.batches(45_000, 10_000, 7)))
assert 3.4 < mean < 3.8 and 0 < error < 0.1
print(f"{mean:.4f} +- {error:.4f} after 45,000 paths")
"""


@pytest.mark.packages
def test_monte_carlo(tmp_path):
    need("monte_carlo")
    serial = run_script(SERIAL_MONTE_CARLO, args=[str(EXAMPLES)]).clean().stdout
    # The same to the last digit, whatever the number of workers.
    for workers in ("1", "2"):
        args = ["--paths", "45000", "--seed", "7", "--workers", workers]
        assert start("monte_carlo", *args, folder=tmp_path)[0] == serial


@pytest.mark.packages
def test_monte_carlo_without_chance(tmp_path):
    need("monte_carlo")
    args = ["--volatility", "0", "--strike", "0", "--paths", "10"]
    shown, _ = start("monte_carlo", *args, folder=tmp_path)
    # The discounted average of a price that only earns interest.
    days = [100 * 2.718281828459045 ** (0.03 * (d - 126) / 252) for d in range(1, 127)]
    assert shown == f"{sum(days) / 126:.4f} +- 0.0000 after 10 paths\n"


# ---- thumbnails -------------------------------------------------------------------------


@pytest.mark.packages
def test_thumbnails(tmp_path):
    need("thumbnails")
    import thumbnails as example

    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    example.make_pictures(pictures, 3)
    (pictures / "more" / "picture0.jpg").write_bytes((pictures / "picture0.jpg").read_bytes())
    (pictures / "broken.png").write_bytes((pictures / "picture1.png").read_bytes()[:500])
    (pictures / "text.gif").write_text("not a picture")
    (pictures / "notes.txt").write_text("no picture, and not meant as one")
    # The thumbnails lie among the pictures: a second run must not make thumbnails of them.
    args = [str(pictures), str(pictures / "small"), "--size", "50", "--workers", "2"]
    shown, _ = start("thumbnails", *args, folder=tmp_path, status=1)
    assert start("thumbnails", *args, folder=tmp_path, status=1)[0] == shown

    lines = dict(line.split(": ", 1) for line in shown.splitlines())
    sizes = {"picture0.jpg": "50 x 33", "picture1.png": "33 x 50", "picture2.jpg": "50 x 33"}
    bad = {name: lines.pop(name) for name in ("broken.png", "text.gif")}
    assert lines == {**sizes, "more/picture0.jpg": "50 x 33"}
    assert all(not re.fullmatch(r"\d+ x \d+", problem) for problem in bad.values())

    jobs = example.find_jobs(pictures, tmp_path / "serial", 50)
    # All but what the earlier runs made.
    jobs = [job for job in jobs if "small" not in job.source]
    for done in map(example.make_thumbnail, jobs):
        if not done.problem:
            name = Path(done.job.target).relative_to(tmp_path / "serial")
            assert (pictures / "small" / name).read_bytes() == Path(done.job.target).read_bytes()
            assert f"{done.width} x {done.height}" == lines.pop(str(name).removesuffix(".jpg"))
    assert lines == {}


@pytest.mark.packages
def test_thumbnails_as_a_demo(tmp_path):
    need("thumbnails")
    shown, _ = start("thumbnails", "--demo", "--size", "32", folder=tmp_path)
    assert shown.count(": 32 x 21\n") == shown.count(": 21 x 32\n") == 4


# ---- the pipeline -----------------------------------------------------------------------


def run_serially(lines):
    parsed = map(pipeline.parse, pipeline.read_blocks(lines))
    return pipeline.aggregate(map(pipeline.transform, parsed))


def test_pipeline_as_a_script(tmp_path):
    means = run_serially(pipeline.make_lines())
    expected = "".join(f"{name}: {mean:.2f} degrees Celsius\n" for name, mean in means.items())
    assert start("pipeline", "--demo", folder=tmp_path)[0] == expected
    assert set(means) == {"Accra", "Bergen", "Cusco"}


def test_pipeline_computes_as_serially():
    lines = [*pipeline.make_lines(3 * pipeline.BLOCK + 1), "5,Accra,9999\n", "5, Dakar ,50\n"]
    means = pipeline.run(iter(lines))
    assert means == run_serially(lines)
    assert means["Dakar"] == pytest.approx(10)
    assert pipeline.run([]) == {}


def test_pipeline_names_a_bad_line(tmp_path):
    lines = list(pipeline.make_lines(2 * pipeline.BLOCK))
    lines[pipeline.BLOCK + 1] = "1,Accra\n"
    path = tmp_path / "bad.csv"
    path.write_text("".join(lines))
    errors = start("pipeline", str(path), folder=tmp_path, status=2)[1]
    assert f"{path}: line {pipeline.BLOCK + 2} must be hour,station,fahrenheit, not " in errors
    assert "No such file" in start("pipeline", "missing.csv", folder=tmp_path, status=2)[1]
    path.write_bytes(b"1,Accra,50\n" * 3000 + b"\xff\n")
    assert "utf-8" in start("pipeline", str(path), folder=tmp_path, status=2)[1]


@pytest.mark.parametrize("stage", ["parse", "transform", "aggregate"])
def test_pipeline_ends_when_a_stage_fails(monkeypatch, stage):
    def fail_in(_):
        raise KeyError(stage)

    monkeypatch.setattr(pipeline, stage, fail_in)
    # There is always more to send, and to read.
    with pytest.raises(KeyError, match=stage):
        pipeline.run(itertools.cycle(pipeline.make_lines(10)))


def test_pipeline_reads_ahead_a_few_blocks_only(monkeypatch):
    go, enough = Event(), threading.Event()
    n_read = 0

    def lines():
        nonlocal n_read
        while not enough.is_set():
            n_read += 1
            yield "1,Accra,50\n"

    def wait_first(blocks):
        go.wait(60)
        return {"blocks": sum(1 for _ in blocks)}

    monkeypatch.setattr(pipeline, "aggregate", wait_first)
    with contextlib.ExitStack() as stack:
        stack.callback(go.set)
        stack.callback(enough.set)
        outcome = stack.enter_context(in_thread(pipeline.run, lines()))
        # What fits into three channels, and what each stage and main have at hand.
        bound = (3 * 4 + 3) * pipeline.BLOCK
        wait_until(lambda: n_read > 12 * pipeline.BLOCK)
        time.sleep(0.2)
        assert n_read <= bound
        enough.set()
        go.set()
    assert outcome == [{"blocks": -(-n_read // pipeline.BLOCK)}]


# ---- the linter -------------------------------------------------------------------------


def complaints(source):
    return sorted(parallel_lint.mistakes(ast.parse(source)))


def test_lint_as_a_script(tmp_path):
    (tmp_path / "demo.py").write_text(parallel_lint.DEMO)
    shown, errors = start("parallel_lint", "demo.py", folder=tmp_path, status=1)
    serial = parallel_lint.check_file(str(tmp_path / "demo.py"))
    assert shown == "".join(f"demo.py:{c.line}: {c.message}\n" for c in serial)
    assert errors == f"{len(serial)} complaints about 1 files\n"
    demo, _ = start("parallel_lint", "--demo", folder=tmp_path, status=1)
    assert re.sub(r"^.*(?=demo\.py)", "", demo, flags=re.MULTILINE) == shown


def test_lint_finds_as_serially_and_in_order():
    root = Path(ast.__file__).parent
    paths = parallel_lint.find_files([root / "json", root / "email", root / "ast.py"])
    assert len(paths) > 20
    serial = [complaint for path in paths for complaint in parallel_lint.check_file(path)]
    assert parallel_lint.check(paths, 2) == serial


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f(x, y=[], *, z={}): return x", [1, 1]),
        ("f = lambda x={1}: x", [1]),
        ("def f(x=(), y=None): pass", []),
        ("try: pass\nexcept: pass", [2]),
        ("try: pass\nexcept Exception: pass", []),
        ("1 == None", [1]),
        ("1 is None", []),
        ("assert (1, 2)", [1]),
        ("assert ()", []),
        ("{'a': 1,\n'a': 2, **{}}", [2]),
        ("{'a': 1, 'b': 2}", []),
        ("f'a'", [1]),
        ("x = 1\nf'{x:>10}{x!r:{x}}'", []),
        ("import os.path, sys as system\nos", [1]),
        ("import os\n__all__ = ['os']", []),
    ],
)
def test_lint_knows_mistakes(source, lines):
    assert [line for line, _ in complaints(source)] == lines


def test_lint_of_files_that_cannot_be_parsed(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ny = (\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\nx = '\xe9' == None\n")
    (tmp_path / "broken.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "deep.py").write_text("-" * 100_000 + "1")
    shown, _ = start("parallel_lint", ".", folder=tmp_path, status=1)
    found = [line.split(": ", 1) for line in shown.splitlines()]
    assert [place for place, _ in found] == ["bad.py:2", "broken.py:1", "deep.py:1", "latin.py:2"]
    assert all("cannot be " in what for _, what in found[:3])


def test_lint_of_nothing(tmp_path):
    assert start("parallel_lint", ".", folder=tmp_path) == ("", "0 complaints about 0 files\n")
    errors = start("parallel_lint", "missing", folder=tmp_path, status=2)[1]
    assert "there is no file or folder missing" in errors
