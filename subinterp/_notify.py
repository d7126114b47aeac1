"""The thread that publishes completed tasks to those who observe them; what those sleep on."""

import threading
from typing import Any

# Seconds that the thread waits for more before it ends.
LINGER = 5.0


class TaskEvent(threading.Event):
    """What `concurrent.futures.wait` and `as_completed` sleep on, if they wait for tasks of ours.

    Whatever stops the wait, as Ctrl-C does, stops the tasks that it waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.futures: set[Any] = set()

    def wait(self, timeout: float | None = None) -> bool:
        try:
            return super().wait(timeout)
        except Exception:
            raise
        except BaseException:
            # `wait` does not take its waiter back then: it shall not keep the futures.
            futures, self.futures = self.futures, set()
            for future in futures:
                future.interrupt()
            raise


def event_of(waiter: Any) -> TaskEvent | None:
    """Return the event of one of the standard library's waiters; it is replaced at first.

    None: it has none, or one that is not the usual one.
    """
    event = getattr(waiter, "event", None)
    if type(event) is threading.Event:
        event = waiter.event = TaskEvent()
    return event if isinstance(event, TaskEvent) else None


def start(notifier: Any) -> threading.Thread:
    """Start the notifier's thread in this interpreter.

    A daemon where the interpreter allows it: whoever leaves a future observed
    must not hold the end of the program up. (Work that is still to be done is
    waited for by the pools' own exit hook.)
    """
    try:
        thread = threading.Thread(
            target=notifier.run, args=(LINGER,), name="subinterp-notifier", daemon=True
        )
        thread.start()
    except RuntimeError:
        # Interpreters made elsewhere may forbid daemon threads.
        thread = threading.Thread(
            target=notifier.run, args=(LINGER,), name="subinterp-notifier", daemon=False
        )
        thread.start()
    return thread
