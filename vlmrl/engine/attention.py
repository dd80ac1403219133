"""Attention of new tokens over the segments of a prefix cache, by one of several back
ends.

Row b of B query rows continues row b // (B / b') of a segment with b' rows. Keys and
values of a segment are read once for all the branches behind it: the query rows that
share a row of a segment are merged into the query axis.

  plain      XLA, whole score matrices, one softmax over all segments: decoding, small
             work
  blockwise  XLA, block by block (`blockwise.py`), merged by log-sum-exp (`merge.py`)
  cudnn      flash kernels on NVIDIA GPUs (`flash.py`), merged likewise
  splash     one row (prefix, then branches) under a static mask on TPU (`splash.py`)

Axis letters: B query rows, T query tokens, b rows of a segment, S its tokens, K
key-value heads, R query heads per key-value head, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vlmrl.engine import blockwise, flash, splash
from vlmrl.engine.merge import MASKED, KeyMask, merged_attention, round_up_to_power
from vlmrl.models.api import NewTokens, SlidingWindow
from vlmrl.types import UserError

MAX_PLAIN_SCORES = 2**22  # that `plain` may hold at once
PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # where 'auto' chooses them
BACKENDS = ("auto", "plain", "blockwise", *PLATFORMS)


def choose(backend: str = "auto", mesh=None, *, interpret: bool = False) -> Callable:
    """Return attend(q, new, segments, window) of a back end for `Model.layers`.

    'auto' chooses call by call: `plain` where scores are few (one query token, or at
    most MAX_PLAIN_SCORES), else the platform's kernel where it can, else `blockwise`.
    Another name forces that back end. cuDNN and splash then still leave to XLA steps of
    one token and the masks that they can't express (limits within a segment, sliding
    windows); a dtype or a width that they don't support is an error.

    Args:
      mesh: over which splash is partitioned; needed for several devices (XLA partitions
        the others).
      interpret: run splash without a TPU, slowly.
    Raises:
      UserError: an unknown name; when called: an unsupported dtype, width or platform.
    """
    if backend not in BACKENDS:
        raise UserError(
            f"attention: expected one of {', '.join(BACKENDS)}, got '{backend}'"
        )
    return functools.partial(attend, backend=backend, mesh=mesh, interpret=interpret)


def attend(
    q,
    new: NewTokens,
    segments,
    window: SlidingWindow | None = None,
    *,
    backend: str = "auto",
    mesh=None,
    interpret: bool = False,
) -> jax.Array:
    """Attend from new tokens to segments.

    Args:
      q: dtype[B, T, K, R, H].
      new: the tokens that the queries belong to.
      segments: (k, v, mask) each: dtype[b, S, K, H] twice, bool[b, S]. The last one is
        the new tokens' own, seen causally; earlier ones are seen up to their valid
        length and `new.limits`.
      window: how far back a query sees, in positions; None: all the way.
      backend, mesh, interpret: see `choose`.
    Returns:
      dtype[B, T, K, R, H]; zero where a query sees no key.
    """
    name = backend
    if name == "auto":
        name = _choose_automatically(q, new, segments, window, mesh)
    elif name in PLATFORMS and (q.shape[1] == 1 or _needs_dense_mask(new, window)):
        name = "plain" if _has_few_scores(q, segments) else "blockwise"
    if name == "plain":
        return plain(q, new, segments, window)
    if name == "splash":
        return splash.attend(q, new, segments, mesh=mesh, interpret=interpret)
    kernel = flash if name == "cudnn" else blockwise
    if name == "cudnn" and (reason := flash.unsupported(q)):
        raise UserError(f"attention: cudnn was asked for, but {reason}")
    keys, values, valid = zip(*segments, strict=True)
    masks = _key_masks(q, new, valid, window, with_stops=name != "cudnn")
    return merged_attention(kernel.KERNEL, q, keys, values, masks)


def _choose_automatically(q, new, segments, window, mesh) -> str:
    if _has_few_scores(q, segments):
        return "plain"
    platform = jax.default_backend()
    if not _needs_dense_mask(new, window):
        if platform == "gpu" and flash.unsupported(q) is None:
            return "cudnn"
        if platform == "tpu" and splash.unsupported(q, mesh) is None:
            return "splash"
    return "blockwise"


def _has_few_scores(q, segments) -> bool:
    scores = sum(q.size // q.shape[-1] * k.shape[1] for k, _, _ in segments)
    return q.shape[1] == 1 or scores <= MAX_PLAIN_SCORES


def _needs_dense_mask(new: NewTokens, window) -> bool:
    """Whether only XLA's back ends can express the mask."""
    return window is not None or any(x is not None for x in new.limits)


def _key_masks(q, new: NewTokens, valid, window, *, with_stops: bool):
    """Return a KeyMask per segment, branches merged onto the segment's rows."""
    rows, length = q.shape[:2]
    out = []
    for i, mask in enumerate(valid):
        b = mask.shape[0]
        stop = near = None
        if i == len(valid) - 1:
            stop = jnp.broadcast_to(jnp.arange(1, length + 1, dtype=jnp.int32),
                                    (rows, length))  # fmt: skip
        elif i < len(new.limits) and new.limits[i] is not None:
            stop = jnp.broadcast_to(new.limits[i][:, None], (rows, length))
        if window is not None:
            keys, queries = window.positions[i], window.positions[-1]
            near = (keys, queries.reshape(b, -1), window.size)
        stop = stop.reshape(b, -1) if with_stops and stop is not None else None
        out.append(KeyMask(mask, stop, near))
    return tuple(out)


def plain(
    q, new: NewTokens, segments, window: SlidingWindow | None = None
) -> jax.Array:
    """Compute softmax(q kᵀ / √H) v as one softmax over all segments, with the whole
    scores of one segment at a time. Arguments as for `attend`.

    A segment gives its maximum m, its sum l = Σ exp(s − m) and o = Σ exp(s − m) v; the
    result is Σ exp(m − m*) o / Σ exp(m − m*) l with m* the maximum over segments.
    """
    rows, length = q.shape[:2]
    parts = []
    for i, (k, v, mask) in enumerate(segments):
        causal = i == len(segments) - 1
        limit = new.limits[i] if not causal and i < len(new.limits) else None
        near = window and (window.positions[i], window.positions[-1], window.size)
        parts.append(_partial_attention(q, k, v, mask, causal, limit, near))
    out = merge_parts(parts).astype(q.dtype)
    return out.reshape(rows, length, *q.shape[2:])


def merge_parts(parts) -> jax.Array:
    """Merge (m, l, o) of every segment, float[...] twice and float[..., H]."""
    top = functools.reduce(jnp.maximum, [m for m, _, _ in parts])
    top = jax.lax.stop_gradient(top)
    total, mixed = 0.0, 0.0
    for m, l, o in parts:
        scale = jnp.exp(m - top)
        total = total + scale * l
        mixed = mixed + scale[..., None] * o
    return mixed / jnp.where(total == 0, 1, total)[..., None]


def _partial_attention(q, k, v, mask, causal: bool, limit, near):
    """Return (m, l, o) of one segment: float[B, T, K, R] twice, float[B, T, K, R, H].

    `near` is None or (positions of keys int32[b, S], of queries int32[B, T], size).
    """
    rows, length = q.shape[:2]
    b, size = k.shape[:2]
    merged = rows // b * length  # query tokens of a segment's row
    q = q.reshape(b, merged, *q.shape[2:])
    kind = jnp.promote_types(q.dtype, jnp.float32)  # what products are summed in
    scores = jnp.einsum("bqkrh,bskh->bqkrs", q, k, preferred_element_type=kind)
    scores = scores * q.shape[-1] ** -0.5
    visible = mask[:, None, :]
    if causal:
        steps = jnp.arange(length)
        visible = visible & (steps[:, None] >= steps[None, :])
    elif limit is not None:
        first = jnp.arange(size) < limit[:, None]  # [B, S]
        first = jnp.broadcast_to(first[:, None], (rows, length, size))
        visible = visible & first.reshape(b, merged, size)
    if near is not None:
        keys, queries, span = near
        visible = visible & (queries.reshape(b, -1, 1) - keys[:, None] < span)
    visible = visible[:, :, None, None, :]
    scores = jnp.where(visible, scores, MASKED)
    top = round_up_to_power(jnp.max(scores, axis=-1), v.dtype)
    m = jax.lax.stop_gradient(top)
    p = jnp.where(visible, jnp.exp(scores - m[..., None]), 0)
    o = jnp.einsum(
        "bqkrs,bskh->bqkrh", p.astype(v.dtype), v, preferred_element_type=kind
    )
    shape = (rows, length, *m.shape[2:])
    return m.reshape(shape), p.sum(-1).reshape(shape), o.reshape(*shape, -1)
