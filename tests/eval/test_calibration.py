"""Calibration, selection and discrimination against worked examples and simulation."""

import numpy as np
import pytest
from scipy import stats as sps

from vlmrl.eval import calibration, stats

RNG = np.random.default_rng

# Ratings of 109 CT images, 58 normal and 51 abnormal, 1 "definitely normal" to 5:
# Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747, table I.
NORMAL, ABNORMAL = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)


def hanley():
    scores = np.concatenate([np.repeat(np.arange(5), c) for c in (NORMAL, ABNORMAL)])
    return scores.astype(float), np.arange(109) >= 58


def test_delong_on_the_published_example():
    """Area 0.893; standard error by DeLong 0.0307, interval 0.83295 to 0.95339, as
    Stata's manual gives them ([R] roctab)."""
    scores, labels = hanley()
    areas = calibration.delong(scores, labels)
    assert areas.value[0] == pytest.approx(0.8932, abs=5e-5)
    assert np.sqrt(areas.covariance[0, 0]) == pytest.approx(0.0307, abs=5e-5)
    got = calibration.auroc_interval(scores, labels, np.arange(109))
    np.testing.assert_allclose(got[1:3], (0.83295, 0.95339), atol=5e-6)


def test_delong_equals_its_definition():
    """Placement by placement, ties and all, for three scores at once."""
    rng = RNG(0)
    labels = rng.random(40) < 0.4
    scores = rng.integers(0, 6, (3, 40)) + labels
    wins = [
        (s[labels][:, None] > s[~labels]) + 0.5 * (s[labels][:, None] == s[~labels])
        for s in scores
    ]
    v10, v01 = np.stack([w.mean(1) for w in wins]), np.stack([w.mean(0) for w in wins])
    wanted = np.cov(v10) / labels.sum() + np.cov(v01) / (~labels).sum()
    areas = calibration.delong(scores, labels)
    np.testing.assert_allclose(areas.covariance, wanted, rtol=1e-12)
    np.testing.assert_allclose(areas.value, [stats.auroc(s, labels) for s in scores])


@pytest.mark.parametrize("clustered", [False, True])
def test_delong_covers(clustered):
    """Two normals one apart: the area is Φ(1/√2). In clusters of three that share half
    of their variance, rows taken as independent fall short."""
    truth, hits, naive = sps.norm.cdf(1 / np.sqrt(2)), [], []
    for run in range(1000):
        rng = RNG([1, run])
        clusters = np.arange(240) // (3 if clustered else 1)
        labels = clusters < 96 // (3 if clustered else 1)
        shared = rng.normal(size=240)[clusters]
        scores = (shared + rng.normal(size=240)) / np.sqrt(2) + labels
        got = calibration.auroc_interval(scores, labels, clusters)
        hits.append(got.lo <= truth <= got.hi)
        alone = calibration.auroc_interval(scores, labels, np.arange(240))
        naive.append(alone.lo <= truth <= alone.hi)
    assert 0.93 < np.mean(hits) < 0.97
    assert (np.mean(naive) < 0.90) == clustered


def test_clusters_with_both_classes_are_paired():
    """Each cluster a positive and a negative that move together: the difference within
    is what counts, so the interval is narrower than of rows taken as independent."""
    widths, hits = [], []
    for run in range(400):
        rng = RNG([3, run])
        clusters = np.repeat(np.arange(60), 2)
        labels = np.arange(120) % 2 == 0
        scores = 2 * rng.normal(size=60)[clusters] + rng.normal(size=120) + labels
        got = calibration.auroc_interval(scores, labels, clusters)
        alone = calibration.auroc_interval(scores, labels, np.arange(120))
        widths.append((got.hi - got.lo) / (alone.hi - alone.lo))
        hits.append(got.lo <= sps.norm.cdf(1 / np.sqrt(10)) <= got.hi)
    assert np.mean(widths) < 0.8 and 0.92 < np.mean(hits) < 0.98


def test_copies_add_nothing_to_an_area():
    scores, labels = hanley()
    once = calibration.auroc_interval(scores, labels, np.arange(109))
    twice = calibration.auroc_interval(
        np.repeat(scores, 2), np.repeat(labels, 2), np.repeat(np.arange(109), 2)
    )
    np.testing.assert_allclose(twice[:3], once[:3], rtol=1e-12)
    assert (twice.n, twice.clusters) == (218, 109)


@pytest.mark.parametrize("clustered", [False, True])
def test_a_difference_of_areas_is_uniform_under_none_and_seen_where_there_is_one(
    clustered,
):
    def p_value(run, gain):
        rng = RNG([2, run])
        labels = rng.random(120) < 0.5
        clusters = np.arange(120) // (2 if clustered else 1)
        signal = rng.normal(size=120)[clusters] + labels
        first = signal + rng.normal(size=120)[clusters]
        second = signal + rng.normal(size=120)[clusters] + gain * labels
        return calibration.auroc_difference(first, second, labels, clusters)

    null = np.array([p_value(run, 0).p for run in range(400)])
    assert 0.02 < (null < 0.05).mean() < 0.09
    seen = [p_value(run, 3) for run in range(20)]
    assert np.mean([t.p < 0.05 for t in seen]) == 1
    assert all(t.difference.value > 0 for t in seen)
    alike = [1, 2, 3, 2]
    same = calibration.auroc_difference(alike, alike, [0, 0, 1, 1], range(4))
    assert same.difference.value == 0 and np.isnan(same.p)


def test_areas_that_cannot_be_told():
    nothing = calibration.auroc_interval([0.1, 0.2], [1, 1], [0, 1])
    assert np.isnan(nothing[:3]).all()
    parted = calibration.auroc_interval([1.0, 2, 3, 4], [0, 0, 1, 1], range(4))
    assert parted.value == 1 and np.isnan([parted.lo, parted.hi]).all()
    kept = calibration.auroc_interval([1.0, np.nan, 3, 2], [0, 0, 1, 0], range(4))
    assert kept.value == 1 and kept.n == 3
    with pytest.raises(ValueError, match="columns of shapes"):
        calibration.auroc_interval([1.0], [1, 0], [0, 1])


def test_calibration_error_by_hand():
    # bins [0, .1): 0.05 wrong; [.6, .7): 0.65 right, 0.65 wrong; [.9, 1]: 1.0 right
    confidence, right = [0.05, 0.65, 0.65, 1.0], [0, 1, 0, 1]
    wanted = (1 * 0.05 + 2 * 0.15 + 1 * 0.0) / 4
    assert calibration.ece(confidence, right) == pytest.approx(wanted)
    curve = calibration.reliability(confidence, right, np.arange(4))
    assert [b.right.n for b in curve] == [1, 2, 1]
    assert [b.confidence for b in curve] == pytest.approx([0.05, 0.65, 1.0])
    assert curve[1].right[:3] == pytest.approx(stats.wilson(1, 2)[:3])
    assert np.isnan(calibration.ece([], []))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        calibration.ece([1.2], [1])


def test_calibration_error_weights_are_repeats():
    rng = RNG(3)
    confidence, right = rng.random(30), rng.random(30) < 0.5
    weights = rng.integers(0, 3, (4, 30))
    got = calibration.ece(confidence, right, weights)
    for w, value in zip(weights, got, strict=True):
        again = calibration.ece(np.repeat(confidence, w), np.repeat(right, w))
        assert value == pytest.approx(float(again))


def test_a_calibrated_model_has_little_error_and_the_curve_covers():
    rng = RNG(4)
    confidence = rng.random(20_000)
    right = rng.random(20_000) < confidence
    assert calibration.ece(confidence, right) < 0.015
    assert calibration.ece(confidence, rng.random(20_000) < confidence / 2) > 0.2
    curve = calibration.reliability(confidence, right, np.arange(20_000))
    assert sum(b.right.lo <= b.confidence <= b.right.hi for b in curve) >= 9


def test_brier_by_hand_and_proper():
    got = calibration.brier([[0.7, 0.2, 0.1], [0.5, 0.5]], [0, 1])
    assert got == pytest.approx([0.09 + 0.04 + 0.01, 0.5])
    truth = np.array([0.6, 0.3, 0.1])

    def expected(p):
        return truth @ calibration.brier([p] * 3, [0, 1, 2])

    assert all(
        expected(truth) <= expected(p) for p in RNG(5).dirichlet(np.ones(3), 200)
    )


def test_risk_coverage_by_hand_and_ties():
    coverage, risk = calibration.risk_coverage([0.9, 0.8, 0.3], [1, 0, 1])
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0, 1 / 2, 1 / 3])
    assert calibration.aurc([0.9, 0.8, 0.3], [1, 0, 1]) == pytest.approx(5 / 18)
    # equal confidence: the expected risk, whatever the order of rows
    for right in ([1, 0], [0, 1]):
        assert calibration.risk_coverage([0.5, 0.5], right)[1] == pytest.approx(
            [0.5] * 2
        )
    assert calibration.selective_accuracy([0.9, 0.8, 0.3], [1, 0, 1], 0.3) == 1
    assert calibration.selective_accuracy(
        [0.9, 0.8, 0.3], [1, 0, 1], 1
    ) == pytest.approx(2 / 3)
    assert np.isnan(calibration.aurc([], []))
