"""Random use of interpreters, queues and channels by several threads at once.

`main` runs it, in a process of its own: see test_interpreters_fuzz.py. What an
operation may raise is what its documentation says; anything else is an error. What
the main interpreter puts into queues is counted: none is lost, none doubled.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import threading
import traceback

from subinterp import interpreters, pep554

MAX_INTERPRETERS = 6

EXPECTED = (
    interpreters.InterpreterError,  # ExecutionFailed and InterpreterNotFoundError as well
    interpreters.QueueError,
    pep554.ChannelError,
    pep554.RunFailedError,
    pep554.InterpreterError,
    TimeoutError,
)


class Unshareable:
    def __reduce__(self):
        raise TypeError("never")


# ---- what runs in interpreters ---------------------------------------------------------


def put_here(queue, n, policy):
    policies = interpreters.UNBOUND, interpreters.UNBOUND_ERROR, interpreters.UNBOUND_REMOVE
    for i in range(n):
        queue.put(("foreign", i), timeout=0.05, unbounditems=policies[policy])


def echo(obj):
    return obj


def create_inside(close):
    interp = interpreters.create()
    interp.exec("x = 1")
    if close:
        interp.close()
    return interp.id


def close_other(interp):
    interp.close()


def use_other(interp):
    return interp.call(echo, (1, "a"))


def send_here(send, n):
    for i in range(n):
        send.send_nowait(i)


def receive_here(recv):
    return recv.recv(timeout=0.05)


# ---- operations -------------------------------------------------------------------------


class Fuzz:
    def __init__(self, seed):
        self.seed = seed
        self.lock = threading.Lock()
        self.interps = []
        self.queues = [interpreters.create_queue(n) for n in (0, 0, 1, 4)]
        self.retired = []  # queues that others may still be putting into
        self.channels = [pep554.create_channel() for _ in range(3)]
        self.next_token = 0
        self.sent = set()
        self.received = []
        self.failures = []
        self.done = {}

    def token(self):
        with self.lock:
            self.next_token += 1
            return self.next_token

    def interp(self, rng):
        with self.lock:
            if self.interps:
                return rng.choice(self.interps)
        return self.create(rng)

    def create(self, rng):
        with self.lock:
            full = len(self.interps) >= MAX_INTERPRETERS
        if full:
            return self.forget(rng)
        interp = rng.choice((interpreters, pep554)).create()
        if isinstance(interp, pep554.Interpreter):
            interp = interpreters.Interpreter(interp.id)
        with self.lock:
            self.interps.append(interp)
        return interp

    def forget(self, rng):
        """Drop an interpreter; it may be used elsewhere."""
        with self.lock:
            if self.interps:
                return self.interps.pop(rng.randrange(len(self.interps)))
        return interpreters.get_main()

    def close(self, rng):
        interp = self.forget(rng)
        if interp.id != 0:
            interp.close()

    def bad_close(self, rng):
        main = interpreters.get_main()
        try:
            rng.choice((main, interpreters.get_current())).close()
        except interpreters.InterpreterError:
            return
        raise AssertionError("the main interpreter was closed")

    def exec(self, rng):
        self.interp(rng).exec(
            rng.choice(("x = 1", "1 / 0", "import sys; sys.exit(2)", "y = [x for x in range(500)]"))
        )

    def run(self, rng):
        pep554.Interpreter(self.interp(rng).id).run(rng.choice(("z = 1", "raise KeyError(1)")))

    def call(self, rng):
        value = rng.choice((None, 5, "text", b"x" * 70_000, [1, {"a": (2,)}], self.queues[0]))
        interp = self.interp(rng)
        result = interp.call(echo, value)
        if not (result == value):
            raise AssertionError(f"{result!r} came back for {value!r}")

    def call_unshareable(self, rng):
        interp = self.interp(rng)
        try:
            interp.call(echo, Unshareable())
        except interpreters.NotShareableError:
            return
        except TypeError as error:
            raise AssertionError("not the documented exception") from error
        raise AssertionError("an unshareable object was sent")

    def call_in_thread(self, rng):
        interp = self.interp(rng)

        def quiet():
            try:
                interp.call(put_here, rng.choice(self.queues), 3, rng.randrange(3))
            except EXPECTED:
                pass

        thread = threading.Thread(target=quiet)
        thread.start()
        if rng.random() < 0.5:
            thread.join()

    def prepare_main(self, rng):
        recv, send = rng.choice(self.channels)
        self.interp(rng).prepare_main(q=rng.choice(self.queues), recv=recv, send=send, n=5)

    def look(self, rng):
        for interp in interpreters.list_all():
            try:
                interp.is_running(), interp.whence, repr(interp)
            except interpreters.InterpreterNotFoundError:
                pass
        interpreters.get_current(), pep554.list_all()
        with self.lock:
            gone = interpreters.Interpreter(0).id + 1_000_000_000
        try:
            interpreters.Interpreter(gone)
        except interpreters.InterpreterNotFoundError:
            return
        raise AssertionError("there is an interpreter of that number")

    def nested(self, rng):
        with self.lock:
            room = len(self.interps) < MAX_INTERPRETERS
        if room:
            self.interp(rng).call(create_inside, rng.random() < 0.5)

    def cross(self, rng):
        a, b = self.interp(rng), self.interp(rng)
        a.call(rng.choice((use_other, close_other)), b)

    def put(self, rng):
        token = self.token()
        queue = rng.choice(self.queues)
        with self.lock:
            self.sent.add(token)
        try:
            queue.put(token, timeout=rng.choice((0, 0.001, 0.01)))
        except interpreters.QueueFull:
            with self.lock:
                self.sent.discard(token)

    def get(self, rng):
        queue = rng.choice(self.queues)
        self.take(queue.get(timeout=rng.choice((0, 0.001, 0.01))))

    def get_nowait(self, rng):
        self.take(rng.choice(self.queues).get_nowait())

    def take(self, item):
        if isinstance(item, int):
            with self.lock:
                self.received.append(item)

    def put_inside(self, rng):
        self.interp(rng).call(put_here, rng.choice(self.queues), rng.randrange(5), rng.randrange(3))

    def queue_of_queues(self, rng):
        outer = interpreters.create_queue()
        inner = interpreters.create_queue(2)
        outer.put(inner)
        inner.put(b"x")
        if outer.get() is not inner or inner.get() != b"x":
            raise AssertionError("it is not the same queue")

    def new_queue(self, rng):
        with self.lock:
            spot = rng.randrange(len(self.queues))
            old = self.queues[spot]
            self.queues[spot] = interpreters.create_queue(rng.choice((0, 1, 5)))
        self.drain(old)
        with self.lock:
            self.retired.append(old)

    def drain(self, queue):
        while True:
            try:
                self.take(queue.get_nowait())
            except interpreters.ItemInterpreterDestroyed:
                continue
            except interpreters.QueueEmpty:
                break

    def send(self, rng):
        _, send = rng.choice(self.channels)
        send.send(5, timeout=rng.choice((0, 0.002)))

    def send_nowait(self, rng):
        _, send = rng.choice(self.channels)
        send.send_nowait(rng.choice((1, "a", [1])), unbounditems=pep554.UNBOUND_REMOVE)

    def recv(self, rng):
        recv, _ = rng.choice(self.channels)
        recv.recv(timeout=rng.choice((0, 0.002)))

    def channel_inside(self, rng):
        recv, send = rng.choice(self.channels)
        interp = self.interp(rng)
        if rng.random() < 0.5:
            interp.call(send_here, send, rng.randrange(4))
        else:
            interp.call(receive_here, recv)

    def close_channel(self, rng):
        with self.lock:
            spot = rng.randrange(len(self.channels))
            recv, send = self.channels[spot]
            self.channels[spot] = pep554.create_channel()
        rng.choice((recv, send)).close()
        try:
            send.send(1, timeout=0)
        except pep554.ChannelError:
            pass

    # ---- the run -----------------------------------------------------------------------

    OPERATIONS = (
        *(("put", "get", "call", "exec", "put_inside", "channel_inside", "send", "recv") * 2),
        "create", "forget", "close", "bad_close", "run", "call_unshareable", "call_in_thread",
        "prepare_main", "look", "nested", "cross", "get_nowait", "queue_of_queues", "new_queue",
        "send_nowait", "close_channel",
    )  # fmt: skip

    def work(self, index, n):
        rng = random.Random(self.seed * 1000 + index)
        for _ in range(n):
            if self.failures:
                return
            name = rng.choice(self.OPERATIONS)
            try:
                getattr(self, name)(rng)
            except EXPECTED:
                pass
            except BaseException as error:
                # An end of a channel may have been closed meanwhile.
                if name in ("prepare_main", "channel_inside") and "closed" in str(error):
                    continue
                self.failures.append(f"{name}: {''.join(traceback.format_exception(error))}")
            with self.lock:
                self.done[name] = self.done.get(name, 0) + 1

    def finish(self):
        for queue in (*self.queues, *self.retired):
            self.drain(queue)
        if sorted(self.received) != sorted(self.sent):
            lost = self.sent - set(self.received)
            self.failures.append(
                f"{len(lost)} of {len(self.sent)} lost, {len(self.received)} received"
            )


def main(seed, operations, threads):
    fuzz = Fuzz(seed)
    workers = [
        threading.Thread(target=fuzz.work, args=(i, operations // threads)) for i in range(threads)
    ]
    for worker in workers:
        worker.start()
    done, quiet = 0, 0
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(10 / threads)
        before, done = done, sum(fuzz.done.values())
        quiet = quiet + 1 if done == before else 0
        if quiet == 6:
            print("no operation has ended for a minute", flush=True)
            for interp in interpreters.list_all():
                if interp._pool is not None:
                    interp._pool.dump_tracebacks(sys.stderr)
            faulthandler.dump_traceback()
            os._exit(3)
    for thread in threading.enumerate():
        if thread not in (threading.current_thread(), *workers) and not thread.daemon:
            thread.join()
    fuzz.finish()
    for failure in fuzz.failures:
        print(failure)
    print("operations", sum(fuzz.done.values()), "received", len(fuzz.received))
    if fuzz.failures:
        sys.exit(1)
    print("well")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
