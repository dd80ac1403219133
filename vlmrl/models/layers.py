"""Plain functions that the families' layers are made of.

Axis letters: B batch, T tokens, D width, K key-value heads, R query heads per key-value
head, H head width, F hidden width of the MLP, L layers. Norms, softmax and rotary
angles are computed in float32 (float64 stays float64), then cast back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vlmrl import sharding

# Of `full_attention`: queries per block, and scores that are computed at once at most.
QUERIES, SCORES = 512, 2**22


def to_float32(x):
    """Return x in float32, or as it is if in float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms_norm(x, weight, eps: float):
    """weight · x / √(mean(x²) + eps); x dtype[..., D]."""
    y = to_float32(x)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return weight.astype(x.dtype) * y.astype(x.dtype)


def layer_norm(x, weight, bias, eps: float):
    """weight · (x − mean) / √(variance + eps) + bias; x dtype[..., D]."""
    y = to_float32(x)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * to_float32(weight) + to_float32(bias)).astype(x.dtype)


def rope(positions, frequencies, axes, scale: float, dtype):
    """Cosine and sine of rotary angles; angle i is the position on axis `axes[i]`
    (time, height, width) times `frequencies[i]`. Text has equal positions on all three
    axes, so that this is plain rotary embedding there (https://arxiv.org/abs/2104.09864)
    and multimodal at images (https://arxiv.org/abs/2409.12191).

    Args:
      positions: int32[B, 3, T].
      frequencies, axes: H / 2 numbers each; scale multiplies cosine and sine.
    Returns:
      (cos, sin), each dtype[B, T, H / 2].
    """
    kind = jnp.promote_types(dtype, jnp.float32)
    at = jnp.asarray(positions)[:, jnp.asarray(axes)]  # [B, H / 2, T]
    angle = jnp.moveaxis(at, 1, -1).astype(kind) * jnp.asarray(frequencies, kind)
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    return cos.astype(dtype), sin.astype(dtype)


def axial_rope(positions, head_dim: int, theta: float, dtype):
    """Two-dimensional rotary angles of vision patches: the first quarter of the head
    turns by the row, the second by the column.

    Args:
      positions: int32[..., 2].
    Returns:
      (cos, sin), each dtype[..., head_dim / 2].
    """
    kind = jnp.promote_types(dtype, jnp.float32)
    half = head_dim // 2
    inverse = theta ** (-jnp.arange(0, half, 2, dtype=kind) / half)
    angle = positions[..., None].astype(kind) * inverse
    angle = angle.reshape(*positions.shape[:-1], half)
    return jnp.cos(angle).astype(kind), jnp.sin(angle).astype(kind)


def rotate(x, cos, sin):
    """Rotary embedding in the half-split layout: pairs are (i, i + H/2).

    Args:
      x: dtype[B, T, heads..., H]; cos, sin: dtype[B, T, H/2].
    """
    extra = x.ndim - cos.ndim
    shape = cos.shape[:-1] + (1,) * extra + cos.shape[-1:]
    cos, sin = cos.reshape(shape), sin.reshape(shape)
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, cos.dtype)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def linear(x, w: dict, name: str):
    """x · w[name] + w[name_bias], in the dtype of x."""
    y = jnp.einsum("...d,df->...f", x, w[name].astype(x.dtype))
    return y + w[name + "_bias"].astype(x.dtype)


def raster_order(x, order):
    """Return merged image tokens [N * I, M, D] in raster order, dtype[N, I * M, D].

    Args:
      order: int32[N, I, M], see `types.Vision`.
    """
    index = order.reshape(len(x), -1)
    x = jnp.take_along_axis(x, index[..., None], axis=1)
    return x.reshape(len(order), -1, x.shape[-1])


def gated_mlp(x, gate, up, down, biases=None):
    """down(silu(gate x) · up x); weights [D, F], [D, F], [F, D]; biases optional."""
    g, u = (jnp.einsum("...d,df->...f", x, w.astype(x.dtype)) for w in (gate, up))
    if biases:
        g, u = g + biases[0].astype(x.dtype), u + biases[1].astype(x.dtype)
    y = jnp.einsum("...f,fd->...d", jax.nn.silu(g) * u, down.astype(x.dtype))
    return y + biases[2].astype(x.dtype) if biases else y


def full_attention(q, k, v, mask):
    """Bidirectional attention with float32 softmax.

    Scores that are many are computed for a block of queries at a time, and once more in
    the backward pass: of [B, heads, S, S] only [B, heads, QUERIES, S] ever exists.

    Args:
      q, k, v: dtype[B, S, heads, H]; mask: bool[B, S], True on valid keys.
    Returns:
      dtype[B, S, heads, H].
    """
    rows, size, heads, _ = q.shape

    def attend(q):
        kind = jnp.promote_types(q.dtype, jnp.float32)
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=kind)
        scores = scores * q.shape[-1] ** -0.5
        scores = jnp.where(mask[:, None, None, :], scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("bnqk,bknh->bqnh", weights, v)

    if size <= QUERIES or rows * heads * size**2 <= SCORES:
        return attend(q)
    q = jnp.pad(q, ((0, 0), (0, -size % QUERIES), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(q.reshape(rows, -1, QUERIES, *q.shape[2:]), 1, 0)
    out = jnp.moveaxis(jax.lax.map(jax.checkpoint(attend), blocks), 0, 1)
    return out.reshape(q.shape)[:, :size]


def scan_layers(
    body, carry, stacked, flags=None, *, unroll=False, remat=None, mesh=None
):
    """Run body(carry, parameters of one layer, flag) over axis 0 of `stacked`.

    Args:
      flags: static tuple, one per layer: its kind, or its number. Static where layers
        are unrolled, traced in the scan.
      unroll: a Python loop, for exact FLOP counts (XLA counts a scan's body once).
      remat: None or a `jax.checkpoint_policies` policy name: rematerialise each layer.
      mesh: over which the carry is split: its rows over the batch axes, and what a
        rematerialised layer saves over the tensor axis too. The sum over that axis
        becomes a scatter of the sum and a gather, which send as much
        (https://arxiv.org/abs/2205.05198).
    Returns:
      (carry, per-layer outputs stacked on axis 0).
    """
    n = jax.tree.leaves(stacked)[0].shape[0]
    flags = (False,) * n if flags is None else flags
    layer, saved = body, None if remat is None else "residual"

    def body(carry, weights, flag):
        carry, out = layer(sharding.constrain(mesh, carry), weights, flag)
        return sharding.constrain(mesh, carry, last=saved), out

    if remat is not None:
        policy = getattr(jax.checkpoint_policies, remat)
        static = (2,) if unroll else ()
        body = jax.checkpoint(body, policy=policy, static_argnums=static)
    carry = sharding.constrain(mesh, carry, last=saved)
    if unroll:
        outputs = []
        for i in range(n):
            weights = jax.tree.map(lambda a, i=i: a[i], stacked)
            carry, out = body(carry, weights, flags[i])
            outputs.append(out)
        outputs = jax.tree.map(lambda *a: jnp.stack(a), *outputs)
    else:
        carry, outputs = jax.lax.scan(
            lambda c, x: body(c, x[0], x[1]), carry, (stacked, jnp.asarray(flags))
        )
    return sharding.constrain(mesh, carry), outputs
