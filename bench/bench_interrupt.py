"""How long a task that runs takes to stop."""

import multiprocessing
import time
from contextlib import contextmanager

from bench import work
from bench.contenders import OURS, Contender, SubinterpPool
from bench.race import Case, Effort, Figure, race

LONG = 3600.0


class Interrupted(SubinterpPool):
    """`Future.interrupt`, until the future has ended."""

    needs = ("subinterp:Interrupt",)

    def __init__(self, name, fn):
        self.name = name
        self.fn = fn

    @contextmanager
    def open(self):
        with self.executor(2) as pool:
            yield lambda: self.start(pool), self.stop

    def start(self, pool):
        """Submit the task, and wait until a worker runs it."""
        future = pool.submit(self.fn, LONG)
        while not future.running():
            time.sleep(0.0002)
        return future

    def stop(self, future):
        """Stop the task; raise an error if it ended otherwise."""
        from subinterp import TaskInterrupted

        future.interrupt()
        if type(future.exception()) is not TaskInterrupted:
            raise RuntimeError(f"it was not interrupted: {future.exception()!r}")


class Killed(Contender):
    """A process that is killed, and waited for; the next one is started aside."""

    name = "Process.kill"

    @contextmanager
    def open(self):
        context = multiprocessing.get_context("forkserver")

        def start():
            process = context.Process(target=work.busy, args=(LONG,))
            process.start()
            return process

        def stop(process):
            process.kill()
            process.join()
            process.close()

        yield start, stop


class InterruptLatency(Case):
    """One task at a time, after it has run for a moment."""

    name = "interrupt"
    title = "future.interrupt() until the future has ended"
    figures = (Figure("p50", "p50"), Figure("p99", "p99"))
    contenders = (
        Interrupted(f"{OURS}, Python code", work.busy),
        Interrupted(f"{OURS}, time.sleep", work.hold),
        Killed(),
    )
    full = Effort(rounds=5, seconds=20.0, count=500)
    short = Effort(rounds=2, seconds=3.0, count=150)

    def turn(self, contender, opened):
        start, stop = opened
        clock = time.perf_counter
        deadline = clock() + self.effort.seconds
        taken = []
        while len(taken) < self.effort.count and (clock() < deadline or len(taken) < 10):
            task = start()
            # Until it is deep in its work; not always at the same moment of it.
            time.sleep(0.002 + len(taken) % 7 * 0.0003)
            begin = clock()
            stop(task)
            taken.append(clock() - begin)
        taken.sort()
        median, high = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
        return {"seconds": median, "p50": median, "p99": high}


bench_interrupt = race(InterruptLatency)
