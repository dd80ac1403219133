"""How far faithfulness drifted between two checkpoints, and per accuracy gained.

The change itself is a paired difference. Its slope per point of accuracy is a ratio
whose divisor may be nothing, so it has Fieller's interval, which says so where the data
can't bound it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats as sps

from vlmrl.eval import stats
from vlmrl.eval.stats import Cell, Interval


class Ratio(NamedTuple):
    """A ratio with Fieller's interval, which need not be one.

    'bounded': [lo, hi]. 'outside': all but the open interval (lo, hi), since the
    divisor's sign can't be told. 'all': the whole line. 'none': no estimate.
    """

    value: float
    lo: float
    hi: float
    kind: str


def fieller(a: float, b: float, vaa: float, vbb: float, vab: float, q: float) -> Ratio:
    """Return the ratios ρ = a / b that a test of a − ρ b = 0 does not reject.

      (a − ρ b)² ≤ q² (vaa − 2 ρ vab + ρ² vbb)

    Source: Fieller 1954, https://doi.org/10.1111/j.2517-6161.1954.tb00159.x

    Args:
      a, b: estimates; vaa, vbb, vab: their variances and covariance.
      q: quantile of the test, e.g. Student's t at 0.975.
    """
    if np.isnan([a, b, vaa, vbb, vab, q]).any():
        return Ratio(np.nan, np.nan, np.nan, "none")
    value = a / b if b else np.nan
    square = b * b - q * q * vbb
    middle, last = a * b - q * q * vab, a * a - q * q * vaa
    room = middle * middle - square * last
    if square == 0 or (square < 0 and room <= 0):
        return Ratio(value, -np.inf, np.inf, "all")
    ends = sorted((middle + s * np.sqrt(max(room, 0))) / square for s in (-1, 1))
    return Ratio(value, *map(float, ends), "bounded" if square > 0 else "outside")


class Drift(NamedTuple):
    """What a stretch of training did to faithfulness, and per accuracy gained."""

    change: Interval  # of the consistent ratio, after − before
    gain: Interval  # of accuracy, after − before
    slope: Ratio  # change per gain


def drift(before: tuple[Cell, Cell], after: tuple[Cell, Cell], **bootstrap) -> Drift:
    """Faithfulness drift between two checkpoints, on the examples measured at both.

    The slope's interval is Fieller's, with the cluster-robust covariance of the two
    paired changes and Student's t at m − 1 degrees of freedom.

    Args:
      before, after: (accuracy, consistent) cells of the same condition.
      bootstrap: keywords of `cluster_bootstrap`, for the two changes.
    """
    (x0, y0), (x1, y1) = before, after
    valid = [~np.isnan(y.values) & ~np.isnan(x.values) for x, y in (before, after)]
    for x, y in (before, after):
        if (x.examples != y.examples).any():
            raise ValueError("drift: accuracy and consistent must be of the same rows")
    x0, y0, x1, y1 = (
        Cell(*(field[keep] for field in cell))
        for cell, keep in (
            (x0, valid[0]),
            (y0, valid[0]),
            (x1, valid[1]),
            (y1, valid[1]),
        )
    )
    gain, change = stats.paired_difference(x0, x1, **bootstrap), stats.NOTHING
    if gain.n:
        change = stats.paired_difference(y0, y1, **bootstrap)
    if gain.clusters < 2:
        return Drift(change, gain, Ratio(np.nan, np.nan, np.nan, "none"))
    pairs = [_paired(x0, x1), _paired(y0, y1)]
    _, codes = np.unique(pairs[0][1], return_inverse=True)
    m, n = gain.clusters, len(codes)
    away = [np.bincount(codes, d - d.mean(), m) for d, _ in pairs]
    (vbb, vab), (_, vaa) = np.cov(away) * m / n**2
    q = sps.t.ppf(0.975, m - 1)
    slope = fieller(change.value, gain.value, vaa, vbb, vab, q)
    return Drift(change, gain, slope)


def drift_over_seeds(each: list[Drift]) -> Drift:
    """Return the drifts of several seeds as one, the seeds being the units: Student's t
    on their changes and gains, Fieller's slope from the covariance of their means."""
    if len(each) == 1:
        return each[0]
    change, gain = ([d[k].value for d in each] for k in (0, 1))
    (vaa, vab), (_, vbb) = np.cov([change, gain]) / len(each)
    q = sps.t.ppf(0.975, len(each) - 1)
    a, b = float(np.mean(change)), float(np.mean(gain))
    return Drift(
        stats.t_interval(change),
        stats.t_interval(gain),
        fieller(a, b, vaa, vbb, vab, q),
    )


def _paired(a: Cell, b: Cell):
    """Return the differences b − a of the examples both have, and their clusters."""
    (ids, x, units), (other, y, _) = stats.per_example(a), stats.per_example(b)
    _, i, j = np.intersect1d(ids, other, True, return_indices=True)
    return y[j] - x[i], units[i]
