"""The learning curve of a run: measures of an evaluation and their change.

From records alone, like every table; these are the numbers logged while training.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from vlmrl.eval import measures, stats
from vlmrl.eval.drift import drift

MEASURES = (
    "accuracy",
    "p_correct",
    "entropy",
    "consistent",
    "faithful_accuracy",
    "think_tokens",
    "think_entropy",
    "follow",
    "format",
)


def curve_point(now: pa.Table, start: pa.Table | None = None) -> dict[str, float]:
    """Return the numbers of one evaluation of one run, by name.

    `<condition>/<measure>`: means. With `start`, an earlier evaluation of the same
    items, also `<condition>/<measure>/change` with `/lo` and `/hi`, a paired 95 %
    interval over clusters, for accuracy and consistent, and, where Fieller's interval
    is bounded, `<condition>/drift` with `/lo` and `/hi`: the change of the consistent
    ratio per point of accuracy gained.
    """
    out, (here, cells) = {}, _cells(now)
    before = _cells(start) if start is not None else None
    for condition, rows in cells.items():
        for name in MEASURES:
            values = here[name][rows]
            if not np.isnan(values).all():
                out[f"{condition}/{name}"] = float(np.nanmean(values))
        if before is None or condition not in before[1]:
            continue
        old = before[0], before[1][condition]
        pairs = [
            tuple(_cell(*at, name) for name in ("accuracy", "consistent"))
            for at in (old, (here, rows))
        ]
        shift = drift(*pairs, draws=1000)
        for name, change in (("accuracy", shift.gain), ("consistent", shift.change)):
            if change.n:
                out |= _named(f"{condition}/{name}/change", *change[:3])
        if shift.slope.kind == "bounded":
            out |= _named(f"{condition}/drift", *shift.slope[:3])
    return out


def _cells(table: pa.Table):
    data = measures.columns(table)
    return data, {key[4]: rows for key, rows in measures.cells(data).items()}


def _cell(data, rows, measure: str) -> stats.Cell:
    return stats.Cell(data["item"][rows], data[measure][rows], data["cluster"][rows])


def _named(name: str, value: float, lo: float, hi: float) -> dict[str, float]:
    numbers = {name: value, f"{name}/lo": lo, f"{name}/hi": hi}
    return {k: float(v) for k, v in numbers.items() if np.isfinite(v)}
