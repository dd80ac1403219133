"""Qwen3-VL, dense (https://arxiv.org/abs/2511.21631): a vision tower with learned and
rotary positions, whose middle layers feed the first decoder layers too (deepstack,
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

from vlmrl.models import decoder, rows
from vlmrl.models import layers as fn
from vlmrl.models.api import Model, Param
from vlmrl.models.hf_config import Section
from vlmrl.types import Vision

FAMILY = "qwen3_vl"
TRAITS = decoder.Traits(
    qk_norm=True, head_dim=128, theta=5e5, sections=(24, 20, 20), interleaved=True
)
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
    """Return the config of a `config.json`.

    Raises:
      UserError: a field is missing, or asks for something this family does not do.
    """
    both = Section(raw, where)
    text, vision = both.section("text_config"), both.section("vision_config")
    vision.one_of("hidden_act", ("gelu_pytorch_tanh",))
    config = Config(
        text=decoder.read_config(text, TRAITS, tied=raw.get("tie_word_embeddings")),
        vision_width=vision.require("hidden_size"),
        vision_layers=vision.require("depth"),
        vision_heads=vision.require("num_heads"),
        vision_mlp=vision.require("intermediate_size"),
        patch=vision.require("patch_size"),
        temporal_patch=vision.require("temporal_patch_size"),
        channels=vision.get("in_channels", 3),
        merge=vision.require("spatial_merge_size"),
        side=math.isqrt(vision.require("num_position_embeddings")),
        taps=tuple(vision.require("deepstack_visual_indexes")),
        vision_theta=(vision.get("rope_parameters") or {}).get("rope_theta", 1e4),
    )
    layers = config.vision_layers
    if list(config.taps) != sorted(set(config.taps) & set(range(layers))) or (
        len(config.taps) > config.text.layers
    ):
        raise vision.error(
            "deepstack_visual_indexes",
            f"must be ascending numbers below {layers}, at most {config.text.layers} "
            "of them, the number of text layers",
        )
    if config.side**2 != vision.require("num_position_embeddings"):
        raise vision.error("num_position_embeddings", "must be a square")
    return config


def table(c: Config) -> dict[str, Param]:
    """Return the parameter table. Stacked rows have the layer axis first."""
    e, m, d, u = c.vision_width, c.vision_mlp, c.text.width, c.merge**2 * c.vision_width
    n, a, at = c.vision_layers, c.vision_heads, "model.visual.blocks.{}."
    patch = {"c": c.channels, "t": c.temporal_patch, "y": c.patch, "x": c.patch}
    qkv = {"q": 3, "a": a, "h": e // a}
    layer = {
        "o": ("attn.proj", (e, e), rows.OUT),
        "up": ("mlp.linear_fc1", (e, m), rows.UP),
        "down": ("mlp.linear_fc2", (m, e), rows.DOWN),
    }
    shape, name = (c.side**2, e), "model.visual.pos_embed.weight"
    place = Param(shape, (None, "embed"), 0.02, name, "... -> ...", {})
    out = (
        rows.patch("model.visual.patch_embed.proj", e, patch, bias=True)
        | {"vision.place": place}
        | rows.norm("vision.layers.norm1", at + "norm1", n, e, bias=True)
        | rows.heads("vision.layers.qkv", at + "attn.qkv", n, e, qkv, bias=True)
        | rows.norm("vision.layers.norm2", at + "norm2", n, e, bias=True)
        | rows.linears("vision.layers.", at, n, layer, residual=("o", "down"))
    )
    merger = {
        "in": ("linear_fc1", (u, u), rows.UP),
        "out": ("linear_fc2", (u, d), rows.DOWN),
    }
    # The mergers of tapped layers normalise after merging, the last one before.
    mergers = [("vision.merger.", "model.visual.merger.", 0, e)]
    if c.taps:
        stored = "model.visual.deepstack_merger_list.{}."
        mergers.append(("vision.deep.", stored, len(c.taps), u))
    for name, at, n, size in mergers:
        out |= rows.norm(name + "norm", at + "norm", n, size, bias=True)
        out |= rows.linears(name, at, n, merger)
    return rows.tower(out) | decoder.table(c.text, "model.language_model.")


def interpolate_positions(weights, positions, mask, side: int):
    """Return learned positions of patches, float32[R, S, E]: those of the square,
    stretched over the image's grid corner to corner and interpolated linearly on both
    axes.

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
            picked = fn.to_float32(weights[near[..., 0] * side + near[..., 1]])
            out = out + picked * share.prod(-1, keepdims=True)
    return out


def encode_image(c: Config, w: dict, vision: Vision, *, dtype=None, **scan):
    """Return merged image tokens in raster order per image, dtype[N, I * M,
    D * (1 + J)]: the last layer's features, then those of each tapped layer."""
    dtype = dtype or w["vision.patch"].dtype
    n, i, win, p, _ = vision.patches.shape
    r, s, e, a = n * i, win * p, c.vision_width, c.vision_heads
    patches = vision.patches.reshape(r, s, -1).astype(dtype)
    mask, positions = vision.mask.reshape(r, s), vision.positions.reshape(r, s, 2)
    x = jnp.einsum("rsc,ce->rse", patches, w["vision.patch"].astype(dtype))
    x = x + w["vision.patch_bias"].astype(dtype)
    learned = w["vision.place"].astype(dtype)
    x = x + interpolate_positions(learned, positions, mask, c.side).astype(dtype)
    rope = fn.axial_rope(positions, e // a, c.vision_theta, dtype)

    def normed(x, w, name):
        return fn.layer_norm(x, w[name], w[name + "_bias"], EPS)

    def layer(carry, w, i):
        x, tapped = carry
        qkv = jnp.einsum(
            "rse,eqah->rsqah", normed(x, w, "norm1"), w["qkv"].astype(dtype)
        )
        qkv = qkv + w["qkv_bias"].astype(dtype)
        q, k = (fn.rotate(qkv[:, :, j], *rope) for j in (0, 1))
        y = fn.full_attention(q, k, qkv[:, :, 2], mask)
        x = x + fn.linear(y.reshape(x.shape), w, "o")
        y = jax.nn.gelu(fn.linear(normed(x, w, "norm2"), w, "up"), approximate=True)
        x = x + fn.linear(y, w, "down")
        tapped = tuple(
            jnp.where(i == tap, x, earlier)
            for tap, earlier in zip(c.taps, tapped, strict=True)
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
        y = jax.nn.gelu(fn.linear(x, w, "in"), approximate=False)
        return fn.linear(y, w, "out")

    last, deep = decoder.below(w, "vision.merger."), decoder.below(w, "vision.deep.")
    parts = [merger(merged(normed(x, last, "norm")), last)]
    for j, x in enumerate(tapped):
        own = jax.tree.map(lambda p, j=j: p[j], deep)
        parts.append(merger(normed(merged(x), own, "norm"), own))
    return fn.raster_order(jnp.concatenate(parts, axis=-1), vision.order)


def model(raw: dict, where: str = "config.json") -> Model:
    """Return the family's `api.Model` of a parsed `config.json`."""
    config = read_config(raw, where)
    return decoder.model(FAMILY, config, table(config), encode_image)
