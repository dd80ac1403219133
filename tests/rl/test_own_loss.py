"""Adding a loss, as the README shows it: under 15 lines, nothing else changes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.rl.losses import clipped, policy_objective

# -- README: begin
from vlmrl.rl.losses import Policy, aggregate  # isort: skip


def squared(logprobs, old_logprobs, advantages, mask, *, tau=1.0, **how) -> Policy:
    """Regression onto the advantage: (tau · log(π / π_old) − A)² / 2 per token."""
    seen = clipped(logprobs, old_logprobs, advantages, mask)
    move = jnp.where(mask, logprobs - old_logprobs, 0)
    values = jnp.square(tau * move - advantages[:, None]) / 2
    return seen._replace(loss=aggregate(values, mask, **how))


# loss={"surrogate": squared, "tau": 0.5, "aggregation": "sequence"}
# -- README: end


def batch():
    rng = np.random.default_rng(0)
    old = -rng.exponential(size=(4, 5)).astype(np.float32)
    new = old + 0.1 * rng.normal(size=old.shape).astype(np.float32)
    mask = np.arange(5) < np.array([5, 3, 1, 2])[:, None]
    return new, old, rng.normal(size=4).astype(np.float32), mask


def test_it_is_under_fifteen_lines():
    lines = inspect.getsource(inspect.getmodule(batch)).split("# -- README: ")[1]
    assert len([line for line in lines.splitlines()[1:] if line.strip()]) < 15


def test_it_trains_through_the_same_objective():
    new, old, a, mask = batch()
    extra = {"old_logprobs": old, "advantages": a}

    @jax.jit
    @jax.value_and_grad
    def step(new):
        how = {"surrogate": squared, "tau": 0.5, "aggregation": "sequence"}
        return policy_objective(new, -new, mask, extra, entropy_weight=0.0, **how)[
            0
        ].value

    value, grad = step(new)
    weight = mask / mask.sum(-1, keepdims=True) / 4
    error = np.where(mask, 0.5 * (new - old) - a[:, None], 0)
    np.testing.assert_allclose(value, (weight * error**2 / 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, weight * 0.5 * error, atol=1e-6)


def test_on_policy_it_starts_as_reinforce():
    """At ratio 1 its gradient is −tau · A, the policy gradient."""
    _, old, a, mask = batch()
    extra = {"old_logprobs": old, "advantages": a}

    def loss(surrogate):
        def f(new):
            return policy_objective(new, -new, mask, extra, surrogate=surrogate)[0].sum

        return jax.grad(f)(old)

    np.testing.assert_allclose(loss(squared), loss(clipped), atol=1e-6)
