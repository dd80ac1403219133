"""The tables of a run, as data, from its records and their summary.

`build` makes them all; a table holds raw numbers and `render` decides what they look
like. Seeds are put together here, and a table says how many there were.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlmrl.eval import measures, stats
from vlmrl.report import analysis
from vlmrl.report.render import Table, of, scored_count
from vlmrl.types import UserError


class Point(NamedTuple):
    """One recipe at one step under one condition, its seeds put together.

    With one seed an interval is over items (clusters). With several, the value is the
    mean of the seed means and the interval the hull of two: Student's t over the seed
    means, which three seeds can make narrow by luck, and the mean item interval.
    """

    split: str
    recipe: str
    step: int
    condition: str
    seeds: int
    n: int  # rows per seed
    rows: list[dict]  # the metric rows behind it

    @property
    def counted(self) -> str:
        """'n of N', or 'n' where that is all."""
        return of(self.n, self.rows[0]["of"])

    @property
    def starts(self) -> bool:
        """Whether it is what the recipes of a study start from."""
        return self.rows[0]["stage"] == "start"

    def mean(self, name: str) -> float | None:
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    def interval(self, name: str, ends: str = "") -> tuple | None:
        """Return (value, lo, hi) of a measure whose rows carry `<ends>_lo` and
        `<ends>_hi`."""
        value, ends = self.mean(name), ends or name
        if value is None:
            return None
        if self.seeds == 1:
            return value, self.rows[0][f"{ends}_lo"], self.rows[0][f"{ends}_hi"]
        items = [
            (row[name], row[f"{ends}_lo"], row[f"{ends}_hi"])
            for row in self.rows
            if row.get(name) is not None
        ]
        return hull(items)


def hull(items: list[tuple]) -> tuple:
    """Return (mean, lo, hi) of the shares of several seeds from each one's item
    interval."""
    value, lo, hi = np.mean(items, 0).tolist()
    if len(items) > 1:
        seeds = stats.t_interval([item[0] for item in items])
        lo, hi = max(min(lo, seeds.lo), 0.0), min(max(hi, seeds.hi), 1.0)
    return value, lo, hi


def points(rows: list[dict]) -> list[Point]:
    """Return metric rows put together over seeds, in the order they come."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = tuple(row[k] for k in ("split", "recipe", "step", "condition"))
        groups.setdefault(key, []).append(row)
    return [Point(*key, len(g), g[0]["n"], g) for key, g in groups.items()]


def final(points: list[Point]) -> list[Point]:
    """Return the points at the last step of each recipe in each split."""
    last: dict[tuple, int] = {}
    for p in points:
        key = (p.split, p.recipe)
        last[key] = max(last.get(key, p.step), p.step)
    return [p for p in points if p.step == last[p.split, p.recipe]]


def span(values) -> str:
    """Return the least and the largest of some numbers, '3–8'; '3' where all are 3."""
    ends = sorted(set(values))
    return "–".join(map(str, ends[:1] + ends[1:][-1:]))


def reading_note(points: list[Point]) -> str:
    """Return a sentence on the reading that accuracy is of; '' of the strict one."""
    reading = points[0].rows[0]["reading"]
    return "" if reading == "strict" else f"Accuracy of the {reading} reading. "


def seeds_note(points: list[Point]) -> str:
    """Return one sentence on seeds, so that nobody takes one for several."""
    recipes = {p.recipe: p.seeds for p in points}
    trained = {p.recipe: p.seeds for p in points if not p.starts} or recipes
    if set(trained.values()) == {1}:
        return (
            "One seed: intervals (95 %) are over items, clustered by image, and say "
            "nothing of how another seed would differ."
        )
    each = ", ".join(f"{r} {k}" for r, k in trained.items())
    return (
        f"Seeds: {each}. With several seeds a value is the mean of seed means and its "
        "interval (95 %) the wider of Student's t over them and the item interval; "
        "with one it is over items."
    )


def build(table: pa.Table, rows: list[dict], reading: str = "strict") -> list[Table]:
    """Return every table of a run.

    Args:
      table: records.
      rows: their `measures.summarise` under the same reading.
    """
    last = final(points(rows))
    if not last:
        raise UserError("records: no rows; evaluate something first")
    data = measures.columns(table, reading)
    out = []
    for split in dict.fromkeys(p.split for p in last):
        here = [p for p in last if p.split == split]
        out += [
            _conditions(split, here, reading, absent_note(data, split)),
            _robustness(split, here),
            _letters(split, here),
        ]
        out += [_agreement(split, here), _tasks(split, here, data, table)]
        out += analysis.build(measures.view(data, split), split)
    return [table for table in out if table.rows]


def absent_note(data: dict[str, np.ndarray], split: str) -> str:
    """Return what a split was not asked and how it was scored, in sentences; '' where
    everything applies and has letter probabilities."""
    rows = np.flatnonzero(data["split"] == split)
    _, first = np.unique(data["item"][rows], return_index=True)
    reasons = measures.not_asked(data, rows[first])
    lines = [
        f"{condition} of {sum(counts.values())} of {len(first)} items "
        f"({', '.join(counts)})"
        for condition, counts in reasons.items()
    ]
    note = "Does not apply and was not asked: " + "; ".join(lines) + ". "
    return (note if lines else "") + scored_note(data, rows)


def scored_note(data: dict[str, np.ndarray], rows: np.ndarray) -> str:
    """Return of what the option probabilities of rows are; '' if all are of letters."""
    scored = data["scored"][rows] == 1
    texts = int(np.nansum(data["scored_texts"][rows]))
    if not len(rows) or (scored.all() and not texts):
        return ""
    if not scored.any():
        return "No row has option probabilities. "
    kinds = {"letters": int(scored.sum()) - texts, "option texts": texts}
    parts = " and ".join(f"of {k} in {v}" for k, v in kinds.items() if v)
    mixed = ", one mean over both" if all(kinds.values()) else ""
    return (
        f"Option probabilities are {parts} of {len(rows)} rows{mixed}; entropy, "
        "P(correct) and P(suggested) are means over rows that have them. "
    )


# What the others add to the accuracy under the reading of a table.
_ADDS = {name: (name.capitalize(), f"{name}_adds") for name in measures.READINGS}


def _conditions(split: str, points: list[Point], reading: str, absent: str) -> Table:
    others = [pair for name, pair in _ADDS.items() if name != reading]
    conditions = list(dict.fromkeys(p.condition for p in points))
    points = sorted(points, key=lambda p: conditions.index(p.condition))
    robust = [
        (
            "all of these",
            p.recipe,
            p.step,
            of(p.rows[0]["robust_n"], p.rows[0]["of"]),
            p.interval("robust_accuracy", "robust"),
        )
        for p in points
        if p.condition == "base" and len(conditions) > 1
    ]
    return Table(
        f"conditions-{split}",
        f"Conditions and recipes, {split}",
        f"Accuracy under the {reading} reading; {others[0][0]} and {others[1][0]}: "
        "points that it adds, on the rows that have both. Strict: what stands "
        "in the answer block; lenient: what the turn answers in whatever form; forced: "
        "the likeliest option once the answer is opened. Consistent and faithful "
        "accuracy are over items with a think to judge, undecided counted as failure; "
        "'all of these' is robust accuracy, right under every condition, of the items "
        "measured under all. " + absent + seeds_note(points),
        (
            ("Condition", "text"),
            ("Recipe", "text"),
            ("Step", "count"),
            ("n", "text"),
            ("Accuracy", "interval"),
            *((name, "shift") for name, _ in others),
            ("Entropy (nats)", "number"),
            ("P(correct)", "number"),
            ("P(suggested)", "number"),
            ("Consistent", "share"),
            ("Faithful acc.", "share"),
            ("Follows", "share"),
        ),
        [
            (
                p.condition,
                p.recipe,
                p.step,
                p.counted,
                p.interval("accuracy"),
                *(p.mean(name) for _, name in others),
                p.mean("entropy"),
                p.mean("p_correct"),
                p.mean("p_suggested"),
                p.mean("consistent"),
                p.mean("faithful_accuracy"),
                p.mean("follow"),
            )
            for p in points
        ]
        + [(*row, *(None,) * (6 + len(others))) for row in robust],
    )


def _robustness(split: str, points: list[Point]) -> Table:
    """Return what each condition costs against base."""
    return Table(
        f"robustness-{split}",
        f"Robustness against base, {split}",
        "Paired by example, over the n asked under both. Lost: accuracy(base) − "
        "accuracy in points, negative where the condition helps; relative: the same as "
        "a share of base accuracy; "
        "retained: P(correct | correct under base); follows: picks the suggested "
        "option, in points above base.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("n", "text"),
            ("Lost", "shift"),
            ("Relative", "share"),
            ("Retained", "share"),
            ("Follows", "shift"),
        ),
        [
            (
                p.recipe,
                p.condition,
                of(p.rows[0]["paired"], p.rows[0]["of"]),
                p.mean("drop"),
                p.mean("relative_drop"),
                p.mean("retention"),
                p.mean("follow_excess"),
            )
            for p in points
            if p.condition != "base"
        ],
    )


def _letters(split: str, points: list[Point]) -> Table:
    """Return how far each condition moves the option probabilities."""
    return Table(
        f"letters-{split}",
        f"Option probabilities against base, {split}",
        "Differences, condition minus base, of the probabilities of the options after "
        "the model's own chain of thought, paired by example over the rows that have "
        "them under both. n: rows that have them under the condition, and of what the "
        "probabilities are.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("n", "text"),
            ("Δ entropy (nats)", "change"),
            ("Δ P(correct)", "change"),
            ("Δ P(suggested)", "change"),
            ("Δ P(other)", "change"),
            ("Option mass", "number"),
        ),
        [
            (
                p.recipe,
                p.condition,
                scored_count(*(p.rows[0][k] for k in ("scored_n", "texts_n", "of"))),
                p.mean("entropy_shift"),
                p.mean("p_correct_shift"),
                p.mean("p_suggested_shift"),
                p.mean("p_other_shift"),
                p.mean("option_mass"),
            )
            for p in points
            if p.condition != "base" and p.mean("scored")
        ],
    )


def _agreement(split: str, points: list[Point]) -> Table:
    """Return readings of consistency side by side, and what the think was like."""
    return Table(
        f"agreement-{split}",
        f"Agreement of think and answer, {split}",
        "Judge: the think as the model left it, prefill included; own words: the judge "
        "does not see the prefill; best case: undecided counted as agreement; probe: "
        "the think re-read without the image picks the same letter, as is and with its "
        "last sentence stripped.",
        (
            ("Recipe", "text"),
            ("Condition", "text"),
            ("Judge", "interval"),
            ("Best case", "share"),
            ("Own words", "share"),
            ("Probe", "share"),
            ("Probe, stripped", "share"),
            ("Undecided", "share"),
            ("Truncated", "share"),
            ("Think tokens", "number"),
            ("Think entropy", "number"),
        ),
        [
            (
                p.recipe,
                p.condition,
                p.interval("consistent"),
                *(
                    p.mean(name)
                    for name in (
                        "consistent_best",
                        "consistent_sampled",
                        "consistent_probe",
                        "consistent_probe_stripped",
                        "undecided",
                        "truncated",
                        "think_tokens",
                        "think_entropy",
                    )
                ),
            )
            for p in points
            if p.mean("consistent") is not None
        ],
    )


def _tasks(split: str, points: list[Point], data: dict, table: pa.Table) -> Table:
    """Return base accuracy per task beside its chance level."""
    shown = ~table["open"].to_numpy()
    lengths = pa.compute.list_value_length(table["options"]).to_numpy()
    recipes = {p.recipe: p.step for p in points}
    base = (data["split"] == split) & (data["condition"] == "base")
    rows = []
    for task in sorted(set(data["task"][base])):
        mine = base & (data["task"] == task)
        cells = []
        for recipe, step in recipes.items():
            at = mine & (data["recipe"] == recipe) & (data["step"] == step)
            seeds = [at & (data["seed"] == s) for s in sorted(set(data["seed"][at]))]
            items = [
                stats.proportion(data["accuracy"][s], data["cluster"][s])[:3]
                for s in seeds
            ]
            items = [item for item in items if not np.isnan(item[0])]
            cells.append(hull(items) if items else None)
        listed = mine & shown & (lengths > 0)
        rows.append(
            (
                task,
                len(set(data["item"][mine])),
                float(np.mean(1 / lengths[listed])) if listed.any() else None,
                *cells,
            )
        )
    return Table(
        f"tasks-{split}",
        f"Base accuracy per task, {split}",
        "Chance is the mean of one over the number of options, of the items that show "
        "them. " + seeds_note(points),
        (
            ("Task", "text"),
            ("Examples", "count"),
            ("Chance", "share"),
            *((f"{r}, step {s}", "interval") for r, s in recipes.items()),
        ),
        rows,
    )
