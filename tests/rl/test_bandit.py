"""Closed-form bandits: the pure functions, put together, must solve them.

A bandit is a policy that writes one token: softmax(θ) over K arms, T = 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlmrl.rl.advantages import ADVANTAGES, dr_grpo, rloo
from vlmrl.rl.losses import clipped, kl_loss, total

REWARD = np.array([1.0, 0.6, 0.3, 0.0])
REF = np.array([0.1, 0.2, 0.3, 0.4])


def gibbs(ref, reward, beta):
    """argmax of E_π[r] − β KL(π ‖ ref): ref · exp(r/β), normalised."""
    weight = ref * np.exp(reward / beta)
    return weight / weight.sum()


def forward(ref, reward, beta):
    """argmax of E_π[r] − β KL(ref ‖ π): ref · β / (λ − r), by bisection on λ."""
    low, high = reward.max() + 1e-12, reward.max() + beta
    for _ in range(200):
        middle = (low + high) / 2
        if (ref * beta / (middle - reward)).sum() > 1:
            low = middle
        else:
            high = middle
    return ref * beta / (high - reward)


def loss_of(theta, arms, advantages, *, ref=None, beta=0.0, estimator="k2", old=None):
    """Mean loss of rows that each wrote one arm; int32[B] arms, float32[B]."""
    rows = jax.nn.log_softmax(theta)
    logp = rows[arms][:, None]
    old = jax.lax.stop_gradient(logp) if old is None else old
    mask = jnp.ones(logp.shape, bool)
    loss = clipped(logp, old, advantages, mask).loss
    if beta:
        ref = jnp.log(ref)[arms][:, None]
        loss = total(loss, (beta, kl_loss(logp, ref, mask, estimator=estimator)))
    return loss.value


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("counts", [(1, 2, 5), (3, 3, 2), (6, 1, 1)])
def test_expected_gradient_is_that_of_the_closed_form_objective(counts, estimator):
    """One group that holds every arm exactly in proportion to π is an exact
    expectation: k2 is the gradient of KL(π ‖ ref), k3 that of KL(ref ‖ π)."""
    beta, reward = 0.5, jnp.array([1.0, 0.5, 0.0])
    ref = jnp.array([0.2, 0.3, 0.5])
    arms = np.repeat(np.arange(3), counts)
    theta = jnp.log(jnp.array(counts) / 8)

    def objective(theta):
        logp = jax.nn.log_softmax(theta)
        p = jnp.exp(logp)
        reverse = (p * (logp - jnp.log(ref))).sum()
        onward = (ref * (jnp.log(ref) - logp)).sum()
        return (p * reward).sum() - beta * (reverse if estimator == "k2" else onward)

    advantages = dr_grpo(reward[arms][None], np.ones((1, 8), bool))[0]
    got = jax.grad(loss_of)(
        theta, arms, advantages, ref=ref, beta=beta, estimator=estimator
    )
    np.testing.assert_allclose(got, -jax.grad(objective)(theta), atol=1e-6)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_every_context_learns_its_best_arm(name):
    """8 contexts, 5 arms, Bernoulli rewards, groups of 8, four epochs per batch (so
    that ratios leave 1 and clipping acts): P(best arm) > 0.95 in every context."""
    contexts, arms, groups, size = 8, 5, 4, 8
    chances = jnp.array([0.9, 0.5, 0.4, 0.3, 0.2])
    best = jnp.arange(contexts) % arms
    table = jnp.stack([jnp.roll(chances, shift) for shift in best])
    tx = optax.adam(0.1)
    n = contexts * groups
    context = jnp.repeat(jnp.arange(contexts), groups * size)

    def logprobs(theta, choice):
        return jax.nn.log_softmax(theta)[context, choice][:, None]

    def step(carry, key):
        theta, opt = carry
        draw, pay = jax.random.split(key)
        choice = jax.random.categorical(draw, theta[context])
        reward = jax.random.bernoulli(pay, table[context, choice]).astype(jnp.float32)
        on = jnp.ones((n, size), bool)
        advantages = ADVANTAGES[name](reward.reshape(n, size), on).reshape(-1)
        old = logprobs(theta, choice)

        def loss(theta):
            got = clipped(logprobs(theta, choice), old, advantages, old < 1)
            return got.loss.value * contexts, got.clipped_low.sum + got.clipped_high.sum

        def epoch(carry, _):
            theta, opt = carry
            grads, clips = jax.grad(loss, has_aux=True)(theta)
            updates, opt = tx.update(grads, opt)
            return (optax.apply_updates(theta, updates), opt), clips

        return jax.lax.scan(epoch, (theta, opt), length=4)

    @jax.jit
    def run(key):
        theta = jnp.zeros((contexts, arms))
        keys = jax.random.split(key, 200)
        (theta, _), clips = jax.lax.scan(step, (theta, tx.init(theta)), keys)
        return jax.nn.softmax(theta)[jnp.arange(contexts), best], clips.sum()

    for seed in range(3):
        p, clips = run(jax.random.key(seed))
        assert p.min() > 0.95, (seed, p)
        assert clips > 0


@pytest.mark.parametrize(
    ("estimator", "optimum", "other"),
    [("k2", gibbs, forward), ("k3", forward, gibbs)],
)
def test_with_a_kl_the_policy_settles_at_the_closed_form(estimator, optimum, other):
    """Stochastic training ends at the optimum that the estimator's gradient has.

    SGD with step sizes ~ 1/t from 16 seeds. The tolerance per arm is 4 standard errors
    of the mean over the seeds, plus 0.002 for what is left of the start and of the
    curvature; it is an order of magnitude less than the distance between both optima,
    so the test tells them apart.
    """
    beta, size, groups, steps, seeds = 0.4, 8, 16, 1200, 16
    reward, ref = jnp.array(REWARD), jnp.array(REF)
    on = jnp.ones((groups, size), bool)

    def step(carry, key):
        theta, t = carry
        arms = jax.random.categorical(key, theta, shape=(groups * size,))
        advantages = rloo(reward[arms].reshape(groups, size), on).reshape(-1)
        grads = jax.grad(loss_of)(
            theta, arms, advantages, ref=ref, beta=beta, estimator=estimator
        )
        rate = 4.0 / (1 + t / 25)
        return (theta - rate * grads, t + 1), None

    @jax.jit
    @jax.vmap
    def run(key):
        start = (jnp.log(ref), 0.0)
        (theta, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return jax.nn.softmax(theta)

    got = np.asarray(run(jax.random.split(jax.random.key(0), seeds)), np.float64)
    tolerance = 4 * got.std(0, ddof=1) / np.sqrt(seeds) + 2e-3
    want = optimum(REF, REWARD, beta)
    assert tolerance.max() < 0.02
    assert np.abs(want - other(REF, REWARD, beta)).max() > 0.05
    np.testing.assert_array_less(np.abs(got.mean(0) - want), tolerance)
