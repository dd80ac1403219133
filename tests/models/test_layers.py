"""Layers by themselves, where a family's parity tests do not reach."""

import jax
import numpy as np
import pytest

from vlmrl.models import layers


@pytest.mark.parametrize("block", [4, 5, 16])
def test_attention_in_blocks_is_attention(monkeypatch, block):
    """Values and gradients, also where blocks do not divide the tokens; and the whole
    score matrix is never there."""
    rows, size, heads, width = 2, 21, 3, 4
    rng = np.random.default_rng(0)
    q, k, v, g = rng.normal(size=(4, rows, size, heads, width)).astype(np.float32)
    mask = rng.random((rows, size)) < 0.8

    def both(q, k, v):
        out, back = jax.vjp(lambda *x: layers.full_attention(*x, mask), q, k, v)
        return out, back(g)

    def shapes():
        return str(jax.make_jaxpr(lambda *x: both(*x))(q, k, v))

    whole = f"{rows},{heads},{size},{size}]"
    assert whole in shapes()
    wanted = both(q, k, v)
    monkeypatch.setattr(layers, "QUERIES", block)
    monkeypatch.setattr(layers, "SCORES", 100)
    assert whole not in shapes()
    found = jax.jit(both)(q, k, v)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, wanted
    )
