"""Attention over one link by cuDNN's flash kernels, on NVIDIA GPUs.

jax's public `dot_product_attention` gives a log-sum-exp for the forward pass only, so
the two primitives below it are called here: forward returns its float32 log-sum-exp,
backward is given the whole cache's (`merge.py`). A link is told to the kernel by
causality and by its valid length, never by a dense mask: its valid keys come first.

Letters as in `merge.py`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from vlmrl.engine.merge import NOTHING, Kernel, Seen

DTYPES = (jnp.bfloat16, jnp.float16)
WIDEST = 128  # head width every architecture takes


def why_not(q) -> str | None:
    """What keeps cuDNN from attending for these queries; None: nothing does."""
    if q.dtype not in DTYPES:
        return f"cuDNN computes in bfloat16 or float16, not {q.dtype}"
    if q.shape[-1] > WIDEST or q.shape[-1] % 8:
        return f"cuDNN wants a head width of 8, 16, … {WIDEST}, not {q.shape[-1]}"
    return None


def _settings(q, own: bool) -> dict:
    kind = cudnn.MaskType.PADDING_CAUSAL if own else cudnn.MaskType.PADDING
    return dict(
        scale=q.shape[-1] ** -0.5,
        seed=0,
        dropout_rate=0.0,
        variadic_args=(False, False),  # no bias, hence no gradient of one
        mask_type=kind,
        layout=cudnn.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )


def _lengths(q, seen: Seen):
    """(queries int32[b], valid keys int32[b], those at least 1)."""
    valid = seen.mask.sum(-1, dtype=jnp.int32)
    return jnp.full(valid.shape, q.shape[1], jnp.int32), valid, jnp.maximum(valid, 1)


def _flat(x):
    """[b, Q, K, R, H] → [b, Q, K R, H]"""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _forward(q, k, v, seen: Seen, own: bool):
    none = jnp.zeros(0, q.dtype)
    queries, valid, lengths = _lengths(q, seen)
    out, lse = cudnn._dot_product_attention_fwd_p_wrapper.bind(
        _flat(q), k, v, none, queries, lengths, none, none, none, none,
        is_training=True, **_settings(q, own),
    )  # fmt: skip
    empty = (valid == 0)[:, None, None, None]
    lse = jnp.moveaxis(lse, 1, 2).reshape(q.shape[:-1])
    out = jnp.where(empty[..., None], 0, out.reshape(q.shape))
    return out, jnp.where(empty, NOTHING, lse)


def _backward(q, k, v, seen: Seen, own: bool, out, lse, g):
    none = jnp.zeros(0, q.dtype)
    queries, valid, lengths = _lengths(q, seen)
    stats = jnp.moveaxis(lse.reshape(*q.shape[:2], -1), 1, 2)  # float32[b, K R, Q]
    grads = cudnn._dot_product_attention_bwd_p_wrapper.bind(
        _flat(q), k, v, none, queries, lengths, none, none, none, none,
        stats, _flat(out), _flat(g), **_settings(q, own),
    )  # fmt: skip
    some = (valid > 0)[:, None, None, None]
    dq, dk, dv = (jnp.where(some, x, 0) for x in grads)
    return dq.reshape(q.shape), dk, dv


KERNEL = Kernel(_forward, _backward)
