"""What each study of the paper ends with: its tables, from records alone.

Records of several benchmarks are read benchmark by benchmark (`by_source`) and pooled
(`pooled`); a study names the tables it wants (`TABLES`). Where the paper states a
value, it stands beside ours with the difference and the difference's interval, which
is that of our own measurement: the paper's has none that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmrl import perturb
from vlmrl.answers import values
from vlmrl.eval import measures, scoring, stats
from vlmrl.report import analysis, tables
from vlmrl.report.render import Table, of
from vlmrl.types import UserError


class Known(NamedTuple):
    """A value the paper states."""

    recipe: str
    source: str
    condition: str
    measure: str
    value: float


def pooled(table: pa.Table) -> pa.Table:
    """Return all benchmarks and splits as one split, 'all'."""
    return _split(table, pa.array(["all"] * len(table), pa.string()))


def by_source(table: pa.Table) -> pa.Table:
    """Return every benchmark as a split of its own, its files together."""
    return _split(table, table.column("source"))


def _split(table: pa.Table, column) -> pa.Table:
    at = table.schema.get_field_index("split")
    return table.set_column(at, "split", column)


def shown(table: pa.Table, conditions: Sequence[str]) -> pa.Table:
    """Return the rows under some conditions; all for an empty list."""
    if not conditions:
        return table
    names = [perturb.short(name) for name in conditions]
    return table.filter(pc.is_in(table["condition"], pa.array(names)))


def build(
    table: pa.Table,
    names: Sequence[str],
    known: Sequence[Known] = (),
    reading: str = "strict",
) -> list[Table]:
    """Return the tables of a study, in order.

    Args:
      table: records of every benchmark.
      names: of TABLES or USUAL.
      known: what the paper states.
      reading: what accuracy is of, one of `measures.READINGS`; published scores are of
        the strict one.

    Raises:
      UserError: an unknown name, or no records.
    """
    if unknown := [n for n in names if n not in (*TABLES, *USUAL)]:
        listed = ", ".join((*TABLES, *USUAL))
        raise UserError(f"config.tables: '{unknown[0]}' is not one of {listed}")
    if not len(table):
        raise UserError("records: no rows; evaluate something first")
    usual = _usual(table, reading) if set(names) & set(USUAL) else []
    tables_ = []
    for name in names:
        if name in TABLES:
            tables_ += TABLES[name](table, known, reading)
        else:
            tables_ += [t for t in usual if t.name.partition("-")[0] == name]
    return [t for t in tables_ if t.rows]


def _usual(table: pa.Table, reading: str) -> list[Table]:
    """Return the tables of every run (`tables.build`), pooled and then by benchmark."""
    parts = [pooled(table)]
    if len(table.column("source").unique()) > 1:
        parts.append(by_source(table))
    return [
        t
        for p in parts
        for t in tables.build(p, measures.summarise(p, reading), reading)
    ]


# -- tables ----------------------------------------------------------------------------


def _share(data: dict, measure: str, index: np.ndarray):
    """Return (value, lo, hi) of a share of rows; None where none was measured."""
    share = stats.proportion(data[measure][index], data["cluster"][index])
    return share[:3] if share.n else None


def base(table: pa.Table, known: Sequence[Known], reading: str) -> list[Table]:
    """Return accuracy under base: a row per model and benchmark, beside the paper's."""
    data = measures.columns(by_source(table), reading)
    stated = {k[:4]: k.value for k in known}
    rows = []
    for source in dict.fromkeys(data["split"]):
        view = measures.view(data, source)
        for recipe, points in analysis.ends(view):
            accuracy = analysis.share(view, points, "base", "accuracy")
            if accuracy is None:
                continue
            paper = stated.get((recipe, source, "base", "accuracy"))
            gap = None if paper is None else tuple(v - paper for v in accuracy)
            index = view.rows.get((*points[0], "base"), np.array([], int))
            n = int((~np.isnan(data["accuracy"][index])).sum())
            adds = (_mean(data[m], index) for m in _adds(reading))
            rows.append(
                (recipe, source, of(n, len(index)), accuracy, *adds, paper, gap)
            )
    return [
        Table(
            "base",
            "Base accuracy by benchmark",
            f"Accuracy of the {reading} reading, and the points that the others add to "
            "it. Intervals over images (and copies of a question), 95 %. Difference: "
            "ours less the paper's, with the interval of ours; the paper states none.",
            (
                ("Model", "text"),
                ("Benchmark", "text"),
                ("n", "text"),
                ("Accuracy", "interval"),
                *((m.partition("_")[0].capitalize(), "shift") for m in _adds(reading)),
                ("Paper", "share"),
                ("Difference", "gap"),
            ),
            rows,
        )
    ]


def _adds(reading: str) -> list[str]:
    return [f"{name}_adds" for name in measures.READINGS if name != reading]


def _mean(values: np.ndarray, index: np.ndarray) -> float | None:
    values = values[index]
    return None if np.isnan(values).all() else float(np.nanmean(values))


def official(table: pa.Table, known: Sequence[Known], reading: str) -> list[Table]:
    """Return every published score of each benchmark, under base."""
    rows = []
    base_rows = table.filter(pc.equal(table["condition"], "base"))
    for source in dict.fromkeys(base_rows.column("source").to_pylist()):
        mine = base_rows.filter(pc.equal(base_rows["source"], source))
        for recipe in dict.fromkeys(mine.column("recipe").to_pylist()):
            part = _last(mine.filter(pc.equal(mine["recipe"], recipe)))
            for name, value in scoring.score(source, part).items():
                if np.isfinite(value):
                    rows.append((recipe, source, name, float(value)))
    return [
        Table(
            "official",
            "Published scores by benchmark",
            "As each benchmark's own script counts (vlmrl/eval/scoring.py); where it "
            "leaves open how to average, every way by name.",
            (
                ("Model", "text"),
                ("Benchmark", "text"),
                ("Score", "text"),
                ("Value", "number"),
            ),
            rows,
        )
    ]


def _last(table: pa.Table) -> pa.Table:
    """Return the last step of the lowest seed."""
    for name, choose in (("seed", pc.min), ("step", pc.max)):
        table = table.filter(pc.equal(table[name], choose(table[name])))
    return table


def abstain(table: pa.Table, known: Sequence[Known], reading: str) -> list[Table]:
    """Compare each condition with and without the option "I'm not sure"."""
    data = measures.columns(by_source(table), reading)
    cells = measures.cells(data)
    rows = []
    for (source, recipe, seed, step, condition), index in cells.items():
        if not condition.startswith("abstain+"):
            continue
        plain = condition.removeprefix("abstain+")
        before = cells.get((source, recipe, seed, step, plain))
        rows.append(
            (
                f"{recipe}" + (f", seed {seed}" if seed else ""),
                source,
                condition,
                of(len(index), len(index) if before is None else len(before)),
                _share(data, "abstained", index),
                _share(data, "accuracy", index),
                _share(data, "accuracy", index[data["abstained"][index] == 0]),
                _gap(data, before, index),
            )
        )
    return [
        Table(
            "abstain",
            "A way to abstain",
            "n: rows that the option can be added to, of those of the same condition "
            "without it. Selective accuracy: among the answers that are not 'I'm not "
            "sure'. Difference: accuracy less that of the same condition without the "
            "option, paired, in points.",
            (
                ("Model", "text"),
                ("Benchmark", "text"),
                ("Condition", "text"),
                ("n", "text"),
                ("Abstains", "interval"),
                ("Accuracy", "interval"),
                ("Selective acc.", "interval"),
                ("Difference", "gap"),
            ),
            rows,
        )
    ]


def _gap(data, before, after):
    """Return (value, lo, hi) of the paired change of accuracy; None without pairs."""
    if before is None:
        return None
    a, b = (
        stats.Cell(data["item"][i], data["accuracy"][i], data["cluster"][i])
        for i in (before, after)
    )
    change = stats.paired_difference(a, b)
    return change[:3] if change.n else None


def styles(table: pa.Table, known: Sequence[Known], reading: str) -> list[Table]:
    """Return the same weights under several prompt styles, against their own."""
    data = measures.columns(pooled(table), reading)
    data["style"] = np.array(table.column("style").to_pylist(), str)
    cells = measures.cells(data)
    rows = []
    for (_, recipe, seed, step, condition), index in cells.items():
        own = recipe.partition(" (")[0]
        first = cells.get(("all", own, seed, step, condition))
        rows.append(
            (
                own,
                condition,
                str(data["style"][index[0]]),
                _share(data, "accuracy", index),
                float(np.mean(data["format"][index])),
                None if recipe == own else _gap(data, first, index),
            )
        )
    rows.sort(key=lambda r: r[:2])
    return [
        Table(
            "styles",
            "Prompt sensitivity",
            "One model's weights under its own prompt style and others. Difference: "
            "against its own style, paired, in points.",
            (
                ("Model", "text"),
                ("Condition", "text"),
                ("Style", "text"),
                ("Accuracy", "interval"),
                ("Format", "share"),
                ("Difference", "gap"),
            ),
            rows,
        )
    ]


def grounding(table: pa.Table, known: Sequence[Known], reading: str) -> list[Table]:
    """Return Acc@0.5 and mean IoU of boxes, and how many answers hold one."""
    rows = []
    keys = ["recipe", "condition", "source", "split"]
    groups = table.select(keys).group_by(keys).aggregate([]).to_pylist()
    for key in sorted(groups, key=lambda k: tuple(k[n] for n in keys)):
        part = table
        for name in keys:
            part = part.filter(pc.equal(part[name], key[name]))
        part = _last(part)
        answers = scoring.rows_of(key["source"], part)
        scores = scoring.refcoco(answers)
        boxes = [bool(values.boxes(r.written)) for r in answers]
        rows.append(
            (
                *(key[n] for n in keys),
                len(answers),
                float(np.mean(boxes)),
                scores["acc@0.5"],
                scores["centre"],
                scores["iou"],
            )
        )
    return [
        Table(
            "grounding",
            "Grounding",
            "Of the first [x1, y1, x2, y2] in an answer; one without a box scores 0.",
            (
                ("Model", "text"),
                ("Condition", "text"),
                ("Benchmark", "text"),
                ("Split", "text"),
                ("n", "count"),
                ("Has a box", "share"),
                ("Acc@0.5", "share"),
                ("Centre inside", "share"),
                ("Mean IoU", "number"),
            ),
            rows,
        )
    ]


def seeds(table: pa.Table, known: Sequence[Known], reading: str) -> list[Table]:
    """Compare runs that differ in their seed alone, at the last step of each."""
    data = measures.columns(pooled(table), reading)
    cells = measures.cells(data)
    last: dict = {}
    for _, recipe, seed, step, _ in cells:
        last[recipe, seed] = max(step, last.get((recipe, seed), step))
    rows = []
    for (_, recipe, seed, step, condition), index in cells.items():
        if step == last[recipe, seed]:
            names = ("accuracy", "consistent", "faithful_accuracy")
            shares = (_share(data, name, index) for name in names)
            rows.append((recipe, condition, seed, step, *shares))
    rows.sort(key=lambda r: r[:3])
    return [
        Table(
            "seeds",
            "Seed by seed",
            "At the last step of each; intervals are over items and say nothing of "
            "how another seed would differ.",
            (
                ("Recipe", "text"),
                ("Condition", "text"),
                ("Seed", "count"),
                ("Step", "count"),
                ("Accuracy", "interval"),
                ("Consistent", "interval"),
                ("Faithful acc.", "interval"),
            ),
            rows,
        )
    ]


# (records, what the paper states, reading) → tables
TABLES: dict[str, Callable[[pa.Table, Sequence[Known], str], list[Table]]] = {
    "base": base,
    "official": official,
    "abstain": abstain,
    "styles": styles,
    "grounding": grounding,
    "seeds": seeds,
}
USUAL = (
    "conditions",
    "robustness",
    "letters",
    "agreement",
    "tasks",
    "leaderboard",
    "quadrants",
    "calibration",
    "prediction",
    "comparisons",
    "drift",
)
