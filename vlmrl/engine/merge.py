"""Attention of one query set over several segments, each by a kernel of its own, merged
by log-sum-exp, under one derivative.

A kernel computes one segment, from the scores s of the keys a query may see:

  forward    lse = log Σ exp(s),  out = Σ exp(s − lse) v
  backward   p = exp(s − lse*),  dv = pᵀ g,  ds = p (g vᵀ − Σ g·out*),  dq = ds k, …

with lse* and out* over all segments, not this one: then the sum over segments of what
the kernels return is exactly the gradient of the merged output. A kernel's own
derivative would take its segment's out and lse instead (and drop the gradient through
lse): wrong by 8 to 58 %, with right values.

Axis letters: B query rows, T query tokens, b rows of a segment, Q = (B / b) T query
tokens of a segment's row, S its tokens, K key-value heads, R query heads per key-value
head, H head width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.types import Array

LN2 = math.log(2)
MASKED = -1e30  # score of a masked key; finite, so that differences are


def round_up_to_power(m, dtype):
    """Return log of the least power of two ≥ exp(m) where weights exp(s − m) are
    rounded to a narrower `dtype`, else m.

    Relative to a power of two, weights round alike whatever other keys the maximum m
    was taken over: a decoding step and the scoring pass group the same keys
    differently, and then still round the same weights to the same bfloat16. MASKED
    stays.
    """
    if m.dtype == dtype:
        return m
    return jnp.where(m > MASKED / 2, jnp.ceil(m / LN2) * LN2, m)


class KeyMask(NamedTuple):
    """Which keys of a segment a query may see."""

    valid: Array  # bool[b, S]
    stop: Array | None  # int32[b, Q]: only keys of a smaller index; None: all
    near: tuple | None  # (positions of keys int32[b, S], of queries int32[b, Q], size
    # int32[]): only keys less than `size` positions behind; None: all


class Kernel(NamedTuple):
    """Attention over one segment. q, out and g are dtype[b, Q, K, R, H]; lse is
    float32[b, Q, K, R], at most `MASKED` / 2 where a query sees no key.

    forward(q, k, v, mask: KeyMask, causal) -> (out, lse)
    backward(q, k, v, mask, causal, out, lse, g) -> (dq, dk, dv); out and lse are those
        over all segments

    `causal` (static): the segment is the queries' own; `mask.stop` says the same.
    """

    forward: Callable
    backward: Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def merged_attention(kernel: Kernel, q, keys, values, masks: tuple[KeyMask, ...]):
    """Attend from q dtype[B, T, K, R, H] to segments, the last one q's own.

    Args:
      keys, values: tuples of dtype[b, S, K, H].
    Returns:
      dtype[B, T, K, R, H]; zero where a query sees no key.
    """
    return _forward(kernel, q, keys, values, masks)[0]


def merge_branches(x, b: int):
    """[B, T, ...] → [b, (B / b) T, ...]: branches of a segment's row on one axis."""
    return x.reshape(b, -1, *x.shape[2:])


def _forward(kernel, q, keys, values, masks):
    outs, lses = [], []
    for i, (k, v, mask) in enumerate(zip(keys, values, masks, strict=True)):
        causal = i == len(keys) - 1
        out, lse = kernel.forward(merge_branches(q, len(k)), k, v, mask, causal)
        outs.append(out.reshape(q.shape))
        lses.append(lse.reshape(q.shape[:-1]))
    lse = functools.reduce(jnp.logaddexp, lses)
    out = sum(
        jnp.exp(part - lse)[..., None] * o.astype(lse.dtype)
        for o, part in zip(outs, lses, strict=True)
    )
    out = jnp.where(lse[..., None] > MASKED / 2, out, 0).astype(q.dtype)
    return out, (q, keys, values, masks, out, lse)


def _backward(kernel, residuals, g):
    q, keys, values, masks, out, lse = residuals
    dq, dks, dvs = jnp.zeros(q.shape, lse.dtype), [], []
    for i, (k, v, mask) in enumerate(zip(keys, values, masks, strict=True)):
        causal, b = i == len(keys) - 1, len(k)
        part, dk, dv = kernel.backward(
            *(merge_branches(q, b), k, v, mask, causal),
            *(merge_branches(x, b) for x in (out, lse, g)),
        )
        dq = dq + part.reshape(q.shape).astype(lse.dtype)
        dks.append(dk.astype(k.dtype))
        dvs.append(dv.astype(v.dtype))
    return dq.astype(q.dtype), tuple(dks), tuple(dvs), None


merged_attention.defvjp(_forward, _backward)
