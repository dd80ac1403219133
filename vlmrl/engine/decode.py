"""Attention of one new token per row: a decoding step over cached segments in the
layout BKTH, so that keys and values are multiplied in place.

Under continuous batching the rows being decoded are any of the cache's branches:
`RowIndex` says which, so that a finished row makes room for another while the keys of a
segment are still read once for all the rows behind it.

Axis letters: B query rows, b rows of a segment, S its tokens, K key-value heads, R
query heads per key-value head, H head width, q = (B / b) R queries of a segment's row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine.attention import merge_parts
from vlmrl.engine.merge import MASKED, round_up_to_power
from vlmrl.models.api import CacheSegment, NewTokens, SlidingWindow
from vlmrl.types import Array


class RowIndex(NamedTuple):
    """Which of a cache's X branches, in its order, the query rows are."""

    row: Array  # int32[X]: the row that is each branch, B where none is
    branch: Array  # int32[B]: the branch that each row is


def to_bkth(segment: CacheSegment) -> CacheSegment:
    """Keys and values dtype[L, B, T, K, H] → dtype[L, B, K, T, H]."""
    return segment._replace(
        k=jnp.swapaxes(segment.k, 2, 3), v=jnp.swapaxes(segment.v, 2, 3)
    )


def to_btkh(segment: CacheSegment) -> CacheSegment:
    """Keys and values dtype[L, B, K, T, H] → dtype[L, B, T, K, H]."""
    return to_bkth(segment)


def attend(
    q,
    new: NewTokens,
    segments,
    window: SlidingWindow | None = None,
    index: RowIndex | None = None,
) -> jax.Array:
    """Compute `attention.attend` for one token per row and no limits.

    Args:
      q: dtype[B, 1, K, R, H].
      segments: (k, v, mask) each: the shared ones and, last but one, the rows' own so
        far, in BKTH; last the new token, dtype[B, 1, K, H], which is visible.
      index: which branches of the shared segments the rows are; None: all, in order.
    """
    parts = []
    for i, (k, v, mask) in enumerate(segments[:-1]):
        indexed = index is not None and i < len(segments) - 2
        queries = _take(q[:, 0], index.row) if indexed else q[:, 0]
        near = None
        if window is not None:
            at = window.positions[-1][:, 0]
            at = _take(at, index.row) if indexed else at
            near = (window.positions[i], at, window.size)
        part = _partial_attention(queries, k, v, mask, near)
        if indexed:
            part = tuple(jnp.take(x, index.branch, axis=0, mode="clip") for x in part)
        parts.append(part)
    k, v, _ = segments[-1]
    kind = parts[0][0].dtype
    scores = jnp.einsum("bkrh,bkh->bkr", q[:, 0], k[:, 0], preferred_element_type=kind)
    scores = scores * q.shape[-1] ** -0.5
    m = round_up_to_power(scores, v.dtype)
    p = jnp.exp(scores - m)
    own = p.astype(v.dtype).astype(kind)[..., None] * v[:, 0, :, None].astype(kind)
    parts.append((m, p, own))
    return merge_parts(parts).astype(q.dtype)[:, None]


def _take(x, rows):
    return jnp.take(x, rows, axis=0, mode="fill", fill_value=0)


def _partial_attention(q, k, v, mask, near):
    """Return (m, l, o) of one segment as `attention.plain` defines them:
    float[B, K, R] twice and float[B, K, R, H]."""
    rows, heads, rep, width = q.shape
    b = k.shape[0]
    branches = rows // b
    kind = jnp.promote_types(q.dtype, jnp.float32)
    q = jnp.swapaxes(q.reshape(b, branches, heads, rep, width), 1, 2)
    q = q.reshape(b, heads, branches * rep, width)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=kind)
    scores = scores * width**-0.5
    visible = mask[:, None]  # [b, 1 or branches, S]
    if near is not None:
        keys, queries, size = near
        distance = queries.reshape(b, branches)[..., None] - keys[:, None]
        visible = jnp.repeat(visible & (distance < size), rep, axis=1)
    visible = visible[:, None]
    scores = jnp.where(visible, scores, MASKED)
    m = round_up_to_power(jnp.max(scores, axis=-1), v.dtype)
    p = jnp.where(visible, jnp.exp(scores - m[..., None]), 0)
    o = jnp.einsum("bkqs,bksh->bkqh", p.astype(v.dtype), v, preferred_element_type=kind)

    def split(x):
        x = x.reshape(b, heads, branches, rep, *x.shape[3:])
        return jnp.swapaxes(x, 1, 2).reshape(rows, heads, rep, *x.shape[4:])

    return split(m), split(p.sum(-1)), split(o)
