"""How long work reports on itself: library code is handed a `Display` and never sees a
terminal. The commands pass the one that writes to it (`main/progress.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple


class Display(NamedTuple):
    """Callbacks of a run.

    bar: (what, total, start=0) → a context whose value is `advance(n=1, note="")`, to
      be called as work is done.
    say: (line) → None, a line of text to the user.
    """

    bar: Callable[..., AbstractContextManager[Callable[..., None]]]
    say: Callable[[str], None]


@contextmanager
def _no_bar(what: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
    yield lambda n=1, note="": None


SILENT = Display(_no_bar, lambda line: None)
