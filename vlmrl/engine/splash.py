"""Attention over a cache by splash attention, on TPU.

All links of a group become one row of keys, all its branches one row of queries, under
a static mask that is computed inside the kernel (who branches off whom, and causality)
plus segment ids (which tokens are valid). One softmax, so the kernel's own derivative
is the whole one. Pallas kernels are not partitioned by XLA: `shard_map` gives every
device its groups and its heads.

Axis letters: N rows of the first link (groups), B query rows, T query tokens, b rows of
a link, S its tokens, K key-value heads, R query heads per key-value head, H head width;
Q = (B / N) T queries and P = Σ (b / N) S keys of a group.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from vlmrl import sharding
from vlmrl.models.api import NewTokens

LANES = 128  # lengths are padded to multiples of it
BLOCKS = (512, 256, 128)  # of queries and of keys: the largest that divides


class Link(NamedTuple):
    """A link's place in a group's row of keys."""

    begin: int
    rows: int  # of one group
    size: int  # tokens of a row


class Branches(masks._ComputableMask):
    """Query i is token i % T of branch i // T. It sees the rows it continues of every
    link, and its own tokens up to itself."""

    def __init__(self, links: tuple[Link, ...], rows: int, length: int, shape):
        self.key = (links, rows, length, shape)

        def seen(q, k):
            row, token = q // length, q % length
            found = q < 0
            for i, link in enumerate(links):
                at = k - link.begin
                inside = (at >= 0) & (at < link.rows * link.size)
                mine = at // link.size == row // (rows // link.rows)
                here = inside & mine
                if i == len(links) - 1:
                    here = here & (at % link.size <= token)
                found = found | here
            return found

        super().__init__(shape=shape, mask_function=seen)

    def __eq__(self, other):
        return isinstance(other, Branches) and self.key == other.key

    def __hash__(self):
        return hash(self.key)


def why_not(q, links, mesh) -> str | None:
    """What keeps splash from attending for these queries; None: nothing does."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"splash computes in bfloat16 or float32, not {q.dtype}"
    if mesh is None and jax.device_count() > 1:
        return "splash needs the mesh to be laid out over several devices"
    return None


def attend(q, level: NewTokens, links, *, mesh=None, interpret=False) -> jax.Array:
    """As `attention.attend`, without limits and windows; what queries under False of
    `level.mask` get is meaningless (and finite)."""
    keys, values, valid = zip(*links, strict=True)
    run = functools.partial(_groups, interpret=interpret)
    if mesh is not None and mesh.size > 1:
        run = sharding.per_group_and_head(mesh, run, len(keys[0]), q.shape[2])
    return run(q, keys, values, valid, level.mask)


def _groups(q, keys, values, valid, own, *, interpret: bool):
    """The same for the groups and heads of one device."""
    groups = len(keys[0])
    rows, length, heads, rep, width = len(q) // groups, *q.shape[1:]

    def row(x, size):
        """[b, S, ...] → [N, (b / N) S, ...], padded to `size` tokens"""
        x = x.reshape(groups, -1, *x.shape[2:])
        return jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    def cache(parts, size):
        joined = [row(x, len(x) // groups * x.shape[1]) for x in parts]
        return row(jnp.concatenate(joined, axis=1), size)

    places, begin = [], 0
    for k in keys:
        places.append(Link(begin, len(k) // groups, k.shape[1]))
        begin += places[-1].rows * places[-1].size
    queries = _round(rows * length)
    total = _round(begin)
    mask = Branches(tuple(places), rows, length, (queries, total))
    blocks = _block(queries), _block(total)
    made = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * (heads * rep)),
        block_sizes=kernel.BlockSizes(
            *(*blocks, blocks[1]), *(*blocks, blocks[1]), *blocks
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = kernel.SegmentIds(
        row(own, queries).astype(jnp.int32), cache(valid, total).astype(jnp.int32)
    )

    def to_bkth(x):  # [N, tokens, heads, H] → [N, heads, tokens, H]
        return jnp.swapaxes(x, 1, 2)

    flat = row(q * width**-0.5, queries).astype(q.dtype)
    flat = flat.reshape(groups, queries, heads * rep, width)
    out = jax.vmap(made)(
        to_bkth(flat),
        to_bkth(cache(keys, total)),
        to_bkth(cache(values, total)),
        segments,
    )
    out = to_bkth(out)[:, : rows * length]
    return out.reshape(q.shape)


def _round(size: int) -> int:
    return -(-size // LANES) * LANES


def _block(size: int) -> int:
    return next(b for b in BLOCKS if size % b == 0)
