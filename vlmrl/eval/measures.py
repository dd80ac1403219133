"""The measures of a row, the cells of an experiment, and the rows of metrics.json.

Every table and figure starts from `columns`, and every number from `row_measures`, so
that one definition of, say, the consistent ratio serves them all.

What an answer is depends on the reading (`READINGS`), an argument of all of them:
accuracy and what follows from it (drop, retention, robust and faithful accuracy), the
follow rate, `unanswered` and `abstained` are of that reading. Verdicts are not: a judge
compares the chain of thought with the strict answer. Option probabilities, probes and
format are the same under every reading.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmrl.eval import stats
from vlmrl.eval.records import CELL
from vlmrl.perturb import ORDER
from vlmrl.types import UserError

OPTION = {"strict": "predicted", "lenient": "lenient", "forced": "forced"}  # column
READINGS = tuple(OPTION)


def check(reading: str, field: str = "reading") -> str:
    """Return a reading's name; raise a UserError that names `field` for another."""
    if reading not in READINGS:
        known = ", ".join(READINGS)
        raise UserError(f"{field}: expected one of {known}, got {reading!r}")
    return reading


def columns(table: pa.Table, reading: str = "strict") -> dict[str, np.ndarray]:
    """Return the columns that statistics need, as arrays; the float ones:
    `row_measures`.

    `item` (the example) and `cluster` are qualified by source, since ids are unique
    within one only; `trial` is the item with its sample, what two conditions pair on.
    `not_asked` is one text, a line for each entry.
    """
    out = {}
    lines = pc.binary_join(table["not_asked"].combine_chunks(), "\n")
    table = table.set_column(
        table.schema.get_field_index("not_asked"), "not_asked", lines
    )
    names = (*CELL, "source", "task", "example", "cluster", "verdict", "sample")
    for name in (*names, "stage", "augmented", "faithful", "not_asked"):
        if table.schema.field(name).type != pa.string():
            out[name] = table.column(name).to_numpy()
            continue
        column = table.column(name).combine_chunks().dictionary_encode()
        words = np.array(column.dictionary.to_pylist() or [""], dtype=str)
        out[name] = words[column.indices.to_numpy(zero_copy_only=False)]
    out["item"] = _qualify(out["source"], out["example"])
    out["cluster"] = _qualify(out["source"], out["cluster"])
    out["trial"] = _qualify(out["item"], out["sample"].astype(str), "#")
    return out | row_measures(table, reading)


def _qualify(outer, inner, mark="/"):
    return np.char.add(np.char.add(outer, mark), inner)


def row_measures(table: pa.Table, reading: str = "strict") -> dict[str, np.ndarray]:
    """Return every per-row measure as float64[n], NaN where it does not apply or was
    not measured.

    accuracy, follow, consistent, ... are 0 or 1, so their means are rates.
    `<name>_adds` is the accuracy of another reading less this one's. Agreement
    (consistent and its kin) applies unless the verdict is 'not_applicable', and counts
    undecided as failure: `consistent` is the ratio's worst case, `consistent_best` its
    best. faithful_accuracy is correct and consistent. `scored` is whether there are
    option probabilities and `scored_texts` whether they are of the options' texts; the
    other measures of them are NaN where there are none. p_other is the rest of the
    renormalised mass, p_max the top option's, and top_right whether that is the right
    one; brier is the row's part of the Brier score. think_entropy applies where the
    model wrote a chain of thought itself.
    """

    def take(name):
        return table.column(name).to_numpy().astype(float)

    def words(name):
        return np.array(table.column(name).to_pylist(), dtype=str)

    def filled(name):
        lengths = pc.list_value_length(table[name])
        return lengths.to_numpy().astype(float) > 0

    def where(mask, values):
        return np.where(mask, np.asarray(values, float), np.nan)

    verdict, sampled = words("verdict"), words("verdict_sampled")
    applies = verdict != "not_applicable"
    thinks = applies & (take("think_tokens") > 0)
    # a model behind an API has no probes, and may not say how many tokens it wrote
    probed = applies & filled("blind")
    counted = applies & (take("think_tokens") >= 0)
    kind = words("scored")
    scored = filled("letters") & (kind != "")
    suggested = scored & (take("suggested") >= 0)
    top = where(scored, _largest(table["letters"]))

    given, option, correct, adds = _read_as(table, reading)
    return {
        "accuracy": correct,
        **adds,
        "scored": scored.astype(float),
        "scored_texts": where(scored, kind == "texts"),
        "entropy": where(scored, take("entropy")),
        "p_correct": where(scored, take("p_correct")),
        "p_suggested": where(suggested, take("p_suggested")),
        "p_max": top,
        # not p_correct, which the kernel may have rounded otherwise
        "top_right": where(scored, _at(table["letters"], table["answer"]) >= top),
        "brier": where(scored, _squares(table["letters"]) - 2 * take("p_correct") + 1),
        "p_other": where(
            scored,
            1 - take("p_correct") - np.where(suggested, take("p_suggested"), 0),
        ),
        "consistent": where(applies, verdict == "consistent"),
        "faithful_accuracy": where(applies, (verdict == "consistent") * correct),
        "consistent_best": where(applies, verdict != "inconsistent"),
        "undecided": where(applies, verdict == "undecided"),
        "consistent_sampled": where(
            sampled != "not_applicable", sampled == "consistent"
        ),
        "consistent_probe": where(probed, take("consistent_probe")),
        "consistent_probe_stripped": where(probed, take("consistent_probe_stripped")),
        "follow": where(given & (take("suggested") >= 0), option == take("suggested")),
        "unanswered": where(given, option < 0),
        "abstained": where(given & (take("abstain") >= 0), option == take("abstain")),
        "format": take("format"),
        "natural": take("natural"),
        "truncated": take("truncated"),
        "option_mass": where(scored, take("option_mass")),
        "think_tokens": where(counted, take("think_tokens")),
        "think_entropy": where(thinks, take("think_entropy")),
    }


def _read_as(table: pa.Table, reading: str):
    """Return bool[n], whether a row has the reading; float64[n], the option it names
    and whether that is right; `<name>_adds` of the other readings."""

    def take(name):
        return table.column(name).to_numpy().astype(float)

    parsers = np.array(table["lenient_parser"].to_pylist(), dtype=str)
    has = {
        "strict": np.ones(len(table), bool),
        "lenient": parsers != "",  # older records have no such reading
        "forced": take("forced") >= 0,
    }
    right = {
        "strict": take("correct"),
        "lenient": take("lenient_correct"),
        "forced": take("forced") == take("answer"),
    }
    right = {name: np.where(has[name], right[name], np.nan) for name in READINGS}
    correct = right.pop(check(reading))
    adds = {f"{name}_adds": other - correct for name, other in right.items()}
    return has[reading], take(OPTION[reading]), correct, adds


def _at(lists: pa.ChunkedArray, places: pa.ChunkedArray) -> np.ndarray:
    """Return float64[n]: the element of each list at its place, NaN where there is
    none."""
    lists, places = lists.combine_chunks(), places.to_numpy()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    inside = (places >= 0) & (places < lengths)
    out = np.full(len(lengths), np.nan)
    starts = np.cumsum(lengths) - lengths
    out[inside] = lists.flatten().to_numpy()[(starts + places)[inside]]
    return out


def _largest(lists: pa.ChunkedArray) -> np.ndarray:
    """Return float64[n]: the largest element of each list, NaN where it is empty."""
    return _reduced(lists, np.maximum, lambda x: x)


def _squares(lists: pa.ChunkedArray) -> np.ndarray:
    """Return float64[n]: the sum of squares of each list, NaN where it is empty."""
    return _reduced(lists, np.add, np.square)


def _reduced(lists: pa.ChunkedArray, ufunc: np.ufunc, each) -> np.ndarray:
    lists = lists.combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    out = np.full(len(lengths), np.nan)
    starts = np.cumsum(lengths) - lengths
    if lengths.any():
        flat = each(lists.flatten().to_numpy())
        out[lengths > 0] = ufunc.reduceat(flat, starts[lengths > 0])
    return out


def cells(data: dict[str, np.ndarray]) -> dict[tuple, np.ndarray]:
    """Return the row numbers of each (split, recipe, seed, step, condition).

    Splits and recipes keep the order they first appear in, conditions that of
    `perturb.ORDER`; the rows of a cell are in (item, sample) order.
    """
    rank = {name: _ranks(data[name]) for name in ("split", "recipe", "condition")}
    known = [data["condition"] == name for name in ORDER]
    places = np.arange(len(ORDER)) - len(ORDER)
    rank["condition"] = np.select(known, places, rank["condition"])
    order = np.lexsort(
        [data["sample"], data["item"]]
        + [rank.get(name, data[name]) for name in reversed(CELL)]
    )
    if len(order) == 0:
        return {}
    codes = np.stack([rank.get(name, data[name])[order] for name in CELL])
    starts = np.flatnonzero((np.diff(codes) != 0).any(0)) + 1
    return {
        tuple(data[name][rows[0]].item() for name in CELL): rows
        for rows in np.split(order, starts)
    }


def _ranks(values):
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    return first[codes]


class View(NamedTuple):
    """Records of one split, by cell."""

    data: dict[str, np.ndarray]
    rows: dict[tuple, np.ndarray]  # (recipe, seed, step, condition) → row numbers

    def _first(self, recipe: str, column: str):
        rows = next(rows for key, rows in self.rows.items() if key[0] == recipe)
        return self.data[column][rows[0]].item()

    def stage(self, recipe: str) -> str:
        """Return `Record.stage` of a recipe."""
        return self._first(recipe, "stage")

    def augmented(self, recipe: str) -> bool:
        """Whether a recipe is known to train on perturbed prompts or images."""
        return self._first(recipe, "augmented")

    def faithful(self, recipe: str) -> bool:
        """Whether a recipe is known to reward agreement of CoT and answer."""
        return self._first(recipe, "faithful")

    def names(self, keep: Callable[[str], bool]) -> list[str]:
        return [r for r in dict.fromkeys(k[0] for k in self.rows) if keep(r)]

    def seeds(self, recipe: str) -> list[int]:
        return sorted({k[1] for k in self.rows if k[0] == recipe})

    def conditions(self, recipe: str) -> list[str]:
        return list(dict.fromkeys(k[3] for k in self.rows if k[0] == recipe))

    def end(self, recipe: str, seed: int) -> tuple | None:
        """Return (recipe, seed, last step); another seed's where this one was not
        run."""
        seeds = self.seeds(recipe)
        if not seeds:
            return None
        seed = seed if seed in seeds else seeds[0]
        return recipe, seed, max(k[2] for k in self.rows if k[:2] == (recipe, seed))

    def start(self, recipe: str, seed: int) -> tuple | None:
        """Where training started: (recipe, seed, 0) where it was evaluated, else the
        study's start; None for a recipe that is not known to be trained from there."""
        if self.stage(recipe) not in ("trained", "unknown"):
            return None
        if any(k[:3] == (recipe, seed, 0) for k in self.rows):
            first = recipe, seed, 0
        else:
            starts = self.names(lambda r: self.stage(r) == "start")
            # of several it can't be told which it was
            first = self.end(starts[0], seed) if len(starts) == 1 else None
        return None if first == self.end(recipe, seed) else first

    def cell(self, point: tuple | None, condition: str, measure: str):
        """Return the stats.Cell of a point under a condition, None if not measured."""
        rows = self.rows.get((*point, condition)) if point else None
        if rows is None or np.isnan(self.data[measure][rows]).all():
            return None
        return stats.Cell(
            self.data["item"][rows],
            self.data[measure][rows],
            self.data["cluster"][rows],
        )


def view(data: dict[str, np.ndarray], split: str) -> View:
    """Return the `View` of one split of `columns`."""
    groups = cells(data)
    return View(data, {k[1:]: rows for k, rows in groups.items() if k[0] == split})


def summarise(table: pa.Table, reading: str = "strict") -> list[dict]:
    """Return the rows of metrics.json: one per split, recipe, seed, step and condition.

    `n` rows were read, of `of` where those are counted that the condition does not
    apply to; `scored_n` have option probabilities, `texts_n` of them of texts. Rates
    and means are over rows; `accuracy_lo`, `accuracy_hi` and the ends of `consistent`
    are 95 % intervals over clusters (`stats.proportion`). Measures that apply to no row
    are None. Against base, on the `paired` trials measured under both: `drop` =
    accuracy(base) − accuracy, `relative_drop` = drop / accuracy(base), `retention` =
    P(correct | correct under base), `follow_excess` = follow − follow(base), and
    `<measure>_shift` of option probabilities. `robust_accuracy`, on base rows, is the
    share right under every one of the cell's conditions, of the `robust_n` examples
    measured under all of them.
    """
    data, rows = columns(table, reading), []
    groups = cells(data)
    points: dict[tuple, dict[str, np.ndarray]] = defaultdict(dict)
    for key, index in groups.items():
        points[key[:4]][key[4]] = index
    absent = {
        point: not_asked(data, np.concatenate(list(siblings.values())))
        for point, siblings in points.items()
    }
    for (split, recipe, seed, step, condition), index in groups.items():
        at = {name: data[name][index] for name in data}
        accuracy = stats.proportion(at["accuracy"], at["cluster"])
        agree = stats.proportion(at["consistent"], at["cluster"])
        means = {name: _mean(at[name]) for name in at if at[name].dtype == float}
        siblings = points[split, recipe, seed, step]
        missing = absent[split, recipe, seed, step].get(condition, {})
        rows.append(
            {
                "recipe": recipe,
                "seed": seed,
                "step": step,
                "split": split,
                "condition": condition,
                "n": accuracy.n,
                "accuracy": means.pop("accuracy"),
                "accuracy_lo": _none(accuracy.lo),
                "accuracy_hi": _none(accuracy.hi),
                "entropy": means.pop("entropy"),
                "p_correct": means.pop("p_correct"),
                "p_suggested": means.pop("p_suggested"),
                "consistent": means.pop("consistent"),
                "faithful_accuracy": means.pop("faithful_accuracy"),
                "reading": reading,
                "of": len(index) + sum(missing.values()),
                "scored_n": int(at["scored"].sum()),
                "texts_n": int(np.nansum(at["scored_texts"])),
                "clusters": accuracy.clusters,
                "stage": at["stage"][0].item(),
                "consistent_lo": _none(agree.lo),
                "consistent_hi": _none(agree.hi),
            }
            | means
            | _against_base(data, index, siblings.get("base"))
            | (_robust(data, siblings) if condition == "base" else {})
        )
    return rows


def not_asked(data: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Counter]:
    """Return, by condition, how many trials of some rows it was not asked of, by the
    reason why it does not apply."""
    _, first = np.unique(data["trial"][rows], return_index=True)
    out: dict[str, Counter] = defaultdict(Counter)
    for text, count in Counter(data["not_asked"][rows[first]].tolist()).items():
        for line in filter(None, text.split("\n")):
            condition, _, reason = line.partition(": ")
            out[condition][reason] += count
    return dict(out)


_SHIFTED = ("entropy", "p_correct", "p_suggested", "p_other")


def _against_base(data, index, base):
    """Return the differences to base, paired by example and sample, each over the
    trials that have it under both; all None where there is no base to pair with."""
    names = ("drop", "relative_drop", "retention", "follow_excess")
    out = dict.fromkeys((*names, *(f"{name}_shift" for name in _SHIFTED)))
    out["paired"] = 0
    if base is None:
        return out
    _, here, there = np.intersect1d(
        data["trial"][index], data["trial"][base], True, return_indices=True
    )
    here, there = index[here], base[there]

    def both(name):
        before, after = data[name][there], data[name][here]
        keep = ~np.isnan(before) & ~np.isnan(after)
        return before[keep], after[keep]

    for name, measure in (
        ("follow_excess", "follow"),
        *((f"{name}_shift", name) for name in _SHIFTED),
    ):
        before, after = both(measure)
        out[name] = _mean(after - before)
    before, right = both("accuracy")
    if len(right):
        drop = float(before.mean() - right.mean())
        out |= {"drop": drop, "paired": len(right)}
    if before.any():
        out["relative_drop"] = drop / float(before.mean())
        out["retention"] = float(right[before == 1].mean())
    return out


def robust(
    data, siblings: dict[str, np.ndarray], measure: str = "accuracy"
) -> stats.Interval:
    """Return the share of items right (or `measure`, of 0 and 1) under every condition
    of `siblings` and in every sample, among the items measured under all of them."""
    measured = [i[~np.isnan(data[measure][i])] for i in siblings.values()]
    rows = np.concatenate(measured)
    items, first, codes = np.unique(
        data["item"][rows], return_index=True, return_inverse=True
    )
    missed = np.bincount(codes, 1 - data[measure][rows])
    seen = sum(np.isin(items, data["item"][index]) for index in measured)
    every = seen == len(siblings)
    return stats.proportion(missed[every] == 0, data["cluster"][rows][first][every])


def _robust(data, siblings):
    share = robust(data, siblings)
    return {
        "robust_accuracy": _none(share.value),
        "robust_lo": _none(share.lo),
        "robust_hi": _none(share.hi),
        "robust_n": share.n,
    }


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _none(value):
    return None if np.isnan(value) else float(value)
