"""Drift of faithfulness: Fieller's sets against a scan, a worked example, coverage."""

import numpy as np
import pytest
from scipy import stats as sps

from vlmrl.eval import drift as drifts
from vlmrl.eval import stats

RNG = np.random.default_rng


def cell(values, clusters=None):
    ids = np.array([f"e{i}" for i in range(len(values))])
    units = ids if clusters is None else np.array(clusters).astype(str)
    return stats.Cell(ids, np.array(values, float), units)


@pytest.mark.parametrize(
    "numbers, kind",
    [
        ((1.0, 2.0, 0.04, 0.09, 0.02, 1.96), "bounded"),
        ((1.0, 0.1, 0.01, 0.04, 0.0, 1.96), "outside"),
        ((0.1, 0.1, 0.04, 0.04, 0.0, 1.96), "all"),
    ],
)
def test_the_set_is_what_the_test_does_not_reject(numbers, kind):
    a, b, vaa, vbb, vab, q = numbers
    got = drifts.fieller(*numbers)
    assert got.kind == kind and got.value == pytest.approx(a / b)
    scan = np.linspace(-60, 60, 240_001)
    kept = (a - scan * b) ** 2 <= q * q * (vaa - 2 * scan * vab + scan * scan * vbb)
    inside = (scan >= got.lo) & (scan <= got.hi)
    want = {"bounded": inside, "outside": ~inside, "all": inside}[kind]
    assert (kept != want).sum() <= 2  # ends of the grid's own width


def test_without_noise_in_the_divisor_it_is_the_plain_interval():
    got = drifts.fieller(3.0, 2.0, 0.25, 0.0, 0.0, 1.96)
    assert (got.lo, got.hi) == pytest.approx((1.5 - 0.49, 1.5 + 0.49))
    assert drifts.fieller(np.nan, 1, 1, 1, 0, 2).kind == "none"


def test_the_slope_covers():
    hits = []
    for run in range(1000):
        rng = RNG([1, run])
        clusters = np.repeat(np.arange(50), 2)
        shared = rng.normal(size=(2, 50))[:, clusters]
        gain = 0.3 + 0.5 * shared[0] + rng.normal(size=100)
        change = -0.5 + 0.5 * shared[1] + 0.5 * gain - 0.15 + rng.normal(size=100)
        nothing = cell(np.zeros(100), clusters)
        found = drifts.drift(
            (nothing, nothing), (cell(gain, clusters), cell(change, clusters)), draws=10
        ).slope
        truth = -0.5 / 0.3
        inside = found.lo <= truth <= found.hi
        hits.append({"bounded": inside, "outside": not inside, "all": True}[found.kind])
    assert 0.93 < np.mean(hits) < 0.97


def test_drift_by_hand():
    accuracy = cell([0, 0, 1, 1]), cell([1, 0, 1, 1])
    consistent = cell([1, 1, 1, np.nan]), cell([0, 1, 0, 1])
    found = drifts.drift((accuracy[0], consistent[0]), (accuracy[1], consistent[1]))
    assert found.gain.value == pytest.approx(1 / 3) and found.gain.n == 3
    assert found.change.value == pytest.approx(-2 / 3)
    assert found.slope.value == pytest.approx(-2)
    one = drifts.drift((cell([0]), cell([1])), (cell([1]), cell([0])))
    assert one.slope.kind == "none" and one.change.value == -1


def test_seeds_are_the_units_of_several():
    def seed(change, gain):
        at = [stats.Interval(v, np.nan, np.nan, 9, 9) for v in (change, gain)]
        return drifts.Drift(*at, drifts.Ratio(np.nan, np.nan, np.nan, "none"))

    each = [seed(-0.10, 0.20), seed(-0.14, 0.22), seed(-0.12, 0.18)]
    found = drifts.drift_over_seeds(each)
    want = sps.ttest_1samp([-0.10, -0.14, -0.12], 0).confidence_interval()
    assert found.change[1:3] == pytest.approx(tuple(want))
    assert found.slope.value == pytest.approx(-0.12 / 0.20)
    assert found.slope.kind == "bounded" and found.slope.lo < -0.6 < found.slope.hi
    assert drifts.drift_over_seeds(each[:1]) == each[0]


def test_effect_size_by_hand():
    assert stats.cohens_h(0.5, 0.5) == 0
    assert stats.cohens_h(0.0, 1.0) == pytest.approx(np.pi)
    assert stats.cohens_h(0.25, 0.5) == pytest.approx(np.pi / 6)
    assert stats.cohens_h(0.5, 0.25) == pytest.approx(-np.pi / 6)
