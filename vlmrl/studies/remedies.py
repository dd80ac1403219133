"""Does a recipe repair faithfulness and robustness at once? Three bars, told by bounds.

For every trained recipe, at its last step, against its start and against base:

  gain      base accuracy(end − start): above 0
  keeps     base consistent(end − start): not below −KEEP
  caption   accuracy(wrong_caption − base): not below −SAME
  think     accuracy(wrong_think − base): not below −SAME

Each is met where its one-sided 95 % bound lies above its floor, over clusters of items
and, with several seeds, Student's t over their effects: the lower of both bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlmrl.eval import measures, stats
from vlmrl.eval.measures import View
from vlmrl.report import render
from vlmrl.studies.evidence import SAME, contrast, trained

KEEP = 0.02  # "holds the consistent ratio": within 2 points
LEVEL = 0.90  # two-sided, so that its lower end is a one-sided 95 % bound


class Bar(NamedTuple):
    """One number of a recipe that has to stay above a floor."""

    value: float
    bound: float  # one-sided 95 %, NaN where it can't be told
    floor: float

    @property
    def met(self) -> bool:
        return bool(self.bound > self.floor)


class Remedy(NamedTuple):
    """How near a recipe came; None where something was not measured."""

    recipe: str
    seeds: int
    gain: Bar | None
    keeps: Bar | None
    caption: Bar | None
    think: Bar | None

    @property
    def works(self) -> bool:
        return all(bar is not None and bar.met for bar in self[2:])


def judge(
    table: pa.Table, *, split: str = "test", reading: str = "strict"
) -> list[Remedy]:
    """Return one Remedy per trained recipe with records of `split`.

    Args:
      table: records of a study, its warm start among them.
      reading: what accuracy is of.
    """
    view = measures.view(measures.columns(table, reading), split)
    return [_remedy(view, recipe) for recipe in trained(view)]


def _remedy(view: View, recipe: str) -> Remedy:
    seeds = view.seeds(recipe)

    def bar(terms, floor: float) -> Bar | None:
        intervals = [contrast(view, terms(seed), level=LEVEL) for seed in seeds]
        if any(i is None for i in intervals):
            return None
        values = [i.value for i in intervals]
        bound = float(np.mean([i.lo for i in intervals]))
        if len(intervals) > 1:
            bound = min(bound, stats.t_interval(values, LEVEL).lo)
        return Bar(float(np.mean(values)), bound, floor)

    def change(measure: str):
        return lambda s: [
            (1, view.end(recipe, s), "base", measure),
            (-1, view.start(recipe, s), "base", measure),
        ]

    def against_base(condition: str):
        return lambda s: [
            (1, view.end(recipe, s), condition, "accuracy"),
            (-1, view.end(recipe, s), "base", "accuracy"),
        ]

    return Remedy(
        recipe,
        len(seeds),
        bar(change("accuracy"), 0.0),
        bar(change("consistent"), -KEEP),
        bar(against_base("wrong_caption"), -SAME),
        bar(against_base("wrong_think"), -SAME),
    )


def as_table(remedies: list[Remedy]) -> render.Table:
    """Return the remedies as a table of text, for Markdown, CSV and LaTeX."""

    def shown(bar: Bar | None) -> str | None:
        if bar is None:
            return None
        numbers = f"{100 * bar.value:+.1f} (> {100 * bar.bound:+.1f})"
        return numbers.replace("-", "−") + (" ✓" if bar.met else "")

    return render.Table(
        "remedies",
        "Remedies",
        "Points, with the one-sided 95 % bound; ✓ where the bound lies above the "
        f"floor: 0 for the gain, −{100 * KEEP:g} for the consistent ratio, "
        f"−{100 * SAME:g} for accuracy under a misleading text less that under base.",
        tuple(
            (name, "text")
            for name in (
                "Recipe",
                "Seeds",
                "Accuracy gained",
                "Consistent, change",
                "wrong_caption − base",
                "wrong_think − base",
                "Works",
            )
        ),
        [
            (r.recipe, str(r.seeds), *map(shown, r[2:]), "yes" if r.works else "no")
            for r in remedies
        ],
    )
