"""Looking into a pool: statistics, progress, traces, stacks, logs, lines."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import os
import random
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError
from functools import partial

import pytest

import _stopwork
import subinterp
from _support import MANY_INTERPRETERS, SANITIZERS, native_threads, run_script, wait_until
from _work import (
    drop_objects,
    fail,
    fail_sometimes,
    hold_lock_in_c,
    identity,
    interpreter_id,
    keep_objects,
    keep_objects_in_a_thread,
    log_records,
    pass_gate,
    sleep_return,
    spin,
    square,
    thread_id,
)
from subinterp import (
    Histogram,
    InterpreterPool,
    PoolStats,
    TaskAbandoned,
    TaskInterrupted,
    TaskTimeout,
    WorkerStats,
    _core,
)

SCALE = float(os.environ.get("SUBINTERP_STRESS", "1.0"))

# ---- statistics -------------------------------------------------------------------


def test_stats_of_a_pool_without_workers():
    with InterpreterPool(3) as pool:
        stats = pool.stats()
    assert isinstance(stats, PoolStats)
    assert stats.workers == ()
    assert stats.max_workers == 3
    assert stats.queue_length == stats.tasks_done == stats.tasks_failed == 0
    assert stats.run_time.count == stats.wait_time.count == 0


def test_each_call_is_counted_once_its_result_is_there(pool):
    for n in range(1, 300):
        pool.submit(identity, n).result()
        stats = pool.stats()
        assert stats.tasks_done == n
    # A worker notes the time a moment later.
    wait_until(lambda: pool.stats().run_time.count == n)
    assert sum(w.tasks_done for w in stats.workers) == n
    assert stats.tasks_failed == 0


def test_failures_are_counted_apart(pool1):
    pool1.submit(identity, 1).result()
    for _ in range(3):
        assert pool1.submit(fail, ValueError).exception()
    stats = pool1.stats()
    assert (stats.tasks_done, stats.tasks_failed) == (1, 3)


def test_items_of_a_map_are_calls(pool):
    assert list(pool.map(square, range(1000), chunksize=10)) == [n * n for n in range(1000)]
    assert pool.stats().tasks_done == 1000
    wait_until(lambda: pool.stats().run_time.count == 100)


def test_items_that_raise_are_counted(pool):
    results = pool.imap_unordered(fail_sometimes, range(100), chunksize=7)
    failed = 0
    while True:
        try:
            next(results)
        except StopIteration:
            break
        except Exception:
            failed += 1
    stats = pool.stats()
    assert failed
    assert (stats.tasks_done, stats.tasks_failed) == (100 - failed, failed)


def test_a_chunk_whose_function_cannot_be_loaded_fails_as_a_whole(pool1):
    def here(n):
        import no_such_module_of_anybody  # noqa: F401

    results = pool1.imap_unordered(here, range(10), chunksize=5)
    for _ in range(10):
        with pytest.raises(ModuleNotFoundError):
            next(results)
    assert pool1.stats().tasks_failed == 10


@pytest.mark.parametrize("limit", [None, 0.05])
def test_interrupted_calls_have_failed(pool1, limit):
    future = pool1.schedule(_stopwork.loop, timeout=limit)
    wait_until(future.running)
    if limit is None:
        assert future.interrupt()
    assert type(future.exception(60)) is (TaskTimeout if limit else TaskInterrupted)
    stats = pool1.stats()
    assert (stats.tasks_done, stats.tasks_failed) == (0, 1)
    assert pool1.submit(identity, 1).result() == 1
    assert pool1.stats().tasks_done == 1


def test_an_abandoned_task_has_failed(stop):
    """It is counted once, when it is left behind, and not once more when it ends."""
    with InterpreterPool(1, interrupt_grace=0.05) as pool:
        future = pool.submit(_stopwork.ignore, stop)
        wait_until(lambda: stop[1])
        assert future.interrupt()
        assert type(future.exception(60)) is TaskAbandoned
        stats = pool.stats()
        assert (stats.tasks_done, stats.tasks_failed) == (0, 1)
        assert stats.run_time.count == 1
        assert stats.busy_seconds >= 0.05
        # Its worker is not one of the pool's any more.
        assert pool.submit(identity, 1).result() == 1
        assert [w.index for w in pool.stats().workers] == [1]
        alive = _core.live_counts()["workers"]
        stop[0] = 1
        wait_until(lambda: _core.live_counts()["workers"] < alive)
        stats = pool.stats()
        assert (stats.tasks_done, stats.tasks_failed) == (1, 1)
        wait_until(lambda: pool.stats().run_time.count == 2)


def test_an_abandoned_chunk_has_failed_as_a_whole(stop):
    with InterpreterPool(1, interrupt_grace=0.05) as pool:
        results = pool.map(partial(_stopwork.ignore_once, stop), range(12), chunksize=12)
        wait_until(lambda: stop[1])
        pool.terminate_workers()
        with pytest.raises(TaskAbandoned):
            next(results)
        stats = pool.stats()
        assert (stats.tasks_done, stats.tasks_failed) == (0, 12)


def test_counts_stay_when_the_pool_is_made_smaller():
    with InterpreterPool(3) as pool:
        pool.broadcast(thread_id)
        assert pool.stats().tasks_done == 3
        pool.resize(1)
        wait_until(lambda: len(pool.stats().workers) == 1)
        stats = pool.stats()
        assert (stats.max_workers, stats.tasks_done) == (1, 3)
        assert pool.submit(identity, 1).result() == 1
        assert pool.stats().tasks_done == 4


def test_busy_and_idle_time(pool1):
    pool1.submit(identity, 1).result()
    begun = time.monotonic()
    pool1.submit(sleep_return, 0.2, None).result()
    time.sleep(0.2)
    stats = pool1.stats()
    took = time.monotonic() - begun
    (worker,) = stats.workers
    assert worker.busy_seconds >= 0.2
    assert worker.idle_seconds >= 0.15
    # Neither is counted twice: what came before the clock began is short.
    assert worker.busy_seconds + worker.idle_seconds <= took + 5
    assert worker.state == "idle"
    # 0.2 s is in the bucket up to 2**28 ns, or later ones on a slow machine.
    assert worker.run_time.percentile(100) >= 0.2
    assert sum(n for end, n in worker.run_time.buckets if end > 0.2) >= 1


def test_time_of_a_task_that_runs_counts(pool1, flag):
    started, gate = flag(), flag()
    future = pool1.submit(pass_gate, gate, None, started)
    started.wait()
    before = pool1.stats().workers[0]
    assert before.state == "running"
    wait_until(lambda: pool1.stats().workers[0].busy_seconds > before.busy_seconds + 0.05)
    assert pool1.stats().tasks_done == 0
    gate.set()
    future.result()
    assert pool1.stats().tasks_done == 1


def test_idle_time_grows_while_nothing_happens(pool1):
    pool1.submit(identity, 1).result()
    before = pool1.stats().idle_seconds
    wait_until(lambda: pool1.stats().idle_seconds > before + 0.05)


def test_queue_length(pool1, flag):
    started, gate = flag(), flag()
    first = pool1.submit(pass_gate, gate, None, started)
    started.wait()
    rest = [pool1.submit(identity, n) for n in range(7)]
    assert pool1.stats().queue_length == 7
    gate.set()
    first.result()
    for future in rest:
        future.result()
    assert pool1.stats().queue_length == 0


def test_waiting_time(pool1, flag):
    started, gate = flag(), flag()
    first = pool1.submit(pass_gate, gate, None, started)
    started.wait()
    second = pool1.submit(identity, 2)
    time.sleep(0.1)
    gate.set()
    first.result(), second.result()
    waited = pool1.stats().wait_time
    # Both: tasks were not short so far.
    assert waited.count == 2
    assert waited.percentile(100) >= 0.1


def test_waiting_time_of_short_tasks_is_a_sample(pool1):
    for n in range(2000):
        pool1.submit(identity, n).result()
    assert pool1.stats().wait_time.count >= 1


def test_bytes(pool1):
    pool1.submit(identity, 1).result()
    before = pool1.stats()
    pool1.submit(identity, b"x" * 1_000_000).result()
    pool1.submit(len, b"x" * 100_000).result()
    after = pool1.stats()
    assert 1_100_000 <= after.bytes_in - before.bytes_in < 1_101_000
    assert 1_000_000 <= after.bytes_out - before.bytes_out < 1_001_000


def test_memory_of_an_interpreter(pool1):
    pool1.submit(identity, 1).result()
    before = pool1.stats().workers[0].memory_bytes
    assert 1 << 20 <= before < 64 << 20
    pool1.submit(keep_objects, 300_000).result()
    held = pool1.stats().workers[0].memory_bytes
    assert held >= before + 300_000 * 24
    pool1.submit(drop_objects).result()
    # Arenas that are empty go back.
    assert pool1.stats().workers[0].memory_bytes < held


def test_memory_that_a_thread_of_a_task_takes(pool1):
    pool1.submit(identity, 1).result()
    before = pool1.stats().workers[0].memory_bytes
    pool1.submit(keep_objects_in_a_thread, 300_000).result()
    assert pool1.stats().workers[0].memory_bytes >= before + 300_000 * 24
    pool1.submit(drop_objects).result()


def test_memory_of_a_fresh_interpreter():
    with InterpreterPool(1, max_tasks_per_child=1) as pool:
        pool.submit(keep_objects, 1_000_000).result()
        pool.submit(identity, 1).result()

        def fresh():
            return all(
                w.memory_bytes is not None and 1 << 20 <= w.memory_bytes < 1_000_000 * 24
                for w in pool.stats().workers
            )

        wait_until(fresh)


def test_memory_that_cannot_be_measured():
    run_script(
        """
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            pool.submit(abs, 1).result()
            assert pool.stats().workers[0].memory_bytes is None
        """,
        env={"PYTHONMALLOC": "malloc"},
    ).clean()


def test_who_the_workers_are(pool):
    made = dict(zip(pool.broadcast(interpreter_id), range(2), strict=True))
    threads = set(pool.broadcast(thread_id))
    workers = pool.stats().workers
    assert all(isinstance(w, WorkerStats) for w in workers)
    assert {w.interpreter for w in workers} == set(made)
    assert {w.thread_id for w in workers} == threads
    assert [w.index for w in workers] == [0, 1]
    names = set(pool.broadcast(_thread_name))
    assert {w.name for w in workers} == names


def _thread_name():
    import threading
    import time

    time.sleep(0.05)  # so that each worker has one
    return threading.current_thread().name


def test_workers_that_are_gone_are_in_the_sums():
    pool = InterpreterPool(2)
    list(pool.map(square, range(100), chunksize=1))
    pool.shutdown()
    stats = pool.stats()
    assert stats.workers == ()
    assert stats.tasks_done == stats.run_time.count == 100
    assert stats.busy_seconds > 0


def test_a_recycled_worker_goes_on_counting():
    with InterpreterPool(1, max_tasks_per_child=2) as pool:
        ids = {pool.submit(interpreter_id).result() for _ in range(6)}
        stats = pool.stats()
    assert len(ids) == 3
    assert stats.tasks_done == 6


def test_stats_from_another_interpreter(pool):
    pool.submit(identity, 1).result()
    with InterpreterPool(1) as other:
        assert other.submit(_tasks_done, pool).result() == 1


def _tasks_done(pool):
    return pool.stats().tasks_done


def test_stats_can_be_sent_and_do_not_change(pool1):
    stats = pool1.stats()
    assert pool1.submit(identity, stats).result() == stats
    with pytest.raises(AttributeError):
        stats.tasks_done = 5


def test_stats_in_the_child_of_a_fork():
    run_script("""
        import os
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            pool.submit(pow, 2, 2).result()
            child = os.fork()
            if not child:
                stats = pool.stats()
                os._exit(7 if stats.workers == () and stats.tasks_done == 0 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """).check()


def test_stats_while_workers_come_and_go():
    stop = threading.Event()

    def look():
        while not stop.is_set():
            for worker in pool.stats().workers:
                assert worker.tasks_done >= 0

    with InterpreterPool(3, max_tasks_per_child=5) as pool:
        lookers = [threading.Thread(target=look) for _ in range(2)]
        for thread in lookers:
            thread.start()
        done = sum(future.result() for future in [pool.submit(identity, 1) for _ in range(60)])
        stop.set()
        for thread in lookers:
            thread.join()
        assert done == pool.stats().tasks_done == 60


def test_histogram():
    counts = [0] * 44
    counts[1], counts[10], counts[43] = 2, 1, 1
    histogram = Histogram(tuple(counts))
    assert histogram.count == 4
    assert histogram.buckets == [(2e-9, 2), (1.024e-06, 1), (math.inf, 1)]
    assert histogram.percentile(0) == 2e-9
    assert histogram.percentile(50) == 2e-9
    assert histogram.percentile(75) == 1.024e-06
    assert histogram.percentile(100) == math.inf
    assert (histogram + histogram).count == 8
    assert repr(histogram) == "<Histogram of 4: below 2 ns: 2, below 1.02 us: 1, below inf s: 1>"
    assert math.isnan(Histogram((0,) * 44).percentile(50))
    assert repr(Histogram((0,) * 44)) == "<Histogram of 0>"
    with pytest.raises(ValueError, match="between 0 and 100"):
        histogram.percentile(101)


# ---- progress -----------------------------------------------------------------------


class Bar:
    """What tqdm looks like from here."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, total=None, desc=None):
        self.total, self.desc, self.n, self.closed = total, desc, 0, False
        Bar.made.append(self)

    def update(self, n=1):
        assert not self.closed
        self.n += n

    def close(self):
        self.closed = True


@pytest.fixture
def bars():
    Bar.made.clear()
    yield Bar.made
    Bar.made.clear()


def test_progress_of_map(pool, bars):
    assert list(pool.map(square, range(50), progress=Bar)) == [n * n for n in range(50)]
    (bar,) = bars
    assert (bar.total, bar.n, bar.closed) == (50, 50, True)


def test_progress_goes_with_what_was_read(pool, bars):
    results = pool.map(square, range(50), progress=Bar)
    assert (bars[0].n, next(results), bars[0].n, next(results), bars[0].n) == (0, 0, 1, 1, 2)
    results.close()
    assert bars[0].closed
    assert list(results) == []


def test_progress_of_unknown_length(pool, bars):
    assert len(list(pool.map(square, iter(range(20)), progress=Bar))) == 20
    assert (bars[0].total, bars[0].n) == (None, 20)


def test_progress_of_imap_unordered_counts_failures(pool, bars):
    results = pool.imap_unordered(fail_sometimes, range(40), progress=Bar)
    read = 0
    while True:
        try:
            next(results)
        except StopIteration:
            break
        except Exception:
            pass
        read += 1
    assert read == bars[0].n == 40
    assert bars[0].closed


def test_progress_of_starmap(pool, bars):
    assert pool.starmap(pow, [(2, 3), (3, 2)], progress=Bar) == [8, 9]
    assert (bars[0].total, bars[0].n, bars[0].closed) == (2, 2, True)


def test_a_failure_ends_the_bar_of_map(pool, bars):
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1, 1, 1], [1, 0, 1], chunksize=1, progress=Bar))
    assert bars[0].n == 1
    assert bars[0].closed


def test_progress_as_a_partial_class(pool, bars):
    list(pool.map(square, range(3), progress=partial(Bar, desc="squares")))
    assert (bars[0].desc, bars[0].n) == ("squares", 3)


def test_progress_as_a_callable(pool):
    seen = []
    list(pool.map(square, range(3), progress=lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_forgotten_map_closes_its_bar(pool, bars):
    results = pool.map(square, range(3), progress=Bar)
    next(results)
    del results
    assert bars[0].closed


def test_progress_with_tqdm(pool, capsys, monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # no thread that stays
    assert sum(pool.map(square, range(10), progress=True)) == 285
    assert "10/10" in capsys.readouterr().err


def test_progress_without_tqdm_says_what_to_install(pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    for start in (pool.map, pool.imap_unordered, pool.starmap):
        with pytest.raises(ImportError, match="pip install tqdm"):
            start(square, range(10), progress=True)
    # Nothing was begun.
    assert pool.stats().queue_length == 0 and pool.stats().workers == ()


def test_progress_of_a_wrong_kind(pool):
    with pytest.raises(TypeError, match="progress must be True, False, a class"):
        pool.map(square, range(10), progress="yes")


# ---- traces -----------------------------------------------------------------------------


def load(path):
    with open(path) as file:
        trace = json.load(file)
    events = trace["traceEvents"]
    for event in events:
        assert event["ph"] in "MXsf"
        assert event["pid"] == os.getpid()
        if event["ph"] != "M":
            assert event["ts"] >= 0
    return trace, events


def slices(events, cat="task"):
    return [e for e in events if e["ph"] == "X" and e["cat"] == cat]


def rows(events):
    return {
        e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"
    }


def test_trace(pool, tmp_path):
    path = tmp_path / "run.json"
    threads = set(pool.broadcast(thread_id))
    begun = time.monotonic()
    with pool.trace(path) as trace:
        futures = [pool.submit(sleep_return, 0.01, n) for n in range(10)]
        assert [f.result() for f in futures] == list(range(10))
    took = (time.monotonic() - begun) * 1e6
    assert trace.path == str(path)
    about, events = load(path)
    assert about["otherData"]["tasks without room"] == 0
    tasks = slices(events)
    assert len(tasks) == 10
    assert {t["name"] for t in tasks} == {"sleep_return"}
    assert {t["tid"] for t in tasks} <= threads
    for tid in threads & {t["tid"] for t in tasks}:
        assert rows(events)[tid].startswith("interp")
        # One task after the other.
        row = sorted((t["ts"], t["ts"] + t["dur"]) for t in tasks if t["tid"] == tid)
        for (_, end), (start, _) in itertools.pairwise(row):
            assert start >= end - 0.01
    for task in tasks:
        assert task["dur"] >= 10_000
        assert task["ts"] + task["dur"] <= took
        assert task["args"]["calls"] == 1


def test_arrows_of_a_trace(pool, tmp_path):
    with pool.trace(tmp_path / "run.json"):
        for future in [pool.submit(square, n) for n in range(100)]:
            future.result()
    _, events = load(tmp_path / "run.json")
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(starts) == len(ends) == 100
    assert starts.keys() == ends.keys()
    tasks = {(t["tid"], t["ts"]): t for t in slices(events)}
    submits = {(t["tid"], t["ts"]): t for t in slices(events, "submit")}
    for flow, start in starts.items():
        end = ends[flow]
        assert end["bp"] == "e"
        assert start["ts"] <= end["ts"]
        assert start["tid"] == threading.get_native_id()
        # Each end lies in a slice of its row.
        assert tasks[end["tid"], end["ts"]]["name"] == "square"
        assert submits[start["tid"], start["ts"]]["name"] == "submit square"
    # Slices of one row do not overlap.
    row = sorted((s["ts"], s["dur"]) for s in slices(events, "submit"))
    for (ts, dur), (following, _) in itertools.pairwise(row):
        assert ts + dur <= following + 0.001


def test_names_in_a_trace(pool1, tmp_path):
    class Callable:
        def __call__(self):
            return 1

    with pool1.trace(tmp_path / "run.json"):
        pool1.submit(pow, 2, 2).result()
        pool1.submit(lambda: 1).result()
        pool1.submit("text".upper).result()
        pool1.submit(Callable()).result()
        pool1.submit(partial(pow, 2), 3).result()
        assert pool1.submit(fail, ValueError).exception()
        list(pool1.map(square, range(10), chunksize=5))
    _, events = load(tmp_path / "run.json")
    names = [t["name"] for t in sorted(slices(events), key=lambda t: t["ts"])]
    assert names[0] == "pow"
    assert names[1].endswith("<lambda>")
    assert names[2] == "str.upper"
    assert names[3].endswith("Callable")
    assert names[4].endswith("partial")
    assert names[5:] == ["fail", "square", "square"]
    by_name = {t["name"]: t["args"] for t in slices(events)}
    assert (by_name["fail"]["failed"], by_name["pow"]["failed"]) == (1, 0)
    assert by_name["square"]["calls"] == 5


def test_a_task_that_still_runs_is_in_the_trace(pool1, flag, tmp_path):
    started, gate = flag(), flag()
    with pool1.trace(tmp_path / "run.json"):
        future = pool1.submit(pass_gate, gate, 5, started)
        started.wait()
        time.sleep(0.05)
    (task,) = slices(load(tmp_path / "run.json")[1])
    assert task["args"]["unfinished"] is True
    assert task["dur"] >= 50_000
    gate.set()
    assert future.result() == 5


def test_an_abandoned_task_is_in_the_trace(tmp_path, stop):
    """As long as it took its thread; another worker goes on meanwhile."""
    with InterpreterPool(1, interrupt_grace=0.05) as pool:
        with pool.trace(tmp_path / "run.json"):
            future = pool.submit(_stopwork.ignore, stop)
            wait_until(lambda: stop[1])
            assert future.interrupt()
            assert type(future.exception(60)) is TaskAbandoned
            assert pool.submit(identity, 1).result() == 1
        alive = _core.live_counts()["workers"]
        with pool.trace(tmp_path / "later.json"):
            stop[0] = 1
            wait_until(lambda: _core.live_counts()["workers"] < alive)
    tasks = {t["name"]: t for t in slices(load(tmp_path / "run.json")[1])}
    assert tasks["ignore"]["args"]["unfinished"] is True
    assert "unfinished" not in tasks["identity"]["args"]
    assert tasks["ignore"]["tid"] != tasks["identity"]["tid"]
    assert slices(load(tmp_path / "later.json")[1]) == []


def test_an_abandoned_task_that_ends_is_complete_in_the_trace(tmp_path, stop):
    with InterpreterPool(1, interrupt_grace=0.05) as pool, pool.trace(tmp_path / "run.json"):
        future = pool.submit(_stopwork.ignore, stop)
        wait_until(lambda: stop[1])
        assert future.interrupt()
        assert type(future.exception(60)) is TaskAbandoned
        alive = _core.live_counts()["workers"]
        stop[0] = 1
        wait_until(lambda: _core.live_counts()["workers"] < alive)
    (task,) = slices(load(tmp_path / "run.json")[1])
    assert "unfinished" not in task["args"]
    assert task["args"]["failed"] == 1
    assert task["dur"] >= 50_000


@pytest.mark.stress
@pytest.mark.parametrize("recycle", [None, 20], ids=["kept", "recycled"])
def test_interrupted_tasks_are_counted_and_traced_once(tmp_path, recycle):
    """At random moments of their lives, while the pool changes its size, too."""
    rng = random.Random(3)
    ends = {"done": 0, "failed": 0}
    wanted = int(max(1000, 5000 * SCALE) * MANY_INTERPRETERS)
    with (
        InterpreterPool(2, interrupt_grace=30, max_tasks_per_child=recycle) as pool,
        pool.trace(tmp_path / "run.json"),
    ):
        for n in range(0, wanted, 10):
            seconds = [rng.choice([0.0, 0.0005, 0.002]) for _ in range(10)]
            batch = [
                pool.schedule(_stopwork.own, (n + i, s, i % 4), timeout=rng.choice([None, 0.001]))
                for i, s in enumerate(seconds)
            ]
            pool.resize(rng.randrange(1, 4))
            for future in batch:
                if rng.random() < 0.5:
                    with contextlib.suppress(TimeoutError, CancelledError):
                        future.exception(rng.random() * 0.002)
                    future.interrupt()
            for future in batch:
                try:
                    future.result(60)
                    ends["done"] += 1
                except (TaskInterrupted, TaskTimeout):
                    ends["failed"] += 1
                except CancelledError:
                    pass  # no worker has begun it
        stats = pool.stats()
        assert (stats.tasks_done, stats.tasks_failed) == (ends["done"], ends["failed"])
        wait_until(lambda: pool.stats().run_time.count == sum(ends.values()))
    tasks = slices(load(tmp_path / "run.json")[1])
    assert len(tasks) == sum(ends.values())
    assert sum(t["args"]["failed"] for t in tasks) == ends["failed"]
    assert not [t for t in tasks if "unfinished" in t["args"]]
    assert ends["failed"]


def test_names_in_a_trace_are_not_interrupted(pool1, tmp_path):
    """Looking for a function's name may run code of its own; an interruption waits for its end."""
    with pool1.trace(tmp_path / "run.json"):
        future = pool1.submit(_stopwork.SlowName())
        wait_until(future.running)
        time.sleep(0.1)
        assert future.interrupt()
        assert type(future.exception(60)) is TaskInterrupted
    (task,) = slices(load(tmp_path / "run.json")[1])
    assert task["name"] == "slow"


def test_a_task_that_ran_before_the_trace_is_not_in_it(pool1, flag, tmp_path):
    started, gate = flag(), flag()
    before = pool1.submit(pass_gate, gate, 5, started)
    queued = pool1.submit(square, 3)
    started.wait()
    with pool1.trace(tmp_path / "run.json"):
        gate.set()
        assert before.result() == 5
        assert queued.result() == 9
        pool1.submit(pow, 2, 2).result()
    _, events = load(tmp_path / "run.json")
    assert [t["name"] for t in sorted(slices(events), key=lambda t: t["ts"])] == ["square", "pow"]
    # It was submitted before: no arrow.
    assert len([e for e in events if e["ph"] == "s"]) == 1


def test_trace_with_start_and_stop(pool1, tmp_path):
    trace = pool1.trace(str(tmp_path / "run.json"))
    assert "under way" in repr(trace)
    pool1.submit(square, 3).result()
    trace.stop()
    trace.stop()
    assert "stopped" in repr(trace)
    assert len(slices(load(tmp_path / "run.json")[1])) == 1
    pool1.submit(square, 3).result()


def test_one_trace_after_the_other(pool1, tmp_path):
    for n in range(1, 4):
        with pool1.trace(tmp_path / "run.json"):
            for _ in range(n):
                pool1.submit(square, 3).result()
        assert len(slices(load(tmp_path / "run.json")[1])) == n


def test_two_traces_at_once(pool1, tmp_path):
    with pool1.trace(tmp_path / "run.json"):
        pool1.submit(square, 3).result()
        with pytest.raises(RuntimeError, match="traced already"):
            pool1.trace(tmp_path / "other.json")
        assert not (tmp_path / "other.json").exists()
    assert len(slices(load(tmp_path / "run.json")[1])) == 1


def test_more_tasks_than_room(pool1, tmp_path):
    with pool1.trace(tmp_path / "run.json", max_tasks=300):
        list(pool1.map(square, range(1000), chunksize=1))
    about, events = load(tmp_path / "run.json")
    kept = len(slices(events))
    assert 300 <= kept <= 512
    assert about["otherData"]["tasks without room"] == 1000 - kept


def test_trace_of_an_error_in_the_block(pool1, tmp_path):
    with pytest.raises(KeyError), pool1.trace(tmp_path / "run.json"):
        pool1.submit(square, 3).result()
        raise KeyError
    assert len(slices(load(tmp_path / "run.json")[1])) == 1


def test_trace_across_the_end_of_the_pool(tmp_path):
    pool = InterpreterPool(2)
    with pool.trace(tmp_path / "run.json"):
        list(pool.map(square, range(100), chunksize=1))
        pool.shutdown()
    assert len(slices(load(tmp_path / "run.json")[1])) == 100


def test_trace_with_bad_arguments(pool1, tmp_path):
    with pytest.raises(OSError):
        pool1.trace(tmp_path / "no" / "such" / "folder")
    with pytest.raises(ValueError, match="at least 1"):
        pool1.trace(tmp_path / "run.json", max_tasks=0)
    with pytest.raises(TypeError, match="must be an integer"):
        pool1.trace(tmp_path / "run.json", max_tasks="many")
    with pool1.trace(tmp_path / "run.json"):  # none of them has begun one
        pass


def test_a_forgotten_trace_warns_and_ends(pool1, tmp_path):
    with pytest.warns(ResourceWarning, match="dropped before its stop"):
        pool1.trace(tmp_path / "run.json")
    with pool1.trace(tmp_path / "run.json"):
        pool1.submit(square, 3).result()


def test_an_empty_trace(pool1, tmp_path):
    with pool1.trace(tmp_path / "run.json"):
        pass
    assert slices(load(tmp_path / "run.json")[1]) == []


def test_trace_in_the_child_of_a_fork():
    run_script("""
        import json, os
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            with pool.trace("run.json"):
                pool.submit(pow, 2, 2).result()
                child = os.fork()
                if child:
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                    pool.submit(pow, 2, 2).result()
            if not child:
                os._exit(7)
        events = json.load(open("run.json"))["traceEvents"]
        assert len([e for e in events if e["ph"] == "X" and e["cat"] == "task"]) == 2
    """).check()


def test_traces_begin_and_end_under_load(pool, tmp_path):
    stop = threading.Event()

    def feed():
        while not stop.is_set():
            list(pool.map(square, range(200), chunksize=1))

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        for _ in range(30):
            with pool.trace(tmp_path / "run.json"):
                pool.submit(square, 3).result()
            _, events = load(tmp_path / "run.json")
            tasks = slices(events)
            assert tasks
            assert all(t["dur"] >= 0 for t in tasks)
    finally:
        stop.set()
        feeder.join()


# ---- stacks ----------------------------------------------------------------------------

CRASHES = (3, 13) <= sys.version_info < (3, 13, 10) or (3, 14) <= sys.version_info < (3, 14, 1)
stacks = pytest.mark.skipif(CRASHES, reason="this CPython's faulthandler may crash")
# The thread sanitizer keeps signals until the thread calls something that it knows.
stacks_at_once = pytest.mark.skipif("libtsan" in SANITIZERS, reason="signals come late")


def dump(pool):
    file = io.StringIO()
    pool.dump_tracebacks(file)
    return file.getvalue()


def parts(text):
    return text.split("Worker ")[1:]


@pytest.mark.skipif(not CRASHES, reason="this CPython's faulthandler is safe")
def test_stacks_are_refused_where_they_may_crash(pool1):
    with pytest.raises(RuntimeError, match=r"needs CPython 3\.13\.10, 3\.14\.1 or newer"):
        pool1.dump_tracebacks()


@stacks
def test_stacks_of_workers_that_wait_and_compute(pool, flag):
    started, gate = flag(), flag()
    waiting = pool.submit(pass_gate, gate, 5, started)
    computing = pool.submit(spin, 2.0)
    started.wait()
    wait_until(lambda: all(w.state == "running" for w in pool.stats().workers))
    wait_until(lambda: "in spin" in dump(pool) and "in pass_gate" in dump(pool))
    text = dump(pool)
    assert len(parts(text)) == 2
    for worker, part in zip(pool.stats().workers, parts(text), strict=True):
        assert part.startswith(f"{worker.name} (thread {worker.thread_id}), running for ")
        assert "_work.py" in part
    gate.set()
    # Nobody was stopped.
    assert waiting.result() == 5
    computing.result()


@stacks
def test_stack_of_a_worker_that_keeps_its_lock(pool1):
    ctypes = pytest.importorskip("ctypes")
    assert ctypes
    future = pool1.submit(hold_lock_in_c, 1)
    wait_until(lambda: "in hold_lock_in_c" in dump(pool1))
    future.result()


@stacks
@stacks_at_once
def test_stacks_in_the_child_of_a_fork_amid_a_dump():
    """The parent's dump waits for a thread that blocks all signals."""
    run_script("""
        import io, os, signal, threading
        from subinterp import Event, InterpreterPool, observing

        def deaf(ready, stop):
            import signal
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
            ready.set()
            stop.wait()

        def dump(pool):
            file = io.StringIO()
            pool.dump_tracebacks(file)
            return file.getvalue()

        ready, stop, texts = Event(), Event(), []
        with InterpreterPool(1) as pool:
            pool.submit(deaf, ready, stop)
            ready.wait()
            observing.PATIENCE = 2
            other = threading.Thread(target=lambda: texts.append(dump(pool)))
            other.start()
            while not observing._Dump.under_way:
                pass
            child = os.fork()
            if not child:
                with InterpreterPool(1) as own:
                    own.submit(pow, 2, 3).result()
                    text = dump(own)
                os._exit(7 if "no Python code runs" in text else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            stop.set()
            other.join()
    """).check()


@stacks
@stacks_at_once
def test_stack_of_an_idle_worker(pool1):
    pool1.submit(identity, 1).result()
    wait_until(lambda: pool1.stats().workers[0].state == "idle")
    text = dump(pool1)
    assert ", idle for " in text
    assert text.endswith(":\n  (no Python code runs)\n\n")


@stacks
def test_stack_of_an_initializer_that_hangs(flag):
    started, gate = flag(), flag()
    with InterpreterPool(1, initializer=pass_gate, initargs=(gate, None, started)) as pool:
        future = pool.submit(identity, 1)
        started.wait()
        text = dump(pool)
        gate.set()
        assert future.result() == 1
    assert "starting" in text and "in pass_gate" in text


@stacks
def test_stacks_without_workers():
    with InterpreterPool(1) as pool:
        assert dump(pool) == ""
    assert dump(pool) == ""


@stacks
def test_stacks_to_a_descriptor_and_to_stderr(pool1, flag, capsys, tmp_path):
    started, gate = flag(), flag()
    future = pool1.submit(pass_gate, gate, None, started)
    started.wait()
    with open(tmp_path / "stacks", "w+b") as file:
        pool1.dump_tracebacks(file.fileno())
        file.seek(0)
        assert b"in pass_gate" in file.read()
    pool1.dump_tracebacks()
    assert "in pass_gate" in capsys.readouterr().err
    gate.set()
    future.result()


@stacks
def test_stacks_to_something_else(pool1):
    with pytest.raises(TypeError, match=r"a text file or a file descriptor, not PosixPath"):
        pool1.dump_tracebacks(__import__("pathlib").Path("x"))


def test_stacks_in_a_worker_are_refused(pool1):
    with pytest.raises(RuntimeError, match="in the main interpreter"):
        pool1.submit(lambda pool: pool.dump_tracebacks(), pool1).result()


@stacks
def test_stacks_leave_handlers_alone(pool1):
    pool1.submit(identity, 1).result()
    numbers = range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
    before = {n: signal.getsignal(n) for n in numbers}
    hits = []
    taken = _core.dump_signal()
    try:
        # The one that was used before is a user's now.
        signal.signal(taken, lambda n, frame: hits.append(n))
        assert len(parts(dump(pool1))) == 1
        assert _core.dump_signal() != taken
        signal.raise_signal(taken)
        assert hits == [taken]
    finally:
        signal.signal(taken, signal.SIG_IGN)
    assert {n: signal.getsignal(n) for n in numbers if n != taken} == {
        n: h for n, h in before.items() if n != taken
    }


@stacks
def test_a_signal_that_comes_late_harms_nobody(pool1):
    pool1.submit(identity, 1).result()
    dump(pool1)
    for _ in range(5):
        os.kill(os.getpid(), _core.dump_signal())  # the default action would end the process
    assert pool1.submit(identity, 2).result() == 2


@stacks
def test_stacks_from_several_threads(pool, flag):
    started, gate = flag(), flag()
    future = pool.submit(pass_gate, gate, None, started)
    started.wait()
    texts = []
    threads = [threading.Thread(target=lambda: texts.append(dump(pool))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.set()
    future.result()
    assert len(texts) == 4
    for text in texts:
        assert text.count("in pass_gate") == 1


@stacks
@stacks_at_once
def test_stacks_of_workers_that_come_and_go():
    with InterpreterPool(3, max_tasks_per_child=2) as pool:
        futures = [pool.submit(spin, 0.002) for _ in range(200)]
        dumps = 0
        while not all(f.done() for f in futures):
            for part in parts(dump(pool)):
                assert "no answer" not in part
            dumps += 1
        for future in futures:
            future.result()
    assert dumps


@stacks
def test_stacks_from_a_signal_handler():
    result = run_script("""
        import os, signal, sys, threading, time
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            signal.signal(signal.SIGUSR1, lambda n, frame: pool.dump_tracebacks(sys.stdout))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            def waits():
                time.sleep(1.5)
            pool.submit(waits).result()
    """).clean()
    assert "in waits" in result.stdout


# ---- names of threads ---------------------------------------------------------------------


def test_threads_have_names_that_the_system_shows():
    with InterpreterPool(2, thread_name_prefix="crunch") as pool:
        threads = pool.broadcast(thread_id)
        names = native_threads()
        assert {names[t] for t in threads} == {"crunch-0", "crunch-1"}


def test_long_names_keep_their_number():
    with InterpreterPool(2, thread_name_prefix="a-very-long-name-of-a-pool") as pool:
        threads = pool.broadcast(thread_id)
        names = native_threads()
        assert {names[t] for t in threads} == {"a-very-long-n-0", "a-very-long-n-1"}


# ---- logs -----------------------------------------------------------------------------------


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@contextlib.contextmanager
def logger(name, level=logging.NOTSET):
    handler = Records()
    found = logging.getLogger(name)
    before = found.level
    found.addHandler(handler)
    found.setLevel(level)
    try:
        yield handler.records
    finally:
        found.removeHandler(handler)
        found.setLevel(before)


def test_records_reach_the_main_handlers():
    with (
        logger("subinterp_test", logging.DEBUG) as records,
        InterpreterPool(1, logging_to_main=True) as pool,
    ):
        pool.submit(log_records, "subinterp_test.child").result()
        wait_until(lambda: len(records) >= 4)
        assert [r.getMessage() for r in records] == ["one 1", "two", "raised", "odd"]
        (worker,) = pool.stats().workers
        for record in records:
            assert record.name == "subinterp_test.child"
            assert record.threadName == record.worker == worker.name
            assert record.interpreter == worker.interpreter
            assert record.process == os.getpid()
            assert record.funcName == "log_records"
        assert [r.levelname for r in records] == ["INFO", "DEBUG", "ERROR", "WARNING"]
        shown = logging.Formatter("%(message)s").format(records[2])
        assert shown.startswith("raised\nTraceback") and shown.endswith("ZeroDivisionError: x")
        assert records[3].extra.startswith("<object object at")


def test_records_of_threads_of_a_task():
    with (
        logger("subinterp_test", logging.DEBUG) as records,
        InterpreterPool(1, logging_to_main=True) as pool,
    ):
        pool.submit(_log_in_a_thread).result()
        wait_until(lambda: len(records) >= 1)
        assert [(r.getMessage(), r.threadName) for r in records] == [("in a thread", "mine")]
        assert records[0].worker == pool.stats().workers[0].name


def _log_in_a_thread():
    import logging
    import threading

    log = logging.getLogger("subinterp_test")
    thread = threading.Thread(target=log.warning, args=("in a thread",), name="mine")
    thread.start()
    thread.join()


def test_levels_are_those_of_main():
    with (
        logger("subinterp_test", logging.ERROR) as records,
        InterpreterPool(1, logging_to_main=True) as pool,
    ):
        pool.submit(log_records, "subinterp_test").result()
        wait_until(lambda: len(records) >= 1)
        assert [r.getMessage() for r in records] == ["raised"]
        # Raised later: heeded where they arrive.
        logging.getLogger("subinterp_test").setLevel(logging.CRITICAL)
        pool.submit(log_records, "subinterp_test").result()
        assert len(records) == 1
        assert pool.submit(_effective_level, "subinterp_test").result() == logging.ERROR


def _effective_level(name):
    import logging

    return logging.getLogger(name).getEffectiveLevel()


def test_disabled_loggers_stay_silent():
    log = logging.getLogger("subinterp_test.silent")
    log.disabled = True
    try:
        with (
            logger("subinterp_test", logging.DEBUG) as records,
            InterpreterPool(1, logging_to_main=True) as pool,
        ):
            pool.submit(log_records, "subinterp_test.silent").result()
            assert records == []
    finally:
        log.disabled = False


def test_nothing_is_sent_without_the_option(pool1):
    with logger("subinterp_test", logging.DEBUG) as records:
        pool1.submit(log_records, "subinterp_test").result()
        assert records == []


def test_records_are_there_while_the_task_runs(flag):
    started, gate = flag(), flag()
    with (
        logger("subinterp_test", logging.DEBUG) as records,
        InterpreterPool(1, logging_to_main=True) as pool,
    ):
        future = pool.submit(_log_and_wait, started, gate)
        started.wait()
        wait_until(lambda: records)
        assert not future.done()
        gate.set()
        future.result()


def _log_and_wait(started, gate):
    import logging

    logging.getLogger("subinterp_test").warning("early")
    started.set()
    gate.wait()


def test_records_of_the_initializer_and_of_the_end():
    with logger("subinterp_test", logging.DEBUG) as records:
        with InterpreterPool(1, initializer=_log_now_and_at_exit, logging_to_main=True) as pool:
            pool.submit(identity, 1).result()
            wait_until(lambda: len(records) >= 1)
            assert [r.getMessage() for r in records] == ["begin"]
        wait_until(lambda: len(records) >= 2)
        assert [r.getMessage() for r in records] == ["begin", "end"]


def _log_now_and_at_exit():
    import atexit
    import logging

    log = logging.getLogger("subinterp_test")
    log.warning("begin")
    atexit.register(log.warning, "end")


def test_records_go_to_the_maker_whoever_waits_for_the_task():
    with (
        logger("subinterp_test", logging.DEBUG) as records,
        InterpreterPool(1, logging_to_main=True) as pool,
        InterpreterPool(1) as other,
    ):
        assert other.submit(_log_elsewhere, pool).result() == 5
        wait_until(lambda: records)
        assert [r.getMessage() for r in records] == ["text"]


def _log_elsewhere(pool):
    return pool.submit(_log_and_return, 5).result()


def test_a_handler_that_raises_does_not_reach_the_caller(capsys):
    class Bad(logging.Handler):
        def filter(self, record):
            raise KeyError("of a filter")

    bad = Bad()
    log = logging.getLogger("subinterp_test")
    log.addHandler(bad)
    try:
        with InterpreterPool(1, logging_to_main=True) as pool:
            assert pool.submit(_log_and_return, 5).result() == 5
    finally:
        log.removeHandler(bad)
    assert "of a filter" in capsys.readouterr().err


def _log_and_return(value):
    import logging

    logging.getLogger("subinterp_test").error("text")
    return value


def test_captured_warnings_of_workers():
    logging.captureWarnings(True)
    try:
        with (
            logger("py.warnings", logging.WARNING) as records,
            InterpreterPool(1, logging_to_main=True) as pool,
        ):
            pool.submit(_warn, "of a worker").result()
            wait_until(lambda: len(records) >= 1)
            assert len(records) == 1
            assert "UserWarning: of a worker" in records[0].getMessage()
    finally:
        logging.captureWarnings(False)


def _warn(text):
    import warnings

    warnings.warn(text, stacklevel=1)


def test_a_parked_interpreter_forgets_the_option():
    with InterpreterPool(1, logging_to_main=True) as pool:
        first = pool.submit(_pretend_and_log).result()
    with logger("subinterp_test", logging.DEBUG) as records:
        with InterpreterPool(1) as pool:
            assert pool.submit(_pretend_and_log).result() == first
        assert records == []
        with InterpreterPool(1, logging_to_main=True) as pool:
            assert pool.submit(_pretend_and_log).result() == first
            wait_until(lambda: len(records) >= 1)
            assert [r.getMessage() for r in records] == ["text"]
    subinterp.set_parked_limit(0)
    subinterp.set_parked_limit(4)


def _pretend_and_log():
    import logging

    from subinterp import _core

    _core._pretend_copies()
    logging.getLogger("subinterp_test").error("text")
    return _core.current_interpreter_id()


# ---- lines -----------------------------------------------------------------------------------

LINES = """
    import sys
    from subinterp import InterpreterPool

    def say(worker, n, size):
        for i in range(n):
            print(f"<{worker}", i, "x" * size, "end>")
        return n

    if __name__ == "__main__":
        with InterpreterPool(4) as pool:
            futures = [pool.submit(say, w, int(sys.argv[1]), int(sys.argv[2])) for w in range(8)]
            for i in range(int(sys.argv[1]) * (not sys.stdout.write_through)):
                print("<main", i, "x" * int(sys.argv[2]), "end>")
            sys.stdout.flush()
            for f in futures:
                f.result()
"""


@pytest.mark.parametrize("size", [3, 300, 20_000])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_of_workers_stay_whole(size, unbuffered):
    n = 40 if size > 1000 else 400
    result = run_script(LINES, args=(str(n), str(size)), env={"PYTHONUNBUFFERED": unbuffered})
    lines = result.clean().stdout.splitlines()
    # Without a buffer main writes its own lines in pieces: then it writes none.
    who = [*range(8), *(["main"] if not unbuffered else [])]
    expected = [f"<{w} {i} {'x' * size} end>" for w in who for i in range(n)]
    assert len(lines) == len(expected)
    assert set(lines) == set(expected)


def test_lines_of_threads_of_one_task_stay_whole():
    result = run_script("""
        import threading
        from subinterp import InterpreterPool

        def say(name):
            for i in range(300):
                print(name, i, "some", "words", "end")

        def several():
            threads = [threading.Thread(target=say, args=(f"t{n}",)) for n in range(4)]
            for t in threads: t.start()
            for t in threads: t.join()

        with InterpreterPool(1) as pool:
            pool.submit(several).result()
    """).clean()
    lines = result.stdout.splitlines()
    assert sorted(lines) == sorted(f"t{n} {i} some words end" for n in range(4) for i in range(300))


def test_a_long_line_in_many_pieces():
    """Its pieces are not copied with each further one: that would take minutes."""
    result = run_script("""
        import sys
        from subinterp import InterpreterPool

        def say(n):
            for _ in range(5):
                for _ in range(n):
                    sys.stdout.write(".")
                print()

        with InterpreterPool(1) as pool:
            pool.submit(say, 1_000_000).result(90)
    """).clean()
    assert result.stdout == ("." * 1_000_000 + "\n") * 5


def test_flush_while_other_threads_begin_lines():
    result = run_script("""
        import sys, threading
        from subinterp import InterpreterPool

        def begin(go_on):
            sys.stdout.write("x")
            go_on.wait()

        def several():
            sys.setswitchinterval(1e-6)
            go_on = threading.Event()
            threads = [threading.Thread(target=begin, args=(go_on,)) for _ in range(400)]
            starter = threading.Thread(target=lambda: [t.start() for t in threads])
            starter.start()
            while starter.is_alive():
                sys.stdout.flush()
            go_on.set()
            for t in threads: t.join()

        with InterpreterPool(1) as pool:
            pool.submit(several).result()
    """).clean()
    assert result.stdout == "x" * 400


def test_what_has_no_end_of_line_is_out_with_its_task(capsys):
    with InterpreterPool(1) as pool:
        pool.submit(print, "a", "b", end="").result()
        assert capsys.readouterr().out == "a b"
        pool.submit(_print_in_a_thread).result()
        assert capsys.readouterr().out == "from a thread"


def _print_in_a_thread():
    import threading

    thread = threading.Thread(target=print, args=("from a thread",), kwargs={"end": ""})
    thread.start()
    thread.join()


def test_flush_is_heeded(capsys, flag):
    started, gate = flag(), flag()
    with InterpreterPool(1) as pool:
        future = pool.submit(_print_and_wait, started, gate)
        started.wait()
        out = ""

        def read():
            nonlocal out
            out += capsys.readouterr().out
            return out

        wait_until(lambda: read() == "50%")
        gate.set()
        future.result()


def _print_and_wait(started, gate):
    print("50%", end="", flush=True)
    started.set()
    gate.wait()


def test_warnings_of_workers_stay_whole():
    result = run_script("""
        import warnings
        from subinterp import InterpreterPool

        def warn(n):
            for i in range(100):
                warnings.warn(f"number {n} {i}", stacklevel=1)

        warnings.simplefilter("always")
        with InterpreterPool(3) as pool:
            list(pool.map(warn, range(6), chunksize=1))
    """).check()
    lines = [line for line in result.stderr.splitlines() if "UserWarning" in line]
    assert len(lines) == 600
    assert {line.partition("UserWarning: ")[2] for line in lines} == {
        f"number {n} {i}" for n in range(6) for i in range(100)
    }


def test_stream_of_a_worker_looks_like_one(pool1):
    facts = pool1.submit(_stream_facts).result()
    assert facts == (1, "<stdout>", True, False, 2, "<stderr>")


def _stream_facts():
    import sys

    out, err = sys.stdout, sys.stderr
    return (out.fileno(), out.name, out.writable(), out.isatty(), err.fileno(), err.name)


def test_write_through_is_heeded():
    result = run_script("""
        import sys
        from subinterp import InterpreterPool
        def say():
            sys.stdout.reconfigure(write_through=True)
            sys.stdout.write("a")
            sys.stdout.flush()
            sys.stdout.write("b\\n")
            try:
                sys.stdout.write(5)
            except TypeError as error:
                print(error)
        with InterpreterPool(1) as pool:
            pool.submit(say).result()
    """).clean()
    assert result.stdout.startswith("ab\n")
    assert "str" in result.stdout


def test_nothing_warns(pool1):
    """Loading what these features need raises no warning in a worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with InterpreterPool(1, logging_to_main=True) as pool:
            pool.submit(log_records, "subinterp_test").result()
