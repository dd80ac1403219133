"""Toys for hermetic tests: a random model of the tiny architecture, a scripted model, a
processor, scenes; and the plain references that the engine is held against.

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
    """`config.json` of the toy: two layers of each tower, half the widths."""
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
    """Random weights, none of them at zero. The embedding, which is the head too, is
    scaled up so that logits are as far apart as a trained model's, and what the layers
    add as well, or the model would say every token again."""
    found = model().init(jax.random.key(0), dtype)
    keys = jax.random.split(jax.random.key(1), len(found))
    noisy = {
        n: p + 0.05 * jax.random.normal(k, p.shape, dtype) if "bias" in n else p
        for (n, p), k in zip(found.items(), keys, strict=True)
    }
    louder = {"text.embed": spread, "text.layers.o": 8.0, "text.layers.down": 8.0}
    return {n: p * louder.get(n, 1.0) for n, p in noisy.items()}


@functools.cache
def examples(n: int = 4, split: str = "test"):
    return tuple(scenes.suite(split, n))


def encoded(example, condition: str = "base") -> tokens.Encoded:
    """A prompt of the tiny style, as token ids with its images."""
    changed = perturb.apply(example, condition)
    return tokens.encode(processor(), styles.build(changed, "tiny"))


def group(n: int = 2, conditions=("base",), buckets=BUCKETS):
    """A group of n scenes, each under the conditions."""
    rows = [[encoded(e, c) for c in conditions] for e in examples(n)]
    return tokens.group(rows, processor().geometry, buckets)


def to64(tree):
    """float32 leaves as float64; needs jax_enable_x64."""
    return jax.tree.map(
        lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree
    )


# -- plain references ------------------------------------------------------------------


def dense(q, level, links, window=None):
    """What `engine.attention.attend` must equal: every query row gets a copy of all its
    keys in one array, and one dense softmax; zero where it sees none."""
    rows, length = q.shape[:2]
    keys, values, seen = [], [], []
    for i, (k, v, mask) in enumerate(links):
        own, fold = i == len(links) - 1, rows // k.shape[0]
        look = jnp.repeat(mask, fold, 0)[:, None]
        look = jnp.broadcast_to(look, (rows, length, k.shape[1]))
        if own:
            look = look & jnp.tril(jnp.ones((length, length), bool))
        elif i < len(level.limits) and level.limits[i] is not None:
            look = look & (jnp.arange(k.shape[1]) < level.limits[i][:, None])[:, None]
        if window is not None:
            back = jnp.repeat(window.positions[i], fold, 0)[:, None]
            look = look & (window.positions[-1][:, :, None] - back < window.size)
        keys.append(jnp.repeat(k, fold, 0))
        values.append(jnp.repeat(v, fold, 0))
        seen.append(look)
    keys, values = (jnp.concatenate(x, axis=1) for x in (keys, values))
    seen = jnp.concatenate(seen, axis=-1)[:, :, None, None]
    scores = jnp.einsum("btkrh,bskh->btkrs", q, keys) / np.sqrt(q.shape[-1])
    scores = jnp.where(
        seen, scores, jnp.where(seen.any(-1, keepdims=True), -jnp.inf, 0)
    )
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0)
    return jnp.einsum("btkrs,bskh->btkrh", weights, values)


def row_logits(model: Model, params, rows: Group):
    """Raw logits after every token of ordinary rows, float[B, S, V]: one link, dense
    attention, no cache and no chunks."""
    (hidden,), _ = model.layers(params, embed_group(model, params, rows), (), dense)
    return logits(hidden, model.head(params))


def ordinary(group: Group) -> Group:
    """Every branch of a group as a row of its own, prefix included, images repeated."""
    prefix, branches = (
        jax.tree.map(np.asarray, t) for t in (group.prefix, group.branches)
    )
    count = len(branches.ids)
    fold = count // len(prefix.ids)
    rows = []
    for r in range(count):
        parts = [(prefix, r // fold), (branches, r)]
        keep = [(t, i, t.mask[i]) for t, i in parts]
        rows.append(
            tokens.Encoded(
                np.concatenate([t.ids[i][m] for t, i, m in keep]),
                np.concatenate([t.positions[i][:, m] for t, i, m in keep], axis=1),
                np.concatenate([t.image[i][m] for t, i, m in keep]),
                (),
                "",
            )
        )
    width = prefix.ids.shape[1] + branches.ids.shape[1]
    vision = jax.tree.map(lambda x: np.repeat(x, fold, axis=0), group.vision)
    return Group(padded(rows, width), vision, None)


def padded(rows, width: int) -> Tokens:
    """Token rows (`Encoded`) in one array, valid tokens first."""
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
    """float[B, T]: of every branch token, from `row_logits` of `ordinary(group)`; the
    meaningless ones are 0."""
    if banned is not None:
        raw = jnp.where(banned, -jnp.inf, raw)
    logp = jax.nn.log_softmax(raw / temperature, axis=-1)
    fold = len(group.branches.ids) // len(group.prefix.ids)
    start = jnp.repeat(group.prefix.mask.sum(-1), fold)
    at = start[:, None] - 1 + jnp.arange(group.branches.ids.shape[1])
    logp = jnp.take_along_axis(logp, at[..., None], axis=1)
    logp = jnp.take_along_axis(
        logp, jnp.asarray(group.branches.ids)[..., None], axis=-1
    )
    return jnp.where(group.branches.mask, logp[..., 0], 0)


def scripted(table) -> tuple[Model, dict, PrefixCache]:
    """A model whose raw logits after the token at position p are row p of
    table[r, p] for the r-th prompt, whatever was read; float32[N, W, V].

    Returns the model, its params and a cache of N prompts of one token each.
    """
    table = jnp.asarray(table, jnp.float32)
    count, width, vocab = table.shape

    def embed(params, tokens, features=None, dtype=None):
        return params["table"][tokens.positions[:, 0]]

    def layers(params, levels, cached, attend, **options):
        def segment(level):
            nothing = jnp.zeros((1, *level.mask.shape, 1, 1), jnp.float32)
            return CacheSegment(nothing, nothing, level.mask, level.positions[:, 0])

        return tuple(v.x for v in levels), tuple(map(segment, levels))

    def head(params):
        return jnp.eye(vocab)

    params = {"table": table.reshape(-1, vocab)}
    model = Model("scripted", None, {}, None, None, embed, layers, head)
    nothing = jnp.zeros((1, count, 1, 1, 1), jnp.float32)
    starts = jnp.arange(count, dtype=jnp.int32) * width
    link = CacheSegment(nothing, nothing, jnp.ones((count, 1), bool), starts[:, None])
    return model, params, PrefixCache((link,), table[:, 0], starts + 1)


def normwise(found, wanted) -> float:
    """|found − wanted| / |wanted|, 2-norms."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-300)
