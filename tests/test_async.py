"""Coroutines that await tasks: run and amap, under asyncio, uvloop, trio and anyio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import importlib.util
import itertools
import sys
import threading
import time
import weakref

import pytest

import _stopwork
import _work
from _support import run_script, wait_until
from _work import Gate
from subinterp import (
    BrokenInterpreterPool,
    InterpreterPool,
    NotSendableError,
    RemoteTraceback,
    SharedBuffer,
    TaskInterrupted,
)

LONG = 60


class Asyncio:
    """What the tests need of an async library."""

    needs = ()

    def __init__(self):
        for name in self.needs:
            setattr(self, name, pytest.importorskip(name))

    def run(self, main):
        return asyncio.run(main())

    async def sleep(self, seconds):
        await asyncio.sleep(seconds)

    async def together(self, calls):
        """Await all coroutines at once; their results in order."""
        return await asyncio.gather(*calls)

    async def until(self, condition):
        deadline = time.monotonic() + LONG
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            await self.sleep(0.002)

    async def cancelled_when(self, condition, call):
        """Begin a coroutine, and cancel it once the condition is true."""
        task = asyncio.ensure_future(call)
        await self.until(condition)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class Uvloop(Asyncio):
    needs = ("uvloop",)

    def run(self, main):
        return asyncio.run(main(), loop_factory=self.uvloop.new_event_loop)


class Trio(Asyncio):
    needs = ("trio",)

    def run(self, main):
        return self.trio.run(main)

    async def sleep(self, seconds):
        await self.trio.sleep(seconds)

    def group(self):
        return self.trio.open_nursery()

    async def together(self, calls):
        results = [None] * len(calls)

        async def one(i, call):
            results[i] = await call

        async with self.group() as group:
            for i, call in enumerate(calls):
                group.start_soon(one, i, call)
        return results

    async def cancelled_when(self, condition, call):
        ended = []

        async def one():
            try:
                await call
            except BaseException as error:
                ended.append(error)
                raise

        async with self.group() as group:
            group.start_soon(one)
            await self.until(condition)
            group.cancel_scope.cancel()
        assert [type(error) for error in ended] == [self.exception()]

    def exception(self):
        return self.trio.Cancelled


class Anyio(Trio):
    needs = ("anyio",)
    backend = "asyncio"

    def run(self, main):
        return self.anyio.run(main, backend=self.backend)

    async def sleep(self, seconds):
        await self.anyio.sleep(seconds)

    def group(self):
        return self.anyio.create_task_group()

    def exception(self):
        return self.anyio.get_cancelled_exc_class()


class AnyioOnTrio(Anyio):
    needs = ("anyio", "trio")
    backend = "trio"


LIBRARIES = [Asyncio, Uvloop, Trio, Anyio, AnyioOnTrio]


@pytest.fixture(scope="module", autouse=True)
def _started_libraries(_started_helpers):
    """Have libraries open what they keep as long as the process lives."""

    async def nothing():
        pass

    for cls in LIBRARIES:
        if all(importlib.util.find_spec(name) for name in cls.needs):
            cls().run(nothing)


@pytest.fixture(params=LIBRARIES, ids=lambda cls: cls.__name__.lower())
def library(request):
    return request.param()


@pytest.fixture
def gates():
    """A function that makes gates, closed after the test."""
    made = []

    def make():
        made.append(Gate())
        return made[-1]

    yield make
    for gate in made:
        gate.close()


# run --------------------------------------------------------------------------------------------


def test_run(library, pool):
    async def main():
        assert await pool.run(pow, 2, 10) == 1024
        assert await pool.run(_work.capture, 1, fn=2, self=3) == ((1,), {"fn": 2, "self": 3})
        assert await pool.run(lambda x: [x], "by value") == ["by value"]

    library.run(main)


def test_exceptions_are_those_of_result(library, pool):
    async def main():
        with pytest.raises(_work.PlainError, match=r"^why$") as info:
            await pool.run(_work.fail, _work.PlainError, "why")
        assert isinstance(info.value.__cause__, RemoteTraceback)
        with pytest.raises(NotSendableError, match=r"args\[0\]"):
            await pool.run(print, threading.Lock())
        assert await pool.run(pow, 2, 3) == 8

    library.run(main)


@pytest.mark.hard_timeout(300)
def test_ten_thousand_in_flight(library, pool, gates):
    closed = gates()

    async def main():
        # Both workers wait, so that all of them are queued.
        held = [pool.submit(_work.pass_gate, closed) for _ in range(2)]
        calls = [pool.run(_work.square, n) for n in range(10_000)]

        async def open_later():
            await library.sleep(0)
            closed.set()

        results = await library.together([*calls, open_later()])
        assert results[:-1] == [n * n for n in range(10_000)]
        assert [future.result(LONG) for future in held] == [None, None]

    library.run(main)


def test_cancelling_interrupts_what_runs(library, pool1, gates):
    started, stopped = gates(), gates()

    async def main():
        await library.cancelled_when(started.is_set, pool1.run(_stopwork.watched, started, stopped))
        # It stops in the background; its worker is free again then.
        assert await pool1.run(pow, 2, 3) == 8
        assert stopped.is_set()

    library.run(main)


def test_cancelling_takes_what_is_queued_away(library, pool1, gates):
    started, closed, mark = gates(), gates(), gates()

    async def main():
        held = pool1.submit(_work.pass_gate, closed, None, started)
        await library.until(started.is_set)
        turns = itertools.count()
        await library.cancelled_when(lambda: next(turns) > 2, pool1.run(_work.set_flag, mark))
        closed.set()
        assert await pool1.run(pow, 2, 3) == 8
        assert held.done()
        assert not mark.is_set()

    library.run(main)


def test_cancellation_does_not_wait_for_a_task_that_will_not_stop(library, gates):
    started = gates()
    stop = SharedBuffer(1)
    with InterpreterPool(1, interrupt_grace=0.2) as pool:

        async def main():
            await library.cancelled_when(
                started.is_set, pool.run(ignore_everything, started, memoryview(stop))
            )
            # Another worker takes the place of the one that is left behind.
            assert await pool.run(pow, 2, 3) == 8
            memoryview(stop)[0] = 1

        library.run(main)


def ignore_everything(started, view):
    started.set()
    while not view[0]:
        try:
            while not view[0]:
                pass
        except BaseException:
            pass


def test_a_pool_that_is_shut_down(library, pool1, gates):
    started, closed = gates(), gates()

    async def main():
        ended = []

        async def queued():
            await library.until(started.is_set)
            try:
                await pool1.run(pow, 2, 3)
            except Exception as error:
                ended.append(error)

        async def shut_down():
            await library.until(started.is_set)
            await library.sleep(0.05)
            pool1.shutdown(wait=False, cancel_futures=True)
            closed.set()

        await library.together(
            [pool1.run(_work.pass_gate, closed, 7, started), queued(), shut_down()]
        )
        assert [type(error) for error in ended] == [concurrent.futures.CancelledError]
        with pytest.raises(RuntimeError, match="after shutdown"):
            await pool1.run(pow, 2, 3)
        with pytest.raises(RuntimeError, match="after shutdown"):
            async for _ in pool1.amap(abs, [1]):
                pass

    library.run(main)


def test_workers_that_are_terminated(library, gates):
    started, stopped = gates(), gates()

    async def main():
        ended = []

        async def running():
            try:
                await pool.run(_stopwork.watched, started, stopped)
            except TaskInterrupted as error:
                ended.append(error)

        async def terminate():
            await library.until(started.is_set)
            pool.terminate_workers()

        await library.together([running(), terminate()])
        assert len(ended) == 1

    with InterpreterPool(1) as pool:
        library.run(main)


@pytest.mark.filterwarnings("ignore")
def test_a_pool_that_breaks(library):
    async def main():
        with pytest.raises(BrokenInterpreterPool):
            await pool.run(pow, 2, 3)
        with pytest.raises(BrokenInterpreterPool):
            async for _ in pool.amap(abs, [1]):
                pass

    with InterpreterPool(1, initializer=_work.failing_initializer) as pool:
        library.run(main)


# amap -------------------------------------------------------------------------------------------


def test_amap(library, pool):
    async def main():
        results = [r async for r in pool.amap(pow, range(5000), itertools.repeat(2))]
        assert results == [n * n for n in range(5000)]
        assert [r async for r in pool.amap(abs, [])] == []
        assert [r async for r in pool.amap(abs)] == []
        results = [r async for r in pool.amap(_work.square, range(50), unordered=True, chunksize=7)]
        assert sorted(results) == [n * n for n in range(50)]

    library.run(main)


def test_amap_unordered_gives_what_is_there(library, pool, gates):
    closed = gates()

    async def main():
        results = pool.amap(_work.gate_or_pass, [closed, None], unordered=True, chunksize=1)
        assert await anext(results) is None
        closed.set()
        assert await anext(results) is True
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    library.run(main)


def test_amap_reads_its_input_within_bounds(library, pool):
    read = []

    def endless():
        for n in itertools.count():
            read.append(n)
            yield n

    async def main():
        got = []
        async for r in pool.amap(_work.square, endless(), buffersize=8):
            got.append(r)
            assert len(read) <= len(got) + 8
            if len(got) == 100:
                break
        assert got == [n * n for n in range(100)]

    library.run(main)


def test_amap_ends_with_an_item_that_raises(library, pool):
    async def main():
        results = pool.amap(_work.fail_if, range(10), itertools.repeat((3,)), chunksize=1)
        got = []
        with pytest.raises(_work.PlainError):
            async for r in results:
                got.append(r)
        assert len(got) == 3
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    library.run(main)


def test_amap_unordered_goes_on_after_an_item_that_raises(library, pool):
    async def main():
        results = pool.amap(
            _work.fail_if, range(10), itertools.repeat((3,)), chunksize=1, unordered=True
        )
        got, errors = [], []
        while True:
            try:
                got.append(await anext(results))
            except StopAsyncIteration:
                break
            except _work.PlainError as error:
                errors.append(error)
        assert len(got) == 9
        assert len(errors) == 1

    library.run(main)


def watched_map(pool, gates, **options):
    """Make a map of which the second item runs until it is interrupted, and the third waits."""
    started, stopped = gates(), gates()

    def call(n, started=started, stopped=stopped):
        return _stopwork.watched_after(n, 1, started, stopped)

    return pool.amap(call, range(5), chunksize=1, **options), started, stopped


@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("how", ["break", "raise", "aclose", "with", "cancel"])
def test_leaving_amap_early_stops_the_rest(library, pool1, gates, how, unordered):
    async def read(results, started):
        if how == "with":
            async with results:
                assert await anext(results) == 0
                await library.until(started.is_set)
            return
        async for r in results:
            assert r == 0
            if how == "cancel":
                continue
            await library.until(started.is_set)
            if how == "break":
                break
            if how == "aclose":
                await results.aclose()
            if how == "raise":
                raise KeyError(r)

    async def main():
        results, started, stopped = watched_map(pool1, gates, unordered=unordered)
        reading = read(results, started)
        del results
        if how == "cancel":
            await library.cancelled_when(started.is_set, reading)
        elif how == "raise":
            with pytest.raises(KeyError):
                await reading
        else:
            await reading
        del reading
        # The third and later items are gone from the queue; the second one has ended.
        assert await pool1.run(pow, 2, 3) == 8
        assert stopped.is_set()

    library.run(main)


def test_amap_that_is_never_read(library, pool1):
    async def main():
        results = pool1.amap(_work.square, range(3))
        await results.aclose()
        await results.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    library.run(main)


def test_amap_lets_others_run(library, pool):
    """Also where results are always there before they are asked for."""

    async def main():
        turns = 0
        reading = True

        async def others():
            nonlocal turns
            while reading:
                turns += 1
                await library.sleep(0)

        async def read():
            nonlocal reading
            async for _ in pool.amap(abs, range(200), chunksize=1):
                time.sleep(0.0005)
            reading = False

        await library.together([others(), read()])
        assert turns >= 200

    library.run(main)


def test_amap_has_one_reader(library, pool1, gates):
    closed = gates()

    async def main():
        results = pool1.amap(_work.pass_gate, [closed], [1])

        async def first():
            assert await anext(results) == 1

        async def second():
            await library.sleep(0.01)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(results)
            with pytest.raises(RuntimeError, match="another task"):
                await results.aclose()
            closed.set()

        await library.together([first(), second()])

    library.run(main)


def test_amap_refuses_what_it_cannot_take(pool):
    async def items():
        yield 1

    with pytest.raises(TypeError, match="async_generator"):
        pool.amap(abs, items())
    with pytest.raises(TypeError, match="int object is not iterable"):
        pool.amap(abs, 3)
    with pytest.raises(TypeError, match="fn must be callable"):
        pool.amap(3, [1])
    with pytest.raises(ValueError, match="chunksize"):
        pool.amap(abs, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        pool.amap(abs, [1], buffersize=0)


def test_amap_names_what_cannot_be_sent(library, pool):
    async def main():
        with pytest.raises(NotSendableError, match=r"\[1\]"):
            async for _ in pool.amap(_work.identity, [1, threading.Lock()]):
                pass

    library.run(main)


# asyncio ----------------------------------------------------------------------------------------


def test_timeout(pool1, gates):
    started, stopped = gates(), gates()

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await pool1.run(_stopwork.watched, started, stopped)
        assert await pool1.run(pow, 2, 3) == 8

    asyncio.run(main())
    assert stopped.is_set() or not started.is_set()


def test_a_task_group_interrupts_the_siblings(pool, gates):
    started, stopped = gates(), gates()

    async def fail():
        while not started.is_set():
            await asyncio.sleep(0.002)
        await pool.run(_work.fail, ValueError, "why")

    async def main():
        with pytest.raises(ExceptionGroup) as info:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.run(_stopwork.watched, started, stopped))
                group.create_task(fail())
        assert [type(error) for error in info.value.exceptions] == [ValueError]

    asyncio.run(main())
    assert stopped.wait(LONG)


def test_a_gather_that_is_cancelled(pool, gates):
    pairs = [(gates(), gates()) for _ in range(2)]

    async def main():
        calls = [pool.run(_stopwork.watched, *pair) for pair in pairs]
        all_of_them = asyncio.gather(*calls, *[pool.run(pow, 2, 3) for _ in range(100)])
        while not all(started.is_set() for started, _ in pairs):
            await asyncio.sleep(0.002)
        all_of_them.cancel()
        with pytest.raises(asyncio.CancelledError):
            await all_of_them
        assert await pool.run(pow, 2, 3) == 8

    asyncio.run(main())
    assert all(stopped.wait(LONG) for _, stopped in pairs)


def test_many_completions_are_one_call_into_the_loop(pool1):
    class Loop(asyncio.SelectorEventLoop):
        calls = 0

        def call_soon_threadsafe(self, *args, **kwargs):
            Loop.calls += 1
            return super().call_soon_threadsafe(*args, **kwargs)

    async def main():
        tasks = [asyncio.create_task(pool1.run(_work.square, n)) for n in range(300)]
        await asyncio.sleep(0)  # they begin
        # All come to their end while the loop does not turn.
        last = pool1.submit(pow, 2, 3)
        assert last.result(LONG) == 8
        assert await asyncio.gather(*tasks) == [n * n for n in range(300)]

    asyncio.run(main(), loop_factory=Loop)
    assert 1 <= Loop.calls <= 10


def test_a_task_that_nobody_holds_comes_to_its_end(pool1, gates):
    closed, mark = gates(), gates()

    async def call():
        await pool1.run(_work.pass_gate, closed)
        mark.set()

    async def main():
        asyncio.create_task(call())  # noqa: RUF006 - that is the point
        await asyncio.sleep(0.01)
        gc.collect()
        closed.set()
        while not mark.is_set():
            await asyncio.sleep(0.002)

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_an_exception_leaves_no_cycle(pool1):
    async def main():
        try:
            await pool1.run(_work.fail, _work.PlainError, "why")
        except _work.PlainError as error:
            return weakref.ref(error)

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(main())() is None
    finally:
        gc.enable()


def test_context_variables_are_not_sent(pool1):
    async def main():
        variable.set("here")
        return await pool1.run(_read_variable)

    variable = contextvars.ContextVar("variable")
    assert asyncio.run(main()) == "not set"


def _read_variable():
    import contextvars

    found = [v for v in contextvars.copy_context() if v.name == "variable"]
    return found[0].get() if found else "not set"


def test_a_loop_that_is_closed_while_a_task_runs(pool1, gates, caplog):
    started, closed = gates(), gates()
    loop = asyncio.new_event_loop()

    async def main():
        task = asyncio.ensure_future(pool1.run(_work.pass_gate, closed, None, started))
        while not started.is_set():
            await asyncio.sleep(0.002)
        return weakref.ref(task)

    task = loop.run_until_complete(main())
    loop.close()
    closed.set()
    # The task runs to its end, and nobody is told.
    assert pool1.submit(pow, 2, 3).result(LONG) == 8
    wait_until(lambda: gc.collect() is None or task() is None, what="the end of the coroutine")
    assert asyncio.run(pool1.run(pow, 2, 4)) == 16


def test_a_loop_that_stops_and_runs_again(pool1):
    loop = asyncio.new_event_loop()
    try:

        async def begin():
            task = asyncio.ensure_future(pool1.run(pow, 2, 3))
            await asyncio.sleep(0)
            return task

        task = loop.run_until_complete(begin())
        pool1.submit(pow, 2, 3).result(LONG)
        assert loop.run_until_complete(asyncio.wait_for(task, LONG)) == 8
    finally:
        loop.close()


def test_loops_in_several_threads(pool):
    def work(n):
        async def main():
            return await asyncio.gather(*[pool.run(_work.add, n, i) for i in range(500)])

        results[n] = asyncio.run(main())

    results = {}
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == {n: [n + i for i in range(500)] for n in range(4)}


def test_a_loop_in_a_worker(pool):
    assert pool.submit(_stopwork.await_in_worker, pool, pow, 2, 10).result(LONG) == 1024


def test_interrupting_a_worker_that_awaits_interrupts_what_it_awaits(pool, gates):
    started, stopped = gates(), gates()
    outer = pool.submit(_stopwork.await_in_worker, pool, _stopwork.watched, started, stopped)
    assert started.wait(LONG)
    assert outer.interrupt()
    assert isinstance(outer.exception(LONG), TaskInterrupted)
    assert stopped.wait(LONG)


# Which library ----------------------------------------------------------------------------------


def test_no_event_loop(pool):
    call = pool.run(pow, 2, 3)
    with pytest.raises(RuntimeError, match="no event loop runs in this thread"):
        call.send(None)
    call = anext(pool.amap(abs, [1]))
    with pytest.raises(RuntimeError, match="no event loop runs in this thread"):
        call.send(None)


def test_an_unknown_library(pool, monkeypatch):
    class Sniffio:
        AsyncLibraryNotFoundError = LookupError

        @staticmethod
        def current_async_library():
            return "curio"

    monkeypatch.setitem(sys.modules, "sniffio", Sniffio)
    call = pool.run(pow, 2, 3)
    with pytest.raises(RuntimeError, match="not in 'curio'"):
        call.send(None)


def test_a_map_stays_in_its_loop(pool1, gates):
    closed = gates()
    results = pool1.amap(_work.gate_or_pass, [None, closed], chunksize=1)

    async def first():
        return await anext(results)

    assert asyncio.run(first()) is None
    with pytest.raises(RuntimeError, match="stay in one"):
        asyncio.run(first())
    closed.set()
    asyncio.run(results.aclose())


@pytest.mark.leaks("threads")  # trio keeps its threads for a while
def test_trio_in_guest_mode(pool):
    """trio inside a loop of asyncio: each of them is told through its own way."""
    trio = pytest.importorskip("trio")

    async def inner():
        return await pool.run(pow, 2, 3)

    async def main():
        ended = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        trio.lowlevel.start_guest_run(
            inner,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        outer = await pool.run(pow, 2, 4)
        return outer, (await ended).unwrap()

    assert asyncio.run(asyncio.wait_for(main(), LONG)) == (16, 8)


# The process ------------------------------------------------------------------------------------


def test_no_async_library_is_imported():
    run_script(
        """
        import sys, subinterp
        with subinterp.InterpreterPool(1) as pool:
            pool.submit(pow, 2, 3).result()
        assert not {"asyncio", "trio", "anyio", "sniffio"} & set(sys.modules)
        """
    ).clean()


@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_ctrl_c(name):
    pytest.importorskip(name)
    result = run_script(
        f"""
        import {name} as library, os, signal, _stopwork
        from _work import Gate
        from subinterp import InterpreterPool

        started, stopped = Gate(), Gate()

        async def main():
            async def kill():
                while not started.is_set():
                    await library.sleep(0.005)
                os.kill(os.getpid(), signal.SIGINT)
            if {name == "asyncio"}:
                killing = library.create_task(kill())
                await pool.run(_stopwork.watched, started, stopped)
            else:
                async with library.open_nursery() as nursery:
                    nursery.start_soon(kill)
                    await pool.run(_stopwork.watched, started, stopped)

        with InterpreterPool(1) as pool:
            try:
                library.run(main() if {name == "asyncio"} else main)
            except BaseException as error:
                if isinstance(error, BaseExceptionGroup):
                    error, = error.exceptions
                assert isinstance(error, KeyboardInterrupt), error
            else:
                raise SystemExit("no KeyboardInterrupt")
            assert stopped.wait(30)
            print(pool.submit(pow, 2, 3).result())
        """
    ).clean()
    assert result.stdout == "8\n"


def test_the_program_ends_while_a_loop_awaits():
    """A daemon thread's loop does not hold the exit up, and nothing is written."""
    run_script(
        """
        import asyncio, threading, _work
        from subinterp import InterpreterPool

        pool = InterpreterPool(1)
        awaiting = threading.Event()

        async def main():
            task = asyncio.ensure_future(pool.run(_work.sleep_return, 0.2, 1))
            await asyncio.sleep(0.05)
            awaiting.set()
            await task
            await asyncio.sleep(1000)

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        assert awaiting.wait(30)
        """
    ).clean()
