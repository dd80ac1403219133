"""Attention over a chain equals one dense softmax over all keys, link by link."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from vlmrl.engine.attention import attend
from vlmrl.models.api import Level, Window

K, R, H = 2, 3, 8

# (rows, tokens) of every link; the last one is the level's own.
CHAINS = {
    "alone": [(3, 6)],
    "two levels": [(2, 7), (6, 5)],
    "four levels": [(1, 4), (2, 5), (4, 3), (12, 4)],
    "one query token": [(2, 7), (4, 6), (4, 1)],
}


def case(name, seed=0, dtype=np.float32, limits=True):
    """(q, links, limits) with ragged links, one of them empty and one with a hole."""
    rng = np.random.default_rng(seed)
    shapes = CHAINS[name]
    rows, length = shapes[-1]
    links = []
    for b, size in shapes:
        k, v = rng.normal(size=(2, b, size, K, H)).astype(dtype)
        lengths = rng.integers(1, size + 1, b)
        links.append((k, v, np.arange(size) < lengths[:, None]))
    if len(shapes) > 1:
        links[-2][2][-1] = False  # an empty link
        links[0][2][0] = True
        links[0][2][0, 1:3] = False  # a hole
    q = rng.normal(size=(rows, length, K, R, H)).astype(dtype)
    cuts = [None] * (len(shapes) - 1)
    if limits and cuts:
        cuts[-1] = rng.integers(0, shapes[-2][1] + 1, rows)
        if len(cuts) > 2:
            cuts[0] = rng.integers(1, shapes[0][1] + 1, rows)
    return q, links, tuple(cuts)


def run(function, q, links, limits):
    """(output, gradients of q and of every k and v) of a fixed random read-out."""
    read = np.random.default_rng(9).normal(size=q.shape).astype(q.dtype)

    def value(q, keys, values):
        made = tuple((k, v, m[2]) for k, v, m in zip(keys, values, links, strict=True))
        level = Level(None, None, links[-1][2], limits)
        out = function(q, level, made)
        return (out * read).sum(), out

    keys, values = [x[0] for x in links], [x[1] for x in links]
    both = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(both)(q, keys, values)
    return out, grads


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_softmax_over_all_links(name, dtype):
    with jax.enable_x64(dtype is np.float64):
        limit = 1e-6 if dtype is np.float32 else 1e-14
        q, links, limits = case(name, dtype=dtype)
        out, grads = run(attend, q, links, limits)
        wanted, wanted_grads = run(kit.dense, q, links, limits)
        assert out.dtype == dtype
        np.testing.assert_allclose(out, wanted, atol=2 * limit)
        for found, want in zip(
            jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True
        ):  # q, every k and every v apart
            np.testing.assert_allclose(found, want, atol=20 * limit)
            assert kit.normwise(found, want) < 2 * limit or not np.any(want)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_a_window_counts_positions(size):
    """A chain cut into links of unlike lengths, with padding between them, is one row
    of queries that see `size` keys: their own and those just before."""
    rng = np.random.default_rng(0)
    b, pads, lengths = 2, (3, 0, 2), (5, 6, 4)
    total = sum(lengths)
    q = rng.normal(size=(b, total, K, R, H)).astype(np.float32)
    k, v = rng.normal(size=(2, b, total, K, H)).astype(np.float32)
    steps = np.arange(total)
    seen = (steps[:, None] >= steps) & (steps[:, None] - steps < size)
    scores = np.einsum("btkrh,bskh->btkrs", q, k) / np.sqrt(H)
    weights = np.exp(scores) * seen[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    wanted = np.einsum("btkrs,bskh->btkrh", weights, v)

    links, places, start = [], [], 0
    for pad, length in zip(pads, lengths, strict=True):
        here = slice(start, start + length)
        stretch = [(0, 0), (0, pad)]
        own = np.tile(steps[here], (b, 1))
        mask = np.pad(np.ones((b, length), bool), stretch)
        places.append(np.pad(own, stretch).astype(np.int32))
        k1, v1 = (np.pad(x[:, here], [*stretch, (0, 0), (0, 0)]) for x in (k, v))
        links.append((k1, v1, mask))
        level = Level(None, None, mask)
        mine = np.pad(q[:, here], [*stretch, *[(0, 0)] * 3])
        window = Window(np.int32(size), tuple(places))
        for function in (attend, kit.dense):
            out = function(jnp.asarray(mine), level, links, window)[:, :length]
            np.testing.assert_allclose(out, wanted[:, here], atol=2e-6)
        start += length


def test_keys_that_are_not_seen_do_not_count():
    """Neither masked keys, nor those beyond a limit, nor later own ones: replaced by
    others they leave outputs as they were, bit by bit."""
    q, links, limits = case("four levels", seed=3)
    out, _ = run(attend, q, links, limits)
    changed = []
    for i, (k, v, mask) in enumerate(links):
        hidden = ~mask
        if i < len(limits) and limits[i] is not None:
            most = limits[i].reshape(len(mask), -1).max(1)
            hidden = hidden | (np.arange(mask.shape[1]) >= most[:, None])
        noise = np.where(hidden[..., None, None], 1e4, 0).astype(k.dtype)
        changed.append((k + noise, v + noise, mask))
    again, _ = run(attend, q, changed, limits)
    np.testing.assert_array_equal(out, again)

    k, v, mask = (x.copy() for x in links[-1])
    mask[:] = True
    first, _ = run(attend, q, [*links[:-1], (k, v, mask)], limits)
    k[:, -1], v[:, -1] = 50, 50
    second, _ = run(attend, q, [*links[:-1], (k, v, mask)], limits)
    np.testing.assert_array_equal(first[:, :-1], second[:, :-1])
    assert np.abs(first[:, -1] - second[:, -1]).max() > 1


def test_a_query_that_sees_nothing_is_zero():
    q, links, _ = case("two levels")
    for _, _, mask in links:
        mask[:] = False
    out, grads = run(attend, q, links, ())
    np.testing.assert_array_equal(out, np.zeros_like(q))
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_large_scores_neither_overflow_nor_vanish():
    q, links, limits = case("four levels", seed=1)
    links = [(40 * k, v, m) for k, v, m in links]
    out, grads = run(attend, 40 * q, links, limits)
    wanted, _ = run(kit.dense, 40 * q, links, limits)
    np.testing.assert_allclose(out, wanted, atol=2e-3)  # scores of 10⁴, ulp 10⁻³
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bfloat16_softmax_is_float32():
    q, links, limits = case("four levels", seed=2)
    low = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    rounded = [(*low((k, v)), m) for k, v, m in links]
    out = jax.jit(attend)(low(q), Level(None, None, links[-1][2], limits), rounded)
    assert out.dtype == jnp.bfloat16
    wide = [(*map(np.float32, (k, v)), m) for k, v, m in rounded]
    wanted, _ = run(kit.dense, np.float32(low(q)), wide, limits)
    # Scores and weights are rounded to 8 bits, sums are not.
    np.testing.assert_allclose(np.float32(out), wanted, atol=0.04)
