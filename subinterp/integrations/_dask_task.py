"""What runs a Dask task inside a worker's interpreter.

Interpreters import this module alone, for distributed and dask are heavy: as long as a
task is a plain call, they are never imported there.
"""

from _thread import get_ident
from collections.abc import Callable
from time import thread_time, time
from typing import Any

# What distributed raises where it does not find the Dask worker that runs the current task.
_LOST = (ValueError, AttributeError)
_NO_WORKER = (
    "This task runs in an interpreter of its own, where get_worker, get_client, worker_client, "
    "secede, actors, locks and queues of Dask do not find the Dask worker. Let it run in one of "
    'the Dask worker\'s threads, with dask.annotate(executor="threads").'
)
# Frames of a traceback that are sent at most: the outermost and the innermost ones.
_OUTER, _INNER = 20, 80

# Start and end (seconds since 1970), processor time (seconds), thread.
type Times = tuple[float, float, float, int]
# File, function, line, module.
type Frame = tuple[str, str, int, str]


class Call:
    """The function of a task, which reports when and where it ran.

    Parameters
    ----------
    function : callable
        Called in the worker.

    Notes
    -----
    Returns (result, times). An exception takes the same along, and its frames: see
    `take_report`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, /, *args: Any, **kwargs: Any) -> tuple[Any, Times]:
        start, cpu = time(), thread_time()
        try:
            result = self.function(*args, **kwargs)
        except BaseException as exc:
            times = start, time(), thread_time() - cpu, get_ident()
            _report(exc, times)
            raise
        return result, (start, time(), thread_time() - cpu, get_ident())


def _report(exc: BaseException, times: Times) -> None:
    frames: list[Frame] = []
    assert exc.__traceback__ is not None
    tb = exc.__traceback__.tb_next  # without the frame of `Call`
    while tb is not None:
        code = tb.tb_frame.f_code
        module = str(tb.tb_frame.f_globals.get("__name__", "?"))
        frames.append((code.co_filename, code.co_name, tb.tb_lineno, module))
        tb = tb.tb_next
    if frames and frames[-1][3].startswith("distributed.") and isinstance(exc, _LOST):
        exc.add_note(_NO_WORKER)
    if len(frames) > _OUTER + _INNER:
        frames[_OUTER:-_INNER] = []
    # Exceptions are pickled with their attributes.
    vars(exc)["_dask_report"] = times, frames, exc.__suppress_context__


def take_report(exc: BaseException) -> tuple[Times, list[Frame], bool] | None:
    """Return what a task's exception reports, and take it off the exception.

    None: it could not be sent along.
    """
    report: tuple[Times, list[Frame], bool] | None = vars(exc).pop("_dask_report", None)
    return report
