"""Importance correction between sampler and trainer, KL in the reward, perception."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmrl.rl.losses import (
    LEVELS,
    MODES,
    clipped,
    correction,
    finished,
    kl,
    kl_loss,
    penalised,
    perception,
    policy_objective,
    to_go,
)
from vlmrl.types import Mean, UserError

RATIOS = jnp.array([[4.0, 0.5, 1.0], [0.25, 9.0, 1.0]])
MASK = jnp.array([[1, 1, 1], [1, 0, 0]], bool)
ZERO = jnp.zeros((2, 3))


def weights(**settings):
    return correction(jnp.log(RATIOS), ZERO, MASK, **settings)


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, [[2, 0.5, 1], [0.25, 0, 0]]),
        ({"high": 9.0}, [[4, 0.5, 1], [0.25, 0, 0]]),
        ({"mode": "mask"}, [[0, 0.5, 1], [0.25, 0, 0]]),
        ({"mode": "mask", "low": 0.3}, [[0, 0.5, 1], [0, 0, 0]]),
        ({"level": "sequence"}, [[2, 2, 2], [0.25, 0, 0]]),
        ({"level": "sequence", "mode": "mask", "high": 1.5}, [[0] * 3, [0.25, 0, 0]]),
        ({"level": "geometric"}, [[2 ** (1 / 3)] * 3, [0.25, 0, 0]]),
    ],
)
def test_weights_by_hand(settings, want):
    got, _ = weights(**settings)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_metrics_by_hand():
    _, metrics = weights(mode="mask", low=0.3)
    assert metrics["rejected"] == Mean(2, 4)  # 4 is above 2, ¼ below 0.3
    assert metrics["truncated"] == Mean(0, 4)
    np.testing.assert_allclose(metrics["weight"].sum, 4 + 0.5 + 1 + 0.25, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight_max"].max, 4, rtol=1e-6)
    _, metrics = weights()
    assert metrics["truncated"] == Mean(1, 4)
    k3 = sum(r - 1 - np.log(r) for r in (4, 0.5, 1, 0.25))
    np.testing.assert_allclose(metrics["mismatch"].sum, k3, rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_sampler_equal_to_the_trainer_is_left_alone(level, mode):
    logp = -jnp.arange(6.0).reshape(2, 3)
    dirty = jnp.where(MASK, logp, jnp.nan)
    got, metrics = correction(logp, dirty, MASK, level=level, mode=mode)
    np.testing.assert_array_equal(got, MASK)
    assert metrics["rejected"].sum == metrics["mismatch"].sum == 0


def test_levels_coincide_for_one_token():
    new, old, on = jnp.log(RATIOS)[:, :1], ZERO[:, :1], MASK[:, :1]
    first, *rest = (correction(new, old, on, level=level)[0] for level in LEVELS)
    for other in rest:
        np.testing.assert_allclose(other, first, rtol=1e-6)


def test_corrected_expectations_are_those_of_the_trainer():
    """E_μ[w f] = E_π[f] where no weight is cut: an exact sum over three tokens."""
    pi, mu = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.4, 0.3, 0.3])
    f = jnp.array([1.0, -2.0, 5.0])
    on = jnp.ones((3, 1), bool)
    w, _ = correction(jnp.log(pi)[:, None], jnp.log(mu)[:, None], on)
    np.testing.assert_allclose((mu * w[:, 0] * f).sum(), (pi * f).sum(), rtol=1e-6)


def test_weights_have_no_gradient():
    def f(x):
        return correction(x, ZERO, MASK)[0].sum()

    assert not jax.grad(f)(jnp.log(RATIOS)).any()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"level": "word"}, "importance.level: expected .*, got 'word'"),
        ({"mode": "clip"}, "importance.mode: expected .*, got 'clip'"),
        ({"high": 0.5}, r"importance.low=0.0 and importance.high=0.5"),
        ({"low": 1.5}, r"importance.low=1.5"),
    ],
)
def test_bad_settings_are_named(bad, named):
    with pytest.raises(UserError, match=named):
        weights(**bad)


def test_the_objective_applies_it():
    new, a = jnp.log(RATIOS) - 1, jnp.array([1.0, -1.0])
    old = new - 0.1
    extra = {"old_logprobs": old, "advantages": a, "sampler_logprobs": old - 0.5}
    loss, metrics = policy_objective(
        new, -new, MASK, extra, importance={"high": 1.25}, clip_high=0.5
    )
    plain = clipped(new, old, a, MASK, clip_high=0.5).loss
    np.testing.assert_allclose(loss.sum, 1.25 * plain.sum, rtol=1e-5)
    assert loss.count == plain.count
    assert metrics["truncated"] == Mean(4, 4)
    del extra["sampler_logprobs"]
    with pytest.raises(UserError, match="expected sampler_logprobs"):
        policy_objective(new, -new, MASK, extra, importance={})


# -- KL in the reward


def test_penalised_by_hand():
    values = jnp.array([[0.5, 1.0, -0.25], [2.0, 9.0, jnp.nan]])
    got = penalised(jnp.array([1.0, 1.1]), values, MASK, 0.1)
    np.testing.assert_allclose(got, [1 - 0.125, 1.1 - 0.2], rtol=1e-6)


def test_to_go_by_hand():
    values = jnp.array([[0.5, 1.0, -0.25], [2.0, 9.0, jnp.nan]])
    got = to_go(jnp.array([1.0, -1.0]), values, MASK, 0.1)
    want = [[1 - 0.125, 1 - 0.075, 1 + 0.025], [-1.2, 0, 0]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_first_token_to_go_is_the_penalised_reward():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3)).astype(np.float32)
    rewards = jnp.array([0.3, -2.0])
    np.testing.assert_allclose(
        to_go(rewards, values, MASK, 0.2)[:, 0],
        penalised(rewards, values, MASK, 0.2),
        rtol=1e-6,
    )


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    """What k1 cannot do in the loss it does in the reward: E[(r − β k1) ∇log π] is
    ∇(E[r] − β KL), exactly, over all three tokens of a softmax policy."""
    theta, reward = jnp.array([0.3, -0.2, 1.0]), jnp.array([1.0, 0.0, 0.5])
    ref = jax.nn.log_softmax(jnp.array([1.0, 0.0, 0.0]))
    p, on = jax.nn.softmax(theta), jnp.ones((3, 1), bool)

    def objective(theta):
        logp = jax.nn.log_softmax(theta)
        return (jnp.exp(logp) * (reward - 0.4 * (logp - ref))).sum()

    def surrogate(theta):
        logp = jax.nn.log_softmax(theta)[:, None]
        k1 = kl(logp, ref[:, None], on, "k1")
        paid = penalised(reward, k1, on, 0.4)
        return (p * clipped(logp, jnp.log(p)[:, None], paid, on).loss.sum).sum()

    def expected(theta):
        logp = jax.nn.log_softmax(theta)
        k1 = kl(logp[:, None], ref[:, None], on, "k1")
        return (p * penalised(reward, k1, on, 0.4) * logp).sum()

    np.testing.assert_allclose(
        jax.grad(expected)(theta), jax.grad(objective)(theta), atol=1e-6
    )
    assert jnp.isfinite(surrogate(theta))


def test_k2_and_k3_agree_at_equality_to_second_order():
    """Near ref both are d²/2: equal values, gradients and curvatures there."""
    on = jnp.ones((1, 1), bool)

    def value(d, estimator):
        return kl_loss(d.reshape(1, 1), ZERO[:1, :1], on, estimator=estimator).sum

    for order in (lambda f: f, jax.grad, lambda f: jax.grad(jax.grad(f))):
        two, three = (
            order(lambda d, e=e: value(d, e))(jnp.float32(0)) for e in ("k2", "k3")
        )
        np.testing.assert_allclose(two, three, atol=1e-6)


def test_weights_of_the_step_are_those_of_the_settings():
    """'kl_weight' and 'entropy_weight' per row do what the settings do."""
    new, ref = jnp.log(RATIOS) - 2, ZERO - 1
    extra = {
        "old_logprobs": new,
        "advantages": jnp.ones(2),
        "ref_logprobs": ref,
    }
    fixed, _ = policy_objective(
        new, -new, MASK, extra, kl_weight=0.3, entropy_weight=0.1
    )
    rows = {"kl_weight": jnp.full(2, 0.3), "entropy_weight": jnp.full(2, 0.1)}
    varied, metrics = policy_objective(new, -new, MASK, {**extra, **rows})
    np.testing.assert_allclose(varied.sum, fixed.sum, rtol=1e-6)
    assert "kl_ref" in metrics


# -- perception and the overlong filter


def test_perception_by_hand():
    got = perception(jnp.log(RATIOS), ZERO, MASK)
    want = [[r - 1 - np.log(r) for r in (4, 0.5, 1)], [0.25 - 1 - np.log(0.25), 0, 0]]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_perception_gradients_of_both_branches():
    """∂/∂log π = r − 1, ∂/∂log π_masked = 1 − r; 0 where both branches agree."""

    def f(a, b):
        return perception(a, b, MASK).sum()

    a, b = jax.grad(f, (0, 1))(jnp.log(RATIOS), ZERO)
    np.testing.assert_allclose(a, (RATIOS - 1) * MASK, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, (1 - RATIOS) * MASK, rtol=1e-5, atol=1e-6)
    assert not jax.grad(f)(ZERO, ZERO).any()


def test_the_objective_adds_perception():
    new, a = jnp.log(RATIOS), jnp.ones(2)
    extra = {"old_logprobs": new, "advantages": a, "masked_logprobs": ZERO}
    plain, _ = policy_objective(new, -new, MASK, extra)
    loss, metrics = policy_objective(new, -new, MASK, extra, perception_weight=0.1)
    want = plain.sum - 0.1 * perception(new, ZERO, MASK).sum()
    np.testing.assert_allclose(loss.sum, want, rtol=1e-6)
    assert metrics["perception"].count == 4
    del extra["masked_logprobs"]
    with pytest.raises(UserError, match="expected masked_logprobs, got none"):
        policy_objective(new, -new, MASK, extra, perception_weight=0.1)


def test_the_overlong_filter():
    got = finished(MASK, jnp.array([False, True]))
    np.testing.assert_array_equal(got, MASK & jnp.array([[False], [True]]))
