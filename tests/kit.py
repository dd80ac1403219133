"""Toys for hermetic tests: a random model of the tiny architecture, a scripted model, a
processor, scenes; and plain reference implementations of the engine.

The tokenizer and the image settings are those of the shipped tiny model; the weights
are random and smaller, so that an engine test takes seconds.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import perturb
from vlmrl.data import scenes
from vlmrl.engine.logprobs import logits
from vlmrl.engine.prefix_cache import PrefixCache, embed_group
from vlmrl.models import qwen2_5_vl, registry
from vlmrl.models.api import CacheSegment, Model
from vlmrl.prompts import styles, tokens
from vlmrl.types import Group, Tokens

BUCKETS = tokens.Buckets(prefix=(112,), branch=(96,), windows=(4,))


@functools.cache
def processor() -> tokens.Processor:
    return tokens.load_processor(registry.TINY)


def config() -> dict:
    """Return `config.json` of the toy: two layers of each tower, half the widths."""
    raw = json.loads((registry.TINY / "config.json").read_text())
    text = dict(raw["text_config"], num_hidden_layers=2, intermediate_size=64)
    text.update(hidden_size=48, num_attention_heads=4, num_key_value_heads=2)
    text["rope_parameters"] = dict(text["rope_parameters"], mrope_section=[2, 2, 2])
    vision = dict(raw["vision_config"], depth=2, hidden_size=32, intermediate_size=48)
    vision.update(fullatt_block_indexes=[1], out_hidden_size=48)
    return {**raw, "text_config": text, "vision_config": vision}


@functools.cache
def model() -> Model:
    return qwen2_5_vl.model(config())


@functools.cache
def params(dtype=jnp.float32, spread: float = 20.0):
    """Return random weights, none of them zero. The embedding (also the head) is scaled
    up so that logits are as far apart as a trained model's, and the layers' outputs as
    well, or the model would repeat every token."""
    plain = model().init(jax.random.key(0), dtype)
    keys = jax.random.split(jax.random.key(1), len(plain))
    noisy = {
        n: p + 0.05 * jax.random.normal(k, p.shape, dtype) if "bias" in n else p
        for (n, p), k in zip(plain.items(), keys, strict=True)
    }
    louder = {"text.embed": spread, "text.layers.o": 8.0, "text.layers.down": 8.0}
    return {n: p * louder.get(n, 1.0) for n, p in noisy.items()}


@functools.cache
def examples(n: int = 4, split: str = "test"):
    return tuple(scenes.suite(split, n))


def encoded(example, condition: str = "base") -> tokens.Encoded:
    """Return a prompt of the tiny style as token ids with its images."""
    changed = perturb.apply(example, condition)
    return tokens.encode(processor(), styles.build(changed, "tiny"))


def group(n: int = 2, conditions=("base",), buckets=BUCKETS):
    """Return a group of n scenes, each under the conditions."""
    rows = [[encoded(e, c) for c in conditions] for e in examples(n)]
    return tokens.group(rows, processor().geometry, buckets)


def to64(tree):
    """Cast float32 leaves to float64; needs jax_enable_x64."""
    return jax.tree.map(
        lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree
    )


# -- plain references ------------------------------------------------------------------


def dense(q, new, segments, window=None):
    """Compute what `engine.attention.attend` must equal: every query row gets a copy of
    all its keys in one array, and one dense softmax; zero where it sees none."""
    rows, length = q.shape[:2]
    keys, values, masks = [], [], []
    for i, (k, v, mask) in enumerate(segments):
        causal, branches = i == len(segments) - 1, rows // k.shape[0]
        visible = jnp.repeat(mask, branches, 0)[:, None]
        visible = jnp.broadcast_to(visible, (rows, length, k.shape[1]))
        if causal:
            visible = visible & jnp.tril(jnp.ones((length, length), bool))
        elif i < len(new.limits) and new.limits[i] is not None:
            visible = (
                visible & (jnp.arange(k.shape[1]) < new.limits[i][:, None])[:, None]
            )
        if window is not None:
            back = jnp.repeat(window.positions[i], branches, 0)[:, None]
            visible = visible & (window.positions[-1][:, :, None] - back < window.size)
        keys.append(jnp.repeat(k, branches, 0))
        values.append(jnp.repeat(v, branches, 0))
        masks.append(visible)
    keys, values = (jnp.concatenate(x, axis=1) for x in (keys, values))
    masks = jnp.concatenate(masks, axis=-1)[:, :, None, None]
    scores = jnp.einsum("btkrh,bskh->btkrs", q, keys) / np.sqrt(q.shape[-1])
    scores = jnp.where(
        masks, scores, jnp.where(masks.any(-1, keepdims=True), -jnp.inf, 0)
    )
    weights = jnp.where(masks, jax.nn.softmax(scores, axis=-1), 0)
    return jnp.einsum("btkrs,bskh->btkrh", weights, values)


def row_logits(model: Model, params, rows: Group):
    """Return raw logits after every token of ordinary rows, float[B, S, V]: one
    segment, dense attention, no cache and no chunks."""
    (hidden,), _ = model.layers(params, embed_group(model, params, rows), (), dense)
    return logits(hidden, model.head(params))


def ordinary(group: Group) -> Group:
    """Return every branch of a group as a row of its own, with prefix and images."""
    prefix, branches = (
        jax.tree.map(np.asarray, t) for t in (group.prefix, group.branches)
    )
    count = len(branches.ids)
    branches_each = count // len(prefix.ids)
    rows = []
    for r in range(count):
        parts = [(prefix, r // branches_each), (branches, r)]
        valid = [(t, i, t.mask[i]) for t, i in parts]
        rows.append(
            tokens.Encoded(
                np.concatenate([t.ids[i][m] for t, i, m in valid]),
                np.concatenate([t.positions[i][:, m] for t, i, m in valid], axis=1),
                np.concatenate([t.image[i][m] for t, i, m in valid]),
                (),
                "",
            )
        )
    width = prefix.ids.shape[1] + branches.ids.shape[1]
    vision = jax.tree.map(lambda x: np.repeat(x, branches_each, axis=0), group.vision)
    return Group(padded(rows, width), vision, None)


def padded(rows, width: int) -> Tokens:
    """Return token rows (`Encoded`) in one array, valid tokens first."""
    out = Tokens(
        np.zeros((len(rows), width), np.int32),
        np.zeros((len(rows), 3, width), np.int32),
        np.zeros((len(rows), width), bool),
        np.full((len(rows), width), -1, np.int32),
    )
    for i, row in enumerate(rows):
        n = len(row.ids)
        out.ids[i, :n], out.positions[i, :, :n] = row.ids, row.positions
        out.mask[i, :n], out.image[i, :n] = True, row.image
    return out


def branch_logprobs(raw, group: Group, temperature=1.0, banned=None):
    """Return log-probs of branch tokens, float[B, T], from the `row_logits` of
    `ordinary(group)`; 0 on padding."""
    if banned is not None:
        raw = jnp.where(banned, -jnp.inf, raw)
    logp = jax.nn.log_softmax(raw / temperature, axis=-1)
    each = len(group.branches.ids) // len(group.prefix.ids)
    start = jnp.repeat(group.prefix.mask.sum(-1), each)
    at = start[:, None] - 1 + jnp.arange(group.branches.ids.shape[1])
    logp = jnp.take_along_axis(logp, at[..., None], axis=1)
    logp = jnp.take_along_axis(
        logp, jnp.asarray(group.branches.ids)[..., None], axis=-1
    )
    return jnp.where(group.branches.mask, logp[..., 0], 0)


def scripted(table) -> tuple[Model, dict, PrefixCache]:
    """Return a model whose raw logits after the token at position p of the r-th prompt
    are table[r, p], whatever was read; float32[N, W, V].

    Returns the model, its params and a cache of N prompts of one token each.
    """
    table = jnp.asarray(table, jnp.float32)
    count, width, vocab = table.shape

    def embed(params, tokens, features=None, dtype=None):
        return params["table"][tokens.positions[:, 0]]

    def layers(params, new_tokens, cached, attend, **options):
        def segment(new):
            zeros = jnp.zeros((1, *new.mask.shape, 1, 1), jnp.float32)
            return CacheSegment(zeros, zeros, new.mask, new.positions[:, 0])

        return tuple(v.x for v in new_tokens), tuple(map(segment, new_tokens))

    def head(params):
        return jnp.eye(vocab)

    params = {"table": table.reshape(-1, vocab)}
    model = Model("scripted", None, {}, None, None, embed, layers, head)
    zeros = jnp.zeros((1, count, 1, 1, 1), jnp.float32)
    starts = jnp.arange(count, dtype=jnp.int32) * width
    segment = CacheSegment(zeros, zeros, jnp.ones((count, 1), bool), starts[:, None])
    return model, params, PrefixCache((segment,), table[:, 0], starts + 1)


def normwise(actual, expected) -> float:
    """Return |actual − expected| / |expected|, 2-norms."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-300)
