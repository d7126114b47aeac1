"""Executors: submit, map and its relatives, initializers, shutdown.

The first part is the contract of concurrent.futures and runs on the standard
executors too. The second part is about InterpreterPool alone.
"""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import math
import operator
import os
import threading
import time
import weakref
from concurrent.futures import BrokenExecutor

import pytest

import subinterp
from _support import native_threads, run_script, wait_until
from _work import (
    Flag,
    Gate,
    PlainError,
    add,
    apply_pair,
    capture,
    count_module,
    fail,
    fail_if,
    failing_initializer,
    gate_or_mark,
    gated_wait_for_inner,
    get_argv,
    get_environ,
    get_path,
    get_state,
    get_warning_filters,
    give_work,
    interpreter_id,
    map_in_own_pool,
    meet,
    mul,
    nested_pool,
    pass_gate,
    process_id,
    raise_system_exit,
    set_flag,
    set_state,
    sleep_return,
    slow_failing_initializer,
    square,
    thread_id,
    wait_for_inner,
    wait_forever_for_inner,
)

LONG = 60  # seconds: no test should ever wait this long


# submit --------------------------------------------------------------------------


def test_submit(executor):
    assert executor.submit(pow, 2, 8).result() == 256
    assert executor.submit(mul, 2, y=8).result() == 16


def test_submit_takes_any_keyword(executor):
    future = executor.submit(capture, 1, self=2, fn=3, timeout=4, args=5, kwargs=6)
    expected = {"self": 2, "fn": 3, "timeout": 4, "args": 5, "kwargs": 6}
    assert future.result(LONG) == ((1,), expected)


def test_submit_many_arguments(executor):
    args = tuple(range(200))
    kwargs = {f"k{n}": n for n in range(200)}
    assert executor.submit(capture, *args, **kwargs).result(LONG) == (args, kwargs)


def test_keyword_order_is_kept(executor):
    kwargs = {"z": 1, "a": 2, "m": 3}
    _, arrived = executor.submit(capture, **kwargs).result(LONG)
    assert list(arrived) == ["z", "a", "m"]


def test_submit_without_function(executor):
    with pytest.raises(TypeError):
        executor.submit()
    with pytest.raises(TypeError):
        executor.submit(fn=add, x=1)


def test_submit_something_not_callable(executor):
    with pytest.raises(TypeError):
        executor.submit(3).result(LONG)
    assert executor.submit(add, 1, 2).result(LONG) == 3


def test_wrong_arguments(executor):
    with pytest.raises(TypeError, match="argument"):
        executor.submit(add, 1).result(LONG)
    assert executor.submit(add, 1, 2).result(LONG) == 3


def test_arguments_are_taken_at_submit(executor, flag):
    """What the caller changes later must not matter (threads do see it)."""
    gate = flag()
    blocked = [executor.submit(pass_gate, gate) for _ in range(2)]
    data = [1, 2, 3]
    future = executor.submit(sum, tuple(data))
    data.append(1000)
    gate.set()
    assert future.result(LONG) == 6
    for future in blocked:
        future.result(LONG)


# map -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 2, 3, 7, 100, 1000])
def test_map_is_ordered(executor, chunksize):
    expected = [n * n for n in range(300)]
    assert list(executor.map(square, range(300), chunksize=chunksize)) == expected


def test_map_default_chunks(executor):
    assert list(executor.map(square, range(1000))) == [n * n for n in range(1000)]


def test_map_several_iterables(executor):
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    # The shortest one ends it.
    assert list(executor.map(add, range(5), itertools.count())) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_empty(executor, chunksize):
    assert list(executor.map(square, [], chunksize=chunksize)) == []
    assert list(executor.map(add, [], [1], chunksize=chunksize)) == []


def test_map_is_an_iterator(executor):
    results = executor.map(square, range(4))
    assert iter(results) is results
    assert next(results) == 0
    assert next(results) == 1
    assert list(results) == [4, 9]
    assert list(results) == []
    assert next(results, "end") == "end"


@pytest.mark.parametrize("chunksize", [1, 2, 3, 10])
def test_map_exception(executor, chunksize):
    results = executor.map(fail_if, range(10), itertools.repeat([5]), chunksize=chunksize)
    seen = []
    with pytest.raises(PlainError) as caught:
        for result in results:
            seen.append(result)
    assert caught.value.args == (5,)
    if chunksize == 1:
        assert seen == [0, 1, 2, 3, 4]
    assert list(results) == []  # an iterator that failed has ended
    assert executor.submit(add, 1, 2).result(LONG) == 3


def test_map_slow_first_item(executor):
    delays = [0.2, 0, 0, 0, 0]
    assert list(executor.map(sleep_return, delays, range(5))) == list(range(5))


def test_map_timeout(executor, flag):
    gate = flag()
    results = executor.map(pass_gate, [gate], timeout=0.1)
    with pytest.raises(TimeoutError):
        next(results)
    gate.set()


def test_map_timeout_long_enough(executor):
    assert list(executor.map(square, range(10), timeout=LONG)) == [n * n for n in range(10)]


@pytest.mark.not_on("threads", "interpreters", reason="they ignore chunksize")
def test_map_bad_chunksize(executor):
    for chunksize in (0, -1):
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(square, range(3), chunksize=chunksize)


def test_map_closed_early(executor):
    results = executor.map(square, range(1000))
    assert next(results) == 0
    del results
    gc.collect()
    assert executor.submit(add, 1, 2).result(LONG) == 3


def test_map_of_a_generator(executor):
    assert list(executor.map(square, (n for n in range(100)))) == [n * n for n in range(100)]


def test_maps_interleaved(executor):
    first = executor.map(square, range(100))
    second = executor.map(operator.neg, range(100))
    assert list(zip(first, second, strict=True)) == [(n * n, -n) for n in range(100)]


@pytest.mark.parametrize("count", [0, 1, 10, 1000])
def test_map_read_after_the_with_block(executor_kind, make_executor, count):
    executor = make_executor()
    with executor:
        results = executor.map(square, range(count))
    assert list(results) == [n * n for n in range(count)]


def test_map_after_shutdown(make_executor):
    executor = make_executor()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        list(executor.map(square, range(3)))


# Initializers ------------------------------------------------------------------------


@pytest.mark.not_on("interpreters", reason="its workers need the initializer for their sys.path")
def test_initializer(make_executor):
    set_state("unset")
    executor = make_executor(initializer=set_state, initargs=("set",))
    assert {executor.submit(get_state).result(LONG) for _ in range(20)} == {"set"}
    executor.shutdown()
    set_state("unset")


@pytest.mark.not_on("interpreters", reason="it finds out in the worker")
def test_initializer_must_be_callable(executor_kind, make_executor):
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make_executor(initializer=123)


@pytest.mark.not_on("interpreters", reason="its workers need the initializer for their sys.path")
@pytest.mark.parametrize(
    ("initializer", "initargs"), [(failing_initializer, ()), (slow_failing_initializer, (0.2,))]
)
def test_failing_initializer(make_executor, initializer, initargs):
    executor = make_executor(initializer=initializer, initargs=initargs)
    try:
        futures = [executor.submit(add, 1, 2) for _ in range(5)]
    except BrokenExecutor:
        futures = []  # it broke before the last one was taken
    for future in futures:
        with pytest.raises(BrokenExecutor):
            future.result(LONG)

    def broken():
        try:
            executor.submit(add, 1, 2).exception(LONG)
        except BrokenExecutor:
            return True
        return False

    wait_until(broken, what="the broken executor refusing work")
    with pytest.raises(BrokenExecutor):
        list(executor.map(square, range(3)))
    executor.shutdown()


# Arguments of the constructor ---------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_too_small(executor_kind, make_executor, number):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        make_executor(number)


def test_max_workers_not_a_number(executor_kind, make_executor):
    with pytest.raises(TypeError):
        make_executor("2")


# Shutdown -----------------------------------------------------------------------------


def test_submit_after_shutdown(make_executor):
    executor = make_executor()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(add, 1, 2)


def test_shutdown_twice(make_executor):
    executor = make_executor()
    assert executor.submit(add, 1, 2).result(LONG) == 3
    executor.shutdown()
    executor.shutdown()
    executor.shutdown(wait=False)


def test_shutdown_unused(make_executor):
    make_executor().shutdown()


def test_shutdown_waits(make_executor):
    executor = make_executor(1)
    futures = [executor.submit(sleep_return, 0.02, n) for n in range(10)]
    executor.shutdown(wait=True)
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(10))


def test_shutdown_without_wait(make_executor):
    executor = make_executor()
    futures = [executor.submit(sleep_return, 0.02, n) for n in range(10)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        executor.submit(add, 1, 2)
    assert [future.result(LONG) for future in futures] == list(range(10))


def test_shutdown_cancels(make_executor, flag):
    executor = make_executor(1)
    gate, started = flag(), flag()
    running = executor.submit(pass_gate, gate, "ran", started)
    assert started.wait(LONG)
    pending = [executor.submit(square, n) for n in range(50)]
    threading.Timer(0.1, gate.set).start()
    executor.shutdown(wait=True, cancel_futures=True)
    assert running.result(0) == "ran"
    assert all(future.done() for future in pending)
    # A process pool has a few tasks in its pipe already.
    assert sum(future.cancelled() for future in pending) >= 45
    wait_until(lambda: not any(isinstance(t, threading.Timer) for t in threading.enumerate()))


def test_context_manager_waits(make_executor):
    executor = make_executor()
    with executor as entered:
        assert entered is executor
        futures = [executor.submit(sleep_return, 0.05, n) for n in range(4)]
    assert all(future.done() for future in futures)


def test_context_manager_with_error(make_executor):
    with pytest.raises(PlainError), make_executor() as executor:
        future = executor.submit(sleep_return, 0.05, 1)
        raise PlainError
    assert future.done()
    with pytest.raises(RuntimeError):
        executor.submit(add, 1, 2)


@pytest.mark.not_on("spawn", "fork", reason="they close one queue twice, now and then")
def test_shutdown_from_several_threads(make_executor):
    executor = make_executor()
    futures = [executor.submit(sleep_return, 0.01, n) for n in range(10)]
    threads = [threading.Thread(target=executor.shutdown) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert [future.result(0) for future in futures] == list(range(10))


def test_submit_from_several_threads(executor):
    results = {}

    def work(base):
        futures = [executor.submit(add, base, n) for n in range(200)]
        results[base] = [future.result(LONG) for future in futures]

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == {1000 * n: [1000 * n + k for k in range(200)] for n in range(4)}


# InterpreterPool alone ---------------------------------------------------------------


def test_it_is_an_executor(pool):
    assert isinstance(pool, concurrent.futures.Executor)


def test_workers_are_interpreters_of_this_process(pool):
    here = interpreter_id()
    gates = []
    with Gate() as gate:
        started = [Gate(), Gate()]
        gates = [pool.submit(pass_gate, gate, None, s) for s in started]
        for s in started:
            assert s.wait(LONG)
        gate.set()
        for future in gates:
            future.result(LONG)
        for s in started:
            s.close()
    ids = set(pool.broadcast(interpreter_id))
    assert len(ids) == 2 and here not in ids
    assert set(pool.broadcast(process_id)) == {os.getpid()}


def test_workers_run_in_native_threads_of_their_own(pool):
    threads = set(pool.broadcast(thread_id))
    assert len(threads) == 2
    assert threading.get_native_id() not in threads
    assert threads <= set(native_threads())


def test_two_workers_work_at_once(pool):
    """Each waits for the other: it ends only when both run at the same time."""
    with Gate() as a, Gate() as b:
        first = pool.submit(meet, a, b)
        second = pool.submit(meet, b, a)
        assert first.result(LONG) and second.result(LONG)


def test_max_workers_default():
    with subinterp.InterpreterPool() as pool:
        workers = len(pool.broadcast(interpreter_id))
    assert 1 <= workers <= len(os.sched_getaffinity(0))


def test_more_workers_than_cores():
    with subinterp.InterpreterPool(12) as pool:
        assert len(set(pool.broadcast(interpreter_id))) == 12
        assert list(pool.map(square, range(1000))) == [n * n for n in range(1000)]


def test_thread_name_prefix():
    with subinterp.InterpreterPool(2, thread_name_prefix="special") as pool:
        tids = pool.broadcast(thread_id)
        names = native_threads()
        assert all(names[tid].startswith("special") for tid in tids)
        assert len({names[tid] for tid in tids}) == 2


def test_thread_name_default(pool):
    tids = pool.broadcast(thread_id)
    names = native_threads()
    workers = [names[tid] for tid in tids]
    main = names[threading.main_thread().native_id]
    assert all(name and name != main for name in workers), workers


# What a worker starts with


def test_worker_has_the_path_of_its_maker(pool):
    import sys

    assert pool.submit(get_path).result(LONG) == sys.path


def test_worker_has_the_changed_path_of_its_maker(tmp_path):
    import sys

    (tmp_path / "made_just_now.py").write_text("def answer():\n    return 42\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from made_just_now import answer

        with subinterp.InterpreterPool(1) as pool:
            assert pool.submit(answer).result(LONG) == 42
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("made_just_now", None)


def test_worker_has_argv_and_environment_of_its_maker(monkeypatch):
    import sys

    monkeypatch.setattr(sys, "argv", ["prog", "--flag", "ä"])
    monkeypatch.setenv("SUBINTERP_TEST_MARK", "from the maker")
    with subinterp.InterpreterPool(1) as pool:
        assert pool.submit(get_argv).result(LONG) == ["prog", "--flag", "ä"]
        assert pool.submit(get_environ, "SUBINTERP_TEST_MARK").result(LONG) == "from the maker"


def warns_of_its_own(action):
    """Import the module of a category, and warn; tell whether it was there before, and raised."""
    import importlib
    import sys
    import warnings

    before = "_category" in sys.modules
    category = importlib.import_module("_category").OurWarning
    try:
        warnings.warn("text", category, stacklevel=1)
    except category:
        return before, "error"
    return before, "quiet"


def test_filters_for_classes_that_are_not_imported_yet(tmp_path, monkeypatch):
    """They hold once the class is there, and import nothing."""
    import sys
    import warnings

    (tmp_path / "_category.py").write_text("class OurWarning(UserWarning): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import _category

    with warnings.catch_warnings():
        for action, outcome in (("error", "error"), ("ignore", "quiet")):
            warnings.simplefilter(action, _category.OurWarning)
            with subinterp.InterpreterPool(1) as pool:
                found = pool.submit(warns_of_its_own, action).result(LONG)
            assert found == (False, outcome)
    monkeypatch.delitem(sys.modules, "_category")


def test_worker_has_the_warning_filters_of_its_maker():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with subinterp.InterpreterPool(1) as pool:
            filters = pool.submit(get_warning_filters).result(LONG)
    assert ("error", "ResourceWarning") in filters


def test_warning_filter_with_several_categories():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (ResourceWarning, BytesWarning))
        with subinterp.InterpreterPool(1) as pool:
            filters = pool.submit(get_warning_filters).result(LONG)
    assert ("ignore", "ResourceWarning") in filters
    assert ("ignore", "BytesWarning") in filters


def test_workers_do_not_import_the_public_package(pool):
    """They start quickly because they import little."""
    pool.submit(abs, -1).result(LONG)
    for name in ("concurrent.futures", "cloudpickle", "asyncio", "multiprocessing"):
        assert not any(pool.broadcast(count_module, name)), name


# map of ours


def test_map_buffersize(pool):
    taken = 0

    def numbers():
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield n

    results = pool.map(square, numbers(), buffersize=5, chunksize=1)
    time.sleep(0.2)
    assert taken <= 5
    for n, result in enumerate(results):
        assert result == n * n
        assert taken <= n + 1 + 5
    assert taken == 1000


@pytest.mark.parametrize("buffersize", [0, -1])
def test_map_buffersize_too_small(pool, buffersize):
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        pool.map(square, range(3), buffersize=buffersize)


@pytest.mark.parametrize("buffersize", ["foo", 2.0])
def test_map_buffersize_type(pool, buffersize):
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        pool.map(square, range(3), buffersize=buffersize)


@pytest.mark.parametrize(("buffersize", "chunksize"), [(1, None), (7, 3), (100, 1000), (3, 7)])
def test_map_buffersize_and_chunksize(pool, buffersize, chunksize):
    results = pool.map(square, range(500), buffersize=buffersize, chunksize=chunksize)
    assert list(results) == [n * n for n in range(500)]


@pytest.mark.parametrize("method", ["map", "imap_unordered"])
@pytest.mark.parametrize("megabytes", [10, 100])
def test_large_items_are_taken_ahead_in_bounds(pool, method, megabytes):
    """All the time one more than there are workers, but not much more than 32 MB."""
    read = taken = 0
    item = memoryview(bytes(megabytes << 20))

    def items():
        nonlocal read
        for _ in range(16):
            read += 1
            yield item

    ahead = []
    # `len` takes no time: chunks would hold many items, were they small.
    for n in getattr(pool, method)(len, items()):
        assert n == megabytes << 20
        taken += 1
        ahead.append(read - taken)
    assert taken == 16
    # The one that was taken last, then those in flight; at the end there are no more.
    assert min(ahead[:13]) >= 2, ahead
    assert max(ahead) <= max(32 // megabytes + 1, 3), ahead


@pytest.mark.parametrize("method", ["map", "imap_unordered"])
def test_infinite_input_is_taken_in_bounds(pool, method):
    """A consumer that stops taking results stops the input."""
    taken = 0

    def numbers():
        nonlocal taken
        for n in itertools.count():
            taken += 1
            yield n

    results = getattr(pool, method)(square, numbers())
    first = [next(results) for _ in range(100)]
    if method != "imap_unordered":
        assert first == [n * n for n in range(100)]
    time.sleep(0.2)
    after_a_while = taken
    time.sleep(0.3)
    assert taken == after_a_while
    assert taken < 1_000_000
    del results
    gc.collect()
    assert pool.submit(add, 1, 2).result(LONG) == 3


def test_map_streams(pool):
    """The first result comes while later input does not even exist."""
    with Gate() as gate:

        def numbers():
            yield 1
            yield 2
            yield 3
            assert gate.wait(LONG)
            yield 4

        results = pool.map(square, numbers(), buffersize=2)
        assert next(results) == 1
        gate.set()
        assert list(results) == [4, 9, 16]


@pytest.mark.parametrize("method", ["map", "imap_unordered", "starmap"])
def test_failing_input(pool, method):
    def numbers():
        for n in range(10):
            yield (n,) if method == "starmap" else n
        raise PlainError("no more input")

    with pytest.raises(PlainError, match="no more input"):
        list(getattr(pool, method)(square, numbers()))
    assert pool.submit(add, 1, 2).result(LONG) == 3


@pytest.mark.parametrize("method", ["map", "imap_unordered", "starmap"])
def test_input_not_iterable(pool, method):
    with pytest.raises(TypeError):
        list(getattr(pool, method)(square, 5))


def test_map_without_iterables(pool):
    assert list(pool.map(square)) == []


def test_map_keeps_few_results():
    """Results that nobody takes yet do not pile up without bounds."""
    with subinterp.InterpreterPool(2) as pool:
        results = pool.map(bytes, itertools.repeat(1_000_000), buffersize=4)
        for _ in range(200):
            assert len(next(results)) == 1_000_000
        del results
        gc.collect()


def test_map_many_small_items(pool):
    count = 200_000
    total = 0
    for n, root in enumerate(pool.map(math.sqrt, range(count))):
        assert root == math.sqrt(n)
        total += 1
    assert total == count


def test_map_large_read_after_the_with_block():
    with subinterp.InterpreterPool(2) as pool:
        results = pool.map(square, range(50_000))
    assert list(results) == [n * n for n in range(50_000)]


def test_map_infinite_with_block_ends():
    """Leaving the block with an endless map open does not wait for its end."""
    with subinterp.InterpreterPool(2) as pool:
        results = pool.map(square, itertools.count(), buffersize=10)
        assert next(results) == 0
        results.close()


def test_map_results_survive_a_forgotten_pool():
    pool = subinterp.InterpreterPool(2)
    results = pool.map(square, range(100))
    del pool
    gc.collect()
    assert list(results) == [n * n for n in range(100)]


def test_map_close_cancels(pool1, flag):
    gate, ran = flag(), flag()
    results = pool1.map(gate_or_mark, [("gate", gate)] + [("mark", ran)] * 50, chunksize=1)
    results.close()
    gate.set()
    assert pool1.submit(add, 1, 2).result(LONG) == 3
    assert not ran.is_set()


def test_map_threads_share_an_iterator(pool):
    """Several threads may not corrupt one iterator; each item comes once."""
    results = pool.map(square, range(2000))
    lock = threading.Lock()
    seen = []

    def take():
        while True:
            with lock:
                item = next(results, None)
            if item is None:
                return
            seen.append(item)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert sorted(seen) == [n * n for n in range(2000)]


@pytest.mark.parametrize("chunksize", [None, 1, 5, 1000])
def test_map_error_in_each_position(pool, chunksize):
    for bad in (0, 3, 9):
        results = pool.map(fail_if, range(10), itertools.repeat([bad]), chunksize=chunksize)
        seen = []
        with pytest.raises(PlainError) as caught:
            for item in results:
                seen.append(item)
        assert caught.value.args == (bad,)
        # Unlike a process pool, results before the error in its chunk are given out.
        assert seen == list(range(bad))


# imap_unordered, starmap, broadcast


@pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
def test_imap_unordered(pool, chunksize):
    results = list(pool.imap_unordered(square, range(500), chunksize=chunksize))
    assert sorted(results) == [n * n for n in range(500)]


def test_imap_unordered_gives_the_fast_one_first(pool):
    with Gate() as gate:
        results = pool.imap_unordered(apply_pair, [(pass_gate, gate), (square, 5)], chunksize=1)
        assert next(results) == 25
        gate.set()
        assert next(results) is None
        with pytest.raises(StopIteration):
            next(results)


def test_imap_unordered_error(pool):
    results = pool.imap_unordered(fail, [PlainError], chunksize=1)
    with pytest.raises(PlainError):
        next(results)
    assert pool.submit(add, 1, 2).result(LONG) == 3


def test_imap_unordered_empty(pool):
    assert list(pool.imap_unordered(square, [])) == []


def test_starmap(pool):
    """It gives a list, as that of multiprocessing.Pool does."""
    assert pool.starmap(pow, [(2, 3), (3, 2), (10, 0)]) == [8, 9, 1]
    assert pool.starmap(add, zip(range(500), range(500), strict=True)) == [
        2 * n for n in range(500)
    ]
    assert pool.starmap(add, []) == []
    with pytest.raises(PlainError):
        pool.starmap(fail_if, [(1, [2]), (2, [2])])


def test_starmap_wrong_number_of_arguments(pool):
    with pytest.raises(TypeError):
        pool.starmap(add, [(1,)])


def test_broadcast(pool):
    ids = pool.broadcast(interpreter_id)
    assert isinstance(ids, list) and len(ids) == 2 and len(set(ids)) == 2
    assert sorted(pool.broadcast(interpreter_id)) == sorted(ids)
    assert pool.broadcast(capture, 1, fn=2) == [((1,), {"fn": 2})] * 2


def test_broadcast_sets_state_in_every_worker(pool):
    pool.broadcast(set_state, "everywhere")
    assert {pool.submit(get_state).result(LONG) for _ in range(50)} == {"everywhere"}


def test_broadcast_waits_for_busy_workers(pool, flag):
    gate, started = flag(), flag()
    busy = pool.submit(pass_gate, gate, "done", started)
    assert started.wait(LONG)
    threading.Timer(0.1, gate.set).start()
    assert len(set(pool.broadcast(interpreter_id))) == 2
    assert busy.result(LONG) == "done"
    wait_until(lambda: not any(isinstance(t, threading.Timer) for t in threading.enumerate()))


def test_broadcast_error(pool):
    with pytest.raises(PlainError):
        pool.broadcast(fail, PlainError, 1)
    assert len(pool.broadcast(interpreter_id)) == 2


def test_broadcast_after_shutdown():
    with subinterp.InterpreterPool(1) as pool:
        pass
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.broadcast(interpreter_id)


# Initializers of ours


def test_initializer_runs_once_in_each_worker(tmp_path):
    def initializer(folder):
        import os

        import _work

        _work.STATE = 0
        with open(os.path.join(folder, f"worker{_work.interpreter_id()}"), "x"):
            pass

    with subinterp.InterpreterPool(3, initializer=initializer, initargs=(tmp_path,)) as pool:
        ids = pool.broadcast(interpreter_id)
        list(pool.map(square, range(100)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"worker{n}" for n in ids)


def test_failing_initializer_type():
    with subinterp.InterpreterPool(2, initializer=failing_initializer) as pool:
        with pytest.raises(subinterp.BrokenInterpreterPool) as caught:
            pool.submit(add, 1, 2).result(LONG)
        assert isinstance(caught.value, BrokenExecutor)
        assert isinstance(caught.value, subinterp.SubinterpError)
        with pytest.raises(subinterp.BrokenInterpreterPool):
            pool.broadcast(add, 1, 2)
        with pytest.raises(subinterp.BrokenInterpreterPool):
            list(pool.imap_unordered(square, range(10)))


def test_initializer_fails_in_one_worker_only(tmp_path):
    """One bad worker breaks the whole pool, as it does in the standard executors."""

    def initializer(path):
        try:
            open(path, "x").close()
        except FileExistsError:
            raise ValueError("I am the second") from None

    pool = subinterp.InterpreterPool(2, initializer=initializer, initargs=(tmp_path / "first",))
    with pool:

        def broken():
            try:
                futures = [pool.submit(sleep_return, 0.05, n) for n in range(2)]
                for future in futures:
                    future.result(LONG)
            except BrokenExecutor:
                return True
            return False

        wait_until(broken, what="the broken pool refusing work")


def test_initializer_that_exits():
    with (
        subinterp.InterpreterPool(1, initializer=raise_system_exit) as pool,
        pytest.raises(BrokenExecutor),
    ):
        pool.submit(add, 1, 2).result(LONG)


def test_unsendable_initargs():
    with pytest.raises(subinterp.NotSendableError, match=r"initargs\[1\]"):
        subinterp.InterpreterPool(1, initializer=capture, initargs=(1, threading.Lock()))


def test_failing_initializer_while_map_waits():
    with (
        subinterp.InterpreterPool(2, initializer=slow_failing_initializer, initargs=(0.2,)) as pool,
        pytest.raises(BrokenExecutor),
    ):
        list(pool.map(square, range(10_000)))


# max_tasks_per_child


def test_max_tasks_per_child():
    with subinterp.InterpreterPool(1, max_tasks_per_child=3) as pool:
        ids = [pool.submit(interpreter_id).result(LONG) for _ in range(9)]
    assert [len(set(ids[n : n + 3])) for n in (0, 3, 6)] == [1, 1, 1]
    assert len(set(ids)) == 3


def test_max_tasks_per_child_forgets_state():
    with subinterp.InterpreterPool(1, max_tasks_per_child=1) as pool:
        pool.submit(set_state, "changed").result(LONG)
        assert pool.submit(get_state).result(LONG) == "unset"


def test_max_tasks_per_child_runs_the_initializer_again():
    with subinterp.InterpreterPool(
        1, max_tasks_per_child=1, initializer=set_state, initargs=("set",)
    ) as pool:
        assert [pool.submit(get_state).result(LONG) for _ in range(4)] == ["set"] * 4


def test_max_tasks_per_child_with_many_tasks_in_flight():
    with subinterp.InterpreterPool(2, max_tasks_per_child=5) as pool:
        futures = [pool.submit(square, n) for n in range(60)]
        assert [future.result(LONG) for future in futures] == [n * n for n in range(60)]


def test_max_tasks_per_child_and_shutdown():
    pool = subinterp.InterpreterPool(2, max_tasks_per_child=1)
    futures = [pool.submit(square, n) for n in range(10)]
    pool.shutdown(wait=False)
    assert [future.result(LONG) for future in futures] == [n * n for n in range(10)]


@pytest.mark.parametrize("number", [0, -1])
def test_max_tasks_per_child_too_small(number):
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        subinterp.InterpreterPool(1, max_tasks_per_child=number)


def test_max_tasks_per_child_not_a_number():
    with pytest.raises(TypeError, match="max_tasks_per_child"):
        subinterp.InterpreterPool(1, max_tasks_per_child=1.5)


# The life of a pool


def test_forgotten_pool_is_collected():
    pool = subinterp.InterpreterPool(2)
    assert pool.submit(add, 1, 2).result(LONG) == 3
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    # The fixture checks that its workers and interpreters are gone, too.


def test_forgotten_pool_is_collected_without_gc():
    gc.collect()
    gc.disable()
    try:
        pool = subinterp.InterpreterPool(1)
        pool.submit(add, 1, 2).result(LONG)
        gone = weakref.ref(pool)
        del pool
        assert gone() is None
    finally:
        gc.enable()


def test_forgotten_pool_finishes_its_work(flag):
    done = [flag() for _ in range(5)]
    pool = subinterp.InterpreterPool(1)
    for mark in done:
        pool.submit(set_flag, mark)
    del pool
    gc.collect()
    for mark in done:
        assert mark.wait(LONG)


def test_forgotten_pool_finishes_its_futures():
    pool = subinterp.InterpreterPool(1)
    futures = [pool.submit(sleep_return, 0.01, n) for n in range(5)]
    del pool
    gc.collect()
    assert [future.result(LONG) for future in futures] == list(range(5))


def test_unused_pool_is_collected():
    subinterp.InterpreterPool(2)


def test_pools_side_by_side():
    with subinterp.InterpreterPool(1) as one, subinterp.InterpreterPool(1) as two:
        first = [one.submit(add, n, 1) for n in range(100)]
        second = [two.submit(add, n, 2) for n in range(100)]
        assert [f.result(LONG) for f in first] == [n + 1 for n in range(100)]
        assert [f.result(LONG) for f in second] == [n + 2 for n in range(100)]
        assert set(one.broadcast(interpreter_id)).isdisjoint(two.broadcast(interpreter_id))


def test_pool_after_pool():
    for _ in range(5):
        with subinterp.InterpreterPool(2) as pool:
            assert pool.submit(add, 1, 2).result(LONG) == 3


def test_pool_made_in_a_thread():
    results = []

    def work():
        with subinterp.InterpreterPool(2) as pool:
            results.append(list(pool.map(square, range(100))))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == [[n * n for n in range(100)]] * 3


def test_pool_used_after_its_thread_ended():
    pools = []
    thread = threading.Thread(target=lambda: pools.append(subinterp.InterpreterPool(1)))
    thread.start()
    thread.join(LONG)
    with pools.pop() as pool:
        assert pool.submit(add, 1, 2).result(LONG) == 3


# Pools in tasks


def test_task_makes_a_pool_of_its_own(pool):
    assert pool.submit(nested_pool, 10).result(LONG) == [n * n for n in range(10)]
    assert [f.result(LONG) for f in [pool.submit(nested_pool, 3) for _ in range(4)]] == [
        [0, 1, 4]
    ] * 4


def test_task_uses_its_own_pool(pool):
    """The outer task waits for inner ones; the other worker runs them."""
    assert pool.submit(wait_for_inner, pool, 3).result(LONG) == 9


def test_task_gives_work_to_its_own_pool_without_waiting(pool1, flag):
    mark = flag()
    pool1.submit(give_work, pool1, mark).result(LONG)
    assert mark.wait(LONG)


def test_pool_that_waits_for_itself_raises(pool1):
    with pytest.raises(subinterp.PoolDeadlockError):
        pool1.submit(wait_forever_for_inner, pool1).result(LONG)
    # And it goes on.
    assert pool1.submit(add, 1, 2).result(LONG) == 3


def test_pool_whose_every_worker_waits_for_itself_raises(pool):
    with Gate() as gate:
        futures = [pool.submit(gated_wait_for_inner, pool, gate) for _ in range(2)]
        gate.set()
        outcomes = [future.exception(LONG) for future in futures]
    assert any(isinstance(error, subinterp.PoolDeadlockError) for error in outcomes)
    assert all(error is None or isinstance(error, RuntimeError) for error in outcomes)
    assert pool.submit(add, 1, 2).result(LONG) == 3


def test_map_in_a_pool_that_waits_for_itself_raises(pool1):
    with pytest.raises(subinterp.PoolDeadlockError):
        pool1.submit(map_in_own_pool, pool1).result(LONG)
    assert pool1.submit(add, 1, 2).result(LONG) == 3


def test_flag_is_what_the_tests_think(tmp_path):
    flag = Flag(tmp_path / "flag")
    assert not flag.is_set() and not flag.wait(0.01)
    flag.set()
    assert flag.is_set() and flag.wait(0)


# Threads that share one map


SHARED_MAP = """
import sys, threading
import subinterp
from _support import wait_until
from _work import Gate, pass_gate, square

def read_in_thread(results):
    got = []
    thread = threading.Thread(target=lambda: got.extend(results))
    thread.start()
    return thread, got

def check_refused(call, *args):
    try:
        call(*args)
    except ValueError as error:
        assert "another thread" in str(error)
    else:
        raise AssertionError("two threads in one map")
"""


@pytest.mark.parametrize("kind", ["map", "imap_unordered"])
def test_second_reader_of_a_map_that_waits(kind):
    run_script(
        SHARED_MAP
        + """
with subinterp.InterpreterPool(1) as pool, Gate() as gate:
    pool.submit(pass_gate, gate)
    results = getattr(pool, sys.argv[1])(square, range(20), chunksize=3)
    reading = threading.Event()

    def mark(frame, event, arg):
        if event == "c_call":
            reading.set()

    threading.setprofile(mark)
    thread, got = read_in_thread(results)
    threading.setprofile(None)
    assert reading.wait(30)  # it is about to call got.extend
    thread.join(0.3)
    assert thread.is_alive()
    check_refused(next, results)
    check_refused(results.close)
    gate.set()
    thread.join(30)
    assert sorted(got) == [n * n for n in range(20)], got
    results.close()  # nobody is in it any more
    assert list(results) == []
""",
        args=[kind],
    ).clean()


def test_second_reader_of_a_map_that_reads_its_input():
    run_script(
        SHARED_MAP
        + """
reading, go_on = threading.Event(), threading.Event()

def numbers():
    yield 0
    yield 1
    reading.set()
    assert go_on.wait(30)
    yield from range(2, 20)

with subinterp.InterpreterPool(1) as pool:
    results = pool.map(square, numbers(), chunksize=1, buffersize=1)
    thread, got = read_in_thread(results)
    assert reading.wait(30)
    check_refused(next, results)
    check_refused(results.close)
    go_on.set()
    thread.join(30)
    assert got == [n * n for n in range(20)], got
"""
    ).clean()


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_threads_that_take_turns_with_a_map(chunksize):
    """Nothing is lost and nothing comes twice. In a process of its own: readers
    that come between one another could read memory that is freed."""
    result = run_script(
        """
        import sys, threading
        import subinterp

        sys.setswitchinterval(1e-6)
        chunksize = eval(sys.argv[1])
        count = 2000

        def read(results, got, errors):
            while True:
                try:
                    for x in results:
                        got.append(x)
                    return
                except ValueError as error:
                    if "another thread" not in str(error):
                        errors.append(error)
                        return

        with subinterp.InterpreterPool(2) as pool:
            for n in range(30):
                results = pool.map(abs, range(count), chunksize=chunksize)
                got, errors = [], []
                threads = [
                    threading.Thread(target=read, args=(results, got, errors)) for _ in range(4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert not errors, errors
                assert sorted(got) == list(range(count)), (n, len(got), len(set(got)))
        """,
        args=[repr(chunksize)],
    )
    result.clean()
