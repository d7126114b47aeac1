"""Log records of workers, handled where their pool was made (`logging_to_main`).

A worker's root logger gets a handler that sends each record, as plain values,
along the way that its output takes; the creator's interpreter has its own
loggers handle it, as if it had been logged there. A worker logs what the
creator would have let through when the pool was made: levels are the same by
then, so that what nobody wants is not sent.
"""

from __future__ import annotations

import logging
import marshal
import sys
from collections.abc import Callable
from typing import Any

_RECORDS = 3  # among the numbers of streams

_PLAIN = (type(None), bool, int, float, str, bytes)


def levels() -> dict[str, Any]:
    """Return what a worker must know of the loggers of this interpreter, as plain values."""
    loggers = {
        name: (logger.level, logger.disabled)
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled)
    }
    return {
        "root": logging.root.level,
        "loggers": loggers,
        "disable": logging.root.manager.disable,
        # logging.captureWarnings(True) was called.
        "warnings": getattr(logging, "_warnings_showwarning", None) is not None,
    }


# ---- in the worker ----------------------------------------------------------------


class Sender(logging.Handler):
    """Sends records to the interpreter that made the pool.

    Parameters
    ----------
    worker : str
        The worker's name.
    interpreter : int
        The number of its interpreter.
    emit : callable
        Takes the number of a stream, bytes, and whether to forward them.
    """

    def __init__(
        self, worker: Callable[[], str], interpreter: int, emit: Callable[[int, bytes, bool], int]
    ) -> None:
        super().__init__()
        self.worker = worker
        self.interpreter = interpreter
        self.send = emit

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; never waits."""
        try:
            self.send(_RECORDS, marshal.dumps(self.values(record)), True)
        except Exception:
            self.handleError(record)

    def values(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the record's attributes as plain values, its message complete."""
        values = {
            name: value if type(value) in _PLAIN else repr(value)
            for name, value in vars(record).items()
            if name not in ("msg", "message", "args", "exc_info")
        }
        values["msg"] = record.getMessage()
        values["args"] = None
        values["exc_info"] = None
        if record.exc_info and not record.exc_text:
            exc_info: Any = record.exc_info
            values["exc_text"] = logging.Formatter().formatException(exc_info)
        values["worker"] = self.worker()
        values["interpreter"] = self.interpreter
        return values


_sender: Sender | None = None
# Loggers whose level or `disabled` was changed here, and what they were.
_before: list[tuple[logging.Logger, int, bool]] = []
_disable_before = 0
_capturing = False


def begin(
    levels: dict[str, Any],
    worker: Callable[[], str],
    interpreter: int,
    emit: Callable[[int, bytes, bool], int],
) -> None:
    """Send records from now on, at the levels of the creator."""
    global _sender, _disable_before, _capturing
    end()
    for name, (level, disabled) in {"": (levels["root"], False), **levels["loggers"]}.items():
        logger = logging.getLogger(name)
        _before.append((logger, logger.level, logger.disabled))
        logger.setLevel(level)
        logger.disabled = disabled
    _disable_before = logging.root.manager.disable
    logging.disable(levels["disable"])
    _sender = Sender(worker, interpreter, emit)
    logging.root.addHandler(_sender)
    if levels["warnings"]:
        logging.captureWarnings(True)
        _capturing = True


def end() -> None:
    """Undo `begin`: the interpreter is parked."""
    global _sender, _capturing
    if _sender is None:
        return
    if _capturing:
        logging.captureWarnings(False)
        _capturing = False
    logging.root.removeHandler(_sender)
    _sender.close()
    _sender = None
    while _before:
        logger, level, disabled = _before.pop()
        logger.setLevel(level)
        logger.disabled = disabled
    logging.disable(_disable_before)


# ---- where the pool was made ----------------------------------------------------------


def deliver(data: bytes) -> None:
    """Have the loggers of this interpreter handle a record that a worker sent."""
    try:
        record = logging.makeLogRecord(marshal.loads(data))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception:
        # A filter of the user's raised; the handlers see to their own errors.
        if logging.raiseExceptions:
            sys.excepthook(*sys.exc_info())
