"""Attention of branches over a chain of segments.

Row b of a link with B rows continues row b // (B / b') of an earlier link with b' rows.
Keys and values of a link are read once for all the branches behind it: the query rows
that share a link are folded into its query axis.

Axis letters: B query rows, T query tokens, b rows of a link, S its tokens, K key-value
heads, R query heads per key-value head, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vlmrl.models.api import Level, Window

NOTHING = -1e30  # a score no valid key has; finite, so that an empty link stays finite


def attend(q, level: Level, links, window: Window | None = None) -> jax.Array:
    """softmax(q kᵀ / √H) v over all links at once: one softmax, taken link by link.

    Each link gives its maximum m, its sum l = Σ exp(s − m) and o = Σ exp(s − m) v; the
    whole is Σ exp(m − m*) o / Σ exp(m − m*) l with m* the maximum over links. The last
    link is the level itself, seen causally; earlier ones are seen up to their valid
    length and the level's limits.

    Args:
      q: dtype[B, T, K, R, H].
      level: the level the queries belong to.
      links: (k, v, mask) per link: dtype[b, S, K, H] twice, bool[b, S].
      window: how far back a query sees, in positions; None: all the way.
    Returns:
      dtype[B, T, K, R, H]; zero where a query sees no key.
    """
    rows, length = q.shape[:2]
    parts = []
    for i, (k, v, mask) in enumerate(links):
        own = i == len(links) - 1
        limit = level.limits[i] if not own and i < len(level.limits) else None
        near = window and (window.positions[i], window.positions[-1], window.size)
        parts.append(_part(q, k, v, mask, own, limit, near))
    top = parts[0][0]
    for m, _, _ in parts[1:]:
        top = jnp.maximum(top, m)
    top = jax.lax.stop_gradient(top)
    total, mixed = 0.0, 0.0
    for m, l, o in parts:
        scale = jnp.exp(m - top)
        total = total + scale * l
        mixed = mixed + scale[..., None] * o
    total = jnp.where(total == 0, 1, total)
    return (
        (mixed / total[..., None]).astype(q.dtype).reshape(rows, length, *q.shape[2:])
    )


def _part(q, k, v, mask, own: bool, limit, near):
    """(m, l, o) of one link: float[B, T, K, R] twice and float[B, T, K, R, H]. `near`
    is None or (positions of keys int32[b, S], of queries int32[B, T], window)."""
    rows, length = q.shape[:2]
    b, size = k.shape[:2]
    fold = rows // b
    q = q.reshape(b, fold * length, *q.shape[2:])
    kind = jnp.promote_types(q.dtype, jnp.float32)  # what products are summed in
    scores = jnp.einsum("bqkrh,bskh->bqkrs", q, k, preferred_element_type=kind)
    scores = scores * q.shape[-1] ** -0.5
    seen = mask[:, None, :]
    if own:
        steps = jnp.arange(length)
        seen = seen & (steps[:, None] >= steps[None, :])
    elif limit is not None:
        first = jnp.arange(size) < limit[:, None]  # [B, S]
        first = jnp.broadcast_to(first[:, None], (rows, length, size))
        seen = seen & first.reshape(b, fold * length, size)
    if near is not None:
        keys, queries, window = near
        seen = seen & (queries.reshape(b, -1, 1) - keys[:, None] < window)
    seen = seen[:, :, None, None, :]
    scores = jnp.where(seen, scores, NOTHING)
    m = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    p = jnp.where(seen, jnp.exp(scores - m[..., None]), 0)
    o = jnp.einsum(
        "bqkrs,bskh->bqkrh", p.astype(v.dtype), v, preferred_element_type=kind
    )
    shape = (rows, length, *m.shape[2:])
    return m.reshape(shape), p.sum(-1).reshape(shape), o.reshape(*shape, -1)
