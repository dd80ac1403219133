"""Attention over one segment by cuDNN's flash kernels, on NVIDIA GPUs.

jax's public `dot_product_attention` gives a log-sum-exp for the forward pass only, so
the two primitives below it are called here: forward returns its float32 log-sum-exp,
backward is given the one over all segments (`merge.py`). The kernel masks by causality
and by valid length, never by a dense mask: a segment's valid keys come first.

Letters as in `merge.py`.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from vlmrl.engine.merge import MASKED, Kernel, KeyMask
from vlmrl.types import UserError

DTYPES = (jnp.bfloat16, jnp.float16)
MAX_HEAD_WIDTH = 128  # that every architecture supports


@functools.cache
def _cudnn():
    """Import JAX's private module of cuDNN primitives, where it is used.

    Raises:
      UserError: this version of JAX has no such module.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo
    except ImportError as e:
        raise UserError(
            "attention: back end cudnn expected jax._src.cudnn, as in jax 0.10 to "
            f"0.12, got {e}; install such a version"
        ) from e
    return fused_attention_stablehlo


def unsupported(q) -> str | None:
    """Return why cuDNN can't attend for these queries; None if it can."""
    if q.dtype not in DTYPES:
        return f"cuDNN needs bfloat16 or float16, got {q.dtype}"
    if q.shape[-1] > MAX_HEAD_WIDTH or q.shape[-1] % 8:
        wanted = f"a head width of 8, 16, … {MAX_HEAD_WIDTH}"
        return f"cuDNN needs {wanted}, got {q.shape[-1]}"
    return None


def _settings(q, causal: bool) -> dict:
    cudnn = _cudnn()
    kinds = cudnn.MaskType
    return dict(
        scale=q.shape[-1] ** -0.5,
        seed=0,
        dropout_rate=0.0,
        variadic_args=(False, False),  # no bias, hence no gradient of one
        mask_type=kinds.PADDING_CAUSAL if causal else kinds.PADDING,
        layout=cudnn.AttentionLayout.BTNH.value,
        sliding_window_length=None,
    )


def _lengths(q, mask: KeyMask):
    """Return (queries int32[b], valid keys int32[b], those at least 1)."""
    valid = mask.valid.sum(-1, dtype=jnp.int32)
    return jnp.full(valid.shape, q.shape[1], jnp.int32), valid, jnp.maximum(valid, 1)


def _flat(x):
    """[b, Q, K, R, H] → [b, Q, K R, H]"""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _forward(q, k, v, mask: KeyMask, causal: bool):
    none = jnp.zeros(0, q.dtype)
    queries, valid, lengths = _lengths(q, mask)
    out, lse = _cudnn()._dot_product_attention_fwd_p_wrapper.bind(
        _flat(q), k, v, none, queries, lengths, none, none, none, none,
        is_training=True, **_settings(q, causal),
    )  # fmt: skip
    empty = (valid == 0)[:, None, None, None]
    lse = jnp.moveaxis(lse, 1, 2).reshape(q.shape[:-1])
    out = jnp.where(empty[..., None], 0, out.reshape(q.shape))
    return out, jnp.where(empty, MASKED, lse)


def _backward(q, k, v, mask: KeyMask, causal: bool, out, lse, g):
    none = jnp.zeros(0, q.dtype)
    queries, valid, lengths = _lengths(q, mask)
    stats = jnp.moveaxis(lse.reshape(*q.shape[:2], -1), 1, 2)  # float32[b, K R, Q]
    grads = _cudnn()._dot_product_attention_bwd_p_wrapper.bind(
        _flat(q), k, v, none, queries, lengths, none, none, none, none,
        stats, _flat(out), _flat(g), **_settings(q, causal),
    )  # fmt: skip
    some = (valid > 0)[:, None, None, None]
    dq, dk, dv = (jnp.where(some, x, 0) for x in grads)
    return dq.reshape(q.shape), dk, dv


KERNEL = Kernel(_forward, _backward)
