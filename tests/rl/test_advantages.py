"""Advantages: hand-computed numbers, identities, masks."""

import jax
import numpy as np
import pytest

from vlmrl.metrics import add
from vlmrl.rl.advantages import (
    ADVANTAGES,
    GROUPED,
    decoupled,
    degenerate,
    dr_grpo,
    gdpo,
    grpo,
    mixed,
    ranked,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)

ALL = sorted(ADVANTAGES)
R = np.array([[1, 0, 0, 1], [3, 1, 1, 1]], np.float32)
ON = np.ones((2, 4), bool)


def test_dr_grpo_by_hand():
    want = [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]]
    np.testing.assert_allclose(dr_grpo(R, ON), want, rtol=1e-6)


def test_grpo_by_hand():
    # Row 0: Σ(r − ½)² = 1, std = sqrt(1/3). Row 1: 2.25 + 3 · 0.25 = 3, std = 1.
    want = np.array([[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]])
    want /= np.array([[np.sqrt(1 / 3)], [1]])
    np.testing.assert_allclose(grpo(R, ON), want, rtol=1e-5)


def test_grpo_ddof_0_by_hand():
    # Row 0: std = sqrt(1/4) = ½. Row 1: sqrt(3/4).
    want = [[1, -1, -1, 1], np.array([1.5, -0.5, -0.5, -0.5]) / np.sqrt(0.75)]
    np.testing.assert_allclose(grpo(R, ON, ddof=0), want, rtol=1e-5)


def test_grpo_eps_is_added_to_the_std():
    np.testing.assert_allclose(
        grpo(R, ON, ddof=0, eps=0.5)[0], [0.5, -0.5, -0.5, 0.5], rtol=1e-6
    )


def test_rloo_by_hand():
    # Row 0, first: 1 − (0 + 0 + 1)/3 = 2/3; second: 0 − (1 + 0 + 1)/3 = −2/3.
    # Row 1, first: 3 − 1 = 2; second: 1 − (3 + 1 + 1)/3 = −2/3.
    third = 2 / 3
    want = [[third, -third, -third, third], [2, -third, -third, -third]]
    np.testing.assert_allclose(rloo(R, ON), want, rtol=1e-6)


def test_rloo_is_the_scaled_mean_baseline():
    rewards = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    mask = np.random.default_rng(1).random((5, 7)) < 0.7
    n = mask.sum(-1, keepdims=True)
    scaled = n / np.maximum(n - 1, 1) * dr_grpo(rewards, mask)
    np.testing.assert_allclose(rloo(rewards, mask), scaled, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 0.1, 1.1, 1 / 3, 1e4 + 0.1])
def test_equal_rewards_give_exactly_zero(name, value):
    for size in (2, 3, 7, 8):
        rewards = np.full((1, size), value, np.float32)
        assert not np.any(ADVANTAGES[name](rewards, np.ones((1, size), bool)))


@pytest.mark.parametrize("name", ALL)
def test_masked_completions_take_no_part(name):
    f = ADVANTAGES[name]
    alone = f(R[:, :3], ON[:, :3])
    padded = np.concatenate([R[:, :3], np.full((2, 2), np.nan, np.float32)], 1)
    mask = np.array([[True] * 3 + [False] * 2] * 2)
    got = np.asarray(f(padded, mask))
    np.testing.assert_allclose(got[:, :3], alone, rtol=1e-6)
    assert not got[:, 3:].any()


@pytest.mark.parametrize("name", ALL)
def test_groups_of_one_and_of_none_get_zero(name):
    mask = np.array([[True, False], [False, False]])
    rewards = np.array([[1.1, 7], [np.nan, 3]], np.float32)
    assert not np.any(ADVANTAGES[name](rewards, mask))


@pytest.mark.parametrize("name", ALL)
def test_centred_shift_invariant_and_jit(name):
    f = ADVANTAGES[name]
    rewards = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    mask = np.random.default_rng(3).random((4, 8)) < 0.8
    got = np.asarray(f(rewards, mask))
    axis = -1 if name in GROUPED else None  # of the group, or of the batch
    np.testing.assert_allclose(got.sum(axis), 0, atol=2e-5)
    np.testing.assert_allclose(f(rewards + 1, mask), got, atol=2e-6)
    np.testing.assert_allclose(jax.jit(f)(rewards, mask), got, rtol=1e-6, atol=1e-7)
    assert got.dtype == np.float32


def test_grpo_does_not_depend_on_the_scale_of_rewards():
    np.testing.assert_allclose(grpo(R, ON), grpo(100 * R, ON), rtol=1e-5)


def test_degenerate_counts_groups():
    rewards = np.array(
        [[1.1, 1.1, 1.1], [0, 0, 1], [0, 0, 1], [5, 0, 0], [0, 0, 0]], np.float32
    )
    mask = np.ones((5, 3), bool)
    mask[2, 2] = False  # equal once the odd one is masked
    mask[3, 1:] = False  # one valid completion
    mask[4] = False  # no group at all
    got = degenerate(rewards, mask)
    assert (int(got.sum), int(got.count)) == (3, 4)
    halves = add(degenerate(rewards[:2], mask[:2]), degenerate(rewards[2:], mask[2:]))
    assert (int(halves.sum), int(halves.count)) == (3, 4)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        dr_grpo(R, ON[:, :3])
    with pytest.raises(AssertionError):
        dr_grpo(R[0], ON[0])


# -- normalised by the batch


def test_reinforce_pp_by_hand():
    # Eight rewards, mean 1; Σ(r − 1)² = 2 · 1 + 4 = 6, std = sqrt(6/7).
    want = (R - 1) / np.sqrt(6 / 7)
    np.testing.assert_allclose(reinforce_pp(R, ON), want, rtol=1e-5, atol=1e-7)


def test_reinforce_pp_baseline_by_hand():
    # Centred in the group: squares sum to 1 and 3, std over the batch = sqrt(4/7).
    want = np.array(dr_grpo(R, ON)) / np.sqrt(4 / 7)
    np.testing.assert_allclose(reinforce_pp_baseline(R, ON), want, rtol=1e-5)


def test_reinforce_pp_works_on_groups_of_one():
    rewards = np.array([[1.0], [0.0], [0.0], [1.0]], np.float32)
    on = np.ones((4, 1), bool)
    want = (rewards - 0.5) / np.sqrt(1 / 3)
    np.testing.assert_allclose(reinforce_pp(rewards, on), want, rtol=1e-5)
    assert not np.any(reinforce_pp_baseline(rewards, on))


def test_one_group_with_a_baseline_is_grpo():
    np.testing.assert_allclose(
        reinforce_pp_baseline(R[:1], ON[:1]), grpo(R[:1], ON[:1]), rtol=1e-6
    )
    np.testing.assert_allclose(
        reinforce_pp(R[:1], ON[:1]), grpo(R[:1], ON[:1]), rtol=1e-6
    )


def test_dr_grpo_is_grpo_of_unit_std():
    rewards = R / np.std(R, axis=-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(dr_grpo(rewards, ON), grpo(rewards, ON), rtol=1e-5)


def test_an_easy_group_keeps_its_small_advantages_with_a_batch_std():
    """GRPO scales small differences up to full size; a batch std does not."""
    rewards = np.array([[1, 0, 1, 0], [0.01, 0, 0.01, 0]], np.float32)
    ratio = np.abs(np.asarray(reinforce_pp_baseline(rewards, ON))).max(-1)
    np.testing.assert_allclose(ratio[1] / ratio[0], 0.01, rtol=1e-4)
    full = np.abs(np.asarray(grpo(rewards, ON))).max(-1)
    np.testing.assert_allclose(full[1] / full[0], 1, rtol=1e-3)


# -- several rewards


TASK = np.array([[1, 1, 0, 0]], np.float32)
CONS = np.array([[1, 0, 1, 0]], np.float32)
ONE = np.ones((1, 4), bool)
UNIT = 0.5 / np.sqrt(1 / 3)  # of a group half right, ddof = 1


def test_decoupled_by_hand():
    got = decoupled(np.stack([TASK, CONS]), ONE, (1.0, 0.5))
    want = UNIT * np.array([[1.5, 0.5, -0.5, -1.5]])
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_gdpo_by_hand():
    # Â = u · (1.5, 0.5, −0.5, −1.5): its std over the batch is u · sqrt(5/3).
    got = gdpo(np.stack([TASK, CONS]), ONE, (1.0, 0.5))
    want = np.array([[1.5, 0.5, -0.5, -1.5]]) / np.sqrt(5 / 3)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_one_reward_apart_is_the_reward_itself():
    got = decoupled(R[None], ON, (1.0,))
    np.testing.assert_allclose(got, grpo(R, ON), rtol=1e-6)
    got = decoupled(R[None], ON, (1.0,), normalise=rloo)
    np.testing.assert_allclose(got, rloo(R, ON), rtol=1e-6)


def test_decoupled_without_scaling_is_the_sum():
    """Centring is linear: apart or together, the same; only the std makes it matter."""
    parts = np.stack([R, R[:, ::-1] ** 2])
    got = decoupled(parts, ON, (2.0, 0.5), normalise=dr_grpo)
    want = dr_grpo(2 * parts[0] + 0.5 * parts[1], ON)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_grpo_confuses_what_gdpo_tells_apart():
    """(0, 1), (0, 2): one normalised sum, two decoupled sums of different size."""
    first = np.array([[[0, 1]], [[0, 0]]], np.float32)
    second = np.array([[[0, 1]], [[0, 1]]], np.float32)
    on = np.ones((1, 2), bool)
    np.testing.assert_allclose(
        grpo(first.sum(0), on), grpo(second.sum(0), on), rtol=1e-5
    )
    a, b = (np.abs(decoupled(p, on, (1, 1))).max() for p in (first, second))
    np.testing.assert_allclose(b / a, 2, rtol=1e-5)


def test_a_part_that_was_not_judged_adds_nothing():
    parts = np.stack([TASK, np.full_like(CONS, np.nan)])
    masks = np.stack([ONE, ~ONE])
    np.testing.assert_allclose(
        decoupled(parts, masks, (1.0, 0.5)), grpo(TASK, ONE), rtol=1e-6
    )
    assert np.isfinite(gdpo(parts, masks, (1.0, 0.5))).all()


def test_weights_may_be_traced():
    f = jax.jit(lambda w: decoupled(np.stack([TASK, CONS]), ONE, w))
    np.testing.assert_allclose(f(np.array([1.0, 0.0])), grpo(TASK, ONE), rtol=1e-6)


# -- dynamic sampling and ranking


def test_mixed_keeps_groups_with_right_and_wrong():
    correct = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 1]], bool)
    mask = np.ones((4, 3), bool)
    mask[3, 1] = False  # all that is left is right
    want = np.zeros((4, 3), bool)
    want[2] = True
    np.testing.assert_array_equal(mixed(correct, mask), want)
    np.testing.assert_array_equal(mixed(correct.astype(np.float32), mask), want)


def test_ranked_by_hand():
    scores = np.array([[0.9, 0.1, 0.5, 7.0], [2, 2, 1, 1]], np.float32)
    among = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    want = [[1, -1, 0, 0], [2 / 3, 2 / 3, -2 / 3, -2 / 3]]
    np.testing.assert_allclose(ranked(scores, among), want, rtol=1e-6)


def test_ranked_is_zero_sum_monotone_and_blind_to_scale():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 8)).astype(np.float32)
    among = rng.random((6, 8)) < 0.6
    got = np.asarray(ranked(scores, among))
    np.testing.assert_allclose(got.sum(-1), 0, atol=1e-6)
    assert not got[~among].any()
    np.testing.assert_array_equal(ranked(np.exp(scores), among), got)
    dirty = np.where(among, scores, np.nan)
    np.testing.assert_array_equal(ranked(dirty, among), got)


def test_ranked_among_one_or_none_is_nothing_and_takes_infinities():
    scores = np.array([[3.0, np.inf], [-np.inf, np.inf]], np.float32)
    among = np.array([[True, False], [True, True]])
    np.testing.assert_array_equal(ranked(scores, among), [[0, 0], [-1, 1]])


def test_a_ranking_below_half_never_lifts_a_wrong_answer():
    correct = np.array([[1, 1, 1, 0, 0]], bool)
    scores = np.array([[0.1, 0.2, 0.3, 9, 9]], np.float32)
    total = correct + 0.45 * np.asarray(ranked(scores, correct))
    assert total[0, :3].min() > total[0, 3:].max()
