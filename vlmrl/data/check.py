"""Check a prepared split: counts, balance, duplicates, label noise."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.data.build import BuildReport
from vlmrl.data.reading import normal
from vlmrl.types import Example


class Findings(NamedTuple):
    examples: int
    known: int | None  # published number of examples
    out_of_range: list[str]  # ids whose answer is none of their options
    letters: dict[str, int]  # right letter → examples, of those with shown options
    tasks: dict[str, int]
    images: int  # distinct first images
    duplicates: list[tuple[str, str]]  # (earlier id, id): same image and question
    twins: list[str]  # ids with two options of the same text
    report: BuildReport

    @property
    def ok(self) -> bool:
        counted = self.known is None or self.examples == self.known
        return counted and not self.out_of_range and not self.report.refused


def check(
    known: int | None, examples: Iterable[Example], report: BuildReport
) -> Findings:
    """Return the findings of a split, in one pass; `known` is its published number of
    examples."""
    letters, tasks = collections.Counter(), collections.Counter()
    wrong, twins, duplicates, seen, pictures = [], [], [], {}, set()
    total = 0
    for e in examples:
        total += 1
        tasks[e.task] += 1
        if not 0 <= e.answer < len(e.options):
            wrong.append(e.id)
        elif not e.open:
            letters[LETTERS[e.answer]] += 1
        if len({normal(o) for o in e.options}) < len(e.options):
            twins.append(e.id)
        image = hashlib.sha256(e.images[0]).hexdigest() if e.images else ""
        pictures.add(image)
        key = (image, normal(e.question), tuple(sorted(map(normal, e.options))))
        # rotated copies are no duplicates: their right letter differs
        key = (*key, e.answer)
        if key in seen:
            duplicates.append((seen[key], e.id))
        else:
            seen[key] = e.id
    return Findings(
        total,
        known,
        wrong,
        dict(sorted(letters.items())),
        dict(sorted(tasks.items())),
        len(pictures - {""}),
        duplicates,
        twins,
        report,
    )


def summary(name: str, split: str, f: Findings, most: int = 20) -> str:
    """Return the findings as text; lists are cut after `most` lines, with a note."""
    if f.known is None:
        count = "no published count to compare with"
    elif f.known == f.examples:
        count = "as published"
    else:
        count = f"published are {f.known}"
    lines = [f"{name} {split}: {f.examples} examples ({count})"]
    lines.append(f"  {f.report.line}")
    lines.append(f"  {f.images} distinct images")
    if f.letters:
        whole = sum(f.letters.values())
        shares = [f"{k} {v} ({v / whole:.0%})" for k, v in f.letters.items()]
        lines.append(f"  right letters: {', '.join(shares)}")
    lines.append("  statement rules: " + _counts(f.report.rules))
    lines.append("  tasks: " + _counts(f.tasks))
    lists = {
        "answers out of range": f.out_of_range,
        "options that repeat": f.twins,
        "same image, question and answer": [
            f"{b} repeats {a}" for a, b in f.duplicates
        ],
        "repaired": [f"{r['id']} ({r['where']}): {r['why']}" for r in _repaired(f)],
        "refused": [f"{r['where']}: {r['why']}" for r in f.report.refused],
    }
    for title, entries in lists.items():
        if entries:
            lines.append(f"  {title}: {len(entries)}")
            lines += [f"    {entry}" for entry in entries[:most]]
            if len(entries) > most:
                lines.append(f"    … and {len(entries) - most} more in report.json")
    return "\n".join(lines)


def _repaired(f: Findings) -> list[dict]:
    return f.report.repaired


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{k} {v}" for k, v in counts.items()) or "none"
