"""How a pool looks in a notebook; loaded when one is shown there."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subinterp.observing import PoolStats, WorkerStats
    from subinterp.pool import InterpreterPool

# Workers that get a row of their own; a pool may have thousands.
MAX_ROWS = 16

# No colour of its own but a grey that shows on white and on black: the rest is the page's.
_LINE = "border-top:1px solid rgba(128,128,128,.5)"
_CELL = "padding:.1em .6em;text-align:"
_BAR = "display:inline-block;width:4em;height:.6em;margin-right:.5em;border:1px solid currentColor"
_FILL = "display:block;height:100%;background:currentColor"

_HEADINGS = ("worker", "state", "busy", "calls", "failed", "calls a busy second", "memory")


def pool_html(pool: InterpreterPool) -> str:
    """Return a pool's workers, queue and throughput as HTML.

    Parameters
    ----------
    pool : InterpreterPool
        Open, shut down or broken.

    Returns
    -------
    str
        One `div` without scripts, style sheets or links. What comes from outside (names)
        is escaped.

    Raises
    ------
    RuntimeError
        If the pool was not initialised.

    Notes
    -----
    Does not block: it shows what `InterpreterPool.stats` says at this moment.
    """
    stats = pool.stats()
    rows = [_row(worker.name, worker.state, worker) for worker in stats.workers[:MAX_ROWS]]
    left_out = len(stats.workers) - len(rows)
    if left_out > 0:
        whole_row = f'<td colspan="{len(_HEADINGS)}" style="{_CELL}left">'
        rows.append(f"<tr>{whole_row}and {left_out:,} more</td></tr>")
    queued = "1 task" if stats.queue_length == 1 else f"{stats.queue_length:,} tasks"
    return (
        '<div style="font-size:90%;line-height:1.4">'
        f"<b>{escape(repr(pool).strip('<>'))}</b>; {queued} in the queue"
        '<table style="border-collapse:collapse;margin:.4em 0;color:inherit">'
        f"<thead>{_cells('th', _HEADINGS)}</thead><tbody>{''.join(rows)}</tbody>"
        f'<tfoot style="{_LINE}">{_row("in all", "", stats)}</tfoot></table></div>'
    )


def _row(name: str, state: str, of: WorkerStats | PoolStats) -> str:
    known = of.busy_seconds + of.idle_seconds
    share = of.busy_seconds / known if known > 0 else 0.0
    calls = of.tasks_done + of.tasks_failed
    memory = getattr(of, "memory_bytes", None)
    rate = calls / of.busy_seconds if calls and of.busy_seconds > 0 else None
    bar = f'<span style="{_BAR}"><span style="{_FILL};width:{share:.0%}"></span></span>'
    return _cells(
        "td",
        (
            escape(name),
            escape(state),
            f"{bar}{share:.0%}",
            f"{calls:,}",
            f"{of.tasks_failed:,}",
            "" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
            "" if memory is None else f"{memory / 1e6:,.0f} MB",
        ),
    )


def _cells(tag: str, contents: Iterable[str]) -> str:
    """One row; words stand on the left, numbers on the right."""
    aligned = ("left", "left", "left", "right", "right", "right", "right")
    cells = (
        f'<{tag} style="{_CELL}{side}">{content}</{tag}>'
        for side, content in zip(aligned, contents, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
