"""Judge beside other work, which waits no longer than a time limit.

    pending = AsyncJudge(judge, seconds=20.0)
    for part in parts:
        pending.submit(items_of(generate(part)))  # judged during the next generate
    verdicts = pending.collect().verdicts  # at most 20 s later

An item without a verdict by then is undecided, with the reason. An HTTP judge with the
same `seconds` (`chat.make`) gives up its slow items before a whole part is given up;
replies that come too late are still cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from vlmrl.client import http
from vlmrl.judges.judge import Judge, JudgeItem, Verdict, ask, settled, undecided
from vlmrl.types import UserError

_LATE = "no verdict within"
_BUSY = "the judge is still busy with earlier items"
_GRACE = 0.5  # seconds: for a judge that ends at the same deadline to hand over


class Collected(NamedTuple):
    """Verdicts of the parts submitted since the last call."""

    verdicts: list[Verdict]  # of all their items, in order
    waited: float  # seconds that `collect` took: the step time added by judging
    late: int  # items that were undecided because time ran out


class AsyncJudge:
    """Judge items in parts, each part in a thread of its own.

    Args:
      judge: called from several threads at a time.
      seconds: that `collect` waits at most.
      most: parts judged at once, abandoned ones included; further parts are undecided
        immediately, so that a hanging judge can't accumulate threads.

    Raises:
      UserError: a time that is not positive.
    """

    def __init__(self, judge: Judge, seconds: float, *, most: int = 16):
        if not seconds > 0:
            raise UserError(f"judge seconds: expected more than 0, got {seconds:g}")
        self.judge, self.seconds, self._most = judge, seconds, most
        self._parts: list[tuple[list[JudgeItem], Future]] = []
        self._left: list[Future] = []  # not done when they were collected

    def submit(self, items: Sequence[JudgeItem]) -> None:
        """Start judging items; returns at once."""
        items = list(items)
        self._left = [f for f in self._left if not f.done()]
        working = sum(not f.done() for _, f in self._parts) + len(self._left)
        if working < self._most:
            future = later(self.judge, items)
        else:
            future = Future()
            future.set_result(_without(items, _BUSY, self.judge.name))
        self._parts.append((items, future))

    def collect(self) -> Collected:
        """Return the verdicts of everything submitted since the last call, waiting for
        `seconds` at most.

        Raises:
          UserError: raised by a judge; it would hold for every item.
        """
        began = time.monotonic()
        parts, self._parts = self._parts, []
        out: list[Verdict] = []
        for items, future in parts:
            left = self.seconds + _GRACE - (time.monotonic() - began)
            try:
                verdicts = future.result(max(left, 0.0))
            except TimeoutError:
                self._left.append(future)
                why = f"{_LATE} {self.seconds:g} s"
                verdicts = _without(items, why, self.judge.name)
            out += verdicts
        late = sum(v.reason.startswith((_LATE, _BUSY, http.LATE)) for v in out)
        return Collected(out, time.monotonic() - began, late)


def later(judge: Judge, items: Sequence[JudgeItem]) -> Future:
    """Run `ask` in a daemon thread and return a future of the verdicts."""
    future: Future = Future()

    def work():
        try:
            future.set_result(ask(judge, items))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="judge").start()
    return future


def _without(items: Sequence[JudgeItem], reason: str, name: str) -> list[Verdict]:
    """Return verdicts without a judge: what needs none is settled, the rest
    undecided."""
    return [settled(item, name) or undecided(reason, name) for item in items]
