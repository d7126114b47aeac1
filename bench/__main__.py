"""Run the benchmarks, and report: ``python -m bench``."""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from bench import report
from bench.contenders import ROOT

RESULTS = Path(__file__).parent / "results"


def main():
    """Run what the command line asks for; return the exit status."""
    options = parse()
    if options.report is not None:
        results = report.Results(options.report)
        then = find(options.compare) if options.compare else None
        publish(results, then)
        return 0
    then = find(options.compare) if options.compare else None
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name_of_run()
    command = [
        *(sys.executable, "-m", "pytest", str(Path(__file__).parent)),
        *("-q", "--benchmark-quiet", f"--benchmark-json={path}"),
    ]
    if options.short:
        command.append("--short")
    if options.rivals_only:
        command.append("--rivals-only")
    if options.select:
        command += ["-k", options.select]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not path.exists():
        print("nothing was measured", file=sys.stderr)
        return status or 1
    publish(report.Results(path), then)
    print(f"\n{path}\n{RESULTS / 'report.md'}")
    return status


def parse():
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="two minutes, noisier")
    parser.add_argument("-k", dest="select", metavar="EXPR", help="some cases only, as pytest's -k")
    parser.add_argument("--rivals-only", action="store_true", help="measure without subinterp")
    parser.add_argument(
        "--compare",
        metavar="REV",
        help="set the run beside the last recorded one of a git revision",
    )
    parser.add_argument(
        "--report",
        metavar="JSON",
        type=Path,
        help="only report on an earlier run (bench/results/*.json)",
    )
    return parser.parse_args()


def publish(results, then):
    """Print the report, and write it as Markdown."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "report.md").write_text(report.markdown(results, then))
    print(report.terminal(results, then))


def name_of_run():
    """Name a result file by time, commit and Python."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    changes = "-changed" if git("status", "--porcelain", "-uno") else ""
    return f"{now}-{git('rev-parse', 'HEAD')[:12]}{changes}-{python()}.json"


def find(revision):
    """Return the last recorded run of a revision on this Python."""
    commit = git("rev-parse", "--verify", revision + "^{commit}")[:12]
    found = sorted(RESULTS.glob(f"*-{commit}-{python()}.json"))
    if not commit or not found:
        sys.exit(
            f"no recorded run of {revision} ({commit or 'no such revision'}) with "
            f"{python()}; check it out, and run 'python -m bench' there first"
        )
    return report.Results(found[-1])


def python():
    """Name this Python."""
    return f"py{sys.version_info.major}.{sys.version_info.minor}"


def git(*arguments):
    """Return what git says; an empty string where there is no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
