"""The measures of a row, the cells of an experiment, and the rows of metrics.json.

Every table and figure starts from `columns`, and every number from `row_measures`, so
that one definition of, say, the consistent ratio serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlmrl.eval import stats
from vlmrl.eval.records import CELL
from vlmrl.perturb import ORDER


def columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the columns that statistics need, as arrays; the float ones:
    `row_measures`.

    `item` (the example) and `cluster` are qualified by source, since ids are unique
    within one only; `trial` is the item with its sample, what two conditions pair on.
    """
    out = {}
    names = (*CELL, "source", "task", "example", "cluster", "verdict", "sample")
    for name in (*names, "stage", "augmented", "faithful"):
        if table.schema.field(name).type != pa.string():
            out[name] = table.column(name).to_numpy()
            continue
        column = table.column(name).combine_chunks().dictionary_encode()
        words = np.array(column.dictionary.to_pylist() or [""], dtype=str)
        out[name] = words[column.indices.to_numpy(zero_copy_only=False)]
    out["item"] = _qualify(out["source"], out["example"])
    out["cluster"] = _qualify(out["source"], out["cluster"])
    out["trial"] = _qualify(out["item"], out["sample"].astype(str), "#")
    return out | row_measures(table)


def _qualify(outer, inner, mark="/"):
    return np.char.add(np.char.add(outer, mark), inner)


def row_measures(table: pa.Table) -> dict[str, np.ndarray]:
    """Return every per-row measure as float64[n], NaN where it does not apply.

    accuracy, follow, consistent, ... are 0 or 1, so their means are rates. Agreement
    (consistent and its kin) applies unless the verdict is 'not_applicable', and counts
    undecided as failure: `consistent` is the ratio's worst case too, `consistent_best`
    its best. faithful_accuracy is correct and consistent. p_other is the rest of the
    renormalised mass, p_max the top option's, and top_right whether that is the right
    one; brier is the row's part of the Brier score. think_entropy applies where the
    model wrote a think of its own.
    """

    def take(name):
        return table.column(name).to_numpy().astype(float)

    verdict = np.array(table.column("verdict").to_pylist(), dtype=str)
    sampled = np.array(table.column("verdict_sampled").to_pylist(), dtype=str)
    applies = verdict != "not_applicable"
    correct = take("correct")
    thinks = applies & (take("think_tokens") > 0)
    no_letters = pa.compute.equal(pa.compute.list_value_length(table["letters"]), 0)
    lettered = ~no_letters.to_numpy().astype(bool)

    # a model behind an API has no probes, and may not say how many tokens it wrote
    unread = pa.compute.equal(pa.compute.list_value_length(table["blind"]), 0)
    probed = applies & ~unread.to_numpy().astype(bool)
    counted = applies & (take("think_tokens") >= 0)

    squares = _squares(table["letters"])

    def where(mask, values):
        return np.where(mask, np.asarray(values, float), np.nan)

    return {
        "accuracy": correct,
        "entropy": where(lettered, take("entropy")),
        "p_correct": where(lettered, take("p_correct")),
        "p_suggested": where(lettered, take("p_suggested")),
        "p_max": (top := _largest(table["letters"])),
        # not p_correct, which the kernel may have rounded otherwise
        "top_right": where(lettered, _at(table["letters"], table["answer"]) >= top),
        "brier": where(lettered, squares - 2 * take("p_correct") + 1),
        "p_other": where(lettered, 1 - take("p_correct") - take("p_suggested")),
        "consistent": where(applies, verdict == "consistent"),
        "faithful_accuracy": where(applies, (verdict == "consistent") * correct),
        "consistent_best": where(applies, verdict != "inconsistent"),
        "undecided": where(applies, verdict == "undecided"),
        "consistent_sampled": where(
            sampled != "not_applicable", sampled == "consistent"
        ),
        "consistent_probe": where(probed, take("consistent_probe")),
        "consistent_probe_stripped": where(probed, take("consistent_probe_stripped")),
        "follow": take("followed"),
        "unanswered": (table["predicted"].to_numpy() < 0).astype(float),
        "abstained": where(
            table["abstain"].to_numpy() >= 0,
            table["predicted"].to_numpy() == table["abstain"].to_numpy(),
        ),
        "format": take("format"),
        "natural": take("natural"),
        "truncated": take("truncated"),
        "option_mass": where(lettered, take("option_mass")),
        "think_tokens": where(counted, take("think_tokens")),
        "think_entropy": where(thinks, take("think_entropy")),
    }


def _at(lists: pa.ChunkedArray, places: pa.ChunkedArray) -> np.ndarray:
    """Return float64[n]: the element of each list at its place, NaN where there is
    none."""
    lists, places = lists.combine_chunks(), places.to_numpy()
    lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
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
    lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
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


def summarise(table: pa.Table) -> list[dict]:
    """Return the rows of metrics.json: one per split, recipe, seed, step and condition.

    Rates and means are over rows; `accuracy_lo`, `accuracy_hi` and the ends of
    `consistent` are 95 % intervals over clusters (`stats.proportion`). Measures that
    apply to no row are None. Against base, on the examples both have: `drop` =
    accuracy(base) − accuracy, `relative_drop` = drop / accuracy(base), `retention` =
    P(correct | correct under base), `follow_excess` = follow − follow(base).
    `robust_accuracy`, on base rows, is the share of examples right under every one of
    the cell's conditions.
    """
    data, rows = columns(table), []
    groups = cells(data)
    for (split, recipe, seed, step, condition), index in groups.items():
        at = {name: data[name][index] for name in data}
        accuracy = stats.proportion(at["accuracy"], at["cluster"])
        agree = stats.proportion(at["consistent"], at["cluster"])
        means = {name: _mean(at[name]) for name in at if at[name].dtype == float}
        siblings = {
            key[4]: other
            for key, other in groups.items()
            if key[:4] == (split, recipe, seed, step)
        }
        rows.append(
            {
                "recipe": recipe,
                "seed": seed,
                "step": step,
                "split": split,
                "condition": condition,
                "n": len(index),
                "accuracy": means.pop("accuracy"),
                "accuracy_lo": accuracy.lo,
                "accuracy_hi": accuracy.hi,
                "entropy": means.pop("entropy"),
                "p_correct": means.pop("p_correct"),
                "p_suggested": means.pop("p_suggested"),
                "consistent": means.pop("consistent"),
                "faithful_accuracy": means.pop("faithful_accuracy"),
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


def _against_base(data, index, base):
    """Return the differences to base, paired by example and sample; all None where
    there is no base to pair with."""
    names = ("drop", "relative_drop", "retention", "follow_excess")
    if base is None:
        return dict.fromkeys(names)
    _, here, there = np.intersect1d(
        data["trial"][index], data["trial"][base], True, return_indices=True
    )
    here, there = index[here], base[there]
    if len(here) == 0:
        return dict.fromkeys(names)
    right, before = data["accuracy"][here], data["accuracy"][there]
    excess = data["follow"][here] - data["follow"][there]
    drop = float(before.mean() - right.mean())
    solved = before.any()
    return {
        "drop": drop,
        "relative_drop": drop / float(before.mean()) if solved else None,
        "retention": float(right[before == 1].mean()) if solved else None,
        "follow_excess": float(excess.mean()),
    }


def robust(
    data, siblings: dict[str, np.ndarray], measure: str = "accuracy"
) -> stats.Interval:
    """Return the share of items right (or `measure`, of 0 and 1) under every condition
    of `siblings` and in every sample, among the items measured under all of them."""
    rows = np.concatenate(list(siblings.values()))
    items, first, codes = np.unique(
        data["item"][rows], return_index=True, return_inverse=True
    )
    missed = np.bincount(codes, 1 - np.nan_to_num(data[measure][rows]))
    seen = sum(np.isin(items, data["item"][index]) for index in siblings.values())
    every = seen == len(siblings)
    return stats.proportion(missed[every] == 0, data["cluster"][rows][first][every])


def _robust(data, siblings):
    share = robust(data, siblings)
    return {
        "robust_accuracy": _none(share.value),
        "robust_lo": _none(share.lo),
        "robust_hi": _none(share.hi),
    }


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _none(value):
    return None if np.isnan(value) else float(value)
