"""Tables of judges: how far they agree with each other and with the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vlmrl.judges import agree
from vlmrl.judges.judge import Verdict
from vlmrl.judges.verdicts import VerdictRow
from vlmrl.report.render import Table


def _cell(interval):
    """Return (value, lo, hi), None where there is no value."""
    if interval is None or np.isnan(interval.value):
        return None
    return float(interval.value), float(interval.lo), float(interval.hi)


def comparison(compared: agree.Comparison) -> list[Table]:
    """Return every table of raters side by side, and of those whose items have a
    truth."""
    out, ratings = [], compared.ratings
    if ratings:
        out = [between(ratings), *confusions(ratings)]
        out.append(differences(ratings, compared.truth))
    if compared.labelled:
        out.append(quality(compared.labelled))
    return out


def between(ratings: agree.Ratings) -> Table:
    rows = [
        (
            row["condition"],
            " · ".join(row["raters"]),
            row["n"],
            *(_cell(row.get(name)) for name in ("strict", "cohen", "fleiss")),
        )
        for row in agree.between(ratings)
    ]
    columns = ["condition", "raters", "n", "strict", "Cohen's κ", "Fleiss' κ"]
    kinds = ["text", "text", "count", "interval", "interval", "interval"]
    return Table(
        "agreement",
        "Agreement of judges",
        "In per cent (κ × 100), with 95 % intervals over clusters. Labels: consistent, "
        "inconsistent, undecided. A dash: κ is not defined where one label is all.",
        tuple(zip(columns, kinds, strict=True)),
        rows,
    )


def confusions(ratings: agree.Ratings) -> list[Table]:
    """Return the first rater by each other one."""
    out = []
    first, others = ratings.raters[0], ratings.raters[1:]
    for k, other in enumerate(others, 1):
        counts = agree.confusion(ratings.labels[:, 0], ratings.labels[:, k])
        rows = [(n, *map(int, c)) for n, c in zip(agree.LABELS, counts, strict=True)]
        columns = (("", "text"), *((n, "count") for n in agree.LABELS))
        title = f"{first} (rows) by {other} (columns)"
        out.append(Table(f"confusion-{k}", title, "Items.", columns, rows))
    return out


def differences(ratings: agree.Ratings, truth: np.ndarray | None) -> Table:
    """Return paired tests between judges; arguments as `agree.differences`."""
    rows = [
        (
            row["condition"],
            row["measure"],
            *row["raters"],
            row["n"],
            _cell(row["difference"]),
            _p(row["p"]),
            _p(row["holm"]),
            row["method"],
        )
        for row in agree.differences(ratings, truth)
    ]
    return Table(
        "differences",
        "Differences between judges",
        "Second minus first, in points, paired by item, with 95 % intervals over "
        "clusters: the share called consistent, and the share that is right where the "
        f"truth is known. p: McNemar's exact test where no two items share a cluster, "
        f"else a bootstrap over clusters; Holm: corrected for the {len(rows)} rows.",
        (
            *(("condition", "text"), ("share", "text")),
            *(("first", "text"), ("second", "text"), ("n", "count")),
            *(("difference", "interval"), ("p", "text"), ("Holm", "text")),
            ("test", "text"),
        ),
        rows,
    )


def _p(value: float) -> str | None:
    if math.isnan(value):
        return None
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def quality(judges: dict[str, Sequence[tuple[VerdictRow, Verdict]]]) -> Table:
    """Judges against the truth, all together and by condition.

    Args:
      held: judge → rows whose truth is known, with its verdicts.
    """
    rows = []
    for name, verdicts in judges.items():
        kinds = ["all", *dict.fromkeys(r.condition for r, _ in verdicts)]
        for kind in kinds:
            part = [(r, v) for r, v in verdicts if kind in ("all", r.condition)]
            part = [(r, v) for r, v in part if v.label != "not_applicable"]
            result = agree.against(
                [r.truth for r, _ in part],
                [v for _, v in part],
                [r.cluster for r, _ in part],
            )
            brier = None if math.isnan(result.brier) else result.brier
            shares = (result.precision, result.coverage, result.accuracy, result.kappa)
            rows.append((name, kind, result.n, *map(_cell, shares), brier))
    return Table(
        "truth",
        "Judges against known conclusions",
        "In per cent, with 95 % intervals. Precision: right, of what was decided. "
        "Coverage: decided, of what has a conclusion. Brier: mean squared error of the "
        "confidence; a dash where the judge gives none.",
        (
            *(("judge", "text"), ("kind", "text"), ("n", "count")),
            *(
                (n, "interval")
                for n in ("precision", "coverage", "accuracy", "κ × 100")
            ),
            ("Brier", "number"),
        ),
        rows,
    )
