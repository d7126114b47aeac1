"""Notebooks: how a pool looks there, the one in examples/, and the kernel's interrupt."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from _support import run_script, wait_until
from _work import fail, sleep_return, square
from subinterp import InterpreterPool, TaskInterrupted, _html

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


class Page(HTMLParser):
    """What a browser makes of a piece of HTML: cells by row, text, tags; nothing left open."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], set(), [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "colspan"}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


# ---- how a pool looks -------------------------------------------------------------------


def test_html_shows_workers_queue_and_throughput():
    with InterpreterPool(2, thread_name_prefix="crunch") as pool:
        assert list(pool.map(square, range(100))) == [n * n for n in range(100)]
        pool.submit(fail).exception()
        # A worker counts a task after its result is there.
        wait_until(lambda: (pool.stats().tasks_done, pool.stats().tasks_failed) == (100, 1))
        busy = [pool.submit(sleep_return, 60, None) for _ in range(4)]
        wait_until(lambda: pool.stats().queue_length == 2)
        page = Page(pool._repr_html_())
        for future in busy:
            future.interrupt()
    assert page.text.startswith("InterpreterPool ")
    assert ": 2 of 2 workers, open; 2 tasks in the queue" in page.text
    heading, *workers, total = page.rows
    assert heading[:3] == ["worker", "state", "busy"]
    assert [row[:2] for row in workers] == [["crunch-0", "running"], ["crunch-1", "running"]]
    assert sum(int(row[3]) for row in workers) == int(total[3]) == 101
    assert sum(int(row[4]) for row in workers) == int(total[4]) == 1
    assert float(total[5].replace(",", "")) > 0
    assert all(row[2].endswith("%") for row in [*workers, total])


def test_html_of_a_pool_that_has_done_nothing():
    with InterpreterPool(3) as pool:
        page = Page(pool._repr_html_())
    assert "0 of 3 workers, open; 0 tasks in the queue" in page.text
    assert page.rows[1:] == [["in all", "", "0%", "0", "0", "", ""]]


def test_html_escapes_names():
    with InterpreterPool(1, thread_name_prefix="<script>alert('&')</script>") as pool:
        pool.submit(square, 1).result()
        page = Page(pool._repr_html_())
    assert page.rows[1][0] == "<script>alert('&')</script>-0"
    assert page.tags <= {"div", "b", "table", "thead", "tbody", "tfoot", "tr", "th", "td", "span"}


def test_html_has_no_colours_of_its_own():
    with InterpreterPool(1) as pool:
        pool.submit(square, 1).result()
        html = pool._repr_html_()
    # On dark pages and on light ones: the text's own colour, and a grey that shows on both.
    assert "currentColor" in html
    assert "#" not in html
    # Tables in pages without a doctype would be black otherwise.
    assert "color:inherit" in html
    assert html.count("rgba(") == html.count("rgba(128,128,128,.5)")


def test_html_of_a_closed_and_of_a_broken_pool():
    with InterpreterPool(1) as pool:
        pool.submit(square, 1).result()
    page = Page(pool._repr_html_())
    assert "0 of 1 workers, shut down" in page.text
    assert page.rows[-1][3] == "1"
    with InterpreterPool(1, initializer=fail) as pool:
        pool.submit(square, 1).exception()
        assert "broken" in Page(pool._repr_html_()).text


def test_html_of_many_workers_is_short():
    with InterpreterPool(1, threads_per_interpreter=_html.MAX_ROWS + 3) as pool:
        pool.broadcast(square, 1)
        wait_until(lambda: pool.stats().tasks_done == _html.MAX_ROWS + 3)
        html = pool._repr_html_()
    page = Page(html)
    assert len(page.rows) == _html.MAX_ROWS + 3  # the heading, "and so many more", the sum
    assert page.rows[-2] == ["and 3 more"]
    assert page.rows[-1][3] == str(_html.MAX_ROWS + 3)
    assert len(html) < 20_000


def test_html_while_every_lock_of_the_workers_is_held(pool):
    pool.broadcast(nothing)  # they import this module
    busy = [pool.submit(hold_on) for _ in range(2)]
    wait_until(lambda: [w.state for w in pool.stats().workers] == ["running"] * 2)
    for _ in range(20):
        assert "running" in pool._repr_html_()
    for future in busy:
        future.interrupt()
    for future in busy:
        assert isinstance(future.exception(60), TaskInterrupted)


def nothing():
    pass


def hold_on():
    while True:
        pass


def test_html_of_a_pool_that_was_not_initialised():
    pool = InterpreterPool.__new__(InterpreterPool)
    with pytest.raises(RuntimeError, match="was not initialised"):
        pool._repr_html_()


def test_html_is_loaded_only_when_it_is_shown():
    run_script("""
        import sys
        from subinterp import InterpreterPool

        with InterpreterPool(1) as pool:
            pool.submit(abs, -1).result()
            repr(pool)
            assert "subinterp._html" not in sys.modules
            pool._repr_html_()
            assert "subinterp._html" in sys.modules
    """).clean()


# ---- the notebook -----------------------------------------------------------------------


def stored():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_the_notebook_is_stored_without_outputs():
    cells = stored()["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in cells}) == len(cells)


# What a script needs that starts kernels, and keeps its traces out of the home directory.
KERNEL = """
import json, os, sys

for name in ("RUNTIME_DIR", "DATA_DIR", "CONFIG_DIR", "PATH"):
    os.environ["JUPYTER_" + name] = os.path.join(os.getcwd(), name.lower())
os.environ["IPYTHONDIR"] = os.path.join(os.getcwd(), "ipython")
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
"""

EXECUTE = """
import nbclient, nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=120, startup_timeout=120).execute()
print(json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"]))
"""


def need_a_kernel():
    for package in ("nbclient", "nbformat", "ipykernel", "tqdm"):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def outputs():
    """Return what a kernel shows for the notebook: the text, HTML and streams of each code cell."""
    need_a_kernel()
    done = run_script(KERNEL + EXECUTE, args=[str(NOTEBOOK)], timeout=180).check()
    found = []
    for cell in json.loads(done.stdout.splitlines()[-1]):
        by_kind = {"text/plain": "", "text/html": "", "stdout": "", "stderr": ""}
        for part in cell:
            assert part["output_type"] != "error", part
            for kind, value in part.get("data", {}).items():
                by_kind[kind] = by_kind.get(kind, "") + "".join(value)
            if part["output_type"] == "stream":
                by_kind[part["name"]] += "".join(part["text"])
        found.append(by_kind)
    return found


def output_of(outputs, piece):
    """Return what is shown below the one code cell that has this text."""
    code = [cell for cell in stored()["cells"] if cell["cell_type"] == "code"]
    (number,) = [n for n, cell in enumerate(code) if piece in "".join(cell["source"])]
    return outputs[number]


@pytest.mark.integrations
class TestNotebook:
    def test_functions_and_classes_of_cells(self, outputs):
        shown = output_of(outputs, "class Primes")["text/plain"]
        assert shown.count("Primes(below=") == 3
        assert "Primes(below=10000, count=1229)" in shown
        assert output_of(outputs, "factor = 3")["text/plain"] == "[0, 3, 6, 9, 12]"

    def test_progress(self, outputs):
        cell = output_of(outputs, "progress=True")
        primes = [n for n in range(2, 4000) if all(n % d for d in range(2, int(n**0.5) + 1))]
        expected = sum(sum(p < below for p in primes) for below in range(0, 4000, 40))
        assert cell["text/plain"] == str(expected)
        # Text, or with ipywidgets a bar, whose description says the same.
        assert "100/100" in json.dumps(cell)

    def test_what_tasks_print_is_below_their_cell(self, outputs):
        lines = output_of(outputs, "def greet")["stdout"].splitlines()
        assert sorted(lines) == [f"Hello {n}, from a worker!" for n in ("Ada", "Grace")]

    def test_errors(self, outputs):
        shown = output_of(outputs, "def go_on")["stdout"].splitlines()
        assert shown == ["KeyError: 'missing'", "TimeoutError: the task exceeded its time limit"]

    def test_await(self, outputs):
        assert output_of(outputs, "await pool.run")["text/plain"] == "Primes(below=5000, count=669)"

    def test_the_pool_is_shown_as_html(self, outputs):
        *_, shown, closed = outputs
        page = Page(shown["text/html"])
        assert "2 of 2 workers, open; 0 tasks in the queue" in page.text
        assert [row[0] for row in page.rows[1:-1]] == ["notebook-0", "notebook-1"]
        assert shown["text/plain"].startswith("<InterpreterPool")
        page = Page(closed["text/html"])
        assert "0 of 2 workers, shut down" in page.text
        # 3 + 100 + 5 calls of maps, two greetings, two failures, and one awaited.
        assert page.rows[-1][3:5] == ["113", "2"]


INTERRUPT = '''
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(startup_timeout=120)

def run(code, when_begun=lambda: None):
    """Return the names of errors, and what was printed."""
    errors, printed = [], []
    def show(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
            if "begun" in content["text"]:
                when_begun()
        elif message["msg_type"] == "error":
            errors.append(content["ename"])
    client.execute_interactive(code, output_hook=show, timeout=120)
    return errors, "".join(printed)

try:
    print(run("""
from subinterp import InterpreterPool
pool = InterpreterPool(2)
def go_on(n):
    print("begun", flush=True)
    while True: pass
"""))
    print(run("list(pool.map(go_on, range(1)))", manager.interrupt_kernel)[0])
    print(run("print(list(pool.map(lambda n: n * n, range(4))))"))
    # The pool was left open, and ends with the kernel, which needs no killing.
    process = manager.provisioner.process
    client.shutdown()
    manager.finish_shutdown(60)
    print(process.returncode)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
'''


@pytest.mark.integrations
def test_interrupting_the_kernel_stops_tasks_and_leaves_the_pool_usable():
    need_a_kernel()
    done = run_script(KERNEL + INTERRUPT, timeout=180).check()
    assert done.stdout.splitlines() == [
        "([], '')",
        "['KeyboardInterrupt']",
        r"([], '[0, 1, 4, 9]\n')",
        "0",
    ]
