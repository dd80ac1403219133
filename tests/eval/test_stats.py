"""Statistics against hand calculations, scipy, and their own nominal coverage."""

import numpy as np
import pytest
from scipy import stats as sps

from vlmrl.eval import stats
from vlmrl.types import UserError

RNG = np.random.default_rng


def cell(values, examples=None, clusters=None):
    n = len(values)
    examples = [f"e{i}" for i in range(n)] if examples is None else examples
    return stats.Cell(
        np.array(examples),
        np.array(values, float),
        np.array(examples if clusters is None else clusters),
    )


@pytest.mark.parametrize("k, n", [(0, 10), (1, 10), (7, 20), (60, 60), (513, 1000)])
def test_wilson_equals_scipy(k, n):
    want = sps.binomtest(k, n).proportion_ci(method="wilson")
    got = stats.wilson(k, n)
    np.testing.assert_allclose(got[:3], (k / n, want.low, want.high), atol=1e-12)


def test_wilson_on_a_published_example():
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E)"""
    got = stats.wilson(81, 263)
    assert (round(got.lo, 4), round(got.hi, 4)) == (0.2553, 0.3662)


def test_wilson_rejects_more_successes_than_trials():
    with pytest.raises(ValueError, match="k <= n"):
        stats.wilson(3, 2)


def test_proportion_of_single_row_clusters_is_wilson():
    values = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1.0])
    got = stats.proportion(values, np.arange(9))
    np.testing.assert_allclose(got, stats.wilson(6, 9), atol=1e-12)


def test_copies_of_rows_add_no_information():
    """Every row given four times: the independent units stay 40, so does the width,
    up to the t factor of clustered degrees of freedom."""
    values = (RNG(0).random(40) < 0.6).astype(float)
    once = stats.proportion(values, np.arange(40))
    four = stats.proportion(np.repeat(values, 4), np.repeat(np.arange(40), 4))
    assert four.value == once.value and (four.n, four.clusters) == (160, 40)
    assert (four.hi - four.lo) == pytest.approx(once.hi - once.lo, rel=0.05)
    assert (four.hi - four.lo) >= once.hi - once.lo


def test_proportion_at_the_edge_counts_clusters_not_rows():
    all_right = stats.proportion(np.ones(100), np.repeat(np.arange(10), 10))
    assert all_right.lo == pytest.approx(stats.wilson(10, 10).lo)
    assert all_right.hi == 1.0


def test_nan_rows_are_left_out_and_nothing_is_nothing():
    got = stats.proportion([1, np.nan, 0, 1], [0, 1, 2, 3])
    np.testing.assert_allclose(got, stats.wilson(2, 3), atol=1e-12)
    assert np.isnan(stats.proportion([np.nan], [0]).value)
    assert np.isnan(stats.mean([], []).value)


def test_bootstrap_agrees_with_scipy_on_independent_rows():
    values = RNG(1).gamma(2.0, size=80)
    for method in ("percentile", "BCa"):
        want = sps.bootstrap(
            (values,), np.mean, n_resamples=9000, method=method, rng=RNG(2)
        ).confidence_interval
        got = stats.mean(values, np.arange(80), draws=9000, method=method.lower())
        np.testing.assert_allclose((got.lo, got.hi), want, atol=0.02)


def test_bootstrap_is_the_same_every_time_and_whatever_the_row_order():
    values, clusters = RNG(3).random(50), RNG(4).integers(0, 20, 50)
    order = RNG(5).permutation(50)
    a = stats.mean(values, clusters)
    b = stats.mean(values[order], clusters[order])
    assert a == stats.mean(values, clusters)
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_bootstrap_with_one_cluster_gives_no_interval():
    got = stats.mean([1.0, 0.0], ["a", "a"])
    assert got.value == 0.5 and np.isnan([got.lo, got.hi]).all()


def test_mean_equals_the_general_bootstrap():
    values, clusters = RNG(6).random(60), RNG(7).integers(0, 25, 60)
    got = stats.mean(values, clusters, draws=500)
    want = stats.cluster_bootstrap(
        lambda w: (w @ values) / w.sum(-1), clusters, draws=500
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


def _coverage(interval, truth, runs):
    hits = [lo <= truth <= hi for lo, hi in map(interval, range(runs))]
    return np.mean(hits)


def test_coverage_of_intervals_under_clusters():
    """Nominal 95 % covers 93 to 97 % of 1,000 draws; the same rows taken as independent
    fall far short."""

    def draw(run):
        rng = RNG([8, run])
        chance = rng.beta(2, 1, 60)  # an image's difficulty; mean 2/3
        rows = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        return (rng.random(len(rows)) < chance[rows]).astype(float), rows

    def wilson(run):
        return stats.proportion(*draw(run))[1:3]

    def boot(run):
        return stats.mean(*draw(run), draws=400)[1:3]

    def naive(run):
        values, _ = draw(run)
        return stats.wilson(values.sum(), len(values))[1:3]

    # one shared answer per image: rows in a cluster agree fully
    def copies(run):
        rng = RNG([9, run])
        rows = np.repeat(np.arange(60), 4)
        return stats.wilson((rng.random(60)[rows] < 2 / 3).sum(), 240)[1:3]

    covered = _coverage(wilson, 2 / 3, 1000)
    assert 0.93 < covered < 0.97
    assert 0.93 < _coverage(boot, 2 / 3, 1000) < 0.97
    assert _coverage(naive, 2 / 3, 1000) < covered
    assert _coverage(copies, 2 / 3, 300) < 0.80


def test_coverage_of_the_paired_difference():
    def interval(run):
        rng = RNG([10, run])
        skill, gain = rng.normal(0.4, 0.5, 80), rng.normal(0.1, 0.2, 80)
        a, b = skill + rng.normal(0, 0.1, 80), skill + gain + rng.normal(0, 0.1, 80)
        return stats.paired_difference(cell(a), cell(b), draws=400)[1:3]

    assert 0.93 < _coverage(interval, 0.1, 1000) < 0.97


def test_paired_difference_by_hand():
    a = cell([1, 0, 1, 0], ["w", "x", "y", "z"])
    b = cell([1, 1, 0, 1], ["z", "y", "x", "q"])
    got = stats.paired_difference(a, b)  # z +1, y 0, x 0
    assert got.value == pytest.approx(1 / 3) and got.n == 3


def test_pairing_removes_what_examples_share():
    skill = RNG(11).random(200)
    a, b = cell(skill), cell(skill + 0.05)
    got = stats.paired_difference(a, b)
    np.testing.assert_allclose(got[:3], 0.05)


def test_samples_of_an_example_are_one_unit():
    a = cell([1, 0, 1, 1], ["x", "x", "y", "y"])
    b = cell([0, 1], ["x", "y"])
    got = stats.paired_difference(a, b)
    assert got.value == pytest.approx((0 - 0.5 + 1 - 1) / 2) and got.n == 2


def test_pairs_with_a_value_missing_are_dropped():
    got = stats.paired_difference(cell([np.nan, 0, 0]), cell([1, 1, np.nan]))
    assert (got.value, got.n) == (1.0, 1)


def test_contrast_of_four_cells_is_a_difference_of_differences():
    v = RNG(12).random((4, 30))
    got = stats.contrast(
        list(zip((1.0, -1.0, -1.0, 1.0), map(cell, v), strict=True)), draws=100
    )
    assert got.value == pytest.approx((v[0] - v[1] - v[2] + v[3]).mean())


def test_cells_of_different_items_have_no_difference():
    apart = stats.paired_difference(cell([1.0], ["a"]), cell([1.0], ["b"]))
    assert apart.n == 0 and np.isnan(apart.value)
    with pytest.raises(UserError, match="example 'a' is in two clusters"):
        stats.paired_difference(cell([1.0], ["a"], ["c"]), cell([1.0], ["a"], ["d"]))


def test_t_interval_equals_scipy():
    means = [0.61, 0.64, 0.70]
    want = sps.ttest_1samp(means, 0).confidence_interval()
    np.testing.assert_allclose(stats.t_interval(means)[1:3], want)
    one = stats.t_interval([0.5])
    assert one.value == 0.5 and np.isnan(one.lo) and one.n == 1


def test_auroc_by_hand_and_against_mann_whitney():
    # positives 3, 2; negatives 2, 1: wins 3 > 2, 3 > 1, 2 > 1, tie 2 = 2
    assert stats.auroc([3, 2, 2, 1], [True, True, False, False]) == 3.5 / 4
    scores, labels = RNG(13).integers(0, 9, 70), RNG(14).random(70) < 0.4
    u = sps.mannwhitneyu(scores[labels], scores[~labels]).statistic
    want = u / (labels.sum() * (~labels).sum())
    assert stats.auroc(scores, labels) == pytest.approx(want)


def test_auroc_weights_are_repeats():
    scores, labels = RNG(15).random(20), RNG(16).random(20) < 0.5
    weights = RNG(17).integers(0, 4, (3, 20))
    got = stats.auroc(scores, labels, weights)
    for w, value in zip(weights, got, strict=True):
        repeated = stats.auroc(np.repeat(scores, w), np.repeat(labels, w))
        assert value == pytest.approx(float(repeated))


def test_auroc_of_one_class_is_nan():
    assert np.isnan(stats.auroc([1, 2], [True, True]))
    assert np.isnan(stats.auroc([], []))


def test_spread_ratio_recovers_the_truth_and_covers():
    def interval(run):
        rng = RNG([18, run])
        recipes = rng.normal(0, 0.5, 4)
        got = stats.spread_ratio([r + rng.normal(0, 1, 5) for r in recipes])
        return got.lo, got.hi

    assert 0.93 < _coverage(interval, 2.0, 1000) < 0.97
    assert np.isnan(stats.spread_ratio([[1.0, 2.0]]).value)
    assert np.isnan(stats.spread_ratio([[1.0], [2.0]]).value)


def test_mcnemar_by_hand_and_by_scipy():
    assert stats.mcnemar(0, 0) == 1 and stats.mcnemar(3, 3) == 1
    assert stats.mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    for b, c in [(0, 5), (5, 0), (12, 30), (100, 140), (7, 8)]:
        wanted = sps.binomtest(b, b + c, 0.5).pvalue
        assert stats.mcnemar(b, c) == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="counts >= 0"):
        stats.mcnemar(-1, 2)


def test_mcnemar_on_a_published_example():
    """Approval of the prime minister, asked twice: 150 turned away, 86 came round
    (Agresti 1990, Categorical Data Analysis, ch. 10); z² = 17.36 without correction."""
    z = (150 - 86) / np.sqrt(150 + 86)
    assert z * z == pytest.approx(17.36, abs=0.005)
    assert stats.mcnemar(86, 150) == pytest.approx(2 * sps.norm.sf(z), rel=0.3)
    assert stats.mcnemar(86, 150) == sps.binomtest(86, 236).pvalue


def _cells(x, y, clusters=None):
    ids = np.array([f"e{i}" for i in range(len(x))])
    clusters = ids if clusters is None else np.array(clusters).astype(str)
    return [stats.Cell(ids, np.array(v, float), clusters) for v in (x, y)]


def test_paired_test_of_single_rows_is_mcnemars():
    a, b = _cells([1, 1, 0, 0, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    found = stats.paired_test(a, b)
    assert found.method == "mcnemar" and found.p == stats.mcnemar(1, 7)
    assert found.difference.value == pytest.approx(-0.6)
    # rows of one cell only, and the order, change nothing
    order = RNG(0).permutation(10)
    more = stats.Cell(
        *(np.append(f[order], f[:1] if k else "new") for k, f in enumerate(b))
    )
    assert stats.paired_test(a, more).p == found.p


def test_paired_bootstrap_is_uniform_under_no_difference_and_sees_one():
    def p_value(run, shift):
        rng = RNG([31, run])
        clusters = np.repeat(np.arange(40), 3)
        base = rng.normal(size=40)[clusters]
        x = base + rng.normal(size=120)
        y = base + rng.normal(size=40)[clusters] + shift + rng.normal(size=120)
        return stats.paired_test(*_cells(x, y, clusters), draws=400, seed=run)

    null = np.array([p_value(run, 0.0).p for run in range(300)])
    assert 0.02 < (null < 0.05).mean() < 0.10
    assert 0.4 < np.median(null) < 0.6
    seen = [p_value(run, 1.0) for run in range(20)]
    assert all(t.method == "bootstrap" for t in seen)
    assert np.mean([t.p < 0.05 for t in seen]) > 0.9


def test_paired_test_where_it_cannot_be_told():
    one = _cells([1, 0, 1], [0, 0, 1], ["c", "c", "c"])
    assert np.isnan(stats.paired_test(*one).p)
    same = stats.paired_test(*_cells([1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]))
    assert same.p == 1 and same.difference.value == 0
    nothing = _cells([np.nan], [1.0])
    assert np.isnan(stats.paired_test(*nothing).p)


def test_holm_by_hand():
    got = stats.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(got, [0.03, 0.06, 0.06, 0.02])
    got = stats.holm([0.5, np.nan, 0.9, 0.01])
    np.testing.assert_allclose(got, [1.0, np.nan, 1.0, 0.03])
    assert stats.holm([]).shape == (0,) and stats.holm([0.2]) == [0.2]
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        stats.holm([1.2])


def test_holm_keeps_the_family_wise_error():
    rng = RNG(5)
    wrong = [(stats.holm(rng.uniform(size=10)) < 0.05).any() for _ in range(4000)]
    assert 0.04 < np.mean(wrong) < 0.06


def test_a_statistic_that_needs_every_cluster_has_the_percentile_interval():
    """As an AUROC of one positive and one negative row: no row can be left out."""

    def needs_both(w):
        return np.where((w > 0).all(-1), w[:, 0] / w.sum(-1), np.nan)

    out = stats.cluster_bootstrap(needs_both, [0, 1], draws=200, method="bca")
    assert out.value == 0.5 and out.lo == out.hi == 0.5
