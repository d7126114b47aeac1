"""The demo: its analysis, what it shows, and that wrong results make it fail."""

import importlib.util
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import analysis
import engines
import resampling
import screen

DEMO = Path(__file__).parents[1] / "demo"

SAMPLE = b'''\
"""A module."""
import os


class Outer:
    def method(self, a, b):
        if a and b or not a:
            return [x for x in b if x if x > 1]
        return a if b else None

    class Inner:
        async def run(self):
            async for item in self:
                while item:
                    item -= 1


def branchy(value):
    try:
        match value:
            case 1:
                pass
            case _:
                pass
    except (ValueError, TypeError):
        pass
    except OSError:
        pass

    def nested():
        return lambda: 1 if value else 2

    return nested


if os.name:
    pass
'''


@pytest.fixture(autouse=True)
def quiet_parser():
    with warnings.catch_warnings():
        analysis.prepare()
        yield


@pytest.fixture
def main():
    """Return the demo's main function; it runs in this process."""
    spec = importlib.util.spec_from_file_location("demo_main", DEMO / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def sources(tmp_path):
    """Return a folder with good files, and files that cannot be parsed each for its own reason."""
    root = tmp_path / "sources"
    root.mkdir()
    for number in range(20):
        (root / f"good{number:02}.py").write_bytes(SAMPLE + b"\n# more" * number)
    (root / "empty.py").write_bytes(b"")
    (root / "escape.py").write_bytes(b"pattern = '\\d'\n")
    (root / "bad_syntax.py").write_bytes(b"def f(:\n")
    (root / "bad_encoding.py").write_bytes(b"# coding: no-such-encoding\n")
    (root / "bad_bytes.py").write_bytes(b"name = '\xff\xfe'\n")
    (root / "bad_null.py").write_bytes(b"a = 1\n\x00\n")
    return root


class TestAnalysis:
    def test_counts_definitions_and_branches(self):
        report = analysis.analyse_source("sample.py", SAMPLE)
        assert report.problem == ""
        assert report.size == len(SAMPLE)
        assert report.lines == SAMPLE.count(b"\n")
        assert report.functions == 4
        assert report.classes == 2
        # method: if, and, or, comprehension with two ifs, conditional expression;
        # run: for, while; branchy: two cases, two excepts; nested: one; the module: one.
        assert report.branches == (1 + 2 + 3 + 1) + 2 + 4 + 1 + 1
        assert report.complexity == (1 + 7) + (1 + 2) + (1 + 4) + (1 + 1)

    def test_finds_the_most_complex_and_the_longest_function(self):
        report = analysis.analyse_source("sample.py", SAMPLE)
        assert report.most_complex == (8, "Outer.method", 6)
        assert report.longest == (16, "branchy", 18)

    def test_names_nested_functions_by_their_scopes(self):
        source = b"class A:\n  class B:\n    def f(self):\n      def g(): return 1 and 2\n"
        report = analysis.analyse_source("a.py", source)
        assert report.most_complex == (2, "A.B.f.g", 4)
        assert report.longest == (2, "A.B.f", 3)

    def test_takes_the_first_of_equals(self):
        source = b"def a(): pass\ndef b(): pass\n"
        assert analysis.analyse_source("a.py", source).longest == (1, "a", 1)

    def test_counts_a_last_line_without_end(self):
        assert analysis.analyse_source("a.py", b"a = 1\nb = 2").lines == 2
        assert analysis.analyse_source("a.py", b"").lines == 0

    def test_follows_declared_encodings(self):
        source = "# coding: latin-1\ndef grüße(): pass\n".encode("latin-1")
        assert analysis.analyse_source("a.py", source).longest == (1, "grüße", 2)

    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            (b"def f(:\n", "SyntaxError"),
            (b"  indented = 1\n", "IndentationError"),
            (b"# coding: no-such-encoding\n", "SyntaxError"),
            (b"name = '\xff'\n", "SyntaxError"),
            (b"a = 1\n\x00\n", "SyntaxError"),
        ],
    )
    def test_reports_what_does_not_parse(self, source, kind):
        report = analysis.analyse_source("bad.py", source)
        assert report.problem.startswith(f"{kind}: ")
        assert report.size == len(source)
        assert report.functions == report.branches == 0

    def test_reports_what_is_nested_too_deeply(self):
        report = analysis.analyse_source("deep.py", b"(" * 100_000 + b")" * 100_000)
        assert report.problem

    def test_reports_what_cannot_be_read(self, tmp_path):
        report = analysis.analyse(str(tmp_path / "missing.py"))
        assert report.problem.startswith("FileNotFoundError: ")
        assert report.size == 0

    def test_finds_files_in_a_fixed_order(self, tmp_path):
        for name in ("b.py", "a.py", "z/c.py", "site-packages/x.py", "__pycache__/y.py", "n.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "nowhere.py").symlink_to(tmp_path / "missing")
        found = [os.path.relpath(path, tmp_path) for path in analysis.find_files(str(tmp_path))]
        assert found == ["a.py", "b.py", "z/c.py"]

    def test_finds_the_standard_library(self):
        found = analysis.find_files(analysis.standard_library())
        assert os.path.join(analysis.standard_library(), "ast.py") in found
        assert len(found) > 500

    def test_adds_reports_up(self, sources):
        paths = analysis.find_files(str(sources))
        summary = analysis.summarise(map(analysis.analyse, paths), str(sources))
        assert summary.files == 26
        assert summary.functions == 20 * 4
        assert summary.most_complex == ((8, "Outer.method", 6), "good00.py")
        assert [path for path, _ in summary.problems] == [
            "bad_bytes.py",
            "bad_encoding.py",
            "bad_null.py",
            "bad_syntax.py",
        ]
        assert analysis.count_problems(summary) == {"SyntaxError": 4}

    def test_adds_nothing_up(self):
        summary = analysis.summarise([], "/")
        assert summary.files == 0
        assert summary.longest is None


class TestScreen:
    @pytest.mark.parametrize("width", [1, 10, 30, 40, 60, 80, 200])
    @pytest.mark.parametrize("done", [0, 1, 999, 1711])
    def test_progress_line_fits(self, width, done):
        line = screen.progress_line("InterpreterPoolExecutor", done, 1711, 123.4, width)
        assert len(line) <= width
        if width >= 60:
            assert f"{done:,}/1,711" in line

    def test_progress_line_of_nothing(self):
        assert "0/0" in screen.progress_line("serial", 0, 0, 0.0, 80)

    @pytest.mark.parametrize("blocks", [True, False])
    @pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.01, 0.33, 0.5, 0.999, 1.0, 7.0])
    def test_bar_has_its_width(self, fraction, blocks):
        assert len(screen.bar(fraction, 20, blocks)) == 20

    def test_bar_has_eighths(self):
        assert screen.bar(0.5, 4) == "██  "
        assert screen.bar(1 / 8, 1) == "▏"
        assert screen.bar(1.0, 4) == "████"
        assert screen.bar(0.5, 4, blocks=False) == "##  "

    def test_table_aligns(self):
        lines = screen.table(("", "time", "results"), [("a", "1.00 s", "equal"), ("bcd", "-", "x")])
        assert lines == ["       time  results", "a    1.00 s  equal", "bcd       -  x"]

    @pytest.mark.parametrize("width", [40, 80, 120])
    def test_bars_fit(self, width):
        rows = [("serial", 1.0, "1.00x"), ("subinterp", 1.95, "1.95x")]
        lines = screen.bars(rows, width)
        assert max(map(len, lines)) <= width
        assert lines[1].count("█") > lines[0].count("█")

    def test_bars_of_nothing(self):
        assert screen.bars([], 80) == []
        assert len(screen.bars([("a", 0.0, "0")], 80)) == 1

    def test_plain_stream_gets_no_codes(self):
        stream = io.StringIO()
        shown = screen.Screen(stream)
        with screen.Progress(shown, "serial", 10) as progress:
            progress.update(5)
        shown.write(shown.paint("text", "red"))
        assert stream.getvalue() == "text\n"

    def test_terminal_gets_a_line_that_goes_away(self):
        stream = io.StringIO()
        shown = screen.Screen(stream, width=80, live=True)
        with screen.Progress(shown, "serial", 10, interval=0.0) as progress:
            progress.update(5)
        assert "5/10" in stream.getvalue()
        assert stream.getvalue().endswith("\r\x1b[2K")

    def test_colours_can_be_turned_off(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        assert screen.Screen(io.StringIO(), live=True).paint("text", "red") == "text"
        monkeypatch.delenv("NO_COLOR")
        assert screen.Screen(io.StringIO(), live=True).paint("text", "red") != "text"

    def test_poor_encodings_are_respected(self):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        shown = screen.Screen(stream, width=80)
        assert not shown.blocks
        shown.write("price: 5 €")
        assert stream.buffer.getvalue() == b"price: 5 \\u20ac\n"


class TestComparison:
    """The demo run in this process, with engines made for the test."""

    def run_wrongly(self, change):
        def run(paths, workers):
            yield from change([analysis.analyse(path) for path in paths])

        return [
            engines.Engine("serial", engines.run_serially),
            engines.Engine("wrong", run),
        ]

    def test_equal_results_succeed(self, main, sources, capsys):
        assert (
            main(
                ["--root", str(sources), "--repetitions", "0"],
                self.run_wrongly(lambda reports: reports),
            )
            == 0
        )
        shown = capsys.readouterr().out
        assert "equal" in shown
        assert "not parsed: 4 files (4 SyntaxError)" in shown

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda reports: reports[:-1], "25 reports instead of 26"),
            (lambda reports: [*reports, reports[0]], "27 reports instead of 26"),
            (lambda reports: [reports[1], reports[0], *reports[2:]], "bad_bytes.py: "),
            (lambda reports: [r._replace(problem="") for r in reports], "bad_bytes.py: "),
            (lambda reports: [tuple(report) for report in reports], "bad_bytes.py: "),
        ],
        ids=["dropped", "doubled", "out of order", "changed", "another type"],
    )
    def test_wrong_results_fail(self, main, sources, capsys, change, said):
        assert main(["--root", str(sources), "--repetitions", "0"], self.run_wrongly(change)) == 1
        shown = capsys.readouterr().out
        assert "WRONG" in shown
        assert said in shown
        assert "FAILED: wrong" in shown

    def test_a_broken_engine_fails(self, main, sources, capsys):
        def break_down(reports):
            raise RuntimeError("no more")

        assert (
            main(["--root", str(sources), "--repetitions", "0"], self.run_wrongly(break_down)) == 1
        )
        shown = capsys.readouterr()
        assert "broke: RuntimeError" in shown.out
        assert "no more" in shown.err

    def test_a_broken_reference_fails(self, main, sources, capsys):
        def break_down(paths, workers):
            raise RuntimeError("no more")
            yield

        broken = [engines.Engine("serial", break_down), *self.run_wrongly(lambda r: r)[1:]]
        assert main(["--root", str(sources), "--repetitions", "0"], broken) == 1
        assert "nothing to compare with" in capsys.readouterr().out

    def test_an_engine_that_is_not_here_is_named(self, main, sources, capsys):
        missing = engines.Engine("from the future", None, "new in Python 4")
        chosen = [engines.Engine("serial", engines.run_serially), missing]
        assert main(["--root", str(sources), "--repetitions", "0"], chosen) == 0
        assert "new in Python 4" in capsys.readouterr().out

    def test_no_files_fail(self, main, tmp_path, capsys):
        assert main(["--root", str(tmp_path)]) == 1
        assert "no .py files" in capsys.readouterr().out

    def test_interruption_is_told(self, main, sources, capsys):
        def interrupt(reports):
            raise KeyboardInterrupt

        assert (
            main(["--root", str(sources), "--repetitions", "0"], self.run_wrongly(interrupt)) == 130
        )


@pytest.fixture(scope="module")
def study():
    """Have the packages start their threads before anything is compared."""
    missing = resampling.missing_packages()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    resampling.prepare(resampling.read_patients())
    resampling.repeat_study(0)


@pytest.mark.usefixtures("study")
class TestStudy:
    """The second part."""

    @pytest.fixture
    def findings(self):
        return [resampling.repeat_study(seed) for seed in range(20)]

    def test_a_repetition_depends_on_its_seed_only(self, findings):
        assert [resampling.repeat_study(seed) for seed in (0, 5)] == [findings[0], findings[5]]
        assert len({finding.influence for finding in findings}) == 20

    def test_finds_what_is_known_of_this_data(self, findings):
        for finding in findings:
            assert 0.4 < finding.explained < 0.65
            assert len(finding.influence) == len(resampling.FEATURES) == 10
            assert list(finding.medians) == sorted(finding.medians)
        [strength] = [
            interval
            for interval in resampling.intervals(findings)
            if interval.name == "body mass index"
        ]
        assert 300 < strength.low < strength.middle < strength.high < 800

    def test_mean_without_extremes(self):
        assert resampling.without_extremes([5.0, 1000.0, 3.0, 4.0, *[4.0] * 5, -1000.0]) == 4.0
        assert resampling.without_extremes([7.0]) == 7.0

    def test_wrong_results_fail(self, main, sources, findings, capsys):
        def run(seeds, workers, change=lambda found: found):
            yield from change(findings[: len(seeds)])

        def run_wrongly(seeds, workers):
            yield from run(seeds, workers, lambda found: [found[0], *found[:-1]])

        good, bad = engines.Engine("serial", run), engines.Engine("wrong", run_wrongly)
        arguments = ["--root", str(sources), "--repetitions", "20"]
        files = [engines.Engine("serial", engines.run_serially)]
        assert main(arguments, files, [good, good]) == 0
        assert "body mass index" in capsys.readouterr().out
        assert main(arguments, files, [good, bad]) == 1
        assert "FAILED: wrong (studies)" in capsys.readouterr().out


def test_missing_packages_are_named_in_one_line(main, sources, monkeypatch, capsys):
    monkeypatch.setattr(resampling, "PACKAGES", ("numpy", "no_such_package"))
    files = [engines.Engine("serial", engines.run_serially)]
    assert main(["--root", str(sources)], files) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 1 and "no_such_package" in told[0]


def run_demo(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def test_all_engines_agree_on_made_up_files(sources, tmp_path):
    done = run_demo(tmp_path, "--root", str(sources), "--workers", "2", "--repetitions", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    # Once as it happens and once in the table, for each engine but the first.
    present = [engine for engine in engines.all_engines() if engine.run is not None]
    assert done.stdout.count("  equal\n") == 2 * (len(present) - 1)
    assert "not parsed: 4 files" in done.stdout
    assert done.stderr == ""


@pytest.mark.packages
@pytest.mark.skipif(bool(resampling.missing_packages()), reason="packages are not installed")
def test_all_engines_agree_on_a_study(sources, tmp_path):
    done = run_demo(
        tmp_path, "--root", str(sources), "--limit", "2", "--workers", "2", "--repetitions", "60"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.partition("Repeating a study")[2]
    present = [engine for engine in engines.study_engines() if engine.run is not None]
    assert told.count("  equal\n") == 2 * (len(present) - 1)
    assert "cannot import NumPy" in told
    assert "body mass index" in told
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.hard_timeout(900)
def test_all_engines_agree_on_the_standard_library(tmp_path):
    done = run_demo(tmp_path, "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert "subinterp" in done.stdout
    assert "longest function: " in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
