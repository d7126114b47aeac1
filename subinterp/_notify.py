"""The thread that publishes completed tasks to those who observe them."""

import threading
from typing import Any

# Seconds that the thread waits for more before it ends.
LINGER = 5.0


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
