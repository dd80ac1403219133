"""The engine's laws: branches of a group are ordinary rows; its prefix is paid once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from vlmrl.engine import prefix_cache
from vlmrl.engine.score import completions, score
from vlmrl.models import qwen2_5_vl
from vlmrl.prompts import tokens
from vlmrl.types import Group, Rollout

CONDITIONS = ("base", "wrong_caption", "wrong_think")
DTYPES = (np.float32, pytest.param(np.float64, marks=pytest.mark.slow))
LIMITS = {np.float32: (1e-5, 1e-5), np.float64: (1e-9, 1e-9)}  # values, gradients
BUCKETS = tokens.Buckets(prefix=(64,), branch=(96,), windows=(4,))


@functools.cache
def group(kind: str) -> Group:
    """Two groups of three branches, all of the same shapes: `prompts`, whose branches
    are the conditions' texts (captions before the question, prefills after it);
    `rollouts`, whose branches are completions of random lengths, one of them empty;
    `images`, whose branches hold the images because their system texts differ; `texts`,
    the same without a single image token."""
    if kind == "prompts":
        return kit.group(2, CONDITIONS, BUCKETS)
    if kind == "rollouts":
        rng = np.random.default_rng(0)
        lengths = np.array([5, 16, 9, 1, 0, 96])
        ids = rng.integers(0, 480, (6, 96)).astype(np.int32)
        mask = np.arange(96) < lengths[:, None]
        nothing = np.zeros((6, 96), np.float32)
        rollout = Rollout(ids, nothing, nothing, mask, np.ones(6, bool))
        return jax.device_get(completions(kit.group(2, buckets=BUCKETS), rollout))
    systems = ["Think.", "Think, then answer.", "Answer in one word."]
    image = "<|vision_start|><|image_pad|><|vision_end|>" if kind == "images" else ""
    rows = []
    for e in kit.examples()[:2]:
        texts = [f"<|im_start|>{s}<|im_end|>\n{image}{e.question}" for s in systems]
        images = e.images if image else ()
        rows.append([tokens.encode(kit.processor(), (t, images)) for t in texts])
    made = tokens.group(rows, kit.processor().geometry, BUCKETS)
    return made if image else made._replace(vision=group("images").vision)


def weighed(logp, mask):
    """A read-out with a different weight on every token."""
    weights = np.random.default_rng(5).normal(size=logp.shape).astype(logp.dtype)
    logp = jnp.where(mask, logp, 0)
    return (logp * weights).sum(), logp


@jax.jit
def scored(params, group):
    """((read-out, log-probs), gradients) by the engine."""

    def loss(params):
        logp, _ = score(kit.model(), params, group)
        return weighed(logp, group.branches.mask)

    return jax.value_and_grad(loss, has_aux=True)(params)


@jax.jit
def alone(params, group, rows):
    """The same of `rows`, the group's branches as ordinary rows."""

    def loss(params):
        raw = kit.row_logits(kit.model(), params, rows)
        return weighed(kit.branch_logprobs(raw, group), group.branches.mask)

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["prompts", "rollouts", "texts", "images"])
def test_a_group_is_its_branches_alone(kind, dtype):
    made = group(kind)
    params = jax.device_get(kit.params())
    if kind == "images":
        assert (made.branches.image >= 0).any() and not (made.prefix.image >= 0).any()
    with jax.enable_x64(dtype is np.float64):
        if dtype is np.float64:
            made, params = kit.to64((made, params))
        (_, logp), grads = scored(params, made)
        (_, wanted), wanted_grads = alone(params, made, kit.ordinary(made))
    assert logp.dtype == dtype
    assert np.abs(wanted).max() > 1  # far from uniform
    value_limit, gradient_limit = LIMITS[dtype]
    np.testing.assert_allclose(logp, wanted, atol=value_limit, rtol=0)
    worst = {n: kit.normwise(grads[n], wanted_grads[n]) for n in grads}
    assert max(worst.values()) < gradient_limit, max(worst.items(), key=lambda x: x[1])
    moved = {n for n, g in wanted_grads.items() if np.any(g)}
    blind = {n for n in grads if n.startswith("vision.")} if kind == "texts" else set()
    assert moved == set(grads) - blind


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(remat="nothing_saveable"), dict(remat="dots_saveable", unroll=True)],
    ids=["scan", "unrolled"],
)
def test_how_layers_are_run_changes_nothing(options):
    """Rematerialised or not, in a scan or in a Python loop: values and gradients."""
    made = group("prompts")

    @jax.jit
    def run(params, made):
        def loss(params):
            logp, _ = score(kit.model(), params, made, **options)
            return weighed(logp, made.branches.mask)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, logp), grads = run(kit.params(), made)
    (_, wanted), wanted_grads = scored(kit.params(), made)
    np.testing.assert_allclose(logp, wanted, atol=1e-5, rtol=0)
    for name, want in wanted_grads.items():
        assert kit.normwise(grads[name], want) < 1e-5, name


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_reports_in_float32():
    """Parameters stay float32; log-probs are off by what eight bits cost."""
    made = group("prompts")

    @jax.jit
    def low(params, made):
        return score(kit.model(), params, made, dtype=jnp.bfloat16)

    @jax.jit
    def hidden(params, made):
        return prefix_cache.prefill(kit.model(), params, made, dtype=jnp.bfloat16)

    logp, entropy = low(kit.params(), made)
    assert logp.dtype == entropy.dtype == jnp.float32
    shapes = jax.eval_shape(hidden, kit.params(), made)
    kinds = {x.dtype for x in (shapes.hidden, shapes.segments[0].k)}
    assert kinds == {jnp.dtype(jnp.bfloat16)}
    (_, wanted), _ = scored(kit.params(), made)
    mask = made.branches.mask
    error = np.abs(np.asarray(logp) - np.asarray(wanted))[mask]
    assert 1e-3 < error.mean() < 0.1 * np.abs(wanted[mask]).mean()


# -- longer caches ---------------------------------------------------------------------


def texts(rows, width, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 480, (rows, width)).astype(np.int32)
    lengths = rng.integers(1, width + 1, rows)
    return ids, np.arange(width) < lengths[:, None]


@jax.jit
def extended(params, group, sample, probe, cut):
    """Log-probs that end a cache of four segments: prefix → condition → sample → probe,
    the probe seeing `cut` tokens of its sample."""
    cache = prefix_cache.prefill(kit.model(), params, group)
    start = jnp.repeat(cache.next, len(sample[0]) // len(cache.next))
    hidden, third = prefix_cache.extend(kit.model(), params, cache, *sample)
    whole = third
    each = len(probe[0]) // len(start)
    third = third._replace(next=jnp.repeat(start, each) + cut)
    limits = (None, None, cut)
    last, fourth = prefix_cache.extend(kit.model(), params, third, *probe, limits)

    def logp(hidden):
        head = kit.model().head(params)
        return jax.nn.log_softmax(hidden @ head.T, axis=-1)

    return logp(hidden), logp(last), logp(whole.hidden), fourth.next


@jax.jit
def plain(params, rows):
    return jax.nn.log_softmax(kit.row_logits(kit.model(), params, rows), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_longer_caches_are_ordinary_rows_too(dtype):
    made = group("prompts")  # 2 prefixes, 6 conditions; 12 samples, 24 probes
    sample, probe = texts(12, 8, 0), texts(24, 4, 1)
    lengths = np.repeat(sample[1].sum(-1), 2)
    cut = (np.random.default_rng(2).integers(0, 9, 24) % (lengths + 1)).astype(np.int32)
    assert (cut == 0).any() and (cut == lengths).any()

    def rows(own):  # [condition row → its text behind]
        count = len(own) // 6
        twice = jax.tree.map(lambda x: np.repeat(x, count, axis=0), first)
        found = []
        for i, ids in enumerate(own):
            keep = twice.mask[i]
            start = twice.positions[i].max() + 1
            ahead = np.tile(start + np.arange(len(ids)), (3, 1))
            found.append(
                tokens.Encoded(
                    np.concatenate([twice.ids[i][keep], ids]),
                    np.concatenate([twice.positions[i][:, keep], ahead], axis=1),
                    np.concatenate([twice.image[i][keep], np.full(len(ids), -1)]),
                    (),
                    "",
                )
            )
        vision = jax.tree.map(lambda x: np.repeat(x, 3 * count, axis=0), made.vision)
        return Group(kit.padded(found, 176), vision, None)

    first = kit.ordinary(made).prefix
    own = [ids[m] for ids, m in zip(*sample, strict=True)]
    parts = zip(np.repeat(np.arange(12), 2), cut, *probe, strict=True)
    probes = [np.concatenate([own[i][:c], ids[m]]) for i, c, ids, m in parts]
    params = jax.device_get(kit.params())
    plain_rows = [rows(own), rows(probes)]
    with jax.enable_x64(dtype is np.float64):
        if dtype is np.float64:
            made, params, plain_rows = kit.to64((made, params, plain_rows))
        found = extended(params, made, sample, probe, cut)
        wanted = [plain(params, r) for r in plain_rows]
    # Log-probs of all ids: those in the tail, near −12, come in steps of 1e-6.
    limits = dict(atol=LIMITS[dtype][0], rtol=LIMITS[dtype][0] / 10)
    starts = np.repeat(first.mask.sum(-1), 2)
    for i in range(12):
        a, n = starts[i], len(own[i])
        want = wanted[0][i, a : a + n]
        np.testing.assert_allclose(found[0][i, :n], want, **limits)
        np.testing.assert_allclose(found[2][i], want[-1], **limits)
    tops = np.repeat(first.positions.max((1, 2)), 4) + 1
    np.testing.assert_array_equal(found[3], tops + cut + probe[1].sum(-1))
    for i in range(24):
        a, n = starts[i // 2] + cut[i], probe[1][i].sum()
        want = wanted[1][i, a : a + n]
        np.testing.assert_allclose(found[1][i, :n], want, **limits)


# -- cost ------------------------------------------------------------------------------

N, S, T, WINDOWS, PATCHES = 2, 192, 64, 4, 16


@functools.cache
def wide_model():
    """Wide enough that matrix products are nearly all of the work."""
    raw = kit.config()
    text = dict(raw["text_config"], hidden_size=384, intermediate_size=1024)
    text.update(num_attention_heads=6, num_key_value_heads=2)
    text["rope_parameters"] = dict(text["rope_parameters"], mrope_section=[8, 12, 12])
    vision = dict(raw["vision_config"], hidden_size=256, intermediate_size=512)
    vision.update(out_hidden_size=384, num_heads=4)
    return qwen2_5_vl.model({**raw, "text_config": text, "vision_config": vision})


def abstract(branches: int):
    """(params, group) as shapes: nothing is computed here."""
    like = jax.ShapeDtypeStruct
    c = wide_model().config

    def text(rows, length):
        ints = like((rows, length), np.int32)
        positions = like((rows, 3, length), np.int32)
        return tokens.Tokens(ints, positions, like((rows, length), bool), ints)

    shape = (N, 1, WINDOWS, PATCHES)
    vision = tokens.Vision(
        like((*shape, c.patch_dim), np.float32),
        like((*shape, 2), np.int32),
        like(shape, bool),
        like((N, 1, WINDOWS * PATCHES // c.merge**2), np.int32),
    )
    params = jax.eval_shape(wide_model().init, jax.random.key(0))
    return params, Group(text(N, S), vision, text(N * branches, T))


def flops(function, branches: int) -> float:
    compiled = jax.jit(function).lower(*abstract(branches)).compile()
    return compiled.cost_analysis()["flops"]


def analytic(branches: int) -> tuple[float, float, float]:
    """(vision, prefix, all branches) multiply-adds of a forward pass, times 2."""
    c, t = wide_model().config, wide_model().config.text
    e, d, h = c.vision_width, t.width, t.head_dim
    patches = N * WINDOWS * PATCHES
    block = 4 * e * e + 3 * e * c.vision_mlp
    keys = [WINDOWS * PATCHES if i in c.full_layers else PATCHES for i in (0, 1)]
    attention = 2 * e * sum(keys)
    wide = c.merge**2 * e
    merger = (wide * wide + wide * d) / c.merge**2
    vision = patches * (c.patch_dim * e + 2 * block + attention + merger)

    per_token = 2 * d * h * (t.heads + t.kv_heads) + 3 * d * t.mlp
    mix = 2 * t.heads * h  # per query and key: scores, and the mean of values
    prefix = N * S * t.layers * (per_token + S * mix)
    rows = N * branches * T
    own = rows * (t.layers * (per_token + (S + T) * mix) + d * t.vocab)
    return 2 * vision, 2 * prefix, 2 * own


def forward(params, group):
    return score(wide_model(), params, group, unroll=True)


def backward(params, group):
    def loss(params):
        return score(wide_model(), params, group, unroll=True)[0].sum()

    return jax.grad(loss)(params)


def test_vision_and_prefix_are_paid_once():
    counted = {g: flops(forward, g) for g in (1, 8)}
    for g, found in counted.items():
        assert abs(found / sum(analytic(g)) - 1) < 0.05, (g, found, analytic(g))
    # What seven more branches add is the branches, and nothing of the prefix.
    more = analytic(8)[2] - analytic(1)[2]
    assert abs((counted[8] - counted[1]) / more - 1) < 0.05


@pytest.mark.slow
def test_vision_and_prefix_are_paid_once_backward_too():
    """A product's backward pass is two products; only the first one, of the patches,
    has no gradient to its input."""
    counted = {g: flops(backward, g) for g in (1, 8)}
    for g, found in counted.items():
        c = wide_model().config
        inputs = 2 * N * WINDOWS * PATCHES * c.patch_dim * c.vision_width
        wanted = 3 * sum(analytic(g)) - inputs
        assert abs(found / wanted - 1) < 0.05, (g, found / wanted)
    more = 3 * (analytic(8)[2] - analytic(1)[2])
    assert abs((counted[8] - counted[1]) / more - 1) < 0.05


def test_the_prefix_is_held_once():
    """Bytes of cached segments: those of the prefix don't grow with the branches."""

    def held(branches):
        params, group = abstract(branches)
        run = functools.partial(prefix_cache.prefill, wide_model())
        return [
            sum(x.size * x.dtype.itemsize for x in (segment.k, segment.v))
            for segment in jax.eval_shape(run, params, group).segments
        ]

    c = wide_model().config.text
    token = 2 * c.layers * c.kv_heads * c.head_dim * 4
    for g in (1, 8):
        assert held(g) == [N * S * token, N * g * T * token]
