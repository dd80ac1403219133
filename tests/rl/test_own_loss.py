"""Adding a loss, as the README shows it: under 15 lines, nothing else changes."""

import re
from pathlib import Path

import jax
import numpy as np

from vlmrl.rl.losses import clipped, policy_objective

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(SHOWN,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "def squared" in block
)
named: dict = {}
exec(SHOWN, named)
squared = named["squared"]


def batch():
    rng = np.random.default_rng(0)
    old = -rng.exponential(size=(4, 5)).astype(np.float32)
    new = old + 0.1 * rng.normal(size=old.shape).astype(np.float32)
    mask = np.arange(5) < np.array([5, 3, 1, 2])[:, None]
    return new, old, rng.normal(size=4).astype(np.float32), mask


def test_it_is_under_fifteen_lines():
    assert len(SHOWN.strip().splitlines()) < 15


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
