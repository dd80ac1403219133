"""Attention over a prefix cache equals one dense softmax, whichever back end."""

import ast
import functools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from vlmrl.engine import attention, blockwise, flash, splash
from vlmrl.engine.attention import attend
from vlmrl.engine.merge import Kernel, KeyMask
from vlmrl.models.api import NewTokens, SlidingWindow
from vlmrl.types import UserError

K, R, H = 2, 3, 8

# (rows, tokens) of every segment; the last one is the new tokens' own.
SHAPES = {
    "alone": [(3, 6)],
    "two segments": [(2, 7), (6, 5)],
    "four segments": [(1, 4), (2, 5), (4, 3), (12, 4)],
    "one query token": [(2, 7), (4, 6), (4, 1)],
}


def case(name, seed=0, dtype=np.float32, limits=True):
    """(q, segments, limits) with ragged segments, one empty, one with a hole."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES[name]
    rows, length = shapes[-1]
    segments = []
    for b, size in shapes:
        k, v = rng.normal(size=(2, b, size, K, H)).astype(dtype)
        lengths = rng.integers(1, size + 1, b)
        segments.append((k, v, np.arange(size) < lengths[:, None]))
    if len(shapes) > 1:
        segments[-2][2][-1] = False  # an empty segment
        segments[0][2][0] = True
        segments[0][2][0, 1:3] = False  # a hole
    q = rng.normal(size=(rows, length, K, R, H)).astype(dtype)
    cuts = [None] * (len(shapes) - 1)
    if limits and cuts:
        cuts[-1] = rng.integers(0, shapes[-2][1] + 1, rows)
        if len(cuts) > 2:
            cuts[0] = rng.integers(1, shapes[0][1] + 1, rows)
    return q, segments, tuple(cuts)


def run(function, q, segments, limits):
    """(output, gradients of q and of every k and v) of a fixed random read-out."""
    read = np.random.default_rng(9).normal(size=q.shape).astype(q.dtype)

    def value(q, keys, values):
        made = tuple(
            (k, v, m[2]) for k, v, m in zip(keys, values, segments, strict=True)
        )
        new = NewTokens(None, None, segments[-1][2], limits)
        out = function(q, new, made)
        return (out * read).sum(), out

    keys, values = [x[0] for x in segments], [x[1] for x in segments]
    both = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(both)(q, keys, values)
    return out, grads


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that divide no length of SHAPES."""
    monkeypatch.setattr(blockwise, "QUERIES", 4)
    monkeypatch.setattr(blockwise, "KEYS", 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("backend", "name", "dtype"),
    [("plain", n, d) for n in SHAPES for d in (np.float32, np.float64)]
    + [("blockwise", n, np.float32) for n in ("alone", "four segments")]
    + [("blockwise", "four segments", np.float64)],
)
def test_one_softmax_over_all_segments(backend, name, dtype):
    attend = attention.choose(backend)
    with jax.enable_x64(dtype is np.float64):
        limit = 1e-6 if dtype is np.float32 else 1e-14
        q, segments, limits = case(name, dtype=dtype)
        out, grads = run(attend, q, segments, limits)
        wanted, wanted_grads = run(kit.dense, q, segments, limits)
        assert out.dtype == dtype
        np.testing.assert_allclose(out, wanted, atol=2 * limit)
        for found, want in zip(
            jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True
        ):  # q, every k and every v apart
            np.testing.assert_allclose(found, want, atol=20 * limit)
            assert kit.normwise(found, want) < 2 * limit or not np.any(want)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_a_window_counts_positions(size):
    """A row cut into segments of unlike lengths, with padding between them: its queries
    see `size` keys, their own and those just before."""
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

    segments, places, start = [], [], 0
    for pad, length in zip(pads, lengths, strict=True):
        here = slice(start, start + length)
        stretch = [(0, 0), (0, pad)]
        own = np.tile(steps[here], (b, 1))
        mask = np.pad(np.ones((b, length), bool), stretch)
        places.append(np.pad(own, stretch).astype(np.int32))
        k1, v1 = (np.pad(x[:, here], [*stretch, (0, 0), (0, 0)]) for x in (k, v))
        segments.append((k1, v1, mask))
        new = NewTokens(None, None, mask)
        mine = np.pad(q[:, here], [*stretch, *[(0, 0)] * 3])
        window = SlidingWindow(np.int32(size), tuple(places))
        for function in (attend, attention.choose("blockwise"), kit.dense):
            out = function(jnp.asarray(mine), new, segments, window)[:, :length]
            np.testing.assert_allclose(out, wanted[:, here], atol=2e-6)
        start += length


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_keys_that_are_not_seen_do_not_count(backend):
    """Neither masked keys, nor those beyond a limit, nor later own ones: replaced by
    others they leave outputs as they were, bit by bit."""
    attend = attention.choose(backend)
    q, segments, limits = case("four segments", seed=3)
    out, _ = run(attend, q, segments, limits)
    changed = []
    for i, (k, v, mask) in enumerate(segments):
        hidden = ~mask
        if i < len(limits) and limits[i] is not None:
            most = limits[i].reshape(len(mask), -1).max(1)
            hidden = hidden | (np.arange(mask.shape[1]) >= most[:, None])
        noise = np.where(hidden[..., None, None], 1e4, 0).astype(k.dtype)
        changed.append((k + noise, v + noise, mask))
    again, _ = run(attend, q, changed, limits)
    np.testing.assert_array_equal(out, again)

    k, v, mask = (x.copy() for x in segments[-1])
    mask[:] = True
    first, _ = run(attend, q, [*segments[:-1], (k, v, mask)], limits)
    k[:, -1], v[:, -1] = 50, 50
    second, _ = run(attend, q, [*segments[:-1], (k, v, mask)], limits)
    np.testing.assert_array_equal(first[:, :-1], second[:, :-1])
    assert np.abs(first[:, -1] - second[:, -1]).max() > 1


@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_a_query_that_sees_nothing_is_zero(backend):
    attend = attention.choose(backend)
    q, segments, _ = case("two segments")
    for _, _, mask in segments:
        mask[:] = False
    out, grads = run(attend, q, segments, ())
    np.testing.assert_array_equal(out, np.zeros_like(q))
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_large_scores_neither_overflow_nor_vanish(backend):
    attend = attention.choose(backend)
    q, segments, limits = case("four segments", seed=1)
    segments = [(40 * k, v, m) for k, v, m in segments]
    out, grads = run(attend, 40 * q, segments, limits)
    wanted, _ = run(kit.dense, 40 * q, segments, limits)
    np.testing.assert_allclose(out, wanted, atol=2e-3)  # scores of 10⁴, ulp 10⁻³
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("backend", ["plain", "blockwise"])
def test_bfloat16_softmax_is_float32(backend):
    attend = attention.choose(backend)
    q, segments, limits = case("four segments", seed=2)
    low = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    rounded = [(*low((k, v)), m) for k, v, m in segments]
    out = jax.jit(attend)(
        low(q), NewTokens(None, None, segments[-1][2], limits), rounded
    )
    assert out.dtype == jnp.bfloat16
    wide = [(*map(np.float32, (k, v)), m) for k, v, m in rounded]
    wanted, _ = run(kit.dense, np.float32(low(q)), wide, limits)
    # Scores and weights are rounded to 8 bits, sums are not.
    np.testing.assert_allclose(np.float32(out), wanted, atol=0.04)


# -- the kernels of platforms that are not here ----------------------------------------


def valid_first(name, **more):
    """A case whose valid keys come first, as cuDNN wants them; no limits."""
    q, segments, _ = case(name, limits=False, **more)
    segments = [(k, v, -np.sort(-m.astype(int), axis=1) > 0) for k, v, m in segments]
    return q, segments


def one_segment(q, k, v, mask, own, lse=None):
    """(probabilities under `lse`, or under the segment's own, which is returned)."""
    valid = mask.valid.sum(-1)
    keep = (jnp.arange(k.shape[1]) < valid[:, None])[:, None]
    if own:
        keep = keep & jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    keep = keep[:, :, None, None]
    s = jnp.einsum("bqkrh,bskh->bqkrs", q, k) * q.shape[-1] ** -0.5
    s = jnp.where(keep, s, -1e30)
    if lse is None:
        lse = jax.nn.logsumexp(s, axis=-1)
    return jnp.where(keep, jnp.exp(s - lse[..., None]), 0), lse


def stand_in_forward(q, k, v, mask, own):
    p, lse = one_segment(q, k, v, mask, own)
    return jnp.einsum("bqkrs,bskh->bqkrh", p, v), lse


def stand_in_backward(q, k, v, mask, own, out, lse, g):
    """What a flash kernel computes from the output and log-sum-exp it is given."""
    p, _ = one_segment(q, k, v, mask, own, lse)
    dp = jnp.einsum("bqkrh,bskh->bqkrs", g, v)
    ds = p * (dp - (out * g).sum(-1)[..., None]) * q.shape[-1] ** -0.5
    return (
        jnp.einsum("bqkrs,bskh->bqkrh", ds, k),
        jnp.einsum("bqkrs,bqkrh->bskh", ds, q),
        jnp.einsum("bqkrs,bqkrh->bskh", p, g),
    )


@pytest.mark.parametrize("name", ["two segments", "four segments"])
def test_a_merge_of_kernels_has_the_gradients_of_the_whole(name, monkeypatch):
    """Dispatch, folding and the merge as cuDNN is driven, with a kernel in its place
    that keeps its contract: (out, lse) forward, the whole's out and lse backward."""
    monkeypatch.setattr(flash, "KERNEL", Kernel(stand_in_forward, stand_in_backward))
    monkeypatch.setattr(flash, "unsupported", lambda q: None)
    q, segments = valid_first(name, seed=4)
    out, grads = run(attention.choose("cudnn"), q, segments, ())
    wanted, wanted_grads = run(kit.dense, q, segments, ())
    np.testing.assert_allclose(out, wanted, atol=2e-6)
    for found, want in zip(*map(jax.tree.leaves, (grads, wanted_grads)), strict=True):
        assert kit.normwise(found, want) < 2e-6 or not np.any(want)


def test_a_segments_own_gradient_would_be_wrong():
    """What the merge is for: each kernel's own backward pass, given its segment's out
    and lse, is far off, though the values are right."""

    @jax.custom_vjp
    def alone(q, k, v, seen):
        return stand_in_forward(q, k, v, seen, False)

    def forward(q, k, v, seen):
        out, lse = alone(q, k, v, seen)
        return (out, lse), (q, k, v, seen, out, lse)

    def backward(kept, g):
        q, k, v, seen, out, lse = kept
        return *stand_in_backward(q, k, v, seen, False, out, lse, g[0]), None

    alone.defvjp(forward, backward)
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 5, K, R, H)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 1, 6, K, H)).astype(np.float32)
    read = rng.normal(size=q.shape).astype(np.float32)
    seen = KeyMask(np.ones((1, 6), bool), None, None)

    def naive(q):
        parts = [alone(q, k[i], v[i], seen) for i in range(2)]
        total = jnp.logaddexp(parts[0][1], parts[1][1])
        mixed = sum(o * jnp.exp(lse - total)[..., None] for o, lse in parts)
        return (mixed * read).sum()

    def whole(q):
        segment = one_segment(q, np.concatenate(k, 1), None, twice, False)[0]
        mixed = jnp.einsum("bqkrs,bskh->bqkrh", segment, np.concatenate(v, 1))
        return (mixed * read).sum()

    twice = KeyMask(np.ones((1, 12), bool), None, None)
    wanted, wanted_grad = jax.value_and_grad(whole)(q)
    found, grad = jax.value_and_grad(naive)(q)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert kit.normwise(grad, wanted_grad) > 0.05


@pytest.mark.parametrize("name", ["four segments"])
def test_splash_in_its_interpreter(name):
    """The kernel itself, run step by step without a TPU, gradients included."""
    q, segments, _ = case(name, limits=False)
    mask = segments[-1][2]

    def read(function):
        def masked(q, new, segments):  # what invalid queries get means nothing
            out = function(q, new, segments)
            return jnp.where(mask[..., None, None, None], out, 0)

        return masked

    out, grads = run(read(attention.choose("splash", interpret=True)), q, segments, ())
    wanted, wanted_grads = run(read(kit.dense), q, segments, ())
    np.testing.assert_allclose(out, wanted, atol=2e-6)
    for found, want in zip(*map(jax.tree.leaves, (grads, wanted_grads)), strict=True):
        assert kit.normwise(found, want) < 2e-6 or not np.any(want)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_cudnn_on_a_gpu(name):
    q, segments = valid_first(name)
    low = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    segments = [(*low((k, v)), m) for k, v, m in segments]
    out, grads = run(attention.choose("cudnn"), low(q), segments, ())
    wide = [(*map(np.float32, (k, v)), m) for k, v, m in segments]
    wanted, wanted_grads = run(kit.dense, np.float32(low(q)), wide, ())
    np.testing.assert_allclose(np.float32(out), wanted, atol=0.04)
    for found, want in zip(*map(jax.tree.leaves, (grads, wanted_grads)), strict=True):
        assert kit.normwise(np.float32(found), want) < 0.03 or not np.any(want)


def test_cudnn_is_given_shapes_it_takes():
    """Traced without a GPU: shapes and dtypes of the two primitives, both ways."""
    like = jax.ShapeDtypeStruct
    q = like((6, 5, 2, 3, 16), jnp.bfloat16)
    segments = [like((b, s, 2, 16), jnp.bfloat16) for b, s in ((2, 7), (6, 5))]
    masks = [like((b, s), bool) for b, s in ((2, 7), (6, 5))]

    def loss(q, segments, masks):
        made = [(k, k, m) for k, m in zip(segments, masks, strict=True)]
        new = NewTokens(None, None, masks[-1])
        return attention.choose("cudnn")(q, new, made).astype(jnp.float32).sum()

    grads = jax.eval_shape(jax.grad(loss, argnums=(0, 1)), q, segments, masks)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grads) == jax.tree.map(
        lambda x: (x.shape, x.dtype), (q, segments)
    )


# -- the choice ------------------------------------------------------------------------


def picked(monkeypatch, platform, q, new, sizes, window=None, mesh=None):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    segments = [(np.empty((1, s, K, H)), None, None) for s in sizes]
    return attention._choose_automatically(q, new, segments, window, mesh)


def test_what_is_chosen_where(monkeypatch):
    like = jax.ShapeDtypeStruct
    long, short = (like((8, t, K, R, H), jnp.bfloat16) for t in (256, 4))
    new = NewTokens(None, None, None)
    cut = new._replace(limits=(np.zeros(8, np.int32),))
    sizes, few = (4096, 256), (16, 4)
    cases = [
        ("cpu", long, new, sizes, "blockwise"),
        ("cpu", short, new, few, "plain"),
        ("gpu", long, new, sizes, "cudnn"),
        ("gpu", like(long.shape, jnp.float32), new, sizes, "blockwise"),
        ("gpu", long, cut, sizes, "blockwise"),
        ("gpu", like((8, 1, K, R, H), jnp.bfloat16), new, sizes, "plain"),
        ("tpu", long, new, sizes, "splash"),
        ("tpu", long, cut, sizes, "blockwise"),
        ("tpu", like(long.shape, jnp.float64), new, sizes, "blockwise"),
    ]  # fmt: skip
    for platform, q, which, lengths, wanted in cases:
        found = picked(monkeypatch, platform, q, which, lengths)
        assert found == wanted, (platform, q, which.limits)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert "mesh" in splash.unsupported(long, None)


def test_a_forced_back_end_says_why_it_cannot():
    with pytest.raises(UserError, match="expected one of auto, plain, .* got 'flash'"):
        attention.choose("flash")
    q, segments = valid_first("two segments")
    with pytest.raises(UserError, match="cudnn was asked for, but .* got float32"):
        attention.choose("cudnn")(q, NewTokens(None, None, segments[-1][2]), segments)


def test_no_score_matrix_exists_whole():
    """A 7B decoder's heads, 4,096 queries on 4,096 keys: nothing in the compiled
    program, forward or backward, is a tenth of the score matrix."""
    like, (length, heads, rep, width) = jax.ShapeDtypeStruct, (4096, 4, 7, 128)
    q = like((1, length, heads, rep, width), jnp.bfloat16)
    k = like((1, length, heads, width), jnp.bfloat16)
    mask = like((1, length), bool)

    def loss(q, k, v, mask):
        return attend(q, NewTokens(None, None, mask), [(k, v, mask)]).sum()

    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, mask)
    sizes = [
        np.prod([int(n) for n in dims.split("x")[:-1]])
        for dims in re.findall(r"tensor<((?:\d+x)+)", lowered.as_text())
    ]
    assert max(sizes) < 0.1 * length**2 * heads * rep


# -- private modules of JAX ------------------------------------------------------------


def test_private_modules_are_imported_where_their_back_end_is_chosen():
    """By no statement at a module's head; jax itself imports some of them."""
    for path in Path("vlmrl").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any("jax._src" in n or "splash_att" in n for n in names), path


@pytest.mark.parametrize(
    ("module", "load"),
    [
        ("jax._src.cudnn.fused_attention_stablehlo", flash._cudnn),
        ("jax.experimental.pallas.ops.tpu.splash_attention", splash._library),
    ],
)
def test_a_jax_without_them_is_refused_in_one_line(monkeypatch, module, load):
    monkeypatch.setitem(sys.modules, module, None)
    parent, _, name = module.rpartition(".")
    if parent in sys.modules:
        monkeypatch.delattr(sys.modules[parent], name, raising=False)
    with pytest.raises(UserError, match="in jax 0.10 to 0.12, got .* install") as error:
        load.__wrapped__()
    assert "\n" not in str(error.value)
