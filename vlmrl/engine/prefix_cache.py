"""Chains of links: how groups become levels, and what is kept of them.

Row b of a link with B rows continues row b // (B / b') of an earlier link of b' rows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine import attention
from vlmrl.models.api import CacheSegment, Model, NewTokens
from vlmrl.types import Array, Group, Tokens


class PrefixCache(NamedTuple):
    """Computed links, and where the next one starts; B rows of the last link."""

    links: tuple[CacheSegment, ...]
    hidden: Array  # dtype[B, D]: state after the last valid token of the last link
    next: Array  # int32[B]: M-RoPE position of the token that follows


def last_valid(x, mask):
    """x[B, T, ...] at the last valid token of each row (the first if there is none)."""
    index = jnp.maximum(mask.sum(-1) - 1, 0)
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]


def next_position(tokens: Tokens) -> jax.Array:
    """1 + the maximum of the valid positions over the three axes, int32[B]."""
    top = jnp.where(tokens.mask, tokens.positions.max(0), -1)
    return top.max(-1) + 1


def text_tokens(ids, mask, start) -> Tokens:
    """Tokens of plain text whose first token has position `start`, int32[B]."""
    steps = start[:, None] + jnp.arange(ids.shape[1], dtype=jnp.int32)
    positions = jnp.broadcast_to(steps, (3, *ids.shape))
    return Tokens(ids, positions, mask, jnp.full_like(ids, -1))


def embed_group(model: Model, params, group: Group, **options) -> tuple[NewTokens, ...]:
    """Embedded links of a group: its prefix, and its branches if it has them."""
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
    """Compute every link of a group once (vision tower included).

    Args:
      attend: the back end, as `attention.choose` gives it.
      options: dtype, unroll, remat (see the family's `layers`).
    """
    dtype = options.get("dtype")
    run = {k: v for k, v in options.items() if k != "dtype"}
    levels = embed_group(model, params, group, dtype=dtype, **run)
    hidden, links = model.layers(params, levels, (), attend, **run)
    start = next_position(group.prefix)
    if group.branches is not None:
        own = next_position(group.branches)
        start = jnp.maximum(jnp.repeat(start, own.shape[0] // start.shape[0]), own)
    return PrefixCache(links, last_valid(hidden[-1], levels[-1].mask), start)


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
    Returns:
      (hidden dtype[B, T, D], the cache with a segment more).
    """
    start = jnp.repeat(cache.next, ids.shape[0] // cache.next.shape[0])
    tokens = text_tokens(ids, mask, start)
    x = model.embed(params, tokens, None, dtype=cache.hidden.dtype)
    level = NewTokens(x, tokens.positions, mask, limits)
    (hidden,), (link,) = model.layers(
        params, (level,), cache.segments, attend, **options
    )
    after = start + mask.sum(-1, dtype=jnp.int32)
    return hidden, PrefixCache((*cache.segments, link), last_valid(hidden, mask), after)
