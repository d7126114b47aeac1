"""Several workers in one interpreter, and threads that tasks start."""

from __future__ import annotations

import logging
import os
import random
import time
import warnings
from collections import Counter
from concurrent.futures import CancelledError

import pytest

import _stopwork
import _threadwork as work
import subinterp
from _support import (
    MANY_INTERPRETERS,
    frees_blocked_calls,
    parked_interpreters,
    run_script,
    squares_while_resizing,
    wait_until,
)
from _work import identity, interpreter_id, square
from subinterp import (
    Barrier,
    BrokenInterpreterPool,
    InterpreterPool,
    TaskAbandoned,
    TaskInterrupted,
    _core,
)

LONG = 60
STRESS = min(float(os.environ.get("SUBINTERP_STRESS", "1")), 10) * MANY_INTERPRETERS


def homes(places):
    """Return how many of the threads are in each interpreter."""
    return Counter(interpreter for interpreter, *_ in places)


def fill(pool, workers):
    """Have so many workers run a task at the same time; return where they are."""
    barrier = Barrier(workers)
    return [f.result(LONG) for f in [pool.submit(work.meet, barrier) for _ in range(workers)]]


@pytest.fixture
def pool():
    with InterpreterPool(2, threads_per_interpreter=3, interrupt_grace=0.2) as pool:
        yield pool


@pytest.fixture
def stop():
    """Shared bytes: the first one, if set, ends tasks that ignore all else."""
    buffer = memoryview(subinterp.SharedBuffer(8))
    yield buffer
    buffer[0] = 1


# Where they are -------------------------------------------------------------------------------


def test_as_many_as_asked_for(pool):
    places = fill(pool, 6)
    assert sorted(homes(places).values()) == [3, 3]
    assert len({ident for _, ident, _ in places}) == 6
    assert "6 of 6 workers" in repr(pool)
    stats = pool.stats()
    assert (stats.max_workers, stats.threads_per_interpreter, len(stats.workers)) == (2, 3, 6)
    assert homes((w.interpreter,) for w in stats.workers) == homes(places)


def test_new_interpreters_come_first(pool):
    assert len(homes(fill(pool, 2))) == 2
    assert len(pool.stats().workers) == 2


def test_idle_interpreters_are_preferred(pool):
    fill(pool, 6)
    for _ in range(10):
        time.sleep(0.05)  # until they sleep
        assert len(homes(fill(pool, 2))) == 2


def test_modules_are_shared():
    with InterpreterPool(1, threads_per_interpreter=4) as pool:
        assert len(fill(pool, 4)) == 4
        results = [pool.submit(work.note, n).result(LONG) for n in range(8)]
        assert results[-1] == list(range(8))


def test_functions_by_value_are_shared():
    def local(barrier):
        barrier.wait(60)
        return work.count_objects_of(local)

    with InterpreterPool(1, threads_per_interpreter=4) as pool:
        pool.submit(local, Barrier(1)).result(LONG)
        barrier = Barrier(4)
        assert [f.result(LONG) for f in [pool.submit(local, barrier) for _ in range(4)]] == [1] * 4


def test_thread_names():
    with InterpreterPool(1, threads_per_interpreter=3, thread_name_prefix="many") as pool:
        places = fill(pool, 3)
        assert {name for *_, name in places} == {"many-0", "many-1", "many-2"}
        names = {w.name: w.thread_id for w in pool.stats().workers}
        for name, thread in names.items():
            with open(f"/proc/self/task/{thread}/comm") as comm:
                assert comm.read() == f"{name}\n"


def test_what_belongs_to_a_thread_is_its_own():
    with InterpreterPool(1, threads_per_interpreter=3) as pool:
        barrier = Barrier(3)
        results = [
            f.result(LONG) for f in [pool.submit(work.leave_marks, barrier, n) for n in range(3)]
        ]
        assert results == [((None, None), (n, n)) for n in range(3)]


def test_broadcast_reaches_every_worker(pool):
    assert sorted(Counter(pool.broadcast(interpreter_id)).values()) == [3, 3]


def test_initializer_once_an_interpreter():
    with InterpreterPool(
        2, threads_per_interpreter=3, initializer=work.note, initargs=("begun",)
    ) as pool:
        fill(pool, 6)
        results = [f.result(LONG) for f in [pool.submit(work.note, n) for n in range(20)]]
        assert all(r.count("begun") == 1 and r[0] == "begun" for r in results)


def test_map_and_results(pool):
    assert list(pool.map(square, range(20_000))) == [n * n for n in range(20_000)]
    assert sorted(pool.imap_unordered(square, range(1000), chunksize=7)) == [
        n * n for n in range(1000)
    ]


def test_lines_are_whole(capfd):
    with InterpreterPool(1, threads_per_interpreter=3) as pool:
        barrier = Barrier(3)
        words = ["aaaaaa", "bbbbbb", "cccccc"]
        for future in [pool.submit(work.spell, barrier, word) for word in words]:
            future.result(LONG)
    assert sorted(capfd.readouterr().out.split()) == sorted(words * 20)


def test_log_records_name_their_worker(caplog):
    with (
        caplog.at_level(logging.WARNING),
        InterpreterPool(1, threads_per_interpreter=3, logging_to_main=True) as pool,
    ):
        barrier = Barrier(3)
        places = [f.result(LONG) for f in [pool.submit(work.log_once, barrier) for _ in range(3)]]
        wait_until(lambda: len(caplog.records) == 3, what="three records")
    names = {name for *_, name in places}
    assert {record.worker for record in caplog.records} == names
    assert {record.threadName for record in caplog.records} == names


def test_a_task_waits_for_another_one():
    with InterpreterPool(1, threads_per_interpreter=2) as pool:
        assert pool.submit(_stopwork.wait_for, pool, interpreter_id).result(LONG) > 0


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"threads_per_interpreter": 0}, ValueError, "greater than 0"),
        ({"threads_per_interpreter": 1.5}, TypeError, "integer, not float"),
        ({"threads_per_interpreter": "8"}, TypeError, "integer, not str"),
        ({"threads_per_interpreter": 2049}, ValueError, "at most 4096, not 2 [*] 2049"),
    ],
)
def test_bad_numbers(options, error, text):
    with pytest.raises(error, match=f"threads_per_interpreter.*{text}"):
        InterpreterPool(2, **options)


def test_resize_is_checked_with_the_threads():
    with InterpreterPool(1, threads_per_interpreter=1024) as pool:
        with pytest.raises(ValueError, match=r"at most 4096, not 5 [*] 1024"):
            pool.resize(5)
        assert pool.submit(square, 3).result(LONG) == 9


# Turnover -------------------------------------------------------------------------------------


def test_fewer_interpreters(pool):
    fill(pool, 6)
    pool.resize(1)
    wait_until(lambda: pool._n_workers == 3, what="the end of one interpreter's workers")
    assert sorted(homes(fill(pool, 3)).values()) == [3]


def test_fewer_interpreters_under_load():
    n_items = int(4000 * MANY_INTERPRETERS)
    with InterpreterPool(3, threads_per_interpreter=2) as pool:
        results = squares_while_resizing(pool, n_items, 0.002)
        assert results == [n * n for n in range(n_items)]
        pool.resize(1)
        wait_until(lambda: pool._n_workers <= 2)
        assert len(homes(fill(pool, 2))) == 1


def test_max_tasks_per_child_counts_for_the_interpreter():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = InterpreterPool(1, threads_per_interpreter=3, max_tasks_per_child=6)
    with pool:
        ids = [f.result(LONG) for f in [pool.submit(interpreter_id) for _ in range(60)]]
        assert set(Counter(ids).values()) == {6}
        wait_until(lambda: pool._n_workers <= 3)


def test_recycling_under_load():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = InterpreterPool(2, threads_per_interpreter=4, max_tasks_per_child=10)
    with pool:
        futures = [pool.submit(square, n) for n in range(int(400 * min(STRESS, 1)) + 100)]
        assert [f.result(LONG) for f in futures] == [n * n for n in range(len(futures))]


def test_an_interpreter_that_cannot_be_made():
    with InterpreterPool(1, threads_per_interpreter=3) as pool:
        try:
            # The first worker gives up; another one makes it.
            _core._fail_interpreters(3)
            futures = [pool.submit(square, n) for n in range(10)]
            assert [f.result(LONG) for f in futures] == [n * n for n in range(10)]
        finally:
            _core._fail_interpreters(0)


def test_no_interpreter_can_be_made():
    with InterpreterPool(1, threads_per_interpreter=3) as pool:
        try:
            _core._fail_interpreters(1_000_000)
            future = pool.submit(square, 3)
            with pytest.raises(BrokenInterpreterPool, match="could not be created"):
                future.result(LONG)
        finally:
            _core._fail_interpreters(0)


def test_an_initializer_that_fails():
    with InterpreterPool(1, threads_per_interpreter=3, initializer=divmod, initargs=(1, 0)) as pool:
        futures = []
        with pytest.raises(BrokenInterpreterPool, match="initializer failed"):
            while len(futures) < 100:
                futures.append(pool.submit(square, 3))
                futures[-1].result(LONG)


def test_parked_interpreters_are_taken_by_any_pool():
    subinterp.set_parked_limit(4)
    try:
        with InterpreterPool(1, threads_per_interpreter=3) as pool:
            barrier = Barrier(3)
            futures = [pool.submit(work.hold_copies_and_meet, barrier) for _ in range(3)]
            [first] = {f.result(LONG) for f in futures}
        assert list(parked_interpreters()) == [first]
        with InterpreterPool(1) as pool:
            assert pool.submit(work.hold_copies_and_meet, Barrier(1)).result(LONG) == first
        with InterpreterPool(1, threads_per_interpreter=2, thread_name_prefix="again") as pool:
            places = fill(pool, 2)
            assert homes(places) == {first: 2}
            assert {name for *_, name in places} == {"again-0", "again-1"}
        with InterpreterPool(1, allow_daemon_threads=False) as pool:
            assert pool.submit(interpreter_id).result(LONG) != first
    finally:
        subinterp.set_parked_limit(0)
        wait_until(lambda: not parked_interpreters(), what="the end of parked interpreters")
        subinterp.set_parked_limit(4)


# Stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [_stopwork.loop, pytest.param(_stopwork.sleep, marks=frees_blocked_calls)],
    ids=["loop", "sleep"],
)
def test_only_the_one_that_was_meant_is_interrupted(fn):
    with InterpreterPool(1, threads_per_interpreter=3) as pool:
        futures = [pool.submit(fn) for _ in range(3)]
        wait_until(lambda: all(f.running() for f in futures))
        for n in (1, 2, 0):
            others = [f for f in futures if not f.done() and f is not futures[n]]
            assert futures[n].interrupt()
            assert type(futures[n].exception(LONG)) is TaskInterrupted
            assert all(f.running() for f in others)
        assert pool.submit(square, 3).result(LONG) == 9


def test_interruptions_at_random():
    """No task gets another one's interruption, though they share an interpreter."""
    chance = random.Random(7)
    n_tasks = max(int(2000 * STRESS), 100)
    with InterpreterPool(2, threads_per_interpreter=3) as pool:
        asked = 0
        for start in range(0, n_tasks, 12):
            futures = [
                pool.submit(_stopwork.own, n, chance.random() * 0.003, n % 4)
                for n in range(start, start + 12)
            ]
            marked = {f for f in futures if chance.random() < 0.5}
            for future in marked:
                time.sleep(chance.random() * 0.001)
                asked += future.interrupt()
            for n, future in enumerate(futures, start):
                try:
                    assert future.result(LONG) == n
                except CancelledError:  # interrupted, or before it had begun
                    assert future in marked
        assert asked > n_tasks / 10


def test_interruptions_of_imports():
    """Locks of the import system are not left behind, for the others in the interpreter."""
    for _ in range(int(30 * STRESS) + 10):
        with InterpreterPool(1, threads_per_interpreter=3) as pool:
            futures = [pool.submit(_stopwork.loop) for _ in range(3)]
            wait_until(lambda futures=futures: all(f.running() for f in futures))
            for future in futures:
                future.interrupt()
            assert {type(f.exception(LONG)) for f in futures} == {TaskInterrupted}
            assert pool.submit(work.note, 1).result(LONG) == [1]


def test_one_that_does_not_stop_is_abandoned(stop, pool):
    """The others in its interpreter finish, and go on elsewhere."""
    fill(pool, 6)
    stubborn = pool.submit(_stopwork.ignore, stop)
    wait_until(lambda: stop[1])
    beside = [pool.submit(work.meet, Barrier(6)) for _ in range(5)]
    wait_until(lambda: all(f.running() for f in beside))
    assert stubborn.interrupt()
    assert type(stubborn.exception(LONG)) is TaskAbandoned
    assert all(f.running() for f in beside)
    for future in beside:
        future.interrupt()
    assert {type(f.exception(LONG)) for f in beside} == {TaskInterrupted}
    assert sorted(homes(fill(pool, 6)).values()) == [3, 3]
    stop[0] = 1
    wait_until(lambda: _core.live_counts()["workers"] == 6, what="the end of the abandoned one")


def test_one_that_keeps_the_lock_is_abandoned(stop):
    """Idle workers of its interpreter, which can do nothing, are replaced as well."""
    with InterpreterPool(1, threads_per_interpreter=3, interrupt_grace=0.1) as pool:
        fill(pool, 3)
        holder = pool.submit(work.hold_the_lock_once_told, stop, 200_000_000)
        wait_until(lambda: stop[0] == 1)
        stop[0] = 2
        time.sleep(0.05)
        beside = [pool.submit(square, n) for n in range(20)]
        assert holder.interrupt()
        assert type(holder.exception(LONG)) is TaskAbandoned
        assert [f.result(LONG) for f in beside] == [n * n for n in range(20)]
        assert sorted(homes(fill(pool, 3)).values()) == [3]


@pytest.mark.parametrize("held", [False, True], ids=["python", "keeps the lock"])
def test_exit_with_an_abandoned_one(held):
    task = "sum(itertools.repeat(1))" if held else "stubborn()"
    run_script(
        f"""
        import itertools, sys, time, subinterp

        def stubborn():
            while True:
                try:
                    while True:
                        str(object())
                except BaseException:
                    pass

        with subinterp.InterpreterPool(
            1, threads_per_interpreter=4, interrupt_grace=0.1
        ) as pool:
            pool.broadcast(pow, 2, 3)
            future = pool.schedule(lambda: {task}, timeout=0.2)
            assert isinstance(future.exception(30), subinterp.TaskAbandoned), future
            assert [pool.submit(pow, 2, 3).result(30) for _ in range(8)] == [8] * 8
        sys.exit(7)
        """,
        timeout=60,
    ).clean(7)


def test_exit_while_workers_share_an_interpreter():
    """Exit does not wait for what it was told not to wait for."""
    run_script(
        """
        import sys, time, subinterp

        pool = subinterp.InterpreterPool(2, threads_per_interpreter=4)
        futures = [pool.submit(time.sleep, 1000) for _ in range(8)]
        while not all(f.running() for f in futures):
            time.sleep(0.01)
        pool.shutdown(wait=False, cancel_futures=True)
        sys.exit(5)
        """,
        timeout=60,
    ).clean(5)


def test_exit_while_workers_begin():
    for n in range(4):
        run_script(
            f"""
            import time, subinterp

            pool = subinterp.InterpreterPool(2, threads_per_interpreter=4)
            for _ in range(8):
                pool.submit(pow, 2, 3)
            time.sleep({n} * 0.005)
            pool.shutdown(wait=False, cancel_futures=True)
            """,
            timeout=60,
        ).clean()


def test_fork_beside_them(pool):
    fill(pool, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with InterpreterPool(1, threads_per_interpreter=2) as inner:
            os._exit(inner.submit(identity, 42).result(LONG))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert pool.submit(square, 3).result(LONG) == 9


def test_terminate(pool):
    futures = [pool.submit(_stopwork.loop) for _ in range(6)]
    wait_until(lambda: all(f.running() for f in futures))
    queued = [pool.submit(square, n) for n in range(10)]
    pool.terminate_workers()
    pool.shutdown()
    assert {type(f.exception(LONG)) for f in futures} == {TaskInterrupted}
    assert all(f.cancelled() for f in queued)


def test_blocking_reads_run_beside_each_other():
    """As many as there are workers wait at a time; the last one frees the first."""
    with InterpreterPool(2, threads_per_interpreter=8) as pool:
        pipes = [os.pipe() for _ in range(16)]
        futures = [pool.submit(work.read_all, fd) for fd, _ in pipes]
        wait_until(lambda: all(f.running() for f in futures), what="16 at a time")
        for n, (_, fd) in reversed(list(enumerate(pipes))):
            os.write(fd, b"%d" % n)
            assert futures[n].result(LONG) == b"%d" % n
        for pair in pipes:
            for fd in pair:
                os.close(fd)


# Threads that tasks start ---------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_tasks_may_start_threads(threads):
    with InterpreterPool(1, threads_per_interpreter=threads) as pool:
        futures = [pool.submit(work.start_thread, None) for _ in range(4)]
        assert [f.result(LONG) for f in futures] == [False] * 4  # as their starters are
        assert pool.submit(work.start_thread, True).result(LONG) is True


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_not_allowed(threads):
    with InterpreterPool(1, threads_per_interpreter=threads, allow_threads=False) as pool:
        with pytest.raises(RuntimeError, match="not supported"):
            pool.submit(work.start_thread, False).result(LONG)
        assert len(fill(pool, threads)) == threads


def test_daemon_threads_are_not_allowed():
    with InterpreterPool(1, allow_daemon_threads=False) as pool:
        with pytest.raises(RuntimeError, match="daemon threads"):
            pool.submit(work.start_thread, True).result(LONG)
        assert pool.submit(work.start_thread, False).result(LONG) is False


def test_the_end_says_nothing():
    """On 3.13.0 the module `threading` complained about threads that outlived it."""
    for _ in range(3):
        run_script(
            """
            import time
            import subinterp

            def wait(n):
                time.sleep(0.05)

            with subinterp.InterpreterPool(2, threads_per_interpreter=8) as pool:
                list(pool.map(wait, range(16)))
            """
        ).clean()
