"""Labels by people, and the labelling sheet they fill in.

The file is JSON lines, a row per trace and annotator:

  {"id": "…", "condition": "base", "cluster": "…",
   "question": "…", "options": {"A": "left", "B": "right"}, "think": "…",
   "conclusion": "A", "annotator": "me", "note": "", "answer": "B"}

A person fills in `conclusion`: the letter that the chain of thought finally concludes,
or "none"; empty is not labelled yet. It asks for the conclusion, not for agreement with
the answer, so that annotators needn't look at the answer. `note` is free text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

import numpy as np

from vlmrl.files import read_lines, write_lines
from vlmrl.judges.judge import JudgeItem
from vlmrl.types import Record, UserError

_TEXTS = ("id", "condition", "cluster", "question", "think", "conclusion", "annotator")


class Labelled(NamedTuple):
    """An item and the conclusion that each annotator labelled."""

    item: JudgeItem
    condition: str
    cluster: str
    votes: dict[str, int]  # annotator → option, -1 for nothing

    @property
    def conclusion(self) -> int | None:
        """Return the option of more than half of the annotators, None where they
        differ."""
        option, votes = Counter(self.votes.values()).most_common(1)[0]
        return option if 2 * votes > len(self.votes) else None


def label(conclusion: int, item: JudgeItem) -> str:
    """Return the label a judge should give an item with this conclusion."""
    if conclusion < 0:
        return "undecided"
    return "consistent" if conclusion == item.predicted else "inconsistent"


def last_steps(records: Sequence[Record]) -> list[Record]:
    """Return the records at the last step of each split, recipe and seed."""
    last: dict[tuple, int] = {}
    for r in records:
        key = (r.split, r.recipe, r.seed)
        last[key] = max(last.get(key, r.step), r.step)
    return [r for r in records if r.step == last[r.split, r.recipe, r.seed]]


def write_sheet(
    path: str | os.PathLike,
    rows: Sequence[tuple[JudgeItem, str, str]],
    *,
    n: int,
    seed: int,
) -> int:
    """Write a labelling sheet of at most n rows, drawn evenly over conditions; return
    how many.

    Args:
      rows: (item, condition, cluster) to draw from; items that need no judge are left
        out, and equal chains of thought are drawn once.

    Raises:
      UserError: the file exists: a person's work is never overwritten.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; give another name")
    fit = {
        item.think: (item, condition, cluster)
        for item, condition, cluster in rows
        if item.applicable and item.predicted >= 0 and item.think.strip()
    }
    rng = np.random.default_rng(seed)
    pool = list(fit.values())
    queues: dict[str, list] = {}
    for k in rng.permutation(len(pool)):
        queues.setdefault(pool[k][1], []).append(pool[k])
    chosen = []
    while len(chosen) < n and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < n:
                chosen.append(queue.pop())
    write_lines(path, (_row(*row) for row in chosen))
    return len(chosen)


def _row(item: JudgeItem, condition: str, cluster: str) -> dict:
    return {
        "id": item.id,
        "condition": condition,
        "cluster": cluster,
        "question": item.question,
        "options": dict(zip(LETTERS, item.options, strict=False)),
        "think": item.think,
        "conclusion": "",
        "annotator": "",
        "note": "",
        "answer": LETTERS[item.predicted],
    }


def read(path: str | os.PathLike) -> list[Labelled]:
    """Return labelled items in the order of the file; rows not filled in are left out.

    Raises:
      UserError: no such file, a row that is no label, one annotator's two labels of an
        item, rows of an item that differ, or nothing labelled.
    """
    try:
        rows = list(read_lines(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read labels: {error}") from None
    items: dict[str, Labelled] = {}
    for number, row in rows:
        one = _parse(row, f"{path}, line {number}")
        if one is None:
            continue
        old = items.setdefault(one.item.id, one)
        if old._replace(votes={}) != one._replace(votes={}):
            raise UserError(
                f"{path}, line {number}: {one.item.id} differs from an earlier line"
            )
        if old is not one:
            (who,) = one.votes
            if who in old.votes:
                raise UserError(
                    f"{path}, line {number}: '{who}' labels {one.item.id} twice"
                )
            old.votes.update(one.votes)
    if not items:
        raise UserError(f"{path}: nothing is labelled; fill in 'conclusion'")
    return list(items.values())


def _parse(row, where: str) -> Labelled | None:
    try:
        texts = {name: row[name] for name in _TEXTS}
        options, answer = row["options"], row["answer"]
        letters = list(options)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not a label ({type(error).__name__} {error})"
        ) from None
    for name, value in [*texts.items(), *options.items()]:
        if not isinstance(value, str):
            raise UserError(f"{where}: {name}: expected a text, got {value!r}")
    if letters != list(LETTERS[: len(letters)]) or answer not in letters:
        raise UserError(f"{where}: expected options A, B, … and an answer among them")
    letter = texts["conclusion"].strip()
    if not letter:
        return None
    if letter != "none" and letter not in letters:
        raise UserError(
            f"{where}: conclusion: expected none or one of {', '.join(letters)}, got"
            f" '{letter}'"
        )
    item = JudgeItem(
        texts["id"],
        texts["question"],
        tuple(options.values()),
        texts["think"],
        letters.index(answer),
    )
    option = -1 if letter == "none" else letters.index(letter)
    who = texts["annotator"].strip() or "nameless"
    return Labelled(item, texts["condition"], texts["cluster"], {who: option})
