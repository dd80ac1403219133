"""Intervals for clustered, paired and seeded measurements, in numpy and scipy.

Rows are not independent: items that share an image share a cluster, the conditions of
an item are pairs, and seeds of a recipe share the items. So

- a proportion gets a Wilson interval at its effective sample size (`proportion`);
- any other statistic gets a bootstrap over clusters (`cluster_bootstrap`);
- differences are taken inside an example before anything is averaged (`contrast`);
- seeds get a t interval on their means (`t_interval`), never a bootstrap;
- small differences get a p value from pairs: `mcnemar` where every cluster is one row,
  else a bootstrap over clusters (`paired_test` chooses), and tables that compare many
  correct for it (`holm`).

Axis letters: n rows, m clusters, B bootstrap draws. Values are float64; a NaN value
means "not applicable" and is left out, together with its pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats as sps

from vlmrl.types import UserError

_BLOCK = 1 << 22  # most weights held at once: 32 MiB of float64


class Interval(NamedTuple):
    """An estimate with its two-sided interval; lo and hi are NaN where none exists."""

    value: float
    lo: float
    hi: float
    n: int  # rows, pairs or seeds behind it
    clusters: int  # independent units behind it


class Cell(NamedTuple):
    """One measure of one experimental cell, a row per example × sample."""

    examples: np.ndarray  # str[n]: id to pair on
    values: np.ndarray  # float64[n]: NaN where not applicable
    clusters: np.ndarray  # str[n]: statistical cluster of the example


NOTHING = Interval(np.nan, np.nan, np.nan, 0, 0)


def wilson(k: float, n: float, level: float = 0.95) -> Interval:
    """Return the Wilson score interval of k successes among n independent trials.

      centre = (p + z²/2n) / (1 + z²/n),
      half   = z √(p(1−p)/n + z²/4n²) / (1 + z²/n)

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    if not 0 <= k <= n:
        raise ValueError(f"wilson: need 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return NOTHING
    return _score(k / n, n, sps.norm.ppf((1 + level) / 2), int(n), int(n))


def _score(p: float, n: float, z: float, rows: int, clusters: int) -> Interval:
    centre = p + z * z / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    lo, hi = (centre - half) / scale, (centre + half) / scale
    # rounding must not push an end past the estimate at p = 0 or 1
    return Interval(p, max(min(lo, p), 0.0), min(max(hi, p), 1.0), rows, clusters)


def proportion(values, clusters, level: float = 0.95) -> Interval:
    """Return the interval of a share of rows, clusters being the independent units.

    Wilson's interval at the effective sample size n / deff, where deff is the
    cluster-robust variance of the mean over the independent one, at least 1, and the
    normal quantile is widened by the ratio of t quantiles at m − 1 and n − 1 degrees
    of freedom. Clusters of one row give `wilson` exactly; where every row agrees, deff
    can't be told and the number of clusters takes the place of n.

    Source: Korn & Graubard 1998, Survey Methodology 24; compared in Franco et al.
    2019, https://doi.org/10.1093/jssam/smy019

    Args:
      values: float[n] in {0, 1}, NaN where not applicable.
      clusters: [n] cluster of each row.
    """
    values, codes, m = _clean(values, clusters)
    n = len(values)
    if n == 0:
        return NOTHING
    z, p = sps.norm.ppf((1 + level) / 2), float(values.mean())
    if m == n:
        return _score(p, n, z, n, m)
    residual = values - p
    spread = float(residual @ residual)
    if spread == 0 or m < 2:
        return _score(p, m, z, n, m)
    between = np.bincount(codes, residual, m)
    deff = (between @ between) * m / (m - 1) / (spread * n / (n - 1))
    tail = (1 + level) / 2
    widen = sps.t.ppf(tail, m - 1) / sps.t.ppf(tail, n - 1)
    return _score(p, n / max(deff, 1.0) / widen**2, z, n, m)


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    clusters,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: str = "bca",
) -> Interval:
    """Return the bootstrap interval of a statistic, resampling whole clusters.

    Source: Efron 1987 (BCa), https://doi.org/10.1080/01621459.1987.10478410; clusters
    as in Cameron et al. 2008, https://doi.org/10.1162/rest.90.3.414

    Args:
      statistic: row weights float64[B, n] → float64[B]; weights of one everywhere give
        the estimate. Draws on which it is NaN are left out.
      clusters: [n] cluster of each row.
      draws: number of resamples B.
      seed: of the resampling; the same call gives the same interval.
      method: 'percentile', or 'bca' (bias-corrected and accelerated, by a jackknife
        over clusters), which is closer to nominal for skewed statistics.

    Returns:
      Interval, ends NaN with fewer than two clusters.
    """
    if method not in ("percentile", "bca"):
        raise ValueError(f"method: '{method}' is not 'percentile' or 'bca'")
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    n, m = len(codes), len(labels)
    if n == 0:
        return NOTHING
    value = float(statistic(np.ones((1, n)))[0])
    if m < 2 or np.isnan(value):
        return Interval(value, np.nan, np.nan, n, m)

    rng, block = np.random.default_rng(seed), max(1, _BLOCK // n)
    chance = np.full(m, 1 / m)
    drawn = np.concatenate(
        [
            statistic(rng.multinomial(m, chance, min(block, draws - b))[:, codes] * 1.0)
            for b in range(0, draws, block)
        ]
    )
    drawn = drawn[~np.isnan(drawn)]
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca" and len(drawn):
        left_out = np.concatenate(
            [
                statistic(1.0 - (codes == np.arange(b, min(b + block, m))[:, None]))
                for b in range(0, m, block)
            ]
        )
        left_out = left_out[~np.isnan(left_out)]
        if len(left_out):  # none: it needs every cluster, as an AUROC of two rows does
            tails = _bca(tails, drawn, value, left_out)
    lo, hi = np.quantile(drawn, tails) if len(drawn) else (np.nan, np.nan)
    return Interval(value, float(lo), float(hi), n, m)


def _bca(tails, drawn, value, left_out):
    """Return the percentile levels moved by the median bias and the acceleration."""
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = sps.norm.ppf(np.clip(below, 1 / (2 * len(drawn)), 1 - 1 / (2 * len(drawn))))
    away = left_out.mean() - left_out
    cube = (away @ away) ** 1.5
    acceleration = (away**3).sum() / (6 * cube) if cube > 0 else 0.0
    z = bias + sps.norm.ppf(tails)
    return sps.norm.cdf(bias + z / (1 - acceleration * z))


def mean(values, clusters, **bootstrap) -> Interval:
    """Return the bootstrap interval of a mean over rows; keywords as in
    `cluster_bootstrap`."""
    values, codes, m = _clean(values, clusters)
    if len(values) == 0:
        return NOTHING
    sums, counts = np.bincount(codes, values, m), np.bincount(codes, minlength=m)
    out = cluster_bootstrap(
        lambda w: (w @ sums) / (w @ counts), np.arange(m), **bootstrap
    )
    return out._replace(n=len(values))


def contrast(terms: list[tuple[float, Cell]], **bootstrap) -> Interval:
    """Return the interval of Σ cᵢ · mean(cellᵢ), every example being its own control.

    Samples of an example are averaged first; only examples with a value in every cell
    count, so each difference is inside examples; then clusters are resampled.

    Args:
      terms: (coefficient, cell) pairs, e.g. [(1, after), (-1, before)].
      bootstrap: keywords of `cluster_bootstrap`.

    Returns:
      the interval; `NOTHING` where the cells have no example in common, as where no
      item takes both of two conditions.

    Raises:
      UserError: the cells disagree on a cluster.
    """
    per_cell = [(c, *per_example(cell)) for c, cell in terms]
    shared = per_cell[0][1]
    for _, ids, _, _ in per_cell[1:]:
        shared = np.intersect1d(shared, ids, assume_unique=True)
    if len(shared) == 0:
        return NOTHING
    total, clusters = np.zeros(len(shared)), None
    for coefficient, ids, values, groups in per_cell:
        rows = np.searchsorted(ids, shared)
        total += coefficient * values[rows]
        if clusters is not None and (clusters != groups[rows]).any():
            at = shared[np.argmax(clusters != groups[rows])]
            raise UserError(f"cluster: example '{at}' is in two clusters; expected one")
        clusters = groups[rows]
    return mean(total, clusters, **bootstrap)


def paired_difference(a: Cell, b: Cell, **bootstrap) -> Interval:
    """Return the interval of mean(b) − mean(a) over the examples both have; see
    `contrast`."""
    return contrast([(1.0, b), (-1.0, a)], **bootstrap)


class Test(NamedTuple):
    """A paired comparison: the difference, and how surprising it would be were there
    none."""

    difference: Interval
    p: float  # two-sided; NaN where it can't be told
    method: str  # 'mcnemar' or 'bootstrap'


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of McNemar's test.

    Of the b + c pairs that differ, b one way and c the other, under no difference b is
    Binomial(b + c, ½): p = min(1, 2 P(X ≤ min(b, c))). 1 where no pair differs.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996; pairs must be independent
    of each other (clusters of one row).
    """
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar: need counts >= 0, got b={b}, c={c}")
    return float(min(1.0, 2 * sps.binom.cdf(min(b, c), b + c, 0.5)))


def paired_test(a: Cell, b: Cell, *, draws: int = 2000, seed: int = 0) -> Test:
    """Return the test of mean(b) − mean(a) over the examples both have.

    McNemar's where every example is its own cluster and holds 0 or 1 in both cells.
    Otherwise the differences d of examples are resampled by cluster, their mean d̄ moved
    to nothing: p = (1 + #{|d̄* − d̄| ≥ |d̄|}) / (1 + draws).

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, 4.4;
    clusters as in Cameron et al. 2008, https://doi.org/10.1162/rest.90.3.414

    Raises:
      UserError: as `contrast`.
    """
    difference = paired_difference(a, b, draws=draws, seed=seed)
    if difference.n == 0:
        return Test(difference, np.nan, "bootstrap")
    (ids, x, units), (other, y, _) = per_example(a), per_example(b)
    _, i, j = np.intersect1d(ids, other, True, return_indices=True)
    x, y, units = x[i], y[j], units[i]
    binary = np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()
    if binary and difference.clusters == len(x):
        p = mcnemar(int((y > x).sum()), int((x > y).sum()))
        return Test(difference, p, "mcnemar")
    if difference.clusters < 2:
        return Test(difference, np.nan, "bootstrap")
    _, codes = np.unique(units, return_inverse=True)
    m = difference.clusters
    sums, counts = np.bincount(codes, y - x, m), np.bincount(codes, minlength=m)
    weights = np.random.default_rng(seed).multinomial(m, np.full(m, 1 / m), draws)
    moved = np.abs((weights @ sums) / (weights @ counts) - difference.value)
    # a rounding error must not make an equal draw a smaller one
    beyond = int((moved >= abs(difference.value) - 1e-12).sum())
    return Test(difference, (1 + beyond) / (1 + draws), "bootstrap")


def holm(p) -> np.ndarray:
    """Holm's adjusted p values: the family-wise error of a table that compares many.

    Sorted, p₍ᵢ₎ becomes max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎). NaNs stay NaN and
    don't count as comparisons.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65–70.

    Args:
      p: float[k].
    Returns:
      float64[k], in the order given.
    """
    p = np.asarray(p, float)
    valid = np.flatnonzero(~np.isnan(p))
    if ((p[valid] < 0) | (p[valid] > 1)).any():
        raise ValueError("holm: p values must lie in [0, 1]")
    order = valid[np.argsort(p[valid], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    out = np.full(p.shape, np.nan)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def per_example(cell: Cell):
    """Return sorted ids, mean value and cluster of each example with a value."""
    keep = ~np.isnan(cell.values)
    ids, first, codes = np.unique(
        cell.examples[keep], return_index=True, return_inverse=True
    )
    sums = np.bincount(codes, cell.values[keep], len(ids))
    return ids, sums / np.bincount(codes), cell.clusters[keep][first]


def t_interval(means, level: float = 0.95) -> Interval:
    """Return Student's t interval of the mean of a few seed means, which are the
    units."""
    means = np.asarray(means, float)
    means = means[~np.isnan(means)]
    k = len(means)
    if k == 0:
        return NOTHING
    if k == 1:
        return Interval(float(means[0]), np.nan, np.nan, 1, 1)
    half = sps.t.ppf((1 + level) / 2, k - 1) * means.std(ddof=1) / np.sqrt(k)
    centre = float(means.mean())
    return Interval(centre, centre - half, centre + half, k, k)


def over_seeds(per_seed: list[Interval]) -> Interval:
    """Return the intervals of several seeds as one: the hull of Student's t over the
    seeds' estimates and of the mean item interval."""
    if len(per_seed) == 1:
        return per_seed[0]
    seeds = t_interval([i.value for i in per_seed])
    return Interval(
        seeds.value,
        min(seeds.lo, float(np.mean([i.lo for i in per_seed]))),
        max(seeds.hi, float(np.mean([i.hi for i in per_seed]))),
        len(per_seed),
        min(i.clusters for i in per_seed),
    )


def auroc(scores, labels, weights=None) -> np.ndarray:
    """Return the area under the ROC curve: P(score of a positive > of a negative) + ½
    P(tie).

    Args:
      scores: float[n], higher for the positive class.
      labels: bool[n].
      weights: float[..., n] row weights, ones if not given, so that bootstrap draws are
        one call.

    Returns:
      float64[...]; NaN where a class has no weight.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"auroc: scores {scores.shape} and labels {labels.shape}")
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, float)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    if len(starts) == 0:
        return np.full(weights.shape[:-1], np.nan)
    positive = np.add.reduceat((weights * labels)[..., order], starts, -1)
    negative = np.add.reduceat((weights * ~labels)[..., order], starts, -1)
    below = np.cumsum(negative, -1) - negative / 2
    pairs = positive.sum(-1) * negative.sum(-1)
    wins = (positive * below).sum(-1)
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1), np.nan)


def spread_ratio(groups: list, level: float = 0.95) -> Interval:
    """σ within groups / σ between groups, one-way random effects, exact F interval.

    With F = MS_between / MS_within and n₀ the (Thomas–Hultquist) group size,
    (σ_between / σ_within)² lies between (F/F_hi − 1)/n₀ and (F/F_lo − 1)/n₀; the ratio
    here is its inverse root, so an end may be infinite.

    Source: Burdick & Graybill 1992, Confidence Intervals on Variance Components, ch. 3.

    Args:
      groups: per group (recipe) a sequence of its members' (seeds') means.

    Returns:
      Interval over the ratio, NaN unless two groups have two members each.
    """
    groups = [np.asarray(g, float) for g in groups]
    sizes = np.array([len(g) for g in groups])
    if len(groups) < 2 or (sizes < 2).any():
        return NOTHING
    a, n = len(groups), int(sizes.sum())
    size = a / (1 / sizes).sum()  # harmonic mean
    means = np.array([g.mean() for g in groups])
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (n - a)
    between = size * means.var(ddof=1)
    if within == 0:
        return Interval(0.0 if between else np.nan, np.nan, np.nan, n, a)
    f = between / within
    tail = (1 + level) / 2

    def ratio(quantile):
        square = (f / quantile - 1) / size
        return float(1 / np.sqrt(square)) if square > 0 else np.inf

    lo = ratio(sps.f.ppf(1 - tail, a - 1, n - a))
    hi = ratio(sps.f.ppf(tail, a - 1, n - a))
    return Interval(ratio(1.0), lo, hi, n, a)


def cohens_h(p: float, q: float) -> float:
    """Effect size of a difference of shares, 2 asin √q − 2 asin √p: 0.2 is small, 0.5
    medium, 0.8 large; unlike points, it is as large near 0 or 1 as in the middle.

    Source: Cohen 1988, Statistical Power Analysis, ch. 6.
    """
    return float(2 * np.arcsin(np.sqrt(q)) - 2 * np.arcsin(np.sqrt(p)))


def _clean(values, clusters):
    """Return the rows with a value: values, cluster codes and the number of
    clusters."""
    values, clusters = np.asarray(values, float), np.asarray(clusters)
    if values.shape != clusters.shape or values.ndim != 1:
        raise ValueError(f"values {values.shape} and clusters {clusters.shape}")
    keep = ~np.isnan(values)
    labels, codes = np.unique(clusters[keep], return_inverse=True)
    return values[keep], codes, len(labels)
