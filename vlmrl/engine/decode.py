"""Attention of one new token per row: what a decoding step does, over cached links kept
heads first, so that a step multiplies the cache where it lies.

Rows may stand anywhere: `Lanes` say which row of the shared links a row continues, so
that finished rows can make room for others while a link's keys are still read once for
all the rows behind it.

Axis letters: B query rows, b rows of a link, S its tokens, K key-value heads, R query
heads per key-value head, H head width, q = (B / b) R queries folded onto a link's row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine.attention import merge_parts
from vlmrl.engine.merge import NOTHING, power
from vlmrl.models.api import CacheSegment, NewTokens, SlidingWindow
from vlmrl.types import Array


class Lanes(NamedTuple):
    """Rows as a grid in cache order, places × branches: X lanes."""

    row: Array  # int32[X]: the row in each lane, B where there is none
    of: Array  # int32[B]: the lane of each row


def to_bkth(link: CacheSegment) -> CacheSegment:
    """Keys and values dtype[L, b, S, K, H] → dtype[L, b, K, S, H]."""
    return link._replace(k=jnp.swapaxes(link.k, 2, 3), v=jnp.swapaxes(link.v, 2, 3))


def to_btkh(link: CacheSegment) -> CacheSegment:
    """The inverse of `to_bkth`."""
    return to_bkth(link)


def attend(
    q,
    level: NewTokens,
    links,
    window: SlidingWindow | None = None,
    lanes: Lanes | None = None,
) -> jax.Array:
    """As `attention.attend`, for one token per row and no limits.

    Args:
      q: dtype[B, 1, K, R, H].
      links: (k, v, mask) per link: the shared ones and, last but one, the rows' own
        so far, heads first; last the new token, dtype[B, 1, K, H], which is seen.
      lanes: where rows stand in the shared links; None: in order.
    """
    parts = []
    for i, (k, v, mask) in enumerate(links[:-1]):
        shared = lanes is not None and i < len(links) - 2
        rows = _take(q[:, 0], lanes.row) if shared else q[:, 0]
        near = None
        if window is not None:
            here = window.positions[-1][:, 0]
            here = _take(here, lanes.row) if shared else here
            near = (window.positions[i], here, window.size)
        part = _part(rows, k, v, mask, near)
        if shared:
            part = tuple(jnp.take(x, lanes.of, axis=0, mode="clip") for x in part)
        parts.append(part)
    k, v, _ = links[-1]
    kind = parts[0][0].dtype
    scores = jnp.einsum("bkrh,bkh->bkr", q[:, 0], k[:, 0], preferred_element_type=kind)
    scores = scores * q.shape[-1] ** -0.5
    m = power(scores, v.dtype)
    p = jnp.exp(scores - m)
    own = p.astype(v.dtype).astype(kind)[..., None] * v[:, 0, :, None].astype(kind)
    parts.append((m, p, own))
    return merge_parts(parts).astype(q.dtype)[:, None]


def _take(x, rows):
    return jnp.take(x, rows, axis=0, mode="fill", fill_value=0)


def _part(q, k, v, mask, near):
    """(m, l, o) of one link: float[B, K, R] twice and float[B, K, R, H], as
    `attention.plain` takes them together."""
    rows, heads, rep, width = q.shape
    b = k.shape[0]
    fold = rows // b
    kind = jnp.promote_types(q.dtype, jnp.float32)
    q = jnp.swapaxes(q.reshape(b, fold, heads, rep, width), 1, 2)
    q = q.reshape(b, heads, fold * rep, width)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=kind)
    scores = scores * width**-0.5
    seen = mask[:, None]  # [b, 1 or fold, S]
    if near is not None:
        places, here, size = near
        seen = seen & (here.reshape(b, fold)[..., None] - places[:, None] < size)
        seen = jnp.repeat(seen, rep, axis=1)
    seen = seen[:, None]
    scores = jnp.where(seen, scores, NOTHING)
    m = power(jnp.max(scores, axis=-1), v.dtype)
    p = jnp.where(seen, jnp.exp(scores - m[..., None]), 0)
    o = jnp.einsum("bkqs,bksh->bkqh", p.astype(v.dtype), v, preferred_element_type=kind)

    def back(x):
        x = x.reshape(b, heads, fold, rep, *x.shape[3:])
        return jnp.swapaxes(x, 1, 2).reshape(rows, heads, rep, *x.shape[4:])

    return back(m), back(p.sum(-1)), back(o)
