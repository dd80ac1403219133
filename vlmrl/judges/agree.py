"""Agreement of judges with each other and with the truth.

A rating is one of `judge.LABELS`; the caller leaves out items that are 'not_applicable'
to any rater. Statistics take row weights, so that one call evaluates a bootstrap draw
per row of weights, and intervals resample whole clusters.

Axis letters: n items, r raters, c labels, B bootstrap draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.eval import stats
from vlmrl.eval.stats import Interval
from vlmrl.judges.judge import LABELS, Verdict
from vlmrl.judges.verdicts import READINGS, VerdictRow, Verdicts, shared, truths
from vlmrl.types import UserError


class Ratings(NamedTuple):
    """Labels that r raters gave the same n items."""

    raters: tuple[str, ...]
    labels: np.ndarray  # int[n, r]: index into LABELS
    clusters: np.ndarray  # str[n]
    conditions: np.ndarray  # str[n]


class Comparison(NamedTuple):
    """Raters side by side on the items that all of them rated."""

    items: int
    ratings: Ratings | None  # None of one rater
    truth: np.ndarray  # int[items]: index into LABELS, -1 where it is not known
    labelled: dict[
        str, list[tuple[VerdictRow, Verdict]]
    ]  # rater → verdicts of known truth


def compare(raters: dict[str, Verdicts], reading: str) -> Comparison:
    """Return the comparison of raters on one reading, one of `verdicts.READINGS`.

    Raises:
      UserError: they share no item that applies to all, or one rater and no truth.
    """
    if reading not in READINGS:
        raise UserError(
            f"--reading: expected one of {', '.join(READINGS)}, got '{reading}'"
        )
    keys = [
        key
        for key in shared(raters, [reading])
        if all(rated[key][1].label != "not_applicable" for rated in raters.values())
    ]
    if not keys:
        raise UserError("agree: the raters share no item that applies to all of them")
    truth = truths(raters)
    labelled = {
        name: [
            (row._replace(truth=truth[key]), verdict)
            for key, (row, verdict) in rated.items()
            if key in truth and key[1] == reading
        ]
        for name, rated in raters.items()
    }
    labelled = {name: pairs for name, pairs in labelled.items() if pairs}
    if len(raters) == 1 and not labelled:
        raise UserError("agree: one rater and no truth; name another to compare with")
    rows = [next(iter(raters.values()))[key][0] for key in keys]
    ratings = Ratings(
        tuple(raters),
        np.stack(
            [codes([r[key][1].label for key in keys]) for r in raters.values()], 1
        ),
        np.array([r.cluster for r in rows]),
        np.array([r.condition for r in rows]),
    )
    known = [LABELS.index(truth[k]) if k in truth else -1 for k in keys]
    return Comparison(
        len(keys), ratings if len(raters) > 1 else None, np.array(known), labelled
    )


def codes(labels: Sequence[str]) -> np.ndarray:
    """Return indices into LABELS; UserError for anything else."""
    if unknown := set(labels) - set(LABELS):
        raise UserError(
            f"label: expected one of {', '.join(LABELS)}, got '{sorted(unknown)[0]}'"
        )
    return np.array([LABELS.index(label) for label in labels], int)


# -- statistics: (labels int[n, r], weights float64[B, n]) → float64[B] ----------------


def strict(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of items on which all raters agree."""
    same = (labels == labels[:, :1]).all(1)
    return _ratio(weights @ same, weights.sum(-1))


def cohen(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Cohen's κ of two raters: (pₒ − pₑ) / (1 − pₑ), pₑ = Σ_c p₁(c) p₂(c).

    1 is perfect, 0 what chance gives; NaN where both always give the one same label.

    Source: Cohen 1960, https://doi.org/10.1177/001316446002000104
    """
    if labels.shape[1] != 2:
        raise ValueError(f"cohen: expected 2 raters, got {labels.shape[1]}")
    total = weights.sum(-1)
    first, second = (_marginal(labels[:, k], weights) for k in (0, 1))
    chance = _ratio((first * second).sum(-1), total**2)
    return _kappa(strict(labels, weights), chance)


def fleiss(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Fleiss' κ of r ≥ 2 raters.

      P_i = (Σ_c n_ic² − r) / (r (r − 1)),   pₑ = Σ_c (Σ_i n_ic / (n r))²,
      κ = (mean P_i − pₑ) / (1 − pₑ),   n_ic raters giving item i the label c

    Source: Fleiss 1971, https://doi.org/10.1037/h0031619
    """
    raters = labels.shape[1]
    if raters < 2:
        raise ValueError(f"fleiss: expected at least 2 raters, got {raters}")
    counts = (labels[:, :, None] == np.arange(len(LABELS))).sum(1)  # [n, c]
    agree = ((counts**2).sum(1) - raters) / (raters * (raters - 1))
    total = weights.sum(-1)
    share = (weights @ counts) / np.where(total > 0, total * raters, 1)[:, None]
    return _kappa(_ratio(weights @ agree, total), (share**2).sum(-1))


def _marginal(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (column[:, None] == np.arange(len(LABELS)))


def _ratio(above, below):
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _kappa(observed, chance):
    room = 1 - chance
    sure = room < 1e-12  # one label alone: nothing can be said
    return np.where(sure, np.nan, (observed - chance) / np.where(sure, 1, room))


# -- tables ----------------------------------------------------------------------------


def interval(
    statistic: Callable, labels: np.ndarray, clusters: np.ndarray, **bootstrap
) -> Interval:
    """Return a statistic with its interval; keywords as in `stats.cluster_bootstrap`.

    Percentile unless told otherwise: the jackknife behind BCa takes one evaluation per
    cluster.
    """
    bootstrap.setdefault("method", "percentile")
    return stats.cluster_bootstrap(
        lambda weights: statistic(labels, weights), clusters, **bootstrap
    )


def between(ratings: Ratings, **bootstrap) -> list[dict]:
    """Return the agreement of all raters and of each pair, over everything ('all') and
    by condition: rows with raters, condition, n, strict, cohen (pairs) and fleiss."""
    rows = []
    r = len(ratings.raters)
    pairs = [(i, j) for i in range(r) for j in range(i + 1, r)]
    for condition in ("all", *dict.fromkeys(ratings.conditions.tolist())):
        here = (ratings.conditions == condition) | (condition == "all")
        labels, clusters = ratings.labels[here], ratings.clusters[here]
        for chosen in ([tuple(range(r))] if r > 2 else []) + pairs:
            part = labels[:, chosen]
            row = {
                "raters": [ratings.raters[k] for k in chosen],
                "condition": condition,
                "n": int(here.sum()),
                "strict": interval(strict, part, clusters, **bootstrap),
                "fleiss": interval(fleiss, part, clusters, **bootstrap),
            }
            if len(chosen) == 2:
                row["cohen"] = interval(cohen, part, clusters, **bootstrap)
            rows.append(row)
    return rows


def differences(ratings: Ratings, truth: np.ndarray | None = None) -> list[dict]:
    """Test each pair of raters for a difference, over everything and by condition.

    Compared are the shares that each calls consistent and, where the truth is known,
    has right. `p` is of one comparison, `holm` corrected for all rows together
    (`stats.holm`).

    Args:
      truth: int[n], indices into LABELS, -1 where it is not known.
    Returns:
      Rows with raters (a, b), condition, measure, n, difference (b − a), p, holm and
      method.
    """
    measures = {"consistent": (ratings.labels == 0).astype(float)}
    if truth is not None and (truth >= 0).any():
        right = (ratings.labels == truth[:, None]).astype(float)
        measures["right"] = np.where((truth >= 0)[:, None], right, np.nan)
    ids = np.arange(len(ratings.labels)).astype(str)
    rows = []
    pairs = list(itertools.combinations(range(len(ratings.raters)), 2))
    for condition in ("all", *dict.fromkeys(ratings.conditions.tolist())):
        here = (ratings.conditions == condition) | (condition == "all")
        for (name, values), (i, j) in itertools.product(measures.items(), pairs):
            cells = [
                stats.Cell(ids[here], values[here, k], ratings.clusters[here])
                for k in (i, j)
            ]
            test = stats.paired_test(*cells)
            rows.append(
                {
                    "raters": [ratings.raters[i], ratings.raters[j]],
                    "condition": condition,
                    "measure": name,
                    "n": test.difference.n,
                    "difference": test.difference,
                    "p": test.p,
                    "method": test.method,
                }
            )
    adjusted = stats.holm([row["p"] for row in rows])
    return [row | {"holm": float(p)} for row, p in zip(rows, adjusted, strict=True)]


def confusion(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return int[c, c]: items by the first rater's label (row) and the second's
    (column)."""
    out = np.zeros((len(LABELS),) * 2, int)
    np.add.at(out, (first, second), 1)
    return out


class Quality(NamedTuple):
    """A judge against the truth."""

    n: int
    precision: Interval  # right, of what it decided
    coverage: Interval  # decided, of what has a conclusion
    accuracy: Interval  # label equal to the truth's, 'undecided' included
    recall: dict[str, Interval]  # per true label: share it gave that label
    kappa: Interval  # Cohen's, with the truth
    brier: float  # mean (confidence − right)² where a confidence was given, NaN if none
    calibration: list[tuple[float, float, int]]  # per tenth of confidence: mean
    # confidence, share right, count
    confusion: np.ndarray  # int[c, c]: truth (row) by verdict (column)


def against(
    truth: Sequence[str],
    verdicts: Sequence[Verdict],
    clusters: Sequence[str] | None = None,
    **bootstrap,
) -> Quality:
    """Return precision, coverage, recall, κ and calibration on labelled items."""
    if len(truth) != len(verdicts):
        raise ValueError(
            f"against: expected {len(truth)} verdicts, got {len(verdicts)}"
        )
    if not truth:
        raise UserError("labels: expected at least one labelled item, got none")
    true, given = codes(truth), codes([v.label for v in verdicts])
    units = np.arange(len(true)) if clusters is None else np.asarray(clusters)
    right, open_ = true == given, LABELS.index("undecided")

    def share(values, where):
        return stats.proportion(np.where(where, values, np.nan), units)

    sure = np.array([v.confidence for v in verdicts], float)
    rated = ~np.isnan(sure)
    brier = np.mean((sure[rated] - right[rated]) ** 2) if rated.any() else np.nan
    return Quality(
        n=len(true),
        precision=share(right, given != open_),
        coverage=share(given != open_, true != open_),
        accuracy=share(right, np.ones(len(true), bool)),
        recall={n: share(right, true == k) for k, n in enumerate(LABELS)},
        kappa=interval(cohen, np.stack([true, given], 1), units, **bootstrap),
        brier=float(brier),
        calibration=_calibration(sure[rated], right[rated]),
        confusion=confusion(true, given),
    )


def _calibration(sure: np.ndarray, right: np.ndarray):
    tenth = np.minimum((sure * 10).astype(int), 9)
    groups = [tenth == k for k in range(10) if (tenth == k).any()]
    return [
        (float(sure[g].mean()), float(right[g].mean()), int(g.sum())) for g in groups
    ]
