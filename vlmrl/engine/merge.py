"""Attention of one query set over several links, each by a kernel of its own, merged by
log-sum-exp, under one derivative.

A kernel sees one link. What it computes of scores s, for the keys a query may see:

  forward    lse = log Σ exp(s),  out = Σ exp(s − lse) v
  backward   p = exp(s − lse*),  dv = pᵀ g,  ds = p (g vᵀ − Σ g·out*),  dq = ds k, …

with lse* and out* those of the whole cache, not of the link: so the sum over links of
what the kernels return is the gradient of the merged output, exactly. A kernel's own
derivative would take the link's out and lse for the whole (and drop what flows through
lse), which is wrong without looking wrong.

Axis letters: B query rows, T query tokens, b rows of a link, Q = (B / b) T query tokens
folded onto a link's row, S its tokens, K key-value heads, R query heads per key-value
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
NOTHING = -1e30  # log-sum-exp over no key; finite, so that differences are


def power(m, dtype):
    """The least power of two, as its logarithm, that is at least exp(m), where weights
    exp(s − m) are rounded to a `dtype` of fewer bits; else m. Relative to a power of
    two weights round alike whatever other keys m was the maximum of: a decoding step
    and the scoring pass, which hold the same keys in other company, then round the same
    weights to the same bfloat16. NOTHING stays."""
    if m.dtype == dtype:
        return m
    return jnp.where(m > NOTHING / 2, jnp.ceil(m / LN2) * LN2, m)


class Seen(NamedTuple):
    """Which keys of a link a query may see."""

    mask: Array  # bool[b, S]: valid keys
    stop: Array | None  # int32[b, Q]: only keys of a smaller index; None: all
    near: tuple | None  # (positions of keys int32[b, S], of queries int32[b, Q], window
    # int32[]): only keys less than a window behind; None: all


class Kernel(NamedTuple):
    """Attention over one link; q, out and g are dtype[b, Q, K, R, H], lse is
    float32[b, Q, K, R] and at most `NOTHING` / 2 where a query sees no key.

    forward(q, k, v, seen, own) -> (out, lse)
    backward(q, k, v, seen, own, out, lse, g) -> (dq, dk, dv); out, lse of the whole

    `own` (static) says that the link is the queries' own, seen causally; `seen.stop`
    says the same.
    """

    forward: Callable
    backward: Callable


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def merged(kernel: Kernel, q, keys, values, seen: tuple[Seen, ...]):
    """Attention of q dtype[B, T, K, R, H] over links; the last one is q's own.

    Args:
      keys, values: tuples of dtype[b, S, K, H].
    Returns:
      dtype[B, T, K, R, H]; zero where a query sees no key.
    """
    return _forward(kernel, q, keys, values, seen)[0]


def fold(x, b: int):
    """[B, T, ...] → [b, (B / b) T, ...]: the queries that share a link's row."""
    return x.reshape(b, -1, *x.shape[2:])


def _forward(kernel, q, keys, values, seen):
    outs, lses = [], []
    for i, (k, v, s) in enumerate(zip(keys, values, seen, strict=True)):
        own = i == len(keys) - 1
        out, lse = kernel.forward(fold(q, len(k)), k, v, s, own)
        outs.append(out.reshape(q.shape))
        lses.append(lse.reshape(q.shape[:-1]))
    lse = functools.reduce(jnp.logaddexp, lses)
    out = sum(
        jnp.exp(part - lse)[..., None] * o.astype(lse.dtype)
        for o, part in zip(outs, lses, strict=True)
    )
    out = jnp.where(lse[..., None] > NOTHING / 2, out, 0).astype(q.dtype)
    return out, (q, keys, values, seen, out, lse)


def _backward(kernel, kept, g):
    q, keys, values, seen, out, lse = kept
    wide = lse.dtype
    dq, dks, dvs = jnp.zeros(q.shape, wide), [], []
    for i, (k, v, s) in enumerate(zip(keys, values, seen, strict=True)):
        own, b = i == len(keys) - 1, len(k)
        part, dk, dv = kernel.backward(
            *(fold(q, b), k, v, s, own), *(fold(x, b) for x in (out, lse, g))
        )
        dq = dq + part.reshape(q.shape).astype(wide)
        dks.append(dk.astype(k.dtype))
        dvs.append(dv.astype(v.dtype))
    return dq.astype(q.dtype), tuple(dks), tuple(dvs), None


merged.defvjp(_forward, _backward)
