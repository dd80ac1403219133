"""Agreement against hand calculations and published examples."""

import numpy as np
import pytest

from vlmrl.judges import agree
from vlmrl.judges.agree import Ratings, against, between, cohen, fleiss, strict
from vlmrl.judges.judge import LABELS, Verdict
from vlmrl.types import UserError

NAN = float("nan")


def ones(labels):
    return np.ones((1, len(labels)))


def test_cohen_by_hand():
    """Two raters of 50: both yes 20, both no 15, 5 and 10 apart: pₒ = 0.7, pₑ = 0.5."""
    pairs = [(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15
    labels = np.array(pairs)
    assert strict(labels, ones(labels)) == pytest.approx(0.7)
    assert cohen(labels, ones(labels)) == pytest.approx(0.4)


def test_fleiss_by_hand():
    """Four items, three raters: P = (1 + 1/3 + 1/3 + 1) / 4 = 2/3; shares 6/12, 4/12,
    2/12: pₑ = 7/18."""
    labels = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0], [2, 2, 1]])
    labels[3] = [1, 1, 1]
    share = np.array([6, 6, 0]) / 12
    p, chance = (1 + 1 / 3 + 1 / 3 + 1) / 4, (share**2).sum()
    expected = (p - chance) / (1 - chance)
    assert (p, chance, expected) == pytest.approx((2 / 3, 0.5, 1 / 3))
    assert fleiss(labels, ones(labels)) == pytest.approx(expected)
    assert strict(labels, ones(labels)) == pytest.approx(0.5)


@pytest.mark.parametrize("statistic", [strict, cohen, fleiss])
def test_laws(statistic):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (40, 2))
    value = statistic(labels, ones(labels))
    assert statistic(labels[:, ::-1], ones(labels)) == pytest.approx(value)
    assert statistic((labels + 1) % 3, ones(labels)) == pytest.approx(value)
    # a weight of two is a row given twice, a weight of none a row left out
    weights = rng.integers(0, 3, (5, 40)) * 1.0
    for drawn, row in zip(statistic(labels, weights), weights, strict=True):
        repeated = np.repeat(labels, row.astype(int), axis=0)
        assert drawn == pytest.approx(statistic(repeated, ones(repeated))[0])
    same = np.stack([labels[:, 0]] * 2, 1)
    assert statistic(same, ones(same)) == 1


def test_chance_is_nothing_and_one_label_says_nothing():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (20_000, 3))
    assert abs(fleiss(labels, ones(labels))[0]) < 0.02
    assert abs(cohen(labels[:, :2], ones(labels))[0]) < 0.02
    alone = np.zeros((9, 2), int)
    assert np.isnan(cohen(alone, ones(alone))) and np.isnan(fleiss(alone, ones(alone)))
    assert strict(alone, ones(alone)) == 1


def test_tables_per_condition_and_pair_with_intervals():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    noise = rng.random((300, 3)) < [0.0, 0.1, 0.3]
    labels = np.where(noise, rng.integers(0, 3, (300, 3)), truth[:, None])
    clusters = np.repeat(np.arange(150), 2).astype(str)
    conditions = np.array(["base", "wrong_think"] * 150)
    rows = between(Ratings(("a", "b", "c"), labels, clusters, conditions), draws=200)
    assert [(tuple(r["raters"]), r["condition"], r["n"]) for r in rows] == [
        (raters, condition, n)
        for condition, n in (("all", 300), ("base", 150), ("wrong_think", 150))
        for raters in (("a", "b", "c"), ("a", "b"), ("a", "c"), ("b", "c"))
    ]
    for row in rows:
        for name in ("strict", "fleiss", "cohen"):
            if name == "cohen" and len(row["raters"]) > 2:
                assert "cohen" not in row
                continue
            actual = row[name]
            assert actual.lo < actual.value < actual.hi
            assert actual.clusters == 150
    assert rows[1]["cohen"].value > rows[2]["cohen"].value


def test_differences_between_raters_by_hand():
    """Of 12 items the second calls 8 more consistent and one less: McNemar's exact test
    of 8 to 1; Holm's correction is over all rows of the table."""
    first = np.array([1] * 8 + [0] + [2] * 3)
    second = np.array([0] * 8 + [1] + [2] * 3)
    labels = np.stack([first, second], 1)
    names = np.arange(12).astype(str)
    kinds = np.array(["x"] * 9 + ["y"] * 3)
    ratings = Ratings(("a", "b"), labels, names, kinds)
    rows = agree.differences(ratings)
    assert [(r["condition"], r["measure"], r["n"]) for r in rows] == [
        *[("all", "consistent", 12), ("x", "consistent", 9), ("y", "consistent", 3)]
    ]
    assert rows[0]["difference"].value == pytest.approx(7 / 12)
    expected = 2 * (1 + 9) / 2**9
    assert [r["p"] for r in rows] == pytest.approx([expected, expected, 1.0])
    assert [r["holm"] for r in rows] == pytest.approx([3 * expected, 3 * expected, 1.0])
    assert {r["method"] for r in rows} == {"mcnemar"}
    # where the truth is known, who is right is compared on those items alone
    truth = np.array([1] * 8 + [-1] * 4)
    rows = agree.differences(ratings, truth)
    right = [r for r in rows if r["measure"] == "right"]
    assert [(r["condition"], r["n"]) for r in right] == [("all", 8), ("x", 8), ("y", 0)]
    assert right[0]["difference"].value == -1.0 and np.isnan(right[2]["p"])
    assert len(rows) == 6
    assert rows[0]["holm"] == pytest.approx(min(1.0, 3 * expected))


def verdict(label, confidence=NAN):
    return Verdict(label, -1, confidence, "", "j")


def test_against_the_truth_by_hand():
    truth = ["consistent"] * 4 + ["inconsistent"] * 4 + ["undecided"] * 2
    output = (
        ["consistent"] * 3 + ["undecided"] + ["inconsistent"] * 3 + ["consistent"]
    ) + ["undecided", "inconsistent"]
    sure = [0.9] * 5 + [0.6] * 5
    actual = against(truth, list(map(verdict, output, sure)), draws=100)
    assert actual.n == 10
    assert actual.precision.value == pytest.approx(6 / 8)
    assert actual.coverage.value == pytest.approx(7 / 8)
    assert actual.accuracy.value == pytest.approx(7 / 10)
    recall = [actual.recall[name].value for name in LABELS]
    assert recall == pytest.approx([3 / 4, 3 / 4, 1 / 2])
    np.testing.assert_array_equal(actual.confusion, [[3, 0, 1], [1, 3, 0], [0, 1, 1]])
    # right: T T T F T | T T F T F at 0.9 and 0.6
    brier = (4 * 0.01 + 0.81 + 3 * 0.16 + 2 * 0.36) / 10
    assert actual.brier == pytest.approx(brier)
    low, high = actual.calibration
    assert low == pytest.approx((0.6, 0.6, 5)) and high == pytest.approx((0.9, 0.8, 5))


def test_a_judge_without_confidence_has_no_calibration():
    actual = against(["consistent"], [verdict("consistent")], draws=10)
    assert np.isnan(actual.brier) and actual.calibration == []


def test_bad_labels_are_named():
    with pytest.raises(UserError, match="label: expected one of consistent, inc"):
        agree.codes(["consistent", "maybe"])
    with pytest.raises(UserError, match="expected at least one labelled item"):
        against([], [])
