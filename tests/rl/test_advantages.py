"""Advantages: hand-computed numbers, identities, masks."""

import jax
import numpy as np
import pytest

from vlmrl.metrics import add
from vlmrl.rl.advantages import ADVANTAGES, degenerate, dr_grpo, grpo, rloo

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
    np.testing.assert_allclose(got.sum(-1), 0, atol=2e-6)
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
