"""Functions and classes that tests send to workers by name.

Workers import this module, so it imports as little as it can and never
pytest. Everything here also works in threads and in spawned processes.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import os
import pickle
import select
import sys
import threading
import time

# Plain functions --------------------------------------------------------------


def add(x, y):
    return x + y


def mul(x, y):
    return x * y


def identity(x):
    return x


def square(x):
    return x * x


def capture(*args, **kwargs):
    return args, kwargs


def sleep_return(seconds, value):
    time.sleep(seconds)
    return value


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def spin(seconds):
    """Compute in Python for `seconds`, holding the lock of this interpreter."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        count += 1
    return count


def interpreter_id():
    import _interpreters

    current = _interpreters.get_current()
    return current[0] if isinstance(current, tuple) else current


def thread_id():
    return threading.get_native_id()


def process_id():
    return os.getpid()


def get_path():
    return list(sys.path)


def get_argv():
    return list(sys.argv)


def get_environ(name):
    return os.environ.get(name)


def get_warning_filters():
    import warnings

    return [(action, category.__name__) for action, _, category, _, _ in warnings.filters]


def describe(obj):
    """Tell what arrived: its exact type, and its repr."""
    return type(obj).__module__, type(obj).__qualname__, repr(obj)


def type_name(obj):
    return type(obj).__qualname__


def apply(fn, *args, **kwargs):
    return fn(*args, **kwargs)


def same_objects(*args):
    """Tell which of the arguments are the same object."""
    return [[a is b for b in args] for a in args]


def say(text, end="\n", file="stdout"):
    print(text, end=end, file=getattr(sys, file))


def recurse(n):
    return 0 if n == 0 else 1 + recurse(n - 1)


def recurse_forever(n=0):
    return recurse_forever(n + 1) + 1


def count_objects():
    import gc

    gc.collect()
    return len(gc.get_objects())


def count_module(name):
    return name in sys.modules


# Exceptions -------------------------------------------------------------------


class PlainError(Exception):
    pass


class ArgumentsError(Exception):
    """Its __init__ takes more than its args say: the classic unpickling failure."""

    def __init__(self, code, *, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class AttributeErrorCarrier(Exception):
    def __init__(self, text, extra):
        super().__init__(text, extra)
        self.extra = extra
        self.more = [extra]


class FalsyError(Exception):
    def __bool__(self):
        return False


class EmptyError(Exception):
    def __len__(self):
        return 0


class UnpicklableError(Exception):
    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class BadReprError(Exception):
    def __init__(self):
        super().__init__(threading.Lock())

    def __str__(self):
        raise ValueError("no text for you")

    __repr__ = __str__


def fail(exc_type, *args, **kwargs):
    raise exc_type(*args, **kwargs)


def fail_with(exception):
    raise exception


def fail_noted():
    error = ValueError("noted")
    error.add_note("first note")
    error.add_note("second note")
    raise error


def fail_chained():
    try:
        try:
            raise KeyError("innermost")
        except KeyError as error:
            raise OSError(5, "middle") from error
    except OSError as error:
        raise ValueError("outermost") from error


def fail_in_context():
    try:
        raise KeyError("handled")
    except KeyError:
        raise ValueError("while handling")  # noqa: B904


def fail_suppressed():
    try:
        raise KeyError("hidden")
    except KeyError:
        raise ValueError("shown") from None


def fail_group():
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])


def fail_deep_in_worker(depth=3):
    if depth:
        return fail_deep_in_worker(depth - 1)
    raise LookupError("deep in the worker")


def fail_if(n, bad):
    if n in bad:
        raise PlainError(n)
    return n


def fail_sometimes(n):
    """Raise on every third number; the number is in the error."""
    if n % 3 == 0:
        raise PlainError(n)
    return n


def exit_with(code):
    sys.exit(code)


def raise_system_exit():
    raise SystemExit(7)


def raise_keyboard_interrupt():
    raise KeyboardInterrupt("from the task")


def raise_generator_exit():
    raise GeneratorExit


def return_unsendable():
    return {"rows": [1, 2, threading.Lock()]}


def return_generator():
    return (x for x in range(3))


# Classes ----------------------------------------------------------------------


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __eq__(self, other):
        return type(self) is type(other) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self):
        return hash((self.x, self.y))

    def __repr__(self):
        return f"Point({self.x}, {self.y})"

    def norm1(self):
        return abs(self.x) + abs(self.y)

    def add_to(self, other):
        return self.x + other

    @classmethod
    def origin(cls):
        return cls(0, 0)

    @staticmethod
    def twice(x):
        return 2 * x

    def __call__(self, factor):
        return Point(self.x * factor, self.y * factor)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a = a
        self.b = b


class BadReduce:
    """Its pickling fails with an error of its own."""

    def __reduce__(self):
        raise RuntimeError("will not be pickled")


class BadLoad:
    """Its pickle cannot be loaded."""

    def __reduce__(self):
        return fail, (RuntimeError, "will not be loaded")


class BadLoadInWorker:
    """Its pickle can be loaded in the interpreter of its maker only."""

    def __init__(self):
        self.home = interpreter_id()

    def __reduce__(self):
        return _load_at_home, (self.home,)


def _load_at_home(home):
    if interpreter_id() != home:
        raise RuntimeError("will not be loaded away from home")
    return "at home"


class Counted:
    """Counts in this interpreter how many of it are alive."""

    alive = 0

    def __init__(self):
        Counted.alive += 1

    def __del__(self):
        Counted.alive -= 1

    def __reduce__(self):
        return Counted, ()


def counted_alive():
    import gc

    gc.collect()
    return Counted.alive


def make_counted(n=1):
    return [Counted() for _ in range(n)]


# Kinds of classes that data may have ------------------------------------------------


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Number(enum.IntEnum):
    ONE = 1


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class IntSubclass(int):
    pass


class StrSubclass(str):
    __slots__ = ()


class ListSubclass(list):
    pass


class DictSubclass(dict):
    pass


class TupleSubclass(tuple):
    __slots__ = ()


class FloatSubclass(float):
    pass


class BytesSubclass(bytes):
    pass


class SetSubclass(set):
    pass


class BytearraySubclass(bytearray):
    pass


@dataclasses.dataclass
class Record:
    name: str
    tags: list = dataclasses.field(default_factory=list)
    inner: Record | None = None


Pair = collections.namedtuple("Pair", "left right")


class Carrier:
    def __init__(self, data):
        self.data = bytearray(data)

    def __reduce_ex__(self, protocol):
        if protocol >= 5:
            return Carrier, (pickle.PickleBuffer(self.data),)
        return Carrier, (bytes(self.data),)


# Module state, set by initializers ------------------------------------------------

STATE = "unset"


def set_state(value):
    global STATE
    STATE = value


def get_state():
    return STATE


def failing_initializer():
    raise ValueError("error in initializer")


def slow_failing_initializer(seconds):
    time.sleep(seconds)
    raise ValueError("error in initializer")


# Signals between tasks and tests: pipes work in every interpreter and need nothing


class Gate:
    """An event made of a pipe: what one interpreter opens, all pass.

    It is passed on as two file descriptors, so it works between threads and
    interpreters of one process.
    """

    def __init__(self, fds=None):
        self.fds = fds or os.pipe()

    def __reduce__(self):
        return Gate, (self.fds,)

    def wait(self, timeout=None):
        ready, _, _ = select.select([self.fds[0]], [], [], timeout)
        return bool(ready)

    def is_set(self):
        return self.wait(0)

    def set(self):
        os.write(self.fds[1], b"x")

    def close(self):
        for fd in self.fds:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


class Flag:
    """An event made of a file: works in threads, interpreters and processes alike."""

    def __init__(self, path):
        self.path = os.fspath(path)

    def wait(self, timeout=60):
        end = time.monotonic() + timeout
        while not os.path.exists(self.path):
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def is_set(self):
        return os.path.exists(self.path)

    def set(self):
        with open(self.path, "w"):
            pass

    def clear(self):
        os.unlink(self.path)


def pass_gate(gate, value=None, started=None, timeout=60):
    """Tell that the task runs, wait at the gate, return `value`."""
    if started is not None:
        started.set()
    if not gate.wait(timeout):
        raise TimeoutError("the gate stayed shut")
    return value


def set_flag(flag):
    flag.set()


def write_byte(fd, value=None):
    os.write(fd, b"x")
    return value


def read_byte(fd):
    return os.read(fd, 1)


def gate_or_mark(pair):
    """Wait at a gate, or leave a mark that this ran."""
    kind, flag = pair
    if kind == "gate":
        return flag.wait(60)
    return flag.set()


def gate_or_pass(gate):
    """Wait at a gate, if there is one."""
    return None if gate is None else gate.wait(60)


def meet(mine, other):
    mine.set()
    return other.wait(60)


def apply_pair(pair):
    fn, arg = pair
    return fn(arg)


# Pools in tasks -------------------------------------------------------------------


def nested_pool(n):
    import subinterp

    with subinterp.InterpreterPool(2) as pool:
        return list(pool.map(square, range(n)))


def wait_for_inner(pool, n):
    """Give work to the pool this task runs in, and wait for it."""
    return pool.submit(square, n).result(60)


def wait_forever_for_inner(pool):
    return pool.submit(square, 3).result()


def gated_wait_for_inner(pool, gate):
    gate.wait(60)
    inner = pool.submit(square, 3)
    time.sleep(0.2)  # so that every worker has put its inner task in the queue
    return inner.result()


def map_in_own_pool(pool):
    return list(pool.map(square, range(10)))


def give_work(pool, mark):
    pool.submit(set_flag, mark)


# Buffers ------------------------------------------------------------------------


def fill(buffer, value):
    view = memoryview(buffer).cast("B")
    for index in range(len(view)):
        view[index] = value
    return len(view)


def poke(buffer, index, value):
    view = memoryview(buffer).cast("B")
    view[index] = value


def peek(buffer, index):
    return memoryview(buffer).cast("B")[index]


def buffer_sum(buffer):
    return sum(memoryview(buffer).cast("B"))


def buffer_facts(view):
    with memoryview(view) as m:
        return m.format, m.shape, m.strides, m.readonly, m.tobytes()


# Arrays and frames ----------------------------------------------------------------


def array_facts(array):
    """What an array is, as plain values."""
    return (
        type(array).__name__,
        array.dtype.str if array.dtype.names is None else repr(array.dtype),
        array.shape,
        array.strides,
        array.flags.writeable,
        array.tobytes(),
    )


def array_address(array):
    return array.__array_interface__["data"][0]


def array_write(array, value):
    array[...] = value


def array_sum(array):
    return float(array.sum())


def array_made(n, dtype="f8"):
    import numpy

    return numpy.arange(n).astype(dtype)


def array_shared(n, value):
    """An array of doubles over memory that is made here."""
    from subinterp import SharedBuffer

    array = SharedBuffer(8 * n).asarray("f8")
    array[:] = value
    return array


def array_kept_facts():
    return array_facts(KEPT[-1])


def modules_loaded(*modules):
    return [name in sys.modules for name in modules]


def frame_equals(frame, text):
    """Whether the sender saw the same values, types and names."""
    return frame_text(frame) == text


def frame_text(frame):
    """What a frame, series, table or array of any library holds."""
    module = type(frame).__module__.partition(".")[0]
    if module == "polars":
        values = frame.to_dict(as_series=False) if hasattr(frame, "columns") else frame.to_list()
        return repr((type(frame).__name__, str(getattr(frame, "schema", frame)), values))
    if module == "pyarrow":
        return repr((type(frame).__name__, str(getattr(frame, "schema", "")), frame.to_pylist()))
    return repr((type(frame).__name__, frame.dtypes.to_dict(), frame.to_dict()))


# Channels -------------------------------------------------------------------------


def send_all(send, items):
    for item in items:
        send.send(item)
    return len(items)


def send_range(send, start, stop):
    for number in range(start, stop):
        send.send(number)
    return stop - start


def receive_all(recv):
    return list(recv)


def receive_one(recv, timeout=60):
    return recv.recv(timeout=timeout)


def receive_name(recv, timeout=60):
    """Return what kind of exception `recv` ends with, or the value."""
    try:
        return "value", recv.recv(timeout=timeout)
    except Exception as error:
        return type(error).__name__, None


def echo(recv, send):
    """Send back whatever arrives, until the other side is closed."""
    count = 0
    for item in recv:
        send.send(item)
        count += 1
    return count


def close_end(end):
    end.close()


def drop_end(end):
    """Take an end and do nothing with it: it goes away with this frame."""


KEPT = []


def keep(obj):
    KEPT.append(obj)
    return len(KEPT)


def drop_kept():
    import gc

    KEPT.clear()
    gc.collect()


def peek_kept():
    return memoryview(KEPT[-1])[0]


# Stress ---------------------------------------------------------------------------


def stress_fails(n):
    """Whether the task with this number raises: scattered, and known to both sides."""
    return (n * 2654435761) % 4294967296 < 4294967296 // 10


def stress_task(n):
    if stress_fails(n):
        raise PlainError(n)
    return n * 2


def stress_twice(n):
    return n * 2


def stress_mark(view, n):
    """Count in shared memory that this task ran."""
    view[n] += 1
    return n


def stress_send(send, start, count):
    for n in range(start, start + count):
        send.send(n)
    return count


def stress_receive(recv, size):
    """Count for each number how often it was received."""
    counts = bytearray(size)
    for n in recv:
        counts[n] += 1
    return counts


def stress_receive_with_errors(recv):
    from subinterp import ChannelClosed

    numbers, errors = [], 0
    while True:
        try:
            numbers.append(recv.recv(timeout=300))
        except ChannelClosed:
            return numbers, errors
        except RuntimeError:
            errors += 1


def interpreter_id_of(_):
    return interpreter_id()


# What runs while a result is loaded ---------------------------------------------

on_load = None  # a test sets it, in its own interpreter


def loaded():
    return on_load()


class CallsOnLoad:
    """Becomes what `on_load` returns where it is loaded."""

    def __reduce__(self):
        return loaded, ()


def return_calls_on_load():
    return [CallsOnLoad(), bytearray(b"x" * 200_000), "s" * 1000]


# Observing --------------------------------------------------------------------


def log_records(name):
    import logging

    log = logging.getLogger(name)
    log.info("one %d", 1)
    log.debug("two")
    try:
        raise ZeroDivisionError("x")
    except ZeroDivisionError:
        log.exception("raised")
    log.warning("odd", extra={"extra": object()})


def hold_lock_in_c(seconds):
    """Run C code that does not let go of the interpreter's lock."""
    import ctypes

    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000) % 1_000_000 or 999_999)


def keep_objects(n):
    import builtins

    builtins.kept = [i + 0.5 for i in range(n)]


def drop_objects():
    import builtins

    del builtins.kept


def keep_objects_in_a_thread(n):
    import threading

    thread = threading.Thread(target=keep_objects, args=(n,))
    thread.start()
    thread.join()
