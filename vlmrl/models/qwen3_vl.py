"""Qwen3-VL, dense (https://arxiv.org/abs/2511.21631): a vision tower with learned and
rotary positions, whose middle layers speak to the first decoder layers too (deepstack,
https://arxiv.org/abs/2406.04334), and a Qwen3 decoder with interleaved M-RoPE.

Equal to transformers' `Qwen3VLForConditionalGeneration`, for images. Axis letters:
N groups, I images, W windows, P patches of a window (windows only pack patches here:
attention is over the whole image), S = W * P, E vision width, A vision heads, M merged
tokens of an image, D text width, J tapped layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.models import decoder
from vlmrl.models import layers as fn
from vlmrl.models.api import Model, Param, linear_rows, norm_rows, qkv_rows, vision_rows
from vlmrl.types import UserError, Vision

FAMILY = "qwen3_vl"
EPS = 1e-6  # of the tower's norms


class Config(NamedTuple):
    text: decoder.Config
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    patch: int
    temporal_patch: int
    channels: int
    merge: int
    side: int  # learned positions along one side of their square
    taps: tuple[int, ...]  # layer j of these feeds decoder layer j
    vision_theta: float

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal_patch * self.patch**2


def read_config(raw: dict, where: str) -> Config:
    """Config of a `config.json`.

    Raises:
      UserError: a field is missing, or asks for something this family does not do.
    """

    def get(key):
        return decoder.need(vision, key, where, "vision_config.")

    text = decoder.need(raw, "text_config", where)
    vision = decoder.need(raw, "vision_config", where)
    act = "gelu_pytorch_tanh"
    if vision.get("hidden_act", act) != act:
        raise UserError(f"{where}: field 'vision_config.hidden_act' must be '{act}'")
    config = Config(
        text=decoder.read_config(
            text,
            where,
            "text_config.",
            tied=raw.get("tie_word_embeddings"),
            qk_norm=True,
            head_dim=128,
            theta=5e5,
            sections=(24, 20, 20),
            interleaved=True,
        ),
        vision_width=get("hidden_size"),
        vision_layers=get("depth"),
        vision_heads=get("num_heads"),
        vision_mlp=get("intermediate_size"),
        patch=get("patch_size"),
        temporal_patch=get("temporal_patch_size"),
        channels=vision.get("in_channels", 3),
        merge=get("spatial_merge_size"),
        side=math.isqrt(get("num_position_embeddings")),
        taps=tuple(get("deepstack_visual_indexes")),
        vision_theta=(vision.get("rope_parameters") or {}).get("rope_theta", 1e4),
    )
    layers = config.vision_layers
    if list(config.taps) != sorted(set(config.taps) & set(range(layers))) or (
        len(config.taps) > config.text.layers
    ):
        raise UserError(
            f"{where}: field 'vision_config.deepstack_visual_indexes' must be "
            f"ascending numbers below {layers}, at most {config.text.layers} of them, "
            "the number of text layers"
        )
    if config.side**2 != get("num_position_embeddings"):
        raise UserError(
            f"{where}: field 'vision_config.num_position_embeddings' must be a square"
        )
    return config


def table(c: Config) -> dict[str, Param]:
    """The parameter table. Stacked rows carry the layer axis first."""
    e, m, u, d = c.vision_width, c.vision_mlp, c.merge**2, c.text.width
    n, at = c.vision_layers, "model.visual.blocks.{}."
    wide, back = ("embed", "mlp"), ("mlp", "embed")
    patch, plain = "model.visual.patch_embed.proj", "... -> ..."
    place = "model.visual.pos_embed.weight"
    sizes = dict(c=c.channels, t=c.temporal_patch, y=c.patch, x=c.patch)
    rows = {
        "vision.patch": Param(
            (c.patch_dim, e),
            (None, "embed"),
            0.02,
            patch + ".weight",
            "e c t y x -> (c t y x) e",
            sizes,
        ),
        "vision.patch_bias": Param(
            (e,), ("embed",), 0, patch + ".bias", plain, {}, decay=False
        ),
        "vision.place": Param((c.side**2, e), (None, "embed"), 0.02, place, plain, {}),
    }
    rows |= norm_rows("vision.layers.norm1", at + "norm1", n, e, bias=True)
    rows |= qkv_rows("vision.layers.qkv", at + "attn.qkv", n, e, c.vision_heads)
    rows |= norm_rows("vision.layers.norm2", at + "norm2", n, e, bias=True)
    for name, stored, i, o, axes in (
        ("o", "attn.proj", e, e, (None, "embed")),
        ("up", "mlp.linear_fc1", e, m, wide),
        ("down", "mlp.linear_fc2", m, e, back),
    ):
        rows |= linear_rows(
            "vision.layers." + name,
            at + stored,
            n,
            i,
            o,
            axes,
            bias=True,
            adds=name != "up",
        )
    # The mergers of tapped layers take the norm after merging, the last one before.
    for name, at, n, size in (
        ("vision.merger.", "model.visual.merger.", 0, e),
        ("vision.deep.", "model.visual.deepstack_merger_list.{}.", len(c.taps), u * e),
    ):
        if "{}" in at and not n:
            continue
        rows |= norm_rows(name + "norm", at + "norm", n, size, bias=True)
        fc1, fc2 = at + "linear_fc1", at + "linear_fc2"
        rows |= linear_rows(name + "in", fc1, n, u * e, u * e, wide, bias=True)
        rows |= linear_rows(name + "out", fc2, n, u * e, d, back, bias=True)
    return vision_rows(rows) | decoder.rows(c.text, "model.language_model.")


def places(weights, positions, mask, side: int):
    """Learned positions of patches, float32[R, S, E]: those of the square, stretched
    over the image's grid corner to corner and interpolated linearly on both axes.

    Args:
      weights: dtype[side², E], raster order.
      positions: int32[R, S, 2], row and column; mask: bool[R, S].
    """
    size = jnp.where(mask[..., None], positions, 0).max(1, keepdims=True)
    at = positions * (side - 1) / jnp.maximum(size, 1)
    low = jnp.floor(at)
    part = at - low
    low = low.astype(jnp.int32)
    out = 0.0
    for row in (0, 1):
        for col in (0, 1):
            near = jnp.minimum(low + jnp.array([row, col]), side - 1)
            share = jnp.abs(jnp.array([1 - row, 1 - col]) - part)
            picked = fn.wide(weights[near[..., 0] * side + near[..., 1]])
            out = out + picked * share.prod(-1, keepdims=True)
    return out


def encode_image(c: Config, w: dict, vision: Vision, *, dtype=None, **scan):
    """Merged image tokens in raster order per image, dtype[N, I * M, D * (1 + J)]: what
    the last layer says, then what each tapped layer does."""
    dtype = dtype or w["vision.patch"].dtype
    n, i, win, p, _ = vision.patches.shape
    r, s, e, a = n * i, win * p, c.vision_width, c.vision_heads
    patches = vision.patches.reshape(r, s, -1).astype(dtype)
    mask, positions = vision.mask.reshape(r, s), vision.positions.reshape(r, s, 2)
    x = jnp.einsum("rsc,ce->rse", patches, w["vision.patch"].astype(dtype))
    x = x + w["vision.patch_bias"].astype(dtype)
    learned = w["vision.place"].astype(dtype)
    x = x + places(learned, positions, mask, c.side).astype(dtype)
    rope = fn.axial_rope(positions, e // a, c.vision_theta, dtype)

    def normed(x, w, name):
        return fn.layer_norm(x, w[name], w[name + "_bias"], EPS)

    def linear(x, w, name):
        y = jnp.einsum("...e,ef->...f", x, w[name].astype(dtype))
        return y + w[name + "_bias"].astype(dtype)

    def layer(carry, w, i):
        x, tapped = carry
        qkv = jnp.einsum(
            "rse,eqah->rsqah", normed(x, w, "norm1"), w["qkv"].astype(dtype)
        )
        qkv = qkv + w["qkv_bias"].astype(dtype)
        q, k = (fn.rotate(qkv[:, :, j], *rope) for j in (0, 1))
        y = fn.full_attention(q, k, qkv[:, :, 2], mask)
        x = x + linear(y.reshape(x.shape), w, "o")
        y = jax.nn.gelu(linear(normed(x, w, "norm2"), w, "up"), approximate=True)
        x = x + linear(y, w, "down")
        tapped = tuple(
            jnp.where(i == tap, x, kept)
            for tap, kept in zip(c.taps, tapped, strict=True)
        )
        return (x, tapped), None

    (x, tapped), _ = fn.scan_layers(
        layer,
        (x, (jnp.zeros_like(x),) * len(c.taps)),
        decoder.below(w, "vision.layers."),
        tuple(range(c.vision_layers)),
        **scan,
    )

    def merged(x):
        return x.reshape(r, s // c.merge**2, c.merge**2 * e)

    def merger(x, w):
        y = jax.nn.gelu(linear(x, w, "in"), approximate=False)
        return linear(y, w, "out")

    last, deep = decoder.below(w, "vision.merger."), decoder.below(w, "vision.deep.")
    parts = [merger(merged(normed(x, last, "norm")), last)]
    for j, x in enumerate(tapped):
        own = jax.tree.map(lambda p, j=j: p[j], deep)
        parts.append(merger(normed(merged(x), own, "norm"), own))
    x = jnp.concatenate(parts, axis=-1)
    order = vision.order.reshape(r, -1)
    x = jnp.take_along_axis(x, order[..., None], axis=1)
    return x.reshape(n, -1, x.shape[-1])


def model(raw: dict, where: str = "config.json") -> Model:
    """The family's `api.Model` of a parsed `config.json`."""
    config = read_config(raw, where)
    return decoder.model(FAMILY, config, table(config), encode_image)
