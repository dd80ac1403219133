"""Layers by themselves, where a family's parity tests do not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlmrl import sharding
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


def test_what_rematerialised_layers_keep_is_cut_over_the_tensor_axis():
    """The same gradients, and of every layer's carry a device keeps its part."""
    depth, rows, width, wide = 6, 512, 64, 16
    mesh = sharding.make_mesh(data=2, tensor=4)
    rng = np.random.default_rng(0)

    def put(shape, *spec):
        x = rng.normal(size=shape).astype(np.float32)
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    x = put((rows, 8, width), "data")
    weights = (
        0.1 * put((depth, width, wide), None, None, "tensor"),
        0.1 * put((depth, wide, width), None, "tensor", None),
    )

    def body(x, w, _):
        return x + jnp.tanh(x @ w[0]) @ w[1], None

    def made(over):
        def loss(weights, x):
            how = {"remat": "nothing_saveable", "mesh": over}
            return jnp.square(layers.scan_layers(body, x, weights, **how)[0]).sum()

        return jax.jit(jax.value_and_grad(loss)).lower(weights, x).compile()

    whole, cut = made(None), made(mesh)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        cut(weights, x),
        whole(weights, x),
    )
    kept = depth * x.nbytes / 2  # on each half of the data
    before, after = (m.memory_analysis().temp_size_in_bytes for m in (whole, cut))
    assert before - after > 0.7 * 3 / 4 * kept
