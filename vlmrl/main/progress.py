"""The terminal: progress of anything longer than a few seconds, lines, reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
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

from vlmrl.report import render
from vlmrl.run import hosts
from vlmrl.run.progress import SILENT, Display

CONSOLE = Console()
EVERY = 15.0  # seconds between lines where there is no terminal


def say(line: str) -> None:
    """Print a line, on the first host."""
    if hosts.first():
        CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False)
        sys.stdout.flush()


def show_report(report) -> None:
    """Print the main table and the path of the page of a `report.assemble.Report`."""
    CONSOLE.print(render.terminal(report.table))
    say(f"\nreport: {report.page}")


@contextmanager
def bar(what: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress, on the first host; yields advance(n=1, note='').

    On a terminal a live bar with the time left; elsewhere a line every 15 seconds.
    """
    if not hosts.first():
        with SILENT.bar(what, total, start) as advance:
            yield advance
    elif CONSOLE.is_terminal:
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
    else:
        yield _lines(what, total, start)


def _lines(what: str, total: int, start: int) -> Callable[..., None]:
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
            )

    return advance


TERMINAL = Display(bar, say)
