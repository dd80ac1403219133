"""Progress of anything longer than a few seconds: a bar, or lines of text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

CONSOLE = Console()
EVERY = 15.0  # seconds between lines where there is no terminal


@contextmanager
def bar(what: str, total: int, start: int = 0) -> Iterator:
    """advance(n=1, note='') to be called as work is done.

    On a terminal a live bar with the time left; elsewhere a line every 15 seconds.
    """
    if CONSOLE.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=CONSOLE) as live:
            task = live.add_task(what, total=total, completed=start, note="")

            def advance(n=1, note=""):
                live.update(task, advance=n, **({"note": note} if note else {}))

            yield advance
        return
    began = last = time.monotonic()
    done = start

    def advance(n=1, note=""):
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= EVERY or done >= total:
            last = now
            spent = now - began
            left = spent / max(1, done - start) * (total - done)
            print(
                f"{what}: {done}/{total}  {spent:.0f} s, {left:.0f} s left  {note}",
                flush=True,
                file=sys.stdout,
            )

    yield advance


@contextmanager
def no_bar(what: str, total: int, start: int = 0) -> Iterator:
    """The same in silence, for all hosts but one."""
    yield lambda n=1, note="": None
