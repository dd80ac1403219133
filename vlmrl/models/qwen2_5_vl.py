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

from vlmrl.models import decoder, rows
from vlmrl.models import layers as fn
from vlmrl.models.api import Model, Param
from vlmrl.models.fsdp import read_weights
from vlmrl.models.hf_config import Section
from vlmrl.prompts.processor import vision_of
from vlmrl.types import Vision

FAMILY = "qwen2_5_vl"
TRAITS = decoder.Traits(qkv_bias=True, theta=1e6, sections=(16, 24, 24))
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
    window: int
    full_layers: tuple[int, ...]
    vision_theta: float = 10000.0

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal_patch * self.patch**2


def read_config(raw: dict, where: str) -> Config:
    """Return the config of a `config.json`, in the hub's flat layout or nested.

    Raises:
      UserError: a field is missing, or asks for something this family does not do.
    """
    text = Section(raw.get("text_config") or raw, where)
    vision = Section(vision_of(raw), where, "vision_config.")
    if text.get("use_sliding_window"):
        # No published checkpoint has it. Transformers would count rows of the cache,
        # which padding and shared prefixes change; time, which we count, stands still
        # over an image: no window is the same in both.
        raise text.error(
            "use_sliding_window", ": expected false, as in every published Qwen2.5-VL"
        )
    vision.one_of("hidden_act", ("silu",))
    return Config(
        text=decoder.read_config(text, TRAITS, tied=raw.get("tie_word_embeddings")),
        vision_width=vision.require("hidden_size"),
        vision_layers=vision.require("depth"),
        vision_heads=vision.require("num_heads"),
        vision_mlp=vision.require("intermediate_size"),
        patch=vision.require("patch_size"),
        temporal_patch=vision.require("temporal_patch_size"),
        channels=vision.get("in_channels", vision.get("in_chans", 3)),
        merge=vision.require("spatial_merge_size"),
        window=vision.require("window_size"),
        full_layers=tuple(vision.require("fullatt_block_indexes")),
    )


def table(c: Config) -> dict[str, Param]:
    """Return the parameter table. Stacked rows have the layer axis first."""
    e, m, d, u = c.vision_width, c.vision_mlp, c.text.width, c.merge**2 * c.vision_width
    n, a, at = c.vision_layers, c.vision_heads, "visual.blocks.{}."
    patch = {"c": c.channels, "t": c.temporal_patch, "y": c.patch, "x": c.patch}
    qkv = {"q": 3, "a": a, "h": e // a}
    # The order of rows decides the random initialisation of a seed.
    output = {"o": ("attn.proj", (e, e), rows.OUT)}
    mlp = {
        "gate": ("mlp.gate_proj", (e, m), rows.UP),
        "up": ("mlp.up_proj", (e, m), rows.UP),
        "down": ("mlp.down_proj", (m, e), rows.DOWN),
    }
    merger = {"in": ("0", (u, u), rows.UP), "out": ("2", (u, d), rows.DOWN)}
    return rows.tower(
        rows.patch("visual.patch_embed.proj", e, patch, bias=False)
        | rows.norm("vision.layers.norm1", at + "norm1", n, e)
        | rows.heads("vision.layers.qkv", at + "attn.qkv", n, e, qkv, bias=True)
        | rows.linears("vision.layers.", at, n, output, residual=("o",))
        | rows.norm("vision.layers.norm2", at + "norm2", n, e)
        | rows.linears("vision.layers.", at, n, mlp, residual=("down",))
        | rows.norm("vision.merger.norm", "visual.merger.ln_q", 0, e)
        | rows.linears("vision.merger.", "visual.merger.mlp.", 0, merger)
    ) | decoder.table(c.text)


# transformers 5 names the tensors of its checkpoints differently from the hub's.
RENAMES = (("model.visual.", "visual."), ("model.language_model.", "model."))


def encode_image(c: Config, w: dict, vision: Vision, *, dtype=None, **scan):
    """Return merged image tokens dtype[N, I * M, D], in raster order per image."""
    dtype = dtype or w["vision.patch"].dtype
    n, i, win, p, _ = vision.patches.shape
    count = n * i
    x = jnp.einsum(
        "nwpc,ce->nwpe",
        vision.patches.reshape(count, win, p, -1).astype(dtype),
        w["vision.patch"].astype(dtype),
    )
    mask = vision.mask.reshape(count, win, p)
    positions = vision.positions.reshape(count, win, p, 2)
    e, a = c.vision_width, c.vision_heads
    rope = fn.axial_rope(positions, e // a, c.vision_theta, dtype)

    def attend(x, w, shape):
        """Attention within rows of `shape`: [windows, P] or [images, W * P]."""
        y = fn.rms_norm(x, w["norm1"], EPS)
        qkv = jnp.einsum("nwpe,eqah->nwpqah", y, w["qkv"].astype(dtype))
        qkv = (qkv + w["qkv_bias"].astype(dtype)).reshape(*shape, 3, a, e // a)
        cos, sin = (t.reshape(*shape, -1) for t in rope)
        q, k = (fn.rotate(qkv[:, :, j], cos, sin) for j in (0, 1))
        y = fn.full_attention(q, k, qkv[:, :, 2], mask.reshape(shape))
        y = jnp.einsum("nwpe,ed->nwpd", y.reshape(x.shape), w["o"].astype(dtype))
        return x + y + w["o_bias"].astype(dtype)

    def layer(x, w, full):
        w = read_weights(w, dtype)  # outside of the branches: each would gather them

        def windowed(x):
            return attend(x, w, (count * win, p))

        def whole(x):
            return attend(x, w, (count, win * p))

        if isinstance(full, bool):
            x = whole(x) if full else windowed(x)
        else:
            x = jax.lax.cond(full, whole, windowed, x)
        y = fn.rms_norm(x, w["norm2"], EPS)
        biases = tuple(w[name + "_bias"] for name in ("gate", "up", "down"))
        return x + fn.gated_mlp(y, w["gate"], w["up"], w["down"], biases), None

    flags = tuple(i in c.full_layers for i in range(c.vision_layers))
    x, _ = fn.scan_layers(layer, x, decoder.below(w, "vision.layers."), flags, **scan)
    x = fn.rms_norm(x, w["vision.merger.norm"], EPS)
    x = x.reshape(count, win * p // c.merge**2, c.merge**2 * e)
    merger = decoder.below(w, "vision.merger.")
    x = jax.nn.gelu(fn.linear(x, merger, "in"), approximate=False)
    return fn.raster_order(fn.linear(x, merger, "out"), vision.order)


def model(raw: dict, where: str = "config.json") -> Model:
    """Return the family's `api.Model` of a parsed `config.json`."""
    config = read_config(raw, where)
    return decoder.model(FAMILY, config, table(config), encode_image, RENAMES)
