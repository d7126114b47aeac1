"""Stress: very many tasks and messages, none lost, none doubled.

SUBINTERP_STRESS scales the sizes; 1.0 is a million tasks and a million messages.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import threading
import time
from concurrent.futures import CancelledError, as_completed, wait

import pytest

import subinterp
from _support import run_script
from _work import (
    BadLoad,
    Flag,
    PlainError,
    drop_end,
    identity,
    interpreter_id_of,
    pass_gate,
    square,
    stress_fails,
    stress_mark,
    stress_receive,
    stress_receive_with_errors,
    stress_send,
    stress_task,
    stress_twice,
)
from subinterp import ChannelClosed, InterpreterPool, SharedBuffer, create_channel, select

pytestmark = [pytest.mark.stress, pytest.mark.hard_timeout(900)]

SCALE = float(os.environ.get("SUBINTERP_STRESS", "1.0"))
LONG = 300
SEED = int(os.environ.get("SUBINTERP_STRESS_SEED", "0")) or random.SystemRandom().getrandbits(32)


def scaled(number, least=1):
    return max(least, int(number * SCALE))


@pytest.fixture
def rng():
    print("SUBINTERP_STRESS_SEED", SEED)  # shown when the test fails
    return random.Random(SEED)


# A million tasks ----------------------------------------------------------------------------


def check_outcome(future, n):
    error = future.exception(LONG)
    if stress_fails(n):
        assert type(error) is PlainError and error.args == (n,)
    else:
        assert error is None and future.result(0) == n * 2


def test_submit_and_random_errors():
    """A third of the million: one future for each, thousands in flight, errors among them."""
    count, window = scaled(330_000), 20_000
    with InterpreterPool(2) as pool:
        flying = collections.deque()
        for n in range(count):
            flying.append((n, pool.submit(stress_task, n)))
            if len(flying) >= window:
                for _ in range(window // 2):
                    m, future = flying.popleft()
                    check_outcome(future, m)
        while flying:
            m, future = flying.popleft()
            check_outcome(future, m)


def test_map_of_very_many():
    count = scaled(440_000)
    with InterpreterPool(2) as pool:
        number = -1
        for number, result in enumerate(pool.map(stress_twice, range(count))):
            if result != number * 2:
                pytest.fail(f"item {number} came back as {result}")
        assert number == count - 1


def test_imap_unordered_of_very_many():
    count = scaled(220_000)
    with InterpreterPool(2) as pool:
        seen = bytearray(count)
        for result in pool.imap_unordered(stress_twice, range(count)):
            seen[result // 2] += 1
    assert seen == b"\1" * count


def test_map_with_errors_started_again():
    """Each error ends its map; what was given out before it is right, every time."""
    rounds = scaled(300, 5)
    with InterpreterPool(2) as pool:
        for base in range(0, rounds * 1000, 1000):
            first_bad = next((n for n in range(base, base + 1000) if stress_fails(n)), None)
            good = []
            if first_bad is None:
                good.extend(pool.map(stress_task, range(base, base + 1000)))
                assert good == [n * 2 for n in range(base, base + 1000)]
                continue
            with pytest.raises(PlainError) as caught:
                good.extend(pool.map(stress_task, range(base, base + 1000)))
            assert caught.value.args == (first_bad,)
            assert good == [n * 2 for n in range(base, first_bad)]


def test_submit_from_many_threads():
    threads_count, each = 4, scaled(20_000)
    failures = []

    with InterpreterPool(3) as pool:

        def submit(base):
            try:
                futures = [(n, pool.submit(stress_task, n)) for n in range(base, base + each)]
                for n, future in futures:
                    check_outcome(future, n)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=submit, args=(k * each,)) for k in range(threads_count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
    assert not failures


def test_callbacks_of_very_many():
    count = scaled(30_000)
    seen = bytearray(count)
    left = threading.Semaphore(0)

    def callback(n, future):
        assert future.result(0) == n * n
        seen[n] += 1
        left.release()

    with InterpreterPool(2) as pool:
        for n in range(count):
            pool.submit(square, n).add_done_callback(lambda f, n=n: callback(n, f))
        for _ in range(count):
            assert left.acquire(timeout=LONG)
    assert seen == b"\1" * count


def test_as_completed_and_wait_of_many():
    count = scaled(5000, 10)
    with InterpreterPool(2) as pool:
        for _ in range(3):
            futures = {pool.submit(square, n): n for n in range(count)}
            results = sorted((futures[f], f.result(0)) for f in as_completed(futures, LONG))
            assert results == [(n, n * n) for n in range(count)]
            futures = [pool.submit(square, n) for n in range(count)]
            assert len(wait(futures, LONG).done) == count


def test_random_cancels(rng):
    """Cancelled or done, never both, never neither; and exactly the done ones ran."""
    count = scaled(40_000)
    with InterpreterPool(2) as pool:
        marks = SharedBuffer(count)
        view = memoryview(marks)
        futures = []
        cancelled = set()
        for n in range(count):
            futures.append(pool.submit(stress_mark, view, n))
            if rng.random() < 0.3:
                victim = rng.randrange(max(0, n - 50), n + 1)
                if futures[victim].cancel():
                    cancelled.add(victim)
        for n, future in enumerate(futures):
            try:
                assert future.result(LONG) == n
                assert n not in cancelled
                assert view[n] == 1, f"task {n} ran {view[n]} times"
            except CancelledError:
                assert n in cancelled
                assert view[n] == 0, f"task {n} was cancelled and ran all the same"
        assert cancelled or count < 100
        view = None


def test_cancels_from_another_thread(rng):
    count = scaled(30_000)
    with InterpreterPool(2) as pool:
        futures = []
        done = threading.Event()

        def cancel():
            while not done.is_set():
                with contextlib.suppress(IndexError):
                    futures[-rng.randrange(1, 200)].cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            for n in range(count):
                futures.append(pool.submit(square, n))
            for n, future in enumerate(futures):
                with contextlib.suppress(CancelledError):
                    assert future.result(LONG) == n * n
        finally:
            done.set()
            thread.join(LONG)


def test_pending_tasks_race_with_wait():
    """A hundred tasks set free at once, while all are waited for (CPython's issue 14406)."""
    import tempfile

    with InterpreterPool(4) as pool, tempfile.TemporaryDirectory() as folder:
        for round in range(scaled(20, 2)):
            gate = Flag(os.path.join(folder, str(round)))
            futures = [pool.submit(pass_gate, gate, n) for n in range(100)]
            gate.set()
            assert {f.result(0) for f in wait(futures, LONG).done} == set(range(100))


# A million messages ------------------------------------------------------------------------------


def test_messages_from_many_to_many():
    """Three quarters of the million; every message is received by exactly one."""
    producers, consumers, each = 3, 3, scaled(250_000)
    recv, send = create_channel(1000)
    with InterpreterPool(producers + consumers) as pool:
        receiving = [pool.submit(stress_receive, recv, producers * each) for _ in range(consumers)]
        sending = [pool.submit(stress_send, send, k * each, each) for k in range(producers)]
        send.close()
        recv.close()
        assert [future.result(LONG) for future in sending] == [each] * producers
        counts = bytearray(producers * each)
        for future in receiving:
            for n, seen in enumerate(future.result(LONG)):
                if seen:
                    counts[n] += seen
    assert counts == b"\1" * (producers * each)


def test_messages_in_order():
    count = scaled(250_000)
    recv, send = create_channel()
    with InterpreterPool(1) as pool:
        future = pool.submit(stress_send, send, 0, count)
        send.close()
        expected = 0
        for item in recv:
            if item != expected:
                pytest.fail(f"{item} came in the place of {expected}")
            expected += 1
        assert expected == count
        assert future.result(LONG) == count


def test_messages_with_random_errors(rng):
    """Sends that fail, time out, or carry what cannot be loaded lose nothing else."""
    count = scaled(150_000)
    recv, send = create_channel(10)
    with InterpreterPool(2) as pool:
        receiving = [pool.submit(stress_receive_with_errors, recv) for _ in range(2)]
        recv.close()
        sent, bad = [], 0
        for n in range(count):
            kind = rng.random()
            if kind < 0.05:
                with pytest.raises(subinterp.NotSendableError):
                    send.send([n, threading.Lock()])
            elif kind < 0.10:
                send.send(BadLoad())
                bad += 1
            elif kind < 0.30:
                with contextlib.suppress(subinterp.ChannelFull):
                    send.send_nowait(n)
                    sent.append(n)
            elif kind < 0.40:
                with contextlib.suppress(subinterp.SendTimeout):
                    send.send(n, timeout=rng.random() * 0.0005)
                    sent.append(n)
            else:
                send.send(n)
                sent.append(n)
        send.close()
        results = [future.result(LONG) for future in receiving]
    assert sorted(n for numbers, _ in results for n in numbers) == sent
    assert sum(errors for _, errors in results) == bad


def test_select_over_many_channels():
    channels, each = 8, scaled(5000)
    ends = [create_channel(50) for _ in range(channels)]
    with InterpreterPool(4) as pool:
        futures = [pool.submit(stress_send, send, 0, each) for _, send in ends]
        for _, send in ends:
            send.close()
        open_ends = [recv for recv, _ in ends]
        expected = dict.fromkeys(open_ends, 0)
        try:
            while True:
                recv, item = select(*open_ends, timeout=LONG)
                assert item == expected[recv]
                expected[recv] += 1
        except ChannelClosed:
            pass
        assert list(expected.values()) == [each] * channels
        for future in futures:
            future.result(LONG)


def test_ends_on_their_way(rng):
    """Ends travel, are dropped and closed in random ways; every count comes back to zero."""
    with InterpreterPool(2) as pool:
        for _ in range(scaled(10_000, 10)):
            recv, send = create_channel(rng.choice([0, 1, 5]))
            future = pool.submit(rng.choice([drop_end, identity]), [send, recv])
            if rng.random() < 0.3:
                future.cancel()
            if rng.random() < 0.5:
                outer_recv, outer_send = create_channel()
                outer_send.send([send, recv])
                if rng.random() < 0.5:
                    got = outer_recv.recv()
                    got[0].send(1)
                    assert got[1].recv() == 1
                    del got
            if rng.random() < 0.5:
                with contextlib.suppress(CancelledError):
                    future.result(LONG)
            send.close()
            del future
    # The fixture counts what is left.


def test_close_races():
    """Closing while others send and receive gives every one of them an answer."""
    for round in range(scaled(300, 5)):
        recv, send = create_channel(round % 3)
        outcomes = []

        def sender(send=send, outcomes=outcomes):
            try:
                for n in range(1000):
                    send.send(n, timeout=LONG)
            except ChannelClosed:
                pass
            outcomes.append("sender")

        def receiver(recv=recv, outcomes=outcomes):
            with contextlib.suppress(ChannelClosed):
                while True:
                    recv.recv(timeout=LONG)
            outcomes.append("receiver")

        second_send = _copy(send)
        threads = [
            threading.Thread(target=sender),
            threading.Thread(target=sender, kwargs={"send": second_send}),
            threading.Thread(target=receiver),
        ]
        for thread in threads:
            thread.start()
        if round % 2:
            time.sleep(0.0001 * (round % 7))
        recv.close() if round % 2 else send.close()
        del recv
        for end in (second_send,):
            end.close()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert sorted(outcomes) == ["receiver", "sender", "sender"]


def _copy(end):
    """Another handle on the same end: it goes through a channel of its own."""
    recv, send = create_channel()
    send.send(end)
    return recv.recv()


# Pools that come and go ------------------------------------------------------------------------


def test_pools_made_and_ended_in_threads(rng):
    errors = []

    def work(seed):
        mine = random.Random(seed)
        try:
            for _ in range(scaled(12, 2)):
                pool = InterpreterPool(mine.choice([1, 2, 3]))
                futures = [pool.submit(square, n) for n in range(mine.randrange(20))]
                ending = mine.randrange(4)
                if ending == 0:
                    assert [f.result(LONG) for f in futures] == [n * n for n in range(len(futures))]
                    pool.shutdown()
                elif ending == 1:
                    pool.shutdown(wait=False, cancel_futures=True)
                    for n, future in enumerate(futures):
                        with contextlib.suppress(CancelledError):
                            assert future.result(LONG) == n * n
                elif ending == 2:
                    del pool  # forgotten
                    assert [f.result(LONG) for f in futures] == [n * n for n in range(len(futures))]
                else:
                    with pool:
                        assert list(pool.map(square, range(50))) == [n * n for n in range(50)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rng.random(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert not errors, errors


def test_recycled_workers():
    with InterpreterPool(2, max_tasks_per_child=10) as pool:
        count = scaled(400, 20)
        futures = [pool.submit(square, n) for n in range(count)]
        assert [f.result(LONG) for f in futures] == [n * n for n in range(count)]
        assert len(set(pool.map(interpreter_id_of, range(20), chunksize=1))) >= 2


def test_one_future_read_by_many_threads(rng):
    with InterpreterPool(2) as pool:
        for _ in range(scaled(300, 5)):
            future = pool.submit(identity, [1, 2, 3])
            seen = []
            threads = [
                threading.Thread(target=lambda f=future, s=seen: s.append(f.result(LONG)))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LONG)
            assert len(seen) == 4 and all(result is seen[0] for result in seen)


def test_big_data_from_many_threads():
    blocks = [bytes([n]) * (1_000_000 + n) for n in range(8)]
    errors = []

    with InterpreterPool(2) as pool:

        def work():
            try:
                for _ in range(scaled(10, 1)):
                    for block in blocks:
                        assert pool.submit(identity, block).result(LONG) == block
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert not errors


# In processes of their own ---------------------------------------------------------------------


def test_fork_storm():
    run_script(
        f"""
        import os, signal, threading, time, traceback, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from subinterp import InterpreterPool, create_channel

        pool = InterpreterPool(2)
        recv, send = create_channel(100)
        stop = False

        def submit():
            while not stop:
                futures = [pool.submit(abs, -n) for n in range(50)]
                assert [f.result() for f in futures] == list(range(50))
                assert list(pool.map(abs, range(200))) == list(range(200))
                send.send(1)
                recv.recv()

        threads = [threading.Thread(target=submit) for _ in range(2)]
        for thread in threads:
            thread.start()
        for n in range({scaled(60, 3)}):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    signal.alarm(60)
                    if n % 3 == 0:
                        with InterpreterPool(1) as mine:
                            assert mine.submit(abs, -1).result(30) == 1
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            assert status == 0, (n, os.waitstatus_to_exitcode(status))
        stop = True
        for thread in threads:
            thread.join()
        pool.shutdown()
        """,
        timeout=LONG,
    ).clean()


@pytest.mark.parametrize("leave", ["idle", "busy", "booting", "map", "channel"])
def test_exit_storm(leave):
    """Ends of processes in awkward moments: always clean."""
    source = {
        "idle": "pool.submit(abs, -1).result()",
        "busy": "futures = [pool.submit(time.sleep, 0.001) for _ in range(100)]",
        "booting": "",
        "map": "results = pool.map(abs, range(100_000)); next(results)",
        "channel": "future = pool.submit(list, range(10)); send.send(recv)",
    }[leave]
    for n in range(scaled(12, 2)):
        run_script(
            f"""
            import time
            from subinterp import InterpreterPool, create_channel
            recv, send = create_channel()
            pool = InterpreterPool(2)
            time.sleep({n} * 0.002)
            {source}
            """
        ).clean()
