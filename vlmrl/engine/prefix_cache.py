"""The prefix cache: tokens of a group computed once, read by all the branches behind.

A cache is a tuple of segments. Row b of a segment with B rows continues row
b // (B / b') of an earlier segment with b' rows.

Axis letters: B rows of the last segment, T tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine import attention
from vlmrl.models.api import CacheSegment, Model, NewTokens
from vlmrl.types import Array, Group, Tokens


class PrefixCache(NamedTuple):
    """Computed segments, and where the next one starts."""

    segments: tuple[CacheSegment, ...]
    hidden: Array  # dtype[B, D]: final hidden state of each row's last valid token
    next: Array  # int32[B]: M-RoPE position of the token that follows


def last_valid(x, mask):
    """Return x[B, T, ...] at the last valid token of each row (the first if none)."""
    index = jnp.maximum(mask.sum(-1) - 1, 0)
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]


def next_position(tokens: Tokens) -> jax.Array:
    """Return 1 + the maximum valid position over the three axes, int32[B]."""
    top = jnp.where(tokens.mask, tokens.positions.max(1), -1)
    return top.max(-1) + 1


def text_tokens(ids, mask, start) -> Tokens:
    """Return tokens of plain text whose first token has position `start`, int32[B]."""
    rows, length = ids.shape
    steps = start[:, None] + jnp.arange(length, dtype=jnp.int32)
    positions = jnp.broadcast_to(steps[:, None], (rows, 3, length))
    return Tokens(ids, positions, mask, jnp.full_like(ids, -1))


def embed_group(model: Model, params, group: Group, **options) -> tuple[NewTokens, ...]:
    """Embed a group: its prefix, and its branches if it has them.

    Args:
      options: dtype of the result; the others are the family's `encode_image`'s.
    """
    dtype = options.pop("dtype", None)
    features = None
    if group.vision is not None:
        features = model.encode_image(params, group.vision, dtype=dtype, **options)
    parts = [group.prefix] + ([] if group.branches is None else [group.branches])
    return tuple(
        NewTokens(model.embed(params, t, features, dtype=dtype), t.positions, t.mask)
        for t in parts
    )


def prefill(
    model: Model, params, group: Group, *, attend=attention.attend, **options
) -> PrefixCache:
    """Compute images, prefixes and branches of a group, each once.

    Args:
      attend: the back end, as `attention.choose` gives it.
      options: dtype, unroll, remat (see the family's `layers`).
    """
    dtype = options.pop("dtype", None)
    new_tokens = embed_group(model, params, group, dtype=dtype, **options)
    hidden, segments = model.layers(params, new_tokens, (), attend, **options)
    start = next_position(group.prefix)
    if group.branches is not None:
        own = next_position(group.branches)
        start = jnp.maximum(jnp.repeat(start, own.shape[0] // start.shape[0]), own)
    return PrefixCache(segments, last_valid(hidden[-1], new_tokens[-1].mask), start)


def extend(
    model: Model,
    params,
    cache: PrefixCache,
    ids,
    mask,
    limits=(),
    *,
    attend=attention.attend,
    **options,
):
    """Read rows of plain text behind a cache.

    Args:
      ids: int32[B, T], B a multiple of the cache's rows (branches); mask: bool[B, T].
        Positions continue those of the cache's rows.
      limits: how much of each earlier segment is visible (`api.NewTokens.limits`); the
        caller then gives the first positions in `cache.next`.
      attend, options: as for `prefill`, without dtype.
    Returns:
      (hidden dtype[B, T, D], the cache with one more segment).
    """
    start = jnp.repeat(cache.next, ids.shape[0] // cache.next.shape[0])
    tokens = text_tokens(ids, mask, start)
    x = model.embed(params, tokens, None, dtype=cache.hidden.dtype)
    new = NewTokens(x, tokens.positions, mask, limits)
    (hidden,), (segment,) = model.layers(
        params, (new,), cache.segments, attend, **options
    )
    after = start + mask.sum(-1, dtype=jnp.int32)
    segments = (*cache.segments, segment)
    return hidden, PrefixCache(segments, last_valid(hidden, mask), after)
