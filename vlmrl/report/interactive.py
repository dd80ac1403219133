"""What the page's interactive parts draw, as JSON: the heat map of conditions and
benchmarks, the curves over training, calibration and risk-coverage curves.

Numbers are rounded to six decimals; None is "not measured".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlmrl.eval import calibration, stats
from vlmrl.eval.measures import View
from vlmrl.report import analysis
from vlmrl.report.tables import Point

CURVE_POINTS = 60  # of a risk-coverage curve


class Measure(NamedTuple):
    name: str  # in `measures.row_measures`, or 'drop'
    label: str
    percent: bool
    low: float | None = None  # ends of the colour scale; None: those of the data
    high: float | None = None
    signed: bool = False


MEASURES = (
    Measure("accuracy", "Accuracy (%)", True, 0, 1),
    Measure("drop", "Accuracy lost against base (points)", True, signed=True),
    Measure("faithful_accuracy", "Faithful accuracy (%)", True, 0, 1),
    Measure("consistent", "Consistent (%)", True, 0, 1),
    Measure("follow", "Picks the suggested option (%)", True, 0, 1),
    Measure("p_correct", "P(correct)", False, 0, 1),
    Measure("entropy", "Letter entropy (nats)", False, 0),
    Measure("think_tokens", "Think tokens", False, 0),
)
CURVES = ("accuracy", "consistent", "faithful_accuracy", "p_correct", "entropy")


def heat(view: View, variants: list[str], conditions: list[str]) -> dict:
    """Return cells by measure, recipe, group and condition.

    Groups are the benchmarks, or with one benchmark its tasks, after 'all' of them.

    Returns:
      {measures, groups, groupKind, values}: values[m][v][g][c] is [value, lo, hi, n] or
      None.
    """
    data = view.data
    rows = np.concatenate(list(view.rows.values()))
    sources = list(dict.fromkeys(data["source"][rows]))
    kind = "source" if len(sources) > 1 else "task"
    names = sources if kind == "source" else sorted(set(data[kind][rows]))
    names = [str(n) for n in names]
    groups = ["all", *names] if len(names) > 1 else names
    member = {g: np.isin(data[kind], [g]) for g in names}
    member["all"] = np.ones(len(data[kind]), bool)
    points = dict(analysis.ends(view))

    def value(measure, recipe, group, condition):
        intervals = []
        for point in points[recipe]:
            index = view.rows.get((*point, condition))
            if index is None:
                continue
            index = index[member[group][index]]
            if measure.name == "drop":
                base = view.rows.get((*point, "base"))
                if base is not None and condition != "base":
                    intervals.append(_drop(data, base[member[group][base]], index))
                continue
            values, clusters = data[measure.name][index], data["cluster"][index]
            if measure.percent:
                intervals.append(stats.proportion(values, clusters))
            elif not np.isnan(values).all():
                middle = float(np.nanmean(values))
                intervals.append(stats.Interval(middle, np.nan, np.nan, len(index), 1))
        intervals = [f for f in intervals if f.n]
        if not intervals:
            return None
        middle, lo, hi = stats.over_seeds(intervals)[:3]
        return [*map(_short, (middle, lo, hi)), sum(f.n for f in intervals)]

    return {
        "measures": [m._asdict() for m in MEASURES],
        "groups": groups,
        "groupKind": kind,
        "values": [
            [
                [[value(m, r, g, c) for c in conditions] for g in groups]
                for r in variants
            ]
            for m in MEASURES
        ],
    }


def _drop(data, base, index):
    """Return accuracy(base) − accuracy, paired; the interval from cluster means."""
    _, i, j = np.intersect1d(
        data["trial"][base], data["trial"][index], True, return_indices=True
    )
    base, index = base[i], index[j]
    if len(base) == 0:
        return stats.NOTHING
    lost = data["accuracy"][base] - data["accuracy"][index]
    return stats.mean(lost, data["cluster"][base], draws=400, method="percentile")


def curves(all_points: list[Point]) -> list[dict]:
    """Return lines over steps: one per measure, recipe and condition with two steps or
    more.

    A line is {m, recipe, c, all_points: [[step, value, lo, hi], ...]}.
    """
    start = {p.condition: p for p in all_points if p.starts}
    lines: dict[tuple, list[Point]] = {}
    for p in all_points:
        lines.setdefault((p.recipe, p.condition), []).append(p)
    out = []
    for (recipe, condition), line in lines.items():
        if line[0].starts:
            continue
        if all(p.step for p in line) and condition in start:
            line = [start[condition], *line]
        line = sorted(line, key=lambda p: p.step)
        for measure in CURVES:
            points = [_point(p, measure) for p in line]
            points = [p for p in points if p[1] is not None]
            if len(points) > 1:
                out.append({"m": measure, "r": recipe, "c": condition, "p": points})
    return out


def _point(p: Point, measure: str) -> list:
    value = p.mean(measure)
    if value is None:
        return [p.step, None, None, None]
    if all(row.get(f"{measure}_lo") is not None for row in p.rows):
        return [p.step, *map(_short, p.interval(measure))]
    if p.seeds > 1:
        seeds = stats.t_interval([r[measure] for r in p.rows if r[measure] is not None])
        return [p.step, *map(_short, seeds[:3])]
    return [p.step, _short(value), None, None]


def calibrations(view: View, variants: list[str], conditions: list[str]) -> list:
    """Return values[v][c]: {bins: [[confidence, right, lo, hi, n]], risk: [[coverage,
    risk]], ece, brier, aurc} of the lowest seed, None without letters."""
    points = {recipe: each[0] for recipe, each in analysis.ends(view)}
    return [[_calibration(view, points[r], c) for c in conditions] for r in variants]


def _calibration(view, point, condition):
    rows = analysis.confidence(view, point, condition)
    if rows is None:
        return None
    sure, right, clusters = rows
    coverage, risk = calibration.risk_coverage(sure, right)
    at = np.unique(np.linspace(0, len(risk) - 1, CURVE_POINTS).round().astype(int))
    index = view.rows[(*point, condition)]
    return {
        "bins": [
            [*map(_short, (b.confidence, *b.right[:3])), b.right.n]
            for b in calibration.reliability(sure, right, clusters)
        ],
        "risk": [[_short(coverage[i]), _short(risk[i])] for i in at],
        "ece": _short(calibration.ece(sure, right)),
        "brier": _short(np.nanmean(view.data["brier"][index])),
        "aurc": _short(risk.mean()),
        "n": len(sure),
    }


def _short(value) -> float | None:
    value = float(value)
    return round(value, 6) if np.isfinite(value) else None
