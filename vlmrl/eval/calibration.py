"""Does a model know when it is right? Calibration, selection, discrimination.

All of it is about a *confidence* in [0, 1] (here the top option's renormalised
probability, raw logits at temperature 1) and whether the model was *right* (0 or 1),
or about any *score* that ranks positives above negatives.

- calibration: `reliability` (the curve), `ece` (its distance from the diagonal) and
  `brier` (a proper score: calibration and sharpness at once);
- selection: `risk_coverage` and `aurc`, the error among the answers a user keeps who
  drops the least confident ones;
- discrimination: `delong`, the covariance of areas under the ROC curve of scores on the
  same rows, `auroc_interval` and `auroc_difference`.

Axis letters: n rows, K scores, B bootstrap draws, C options.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats as sps

from vlmrl.eval import stats
from vlmrl.eval.stats import Interval, Test


class Bin(NamedTuple):
    """Rows of similar confidence."""

    lo: float  # smallest and largest confidence of the bin
    hi: float
    confidence: float  # mean
    right: Interval  # share right, its interval over clusters


def reliability(confidence, right, clusters, bins: int = 10) -> list[Bin]:
    """Return the reliability curve, over bins of equal width; empty bins are left out.

    Source: DeGroot & Fienberg 1983, https://doi.org/10.2307/2987588
    """
    confidence, right, clusters = _rows(confidence, right, clusters)
    which = _bin(confidence, bins)
    out = []
    for b in range(bins):
        at = which == b
        if at.any():
            inside = confidence[at]
            out.append(
                Bin(
                    float(inside.min()),
                    float(inside.max()),
                    float(inside.mean()),
                    stats.proportion(right[at], clusters[at]),
                )
            )
    return out


def ece(confidence, right, weights=None, bins: int = 10) -> np.ndarray:
    """Return the expected calibration error, Σ_b (n_b / n) |right_b − confidence_b|.

    Bins have equal width. It is biased upwards where bins are small: n rows of a
    perfectly calibrated model have about √(2 bins p(1 − p) / (π n)): compare equal n.

    Source: Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602

    Args:
      confidence: float[n] in [0, 1].
      right: float[n] in {0, 1}.
      weights: float[..., n] row weights, ones if not given, so that bootstrap draws are
        one call.
    Returns:
      float64[...], NaN where no row has weight.
    """
    confidence, right = _rows(confidence, right)
    weights = np.ones(len(right)) if weights is None else np.asarray(weights, float)
    member = (_bin(confidence, bins)[:, None] == np.arange(bins)).astype(float)
    gap = np.abs(weights @ (member * (right - confidence)[:, None])).sum(-1)
    return _ratio(gap, weights.sum(-1))


def brier(probabilities, answer) -> np.ndarray:
    """Return the Brier score of each row, Σ_i (p_i − 1[i = answer])², in [0, 2]; lower
    is better.

    Source: Brier 1950, Monthly Weather Review 78, 1–3 (the form over all classes).

    Args:
      probabilities: float[n, C] or a list of n sequences; answer: int[n].
    """
    return np.array(
        [
            float(np.square(p).sum()) - 2 * float(p[a]) + 1
            for p, a in zip(map(np.asarray, probabilities), answer, strict=True)
        ]
    )


def risk_coverage(confidence, right) -> tuple[np.ndarray, np.ndarray]:
    """Return (coverage, risk), float64[n] each: the share of answers kept, most
    confident first, and the share of those that are wrong.

    Rows of equal confidence are kept in random order; their expected risk is given, so
    that the order of rows changes nothing.

    Source: El-Yaniv & Wiener 2010, https://jmlr.org/papers/v11/el-yaniv10a.html
    """
    confidence, right = _rows(confidence, right)
    n = len(right)
    if n == 0:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-confidence, kind="stable")
    _, codes = np.unique(-confidence[order], return_inverse=True)
    wrong = np.bincount(codes, 1 - right[order]) / np.bincount(codes)
    count = np.arange(1, n + 1)
    return count / n, np.cumsum(wrong[codes]) / count


def aurc(confidence, right) -> float:
    """Return the area under the risk-coverage curve, the mean risk over coverages; NaN
    if empty.

    Source: Geifman et al. 2019, https://arxiv.org/abs/1805.08206
    """
    _, risk = risk_coverage(confidence, right)
    return float(risk.mean()) if len(risk) else np.nan


def selective_accuracy(confidence, right, coverage: float) -> float:
    """Return the share right among the most confident ⌈coverage · n⌉ rows; NaN without
    rows."""
    _, risk = risk_coverage(confidence, right)
    count = int(np.ceil(coverage * len(risk) - 1e-9))
    return float(1 - risk[count - 1]) if count else np.nan


class Areas(NamedTuple):
    """Areas under the ROC curve of K scores on the same rows."""

    value: np.ndarray  # float64[K]
    covariance: np.ndarray  # float64[K, K]; NaN with fewer than two of a class


def delong(scores, labels, clusters=None) -> Areas:
    """Return the areas under the ROC curve and their covariance.

    With m positives X_i, n negatives Y_j and ψ = 1[X > Y] + ½ 1[X = Y],

      V10_i = mean_j ψ(X_i, Y_j),  V01_j = mean_i ψ(X_i, Y_j),
      cov = cov(V10) / m + cov(V01) / n

    by midranks, in O(n log n). Rows that share a cluster are not independent: then the
    sums over a cluster, s = Σ (V10 − area) of its positives and t = Σ (V01 − area) of
    its negatives, take the rows' place (I clusters, I₁ with a positive, I₀ with a
    negative), and both kinds in one cluster add their covariance:

      cov = I₁/(I₁−1) Σ s s' / m² + I₀/(I₀−1) Σ t t' / n²
            + I/(I−1) Σ (s t' + t s') / (m n)

    Source: DeLong et al. 1988, https://doi.org/10.2307/2531595; midranks as in Sun & Xu
    2014, https://doi.org/10.1109/LSP.2014.2337313; clusters as in Obuchowski 1997,
    https://doi.org/10.2307/2533958

    Args:
      scores: float[K, n], higher for the positive class.
      labels: bool[n].
      clusters: [n]; every row its own when None.
    """
    scores, labels = np.atleast_2d(np.asarray(scores, float)), np.asarray(labels, bool)
    if scores.shape[1:] != labels.shape:
        raise ValueError(f"delong: scores {scores.shape} and labels {labels.shape}")
    k, m, n = len(scores), int(labels.sum()), int((~labels).sum())
    if m == 0 or n == 0:
        return Areas(np.full(k, np.nan), np.full((k, k), np.nan))
    units = np.arange(len(labels)) if clusters is None else np.asarray(clusters)
    _, codes = np.unique(units, return_inverse=True)
    count = int(codes.max()) + 1
    whole = sps.rankdata(scores, axis=1)
    above = whole[:, labels] - sps.rankdata(scores[:, labels], axis=1)
    below = whole[:, ~labels] - sps.rankdata(scores[:, ~labels], axis=1)
    v10, v01 = above / n, 1 - below / m
    area = v10.mean(1)

    def summed(placements, at):
        rows = (np.bincount(codes[at], p, count) for p in placements - area[:, None])
        return np.stack(list(rows)), len(np.unique(codes[at]))

    (s, with_one), (t, with_none) = summed(v10, labels), summed(v01, ~labels)
    if with_one < 2 or with_none < 2:
        return Areas(area, np.full((k, k), np.nan))
    covariance = with_one / (with_one - 1) * (s @ s.T) / m**2
    covariance += with_none / (with_none - 1) * (t @ t.T) / n**2
    both = count / (count - 1) * (s @ t.T) / (m * n)
    return Areas(area, covariance + both + both.T)


def auroc_interval(scores, labels, clusters, level: float = 0.95) -> Interval:
    """Return the interval of the area under the ROC curve of one score, by `delong`,
    cut to [0, 1]. Ends are NaN where they can't be told: one class is missing, or the
    variance comes out zero."""
    scores, labels, clusters = _rows(scores, labels, clusters)
    areas = delong(scores, labels == 1, clusters)
    return _normal(areas.value[0], areas.covariance[0, 0], clusters, level)


def auroc_difference(first, second, labels, clusters) -> Test:
    """Return AUROC(second) − AUROC(first) on the same rows, and whether it is none:

    z = difference / √(v₁ + v₂ − 2c), with `delong`'s covariance.
    """
    first, second, labels, clusters = _rows(first, second, labels, clusters)
    value, cov = delong(np.stack([first, second]), labels == 1, clusters)
    variance = cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]
    if variance < 1e-15:  # rounding, where both rank alike
        variance = 0.0
    apart = _normal(value[1] - value[0], variance, clusters, 0.95, bounds=(-1, 1))
    z = apart.value / np.sqrt(variance) if variance > 0 else np.nan
    return Test(apart, float(2 * sps.norm.sf(abs(z))), "delong")


def _normal(value, variance, clusters, level, bounds=(0.0, 1.0)) -> Interval:
    n, m = len(clusters), len(np.unique(clusters))
    if not variance > 0:
        return Interval(float(value), np.nan, np.nan, n, m)
    half = sps.norm.ppf((1 + level) / 2) * np.sqrt(variance)
    lo, hi = max(value - half, bounds[0]), min(value + half, bounds[1])
    return Interval(float(value), float(lo), float(hi), n, m)


def _bin(confidence, bins):
    if ((confidence < 0) | (confidence > 1)).any():
        raise ValueError("confidence must lie in [0, 1]")
    return np.minimum((confidence * bins).astype(int), bins - 1)


def _ratio(above, below):
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _rows(*columns):
    """Return the columns as arrays, without rows where a number is NaN."""
    arrays = [np.asarray(c) for c in columns]
    if len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError(f"columns of shapes {', '.join(str(a.shape) for a in arrays)}")
    keep = np.ones(arrays[0].shape, bool)
    for i, a in enumerate(arrays):
        if a.dtype.kind in "fbiu":
            arrays[i] = a.astype(float)
            keep &= ~np.isnan(arrays[i])
    return [a[keep] for a in arrays]
