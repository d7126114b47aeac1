"""What the tests of joblib's backend run in workers."""

import threading
import time
import warnings

from _work import interpreter_id


def slow_identity(x, seconds=0.02):
    time.sleep(seconds)
    return x


def who(seconds=0.1):
    """The worker; takes so long that others get tasks, too."""
    time.sleep(seconds)
    return interpreter_id()


def address_of(array, *_):
    return array.__array_interface__["data"][0]


def try_to_write(array):
    """What hinders writing to an array: two messages, or None."""
    found = []
    for attempt in (lambda: array.fill(7), lambda: array.setflags(write=True)):
        try:
            attempt()
        except ValueError as error:
            found.append(str(error))
        else:
            found.append(None)
    return found


def write_at(array, index):
    array[index] = index
    return type(array).__name__


def looks(thing):
    """How an array arrived: its values, and whether it is writable."""
    array = thing["array"] if isinstance(thing, dict) else thing
    return array.tolist(), array.strides, array.flags.writeable


def nested(backend):
    """Tasks of a task: joblib's backend, the threads that ran them, the warnings."""
    from joblib import Parallel, delayed

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parallel = Parallel(n_jobs=2, backend=backend)
        threads = parallel(delayed(thread_name)() for _ in range(4))
    kind = type(parallel._backend).__name__
    return kind, threads, [str(warning.message) for warning in caught]


def thread_name():
    time.sleep(0.02)
    return threading.current_thread().name


def blas_threads():
    from threadpoolctl import threadpool_info

    time.sleep(0.1)
    return [(i["user_api"], i["num_threads"]) for i in threadpool_info()]


def frame_facts(frame):
    """The sum of a column, and whether it can be written to."""
    column = frame["a"].to_numpy()
    return float(column.sum()), column.flags.writeable


initialized = []


def initialize(*args):
    initialized.append(args)


def initialized_with():
    time.sleep(0.05)
    return interpreter_id(), initialized


def fail(*args):
    raise LookupError("no such thing")


def raise_or_sleep(i):
    if i == 1:
        raise LookupError(i)
    time.sleep(1000)


def use_backend():
    """In a worker: what the backend does when it is asked for there."""
    from subinterp.integrations.joblib import register

    register()
    return nested("subinterp")
