"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923): windowed vision tower, 2 × 2 merger,
Qwen2 decoder with multimodal rotary positions.

Equal to transformers' `Qwen2_5_VLForConditionalGeneration`. Axis letters: N groups,
I images, W windows, P patches of a window, E vision width, A vision heads, D text
width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.models import decoder
from vlmrl.models import layers as fn
from vlmrl.models.api import Model, Param, linear_rows, norm_rows, qkv_rows, vision_rows
from vlmrl.prompts.processor import vision_of
from vlmrl.types import UserError, Vision

FAMILY = "qwen2_5_vl"


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
    window: int
    full_layers: tuple[int, ...]
    vision_theta: float = 10000.0

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal_patch * self.patch**2


def read_config(raw: dict, where: str) -> Config:
    """Config of a `config.json`, in the flat layout of the hub or the nested one.

    Raises:
      UserError: a field is missing, or asks for something this family does not do.
    """
    text, vision = raw.get("text_config") or raw, vision_of(raw)
    if text.get("use_sliding_window"):
        # No published checkpoint has it. Transformers would count rows of the cache,
        # which padding and shared prefixes change; time, which we count, stands still
        # over an image: no window is the same in both.
        raise UserError(
            f"{where}: field 'use_sliding_window' must be false, as it is in every "
            "published Qwen2.5-VL"
        )
    if vision.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: field 'vision_config.hidden_act' must be 'silu'")

    def get(key):
        return decoder.need(vision, key, where, "vision_config.")

    return Config(
        text=decoder.read_config(
            text,
            where,
            tied=raw.get("tie_word_embeddings"),
            qkv_bias=True,
            theta=1e6,
            sections=(16, 24, 24),
        ),
        vision_width=get("hidden_size"),
        vision_layers=get("depth"),
        vision_heads=get("num_heads"),
        vision_mlp=get("intermediate_size"),
        patch=get("patch_size"),
        temporal_patch=get("temporal_patch_size"),
        channels=vision.get("in_channels", vision.get("in_chans", 3)),
        merge=get("spatial_merge_size"),
        window=get("window_size"),
        full_layers=tuple(get("fullatt_block_indexes")),
    )


def table(c: Config) -> dict[str, Param]:
    """The parameter table. Stacked rows carry the layer axis first."""
    e, a, u, m = c.vision_width, c.vision_heads, c.merge**2, c.vision_mlp
    n, at = c.vision_layers, "visual.blocks.{}."
    wide, back = ("embed", "mlp"), ("mlp", "embed")
    rows = {
        "vision.patch": Param(
            (c.patch_dim, e),
            (None, "embed"),
            0.02,
            "visual.patch_embed.proj.weight",
            "e c t y x -> (c t y x) e",
            dict(c=c.channels, t=c.temporal_patch, y=c.patch, x=c.patch),
        )
    }
    rows |= norm_rows("vision.layers.norm1", at + "norm1", n, e)
    rows |= qkv_rows("vision.layers.qkv", at + "attn.qkv", n, e, a)
    for name, stored, i, o, axes in (
        ("o", "attn.proj", e, e, (None, "embed")),
        ("gate", "mlp.gate_proj", e, m, wide),
        ("up", "mlp.up_proj", e, m, wide),
        ("down", "mlp.down_proj", m, e, back),
    ):
        adds = name in ("o", "down")
        rows |= linear_rows(
            "vision.layers." + name, at + stored, n, i, o, axes, bias=True, adds=adds
        )
        if name == "o":
            rows |= norm_rows("vision.layers.norm2", at + "norm2", n, e)
    at, d = "visual.merger.", c.text.width
    rows |= norm_rows("vision.merger.norm", at + "ln_q", 0, e)
    for name, stored, o, axes in (("in", "0", u * e, wide), ("out", "2", d, back)):
        rows |= linear_rows(
            "vision.merger." + name, at + "mlp." + stored, 0, u * e, o, axes, bias=True
        )
    return vision_rows(rows) | decoder.rows(c.text)


# transformers 5 names the tensors of its checkpoints differently from the hub's.
RENAMES = (("model.visual.", "visual."), ("model.language_model.", "model."))


def encode_image(c: Config, w: dict, vision: Vision, *, dtype=None, **scan):
    """Merged image tokens dtype[N, I * M, D], in raster order per image."""
    dtype = dtype or w["vision.patch"].dtype
    n, i, win, p, _ = vision.patches.shape
    rows = n * i
    x = jnp.einsum(
        "nwpc,ce->nwpe",
        vision.patches.reshape(rows, win, p, -1).astype(dtype),
        w["vision.patch"].astype(dtype),
    )
    mask = vision.mask.reshape(rows, win, p)
    positions = vision.positions.reshape(rows, win, p, 2)
    e, a = c.vision_width, c.vision_heads
    rope = fn.axial_rope(positions, e // a, c.vision_theta, dtype)

    def attend(x, w, shape):
        """Attention within rows of `shape`: [windows, P] or [images, W * P]."""
        y = fn.rms_norm(x, w["norm1"], 1e-6)
        qkv = jnp.einsum("nwpe,eqah->nwpqah", y, w["qkv"].astype(dtype))
        qkv = (qkv + w["qkv_bias"].astype(dtype)).reshape(*shape, 3, a, e // a)
        cos, sin = (t.reshape(*shape, -1) for t in rope)
        q, k = (fn.rotate(qkv[:, :, j], cos, sin) for j in (0, 1))
        y = fn.full_attention(q, k, qkv[:, :, 2], mask.reshape(shape))
        y = jnp.einsum("nwpe,ed->nwpd", y.reshape(x.shape), w["o"].astype(dtype))
        return x + y + w["o_bias"].astype(dtype)

    def layer(x, w, full):
        def windowed(x):
            return attend(x, w, (rows * win, p))

        def whole(x):
            return attend(x, w, (rows, win * p))

        if isinstance(full, bool):
            x = whole(x) if full else windowed(x)
        else:
            x = jax.lax.cond(full, whole, windowed, x)
        y = fn.rms_norm(x, w["norm2"], 1e-6)
        biases = tuple(w[name + "_bias"] for name in ("gate", "up", "down"))
        return x + fn.gated_mlp(y, w["gate"], w["up"], w["down"], biases), None

    flags = tuple(i in c.full_layers for i in range(c.vision_layers))
    x, _ = fn.scan_layers(layer, x, decoder.below(w, "vision.layers."), flags, **scan)
    x = fn.rms_norm(x, w["vision.merger.norm"], 1e-6)
    x = x.reshape(rows, win * p // c.merge**2, c.merge**2 * e)
    for name in ("in", "out"):
        x = jnp.einsum("nme,ef->nmf", x, w[f"vision.merger.{name}"].astype(dtype))
        x = x + w[f"vision.merger.{name}_bias"].astype(dtype)
        x = jax.nn.gelu(x, approximate=False) if name == "in" else x
    order = vision.order.reshape(rows, -1)
    x = jnp.take_along_axis(x, order[..., None], axis=1)
    return x.reshape(n, -1, c.text.width)


def model(raw: dict, where: str = "config.json") -> Model:
    """The family's `api.Model` of a parsed `config.json`."""
    config = read_config(raw, where)
    return decoder.model(FAMILY, config, table(config), encode_image, RENAMES)
