"""The reply cache on disk, and the budget that stops requests.

The file is JSON lines, one per final reply, written whole and in order:
`{"key": sha256, "reply": {...}, "tokens": [prompt, completion], "cost": 0.0}`. A last
line torn by a kill is dropped. A key has one line, or several where a failed reply was
requested again: the last counts.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from vlmrl.files import json_line, read_lines
from vlmrl.types import UserError


class Budget(NamedTuple):
    """Limits of tokens and cost; 0 is no limit. Prices are per million tokens."""

    tokens: int = 0
    cost: float = 0.0
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def price(self, tokens: tuple[int, int]) -> float:
        prompt, completion = tokens
        total = prompt * self.prompt_price + completion * self.completion_price
        return total / 1e6


class Spent(NamedTuple):
    """Tokens and cost spent, by this process and by earlier ones on the same file."""

    sent: int  # requests of this process
    cached: int  # calls of this process answered from the cache
    prompt_tokens: int
    completion_tokens: int
    cost: float


class ReplyCache:
    """Replies by key, and the account. Used from one event loop at a time.

    Raises:
      UserError: the file can't be read or written, or another process holds it, or a
        budget in money has no prices.
    """

    def __init__(self, path: Path | None, budget: Budget, again: bool = False):
        if budget.cost and not (budget.prompt_price or budget.completion_price):
            raise UserError(
                "budget: a limit of cost needs prices per million tokens "
                "(prompt_price, completion_price)"
            )
        self._budget, self._again = budget, again
        self._replies: dict[str, dict] = {}
        self._open = 0  # bound on tokens of the requests in flight
        self._open_cost = 0.0
        self._unwritten = [0, 0]  # spent, not yet in a line
        self.spent = Spent(0, 0, 0, 0, 0.0)
        self._file = None
        if path is not None:
            self._file = _locked(path)
            self._load(path)

    def _load(self, path: Path) -> None:
        # A torn last line goes: its call will be requested again.
        os.ftruncate(self._file, path.read_bytes().rfind(b"\n") + 1)
        for number, row in read_lines(path):
            try:
                key, reply, cost = row["key"], row["reply"], float(row["cost"])
                prompt, completion = map(int, row["tokens"])
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number}: not a reply of this project; give another "
                    "cache file"
                ) from None
            s = self.spent
            self.spent = s._replace(
                prompt_tokens=s.prompt_tokens + prompt,
                completion_tokens=s.completion_tokens + completion,
                cost=s.cost + cost,
            )
            if reply is not None:
                self._replies[key] = reply

    def close(self) -> None:
        if self._file is None:
            return
        if any(self._unwritten):
            self._write("", None)  # spent on calls without a final reply
        os.close(self._file)
        self._file = None

    def get(self, key: str) -> dict | None:
        """Return the final reply of a key, None if it has to be requested."""
        reply = self._replies.get(key)
        if reply is None or (self._again and reply["error"]):
            return None
        self.spent = self.spent._replace(cached=self.spent.cached + 1)
        return reply

    def reserve(self, bound: tuple[int, int]) -> bool:
        """Set aside the most that a request can take; return False if that is too
        much."""
        b, s = self._budget, self.spent
        if b.tokens and not bound[1]:
            raise UserError("budget: a limit of tokens needs calls with max_tokens")
        if b.cost and b.completion_price and not bound[1]:
            raise UserError("budget: a limit of cost needs calls with max_tokens")
        tokens = s.prompt_tokens + s.completion_tokens + self._open + sum(bound)
        cost = s.cost + self._open_cost + b.price(bound)
        if (b.tokens and tokens > b.tokens) or (b.cost and cost > b.cost):
            return False
        self._open += sum(bound)
        self._open_cost += b.price(bound)
        self.spent = s._replace(sent=s.sent + 1)
        return True

    def settle(self, bound: tuple[int, int], used: tuple[int, int]) -> None:
        """Account for a request that was reserved."""
        s = self.spent
        self._open -= sum(bound)
        self._open_cost -= self._budget.price(bound)
        self._unwritten = [a + b for a, b in zip(self._unwritten, used, strict=True)]
        self.spent = s._replace(
            prompt_tokens=s.prompt_tokens + used[0],
            completion_tokens=s.completion_tokens + used[1],
            cost=s.cost + self._budget.price(used),
        )

    def put(self, key: str, reply: dict) -> None:
        """Store a final reply; it is on disk when this returns."""
        if key in self._replies and not self._replies[key]["error"]:
            return
        self._replies[key] = reply
        if self._file is not None:
            self._write(key, reply)

    def _write(self, key: str, reply: dict | None) -> None:
        tokens, self._unwritten = self._unwritten, [0, 0]
        cost = self._budget.price(tuple(tokens))
        row = {"key": key, "reply": reply, "tokens": tokens, "cost": cost}
        line = json_line(row).encode()
        try:
            done = os.write(self._file, line)
            while done < len(line):
                done += os.write(self._file, line[done:])
        except OSError as error:
            raise UserError(f"cache: cannot write: {error.strerror}") from None


def _locked(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise UserError(f"{path}: cannot open the cache: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise UserError(
            f"{path}: another process is using this cache; wait for it or give another"
        ) from None
    return file
