"""Runs a test suite of another package, and records what came of each test.

`run` is called in a worker, or in the main interpreter. What happens is written as JSON lines as
it happens, so that a crash shows which test it was: ``{"start": ID}``, then
``{"test": ID, "outcome": ..., "why": ...}``; ``{"end": STATUS}`` at last.
"""

import json
import os


class Recorder:
    """A plugin for pytest.

    Parameters
    ----------
    file : text file
        Where the lines go.
    done : set of str
        Tests that an earlier run has recorded; they are left out.
    """

    def __init__(self, file, done):
        self.file = file
        self.done = done
        self.worst = None

    def write(self, **line):
        """Write one line, so that it is there whatever happens next."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def pytest_collection_modifyitems(self, config, items):
        """Leave out what is recorded already."""
        left_out = [item for item in items if item.nodeid in self.done]
        items[:] = [item for item in items if item.nodeid not in self.done]
        config.hook.pytest_deselected(items=left_out)
        self.write(collected=len(items))

    def pytest_collectreport(self, report):
        """Record a module that cannot be imported as a test of its own."""
        if report.failed:
            self.write(test=report.nodeid, outcome="not collected", why=reason(report))

    def pytest_runtest_logstart(self, nodeid):
        """Say which test begins."""
        self.worst = None
        self.write(start=nodeid)

    def pytest_runtest_logreport(self, report):
        """Remember the worst of set-up, call and tear-down."""
        if hasattr(report, "wasxfail"):
            outcome = "xpassed" if report.passed else "xfailed"
        elif report.failed:
            outcome = "failed" if report.when == "call" else "error"
        elif report.skipped:
            outcome = "skipped"
        elif report.when == "call":
            outcome = "passed"
        else:
            return
        if self.worst is None or outcome in ("failed", "error"):
            self.worst = outcome, reason(report)

    def pytest_runtest_logfinish(self, nodeid):
        """Record the test."""
        outcome, why = self.worst or ("passed", "")
        self.write(test=nodeid, outcome=outcome, why=why)


def reason(report):
    """Return the last lines that say why a test did not pass, shortened."""
    if isinstance(report.longrepr, tuple):  # skipped: file, line, text
        return report.longrepr[2][:300]
    if report.longrepr is None:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    # Of a chain, the first exception is the cause: it names what is forbidden.
    for part in getattr(report.longrepr, "chain", ()):
        if part[1] is not None and part[1].message not in text:
            text = f"{part[1].message} <- {text}"
    return text[:2000]


def run(arguments, path, done):
    """Run pytest here.

    Parameters
    ----------
    arguments : list of str
        Its command line.
    path : str
        The file to append to.
    done : list of str
        Tests that are left out.
    """
    import pytest

    # A suite may close or redirect what is open: nothing here writes to the terminal.
    with open(path, "a", encoding="utf-8") as file:
        recorder = Recorder(file, set(done))
        status = pytest.main([*arguments, "-p", "no:cacheprovider"], plugins=[recorder])
        recorder.write(end=int(status), process=os.getpid())
