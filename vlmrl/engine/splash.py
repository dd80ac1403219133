"""Attention over all segments at once by splash attention, on TPU.

All segments of a group become one row of keys, all its branches one row of queries,
under a static mask that is computed inside the kernel (which branch continues which
row, and causality) plus segment ids (which tokens are valid). It is one softmax, so the
kernel's own derivative is right. XLA does not partition Pallas kernels: `shard_map`
gives every device its groups and its heads.

Axis letters: N rows of the first segment (groups), B query rows, T query tokens, b rows
of a segment, S its tokens, K key-value heads, R query heads per key-value head, H head
width; Q = (B / N) T queries and P = Σ (b / N) S keys of a group.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl import sharding
from vlmrl.models.api import NewTokens
from vlmrl.types import UserError

LANES = 128  # of a TPU: lengths are padded to multiples of it
BLOCKS = (512, 256, 128)  # of queries and of keys: the largest that divides


class KeyRange(NamedTuple):
    """The part of a group's row of keys that one segment takes."""

    begin: int
    rows: int  # of one group
    size: int  # tokens of a row


@functools.cache
def _library():
    """Import (kernels, masks, the class of our mask) from JAX, where they are used.

    Raises:
      UserError: this version of JAX lacks them.
    """
    try:
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as kernels,
        )
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_mask as masks,
        )

        base = masks._ComputableMask
    except (ImportError, AttributeError) as e:
        raise UserError(
            "attention: back end splash expected splash attention, as in jax 0.10 to "
            f"0.12, got {e}; install such a version"
        ) from e

    class BranchMask(base):
        """Query i is token i % T of branch i // T. It sees the rows it continues of
        every segment, and its own tokens up to itself."""

        def __init__(self, ranges: tuple[KeyRange, ...], rows, length, shape):
            self.key = (ranges, rows, length, shape)

            def visible(q, k):
                row, token = q // length, q % length
                out = q < 0
                for i, part in enumerate(ranges):
                    at = k - part.begin
                    inside = (at >= 0) & (at < part.rows * part.size)
                    continued = at // part.size == row // (rows // part.rows)
                    here = inside & continued
                    if i == len(ranges) - 1:
                        here = here & (at % part.size <= token)
                    out = out | here
                return out

            super().__init__(shape=shape, mask_function=visible)

        def __eq__(self, other):
            return isinstance(other, BranchMask) and self.key == other.key

        def __hash__(self):
            return hash(self.key)

    return kernels, masks, BranchMask


def unsupported(q, mesh) -> str | None:
    """Return why splash can't attend for these queries; None if it can."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"splash needs bfloat16 or float32, got {q.dtype}"
    if mesh is None and jax.device_count() > 1:
        return "splash needs a mesh to be partitioned over several devices"
    return None


def attend(q, new: NewTokens, segments, *, mesh=None, interpret=False) -> jax.Array:
    """Compute `attention.attend` without limits and windows; what queries under False
    of `new.mask` get is meaningless (and finite)."""
    keys, values, valid = zip(*segments, strict=True)
    run = functools.partial(_attend_groups, interpret=interpret)
    if mesh is not None and mesh.size > 1:
        run = sharding.per_group_and_head(mesh, run, len(keys[0]), q.shape[2])
    return run(q, keys, values, valid, new.mask)


def _attend_groups(q, keys, values, valid, own, *, interpret: bool):
    """Attend for the groups and heads of one device."""
    kernels, masks, BranchMask = _library()
    groups = len(keys[0])
    rows, length, heads, rep, width = len(q) // groups, *q.shape[1:]

    def row(x, size):
        """[b, S, ...] → [N, (b / N) S, ...], padded to `size` tokens"""
        x = x.reshape(groups, -1, *x.shape[2:])
        return jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

    def join(parts, size):
        joined = [row(x, len(x) // groups * x.shape[1]) for x in parts]
        return row(jnp.concatenate(joined, axis=1), size)

    ranges, begin = [], 0
    for k in keys:
        ranges.append(KeyRange(begin, len(k) // groups, k.shape[1]))
        begin += ranges[-1].rows * ranges[-1].size
    queries = _round(rows * length)
    total = _round(begin)
    mask = BranchMask(tuple(ranges), rows, length, (queries, total))
    blocks = _block(queries), _block(total)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * (heads * rep)),
        block_sizes=kernels.BlockSizes(
            *(*blocks, blocks[1]), *(*blocks, blocks[1]), *blocks
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segment_ids = kernels.SegmentIds(
        row(own, queries).astype(jnp.int32), join(valid, total).astype(jnp.int32)
    )

    def to_bkth(x):  # [N, tokens, heads, H] → [N, heads, tokens, H], and back
        return jnp.swapaxes(x, 1, 2)

    flat = row(q * width**-0.5, queries).astype(q.dtype)
    flat = flat.reshape(groups, queries, heads * rep, width)
    out = jax.vmap(kernel)(
        to_bkth(flat),
        to_bkth(join(keys, total)),
        to_bkth(join(values, total)),
        segment_ids,
    )
    out = to_bkth(out)[:, : rows * length]
    return out.reshape(q.shape)


def _round(size: int) -> int:
    return -(-size // LANES) * LANES


def _block(size: int) -> int:
    return next(b for b in BLOCKS if size % b == 0)
