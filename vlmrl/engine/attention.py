"""Attention of branches over a cache of segments: the one seam to every back end.

Row b of a link with B rows continues row b // (B / b') of an earlier link with b' rows.
Keys and values of a link are read once for all the branches behind it: the query rows
that share a link are folded into its query axis.

  plain      XLA, whole score matrices, one softmax over all links: decoding, small work
  blockwise  XLA, block by block (`blockwise.py`), merged by log-sum-exp (`merge.py`)
  cudnn      flash kernels on NVIDIA GPUs (`flash.py`), merged likewise
  splash     one row (prefix, then branches) under a static mask on TPU (`splash.py`)

Axis letters: B query rows, T query tokens, b rows of a link, S its tokens, K key-value
heads, R query heads per key-value head, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vlmrl.engine import blockwise, flash, splash
from vlmrl.engine.merge import NOTHING, Seen, merged, power
from vlmrl.models.api import NewTokens, SlidingWindow
from vlmrl.types import UserError

SMALL = 2**22  # scores that `plain` may hold at once
PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # where they are chosen unasked
BACKENDS = ("auto", "plain", "blockwise", *PLATFORMS)


def choose(backend: str = "auto", mesh=None, *, interpret: bool = False) -> Callable:
    """attend(q, level, links, window) of a back end, as `Model.layers` takes it.

    'auto' takes, call by call, `plain` where scores are few (one query token, or at
    most SMALL scores), else the platform's kernel where it can, else `blockwise`.
    Another name forces that back end. cuDNN and splash then still leave to XLA the
    calls of evaluation that their masks can't say (limits within a link, sliding
    windows) and steps of one token; what their hardware refuses is an error.

    Args:
      mesh: devices that splash is laid out over; needed for more than one (cuDNN is
        partitioned by XLA).
      interpret: run splash without a TPU, slowly.
    Raises:
      UserError: an unknown name; when called: a dtype or a width the kernel can't do.
    """
    if backend not in BACKENDS:
        raise UserError(f"attention: '{backend}' is not one of {', '.join(BACKENDS)}")
    return functools.partial(_attend, backend=backend, mesh=mesh, interpret=interpret)


def attend(
    q, level: NewTokens, links, window: SlidingWindow | None = None
) -> jax.Array:
    """The automatic choice (see `choose`), for devices of one kind without a mesh.

    Args:
      q: dtype[B, T, K, R, H].
      level: the level the queries belong to.
      links: (k, v, mask) per link: dtype[b, S, K, H] twice, bool[b, S]. The last link
        is the level itself, seen causally; earlier ones are seen up to their valid
        length and the level's limits.
      window: how far back a query sees, in positions; None: all the way.
    Returns:
      dtype[B, T, K, R, H]; zero where a query sees no key.
    """
    return _attend(q, level, links, window)


def _attend(
    q, level, links, window=None, *, backend="auto", mesh=None, interpret=False
):
    name = backend
    if name == "auto":
        name = _automatic(q, level, links, window, mesh)
    elif name in PLATFORMS and (q.shape[1] == 1 or _unsaid(level, window)):
        name = "plain" if _few(q, links) else "blockwise"
    if name == "plain":
        return plain(q, level, links, window)
    if name == "splash":
        return splash.attend(q, level, links, mesh=mesh, interpret=interpret)
    kernel = flash if name == "cudnn" else blockwise
    if name == "cudnn" and (problem := flash.why_not(q)):
        raise UserError(f"attention: cudnn was asked for, but {problem}")
    keys, values, masks = zip(*links, strict=True)
    seen = _seen(q, level, masks, window, counts=name != "cudnn")
    return merged(kernel.KERNEL, q, keys, values, seen)


def _automatic(q, level, links, window, mesh) -> str:
    if _few(q, links):
        return "plain"
    platform = jax.default_backend()
    if not _unsaid(level, window):
        if platform == "gpu" and flash.why_not(q) is None:
            return "cudnn"
        if platform == "tpu" and splash.why_not(q, links, mesh) is None:
            return "splash"
    return "blockwise"


def _few(q, links) -> bool:
    scores = sum(q.size // q.shape[-1] * k.shape[1] for k, _, _ in links)
    return q.shape[1] == 1 or scores <= SMALL


def _unsaid(level: NewTokens, window) -> bool:
    """There is something in the mask that only XLA's back ends can express."""
    return window is not None or any(x is not None for x in level.limits)


def _seen(q, level: NewTokens, masks, window, *, counts: bool) -> tuple[Seen, ...]:
    """What queries see of every link, folded onto the link's rows."""
    rows, length = q.shape[:2]
    out = []
    for i, mask in enumerate(masks):
        b = mask.shape[0]
        stop = near = None
        if i == len(masks) - 1:
            stop = jnp.broadcast_to(jnp.arange(1, length + 1, dtype=jnp.int32),
                                    (rows, length))  # fmt: skip
        elif i < len(level.limits) and level.limits[i] is not None:
            stop = jnp.broadcast_to(level.limits[i][:, None], (rows, length))
        if window is not None:
            back, here = window.positions[i], window.positions[-1]
            near = (back, here.reshape(b, -1), window.size)
        stop = None if stop is None or not counts else stop.reshape(b, -1)
        out.append(Seen(mask, stop, near))
    return tuple(out)


def plain(q, level: NewTokens, links, window: SlidingWindow | None = None) -> jax.Array:
    """softmax(q kᵀ / √H) v over all links at once: one softmax, taken link by link,
    every link's scores whole. Arguments as `attend`.

    Each link gives its maximum m, its sum l = Σ exp(s − m) and o = Σ exp(s − m) v; the
    whole is Σ exp(m − m*) o / Σ exp(m − m*) l with m* the maximum over links.
    """
    rows, length = q.shape[:2]
    parts = []
    for i, (k, v, mask) in enumerate(links):
        own = i == len(links) - 1
        limit = level.limits[i] if not own and i < len(level.limits) else None
        near = window and (window.positions[i], window.positions[-1], window.size)
        parts.append(_part(q, k, v, mask, own, limit, near))
    out = merge_parts(parts).astype(q.dtype)
    return out.reshape(rows, length, *q.shape[2:])


def merge_parts(parts) -> jax.Array:
    """One softmax from (m, l, o) per link, float[...] twice and float[..., H]."""
    top = functools.reduce(jnp.maximum, [m for m, _, _ in parts])
    top = jax.lax.stop_gradient(top)
    total, mixed = 0.0, 0.0
    for m, l, o in parts:
        scale = jnp.exp(m - top)
        total = total + scale * l
        mixed = mixed + scale[..., None] * o
    return mixed / jnp.where(total == 0, 1, total)[..., None]


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
    m = jax.lax.stop_gradient(power(jnp.max(scores, axis=-1), v.dtype))
    p = jnp.where(seen, jnp.exp(scores - m[..., None]), 0)
    o = jnp.einsum(
        "bqkrs,bskh->bqkrh", p.astype(v.dtype), v, preferred_element_type=kind
    )
    shape = (rows, length, *m.shape[2:])
    return m.reshape(shape), p.sum(-1).reshape(shape), o.reshape(*shape, -1)
