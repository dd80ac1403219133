"""The rows that are judged, and the file of their verdicts.

The file is JSON lines, a row per reading (a record has two: its whole chain of thought,
and the part that the model wrote itself):

  {"id": "…", "reading": "whole", "condition": "base", "cluster": "…", "truth": null,
   "judge": "rule > http m judge-3:…", "by": "rule", "label": "consistent",
   "conclusion": 0, "confidence": null, "reason": ""}

`judge` is the judge that was asked, `by` the one that decided; `truth` is a label where
it is known.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlmrl.files import read_lines, write_lines
from vlmrl.judges import judge, labels, synthetic
from vlmrl.judges.judge import JudgeItem, Verdict
from vlmrl.judges.synthetic import Trace
from vlmrl.types import Record, UserError

NAME = "verdicts.jsonl"  # in a directory
READINGS = ("whole", "sampled")


class VerdictRow(NamedTuple):
    """A reading to judge, with its condition, cluster and known label."""

    item: JudgeItem
    reading: str  # one of READINGS
    condition: str
    cluster: str
    truth: str | None  # a label, where it is known

    @property
    def key(self) -> tuple[str, str]:
        return self.item.id.removesuffix("#sampled"), self.reading


# What one judge decided: (id, reading) → row and verdict.
Verdicts = dict[tuple[str, str], tuple[VerdictRow, Verdict]]


def of_records(records: Sequence[Record]) -> list[VerdictRow]:
    """Return both readings of each record, in order."""
    rows = []
    for r in records:
        cluster = f"{r.source}/{r.cluster}"
        for name, item in zip(READINGS, judge.readings(r), strict=True):
            rows.append(VerdictRow(item, name, r.condition, cluster, None))
    return rows


def of_traces(traces: Sequence[Trace]) -> list[VerdictRow]:
    return [VerdictRow(t.item, "whole", t.kind, t.item.id, t.label) for t in traces]


def of_labels(labelled: Sequence[labels.Labelled]) -> list[VerdictRow]:
    """Return rows whose truth is the majority of the annotators."""
    rows = []
    for one in labelled:
        settled = one.conclusion
        truth = None if settled is None else labels.label(settled, one.item)
        rows.append(VerdictRow(one.item, "whole", one.condition, one.cluster, truth))
    return rows


def of_file(on: str, seed: int) -> list[VerdictRow]:
    """Return the rows of 'synthetic[:COUNT]' or of a label file (.jsonl)."""
    if on.endswith(".jsonl"):
        return of_labels(labels.read(on))
    name, _, count = on.partition(":")
    if name == "constructed":
        raise UserError(f"--on={on}: is now --on=synthetic{on.removeprefix(name)}")
    if name != "synthetic" or (count and not (count.isdecimal() and int(count))):
        raise UserError(
            f"--on: expected synthetic:COUNT, e.g. synthetic:2000, got {on}"
        )
    return of_traces(synthetic.traces(int(count or 2000), seed))


def write(
    path: str | os.PathLike,
    rows: Sequence[VerdictRow],
    verdicts: Sequence[Verdict],
    name: str,
) -> None:
    """Write the file atomically; `name` is the judge that was asked."""
    lines = (
        {
            "id": row.key[0],
            "reading": row.reading,
            "condition": row.condition,
            "cluster": row.cluster,
            "truth": row.truth,
            "judge": name,
            "by": v.judge,
            "label": v.label,
            "conclusion": v.conclusion,
            "confidence": None if math.isnan(v.confidence) else v.confidence,
            "reason": v.reason,
        }
        for row, v in zip(rows, verdicts, strict=True)
    )
    write_lines(path, lines)


def read(path: str | os.PathLike) -> dict[str, Verdicts]:
    """Return judge → its verdicts, of a file of verdicts or of a directory with one.

    Questions, options and texts are not in the file: items have their ids alone.

    Raises:
      UserError: no such file, a row that is no verdict, or none at all.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() or not path.suffix else path
    if not path.is_file():
        raise UserError(f"{path.parent}: holds no {NAME}; run vlmrl judge first")
    by_judge: dict[str, Verdicts] = {}
    for number, v in read_lines(path):
        try:
            item = JudgeItem(v["id"], "", (), "", -1)
            row = VerdictRow(
                item, v["reading"], v["condition"], v["cluster"], v["truth"]
            )
            sure = math.nan if v["confidence"] is None else float(v["confidence"])
            verdict = Verdict(v["label"], v["conclusion"], sure, v["reason"], v["by"])
            by_judge.setdefault(v["judge"], {})[row.key] = row, verdict
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}, line {number}: not a verdict") from None
    if not by_judge:
        raise UserError(f"{path}: holds no verdicts")
    return by_judge


def people(path: str | os.PathLike) -> dict[str, Verdicts]:
    """Return annotator → that person's verdicts, of a file of labels."""
    by_person: dict[str, Verdicts] = {}
    for one in labels.read(path):
        (row,) = of_labels([one])
        for who, option in one.votes.items():
            verdict = Verdict(labels.label(option, one.item), option, math.nan, "", who)
            by_person.setdefault(f"{who} (person)", {})[row.key] = row, verdict
    return by_person


def gather(places: Sequence[str | os.PathLike]) -> dict[str, Verdicts]:
    """Return all raters of several directories and label files; of two with one name,
    the later is told apart by its place."""
    if not places:
        raise UserError("expected directories (or label files) to compare, got none")
    raters: dict[str, Verdicts] = {}
    for place in map(Path, places):
        labelled = place.suffix == ".jsonl" and place.name != NAME and place.is_file()
        for name, rated in (people if labelled else read)(place).items():
            raters[f"{name} ({place})" if name in raters else name] = rated
    return raters


def shared(
    raters: dict[str, Verdicts], readings: Sequence[str]
) -> list[tuple[str, str]]:
    """Return the items that every rater rated, in the order of the first."""
    both = set.intersection(*(set(rated) for rated in raters.values()))
    first = next(iter(raters.values()))
    return [key for key in first if key in both and key[1] in readings]


def truths(raters: dict[str, Verdicts]) -> dict[tuple[str, str], str]:
    """Return the labels that are known, from whichever rater's file has them."""
    rows = [row for rated in raters.values() for row, _ in rated.values()]
    return {row.key: row.truth for row in rows if row.truth}


def vote(raters: dict[str, Verdicts]) -> tuple[str, list[VerdictRow], list[Verdict]]:
    """Return (name, rows, verdicts) of the majority of three or more raters.

    Raises:
      UserError: fewer raters, or one without a verdict on an item of the first.
    """
    if len(raters) < 3:
        raise UserError(f"vote: expected 3 or more judges, got {len(raters)}")
    first = next(iter(raters.values()))
    for name, rated in raters.items():
        if lack := [key for key in first if key not in rated]:
            raise UserError(f"vote: {name} has no verdict on {lack[0][0]}")
    name = judge.majority_name(list(raters))
    verdicts = [
        judge.elected([rated[key][1] for rated in raters.values()], name)
        for key in first
    ]
    return name, [row for row, _ in first.values()], verdicts
