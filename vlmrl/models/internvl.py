"""InternVL3 in transformers' layout (https://arxiv.org/abs/2504.10479): a plain vision
transformer over tiles of one size, pixel shuffle, a projector, a Qwen2 decoder.

Equal to transformers' `InternVLForConditionalGeneration`. A tile is one window of
`types.Vision`; tiles never attend to each other. Axis letters: N groups, I images,
W tiles of an image, P patches of a tile, E vision width, A vision heads, H head width,
D text width.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.models import decoder, rows
from vlmrl.models import layers as fn
from vlmrl.models import text as texts
from vlmrl.models.api import Model, Param
from vlmrl.models.hf_config import Section
from vlmrl.types import UserError, Vision

FAMILY = "internvl"
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
QK_NORM_EPS = 1e-6  # fixed in transformers, whatever the config's layer_norm_eps
MERGER_EPS = 1e-5


class Config(NamedTuple):
    text: decoder.Config
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    vision_act: str
    vision_eps: float
    vision_norm: str  # 'layer_norm' or 'rms_norm', of the layers
    vision_bias: bool  # of queries, keys and values
    qk_norm: bool  # of queries and keys over all heads at once
    final_norm: bool
    positions: bool  # learned absolute ones
    mask_token: bool  # stored, never used
    feature: int  # hidden state that is taken: 0 the embeddings, −1 the last, normed
    patch: int
    channels: int
    grid: int  # patches a side that positions were learned for
    merge: int
    merger_act: str

    @property
    def patch_dim(self) -> int:
        return self.channels * self.patch**2


def read_config(raw: dict, where: str) -> Config:
    """Return the config of a `config.json`.

    Raises:
      UserError: a field is missing, or asks for something this family does not do.
    """
    both = Section(raw, where)
    text = Section(raw.get("text_config") or {}, where, "text_config.")
    vision = Section(raw.get("vision_config") or {}, where, "vision_config.")
    kind = text.one_of("model_type", texts.FAMILIES)
    both.one_of("vision_feature_select_strategy", ("default",))
    layers, last = (
        vision.require("num_hidden_layers"),
        raw.get("vision_feature_layer", -1),
    )
    if not isinstance(last, int) or not -layers - 1 <= last <= layers:
        raise both.error(
            "vision_feature_layer", f": expected one of the {layers} layers, got {last}"
        )
    traits, tied = texts.FAMILIES[kind], raw.get("tie_word_embeddings")
    return Config(
        text=decoder.read_config(text, traits, tied=tied),
        vision_width=vision.require("hidden_size"),
        vision_layers=layers,
        vision_heads=vision.require("num_attention_heads"),
        vision_mlp=vision.require("intermediate_size"),
        vision_act=vision.one_of("hidden_act", ACTIVATIONS),
        vision_eps=vision.get("layer_norm_eps", 1e-6),
        vision_norm=vision.one_of("norm_type", ("layer_norm", "rms_norm")),
        vision_bias=bool(vision.get("attention_bias", False)),
        qk_norm=bool(vision.get("use_qk_norm", False)),
        final_norm=not vision.get("use_mean_pooling", True),
        positions=bool(vision.get("use_absolute_position_embeddings", True)),
        mask_token=bool(vision.get("use_mask_token", False)),
        feature=last,
        patch=_side(vision, "patch_size"),
        channels=vision.get("num_channels", 3),
        grid=_side(vision, "image_size") // _side(vision, "patch_size"),
        merge=round(1 / raw.get("downsample_ratio", 0.5)),
        merger_act=both.one_of("projector_hidden_act", ACTIVATIONS),
    )


def _side(vision: Section, field: str) -> int:
    sizes = vision.require(field)
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if len(set(sizes)) != 1:
        raise vision.error(field, f": expected a square, got {sizes}")
    return sizes[0]


def table(c: Config) -> dict[str, Param]:
    """Return the parameter table. Stacked rows have the layer axis first."""
    e, m, d, u = c.vision_width, c.vision_mlp, c.text.width, c.merge**2 * c.vision_width
    n, a, at = c.vision_layers, c.vision_heads, "vision_tower.encoder.layer.{}."
    name, bias = "vision.layers.", c.vision_norm == "layer_norm"
    out = _embedding_rows(c)
    out |= rows.norm(name + "norm1", at + "layernorm_before", n, e, bias=bias)
    for x in "qkv":
        size, stored = {"a": a, "h": e // a}, f"{at}attention.{x}_"
        out |= rows.heads(name + x, stored + "proj", n, e, size, bias=c.vision_bias)
        if c.qk_norm and x != "v":
            out |= rows.norm(f"{name}{x}_norm", stored + "norm", n, e)
    layer = {
        "o": ("attention.projection_layer", (e, e), rows.OUT),
        "in": ("mlp.fc1", (e, m), rows.UP),
        "out": ("mlp.fc2", (m, e), rows.DOWN),
    }
    out |= rows.linears(name, at, n, layer, residual=("o", "out"))
    out |= rows.norm(name + "norm2", at + "layernorm_after", n, e, bias=bias)
    for i in (1, 2):
        scale = Param((n, e), (None, None), -1, f"{at}lambda_{i}", "... -> ...", {})
        out[f"{name}scale{i}"] = scale
    if c.final_norm:
        out |= rows.norm("vision.norm", "vision_tower.layernorm", 0, e, bias=True)
    name, at = "vision.merger.", "multi_modal_projector."
    out |= rows.norm(name + "norm", at + "layer_norm", 0, u, bias=True)
    merger = {
        "in": ("linear_1", (u, d), rows.UP),
        "out": ("linear_2", (d, d), rows.DOWN),
    }
    return rows.tower(out | rows.linears(name, at, 0, merger)) | decoder.table(
        c.text, "language_model.model.", "language_model.lm_head.weight"
    )


def _embedding_rows(c: Config) -> dict[str, Param]:
    at, e, axes = "vision_tower.embeddings.", c.vision_width, (None, "embed")
    token = rows.vector((e,), ("embed",), at + "cls_token")
    token = token._replace(init=0.02, layout="1 1 e -> e")
    out = {"vision.cls": token}
    if c.mask_token:
        out["vision.mask"] = token._replace(name=at + "mask_token")
    if c.positions:
        shape, name = (c.grid**2 + 1, e), at + "position_embeddings"
        positions = Param(shape, axes, 0.02, name, "1 p e -> p e", {}, float32=True)
        out["vision.positions"] = positions
    patch = {"c": c.channels, "y": c.patch, "x": c.patch}
    std, stored = c.patch_dim**-0.5, at + "patch_embeddings.projection"
    return out | rows.patch(stored, e, patch, std=std, bias=True)


# transformers 5 names modules, and some files, differently from the hub's checkpoints.
RENAMES = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def bicubic_matrix(size: int, to: int) -> np.ndarray:
    """Return float32[to, size]: bicubic interpolation along one axis as torch does it
    (cubic of −0.75, edges repeated, pixels at the centres of their cells)."""
    a = -0.75
    at = (np.arange(to) + 0.5) * size / to - 0.5
    first = np.floor(at)
    out = np.zeros((to, size))
    for tap in range(-1, 3):
        far = np.abs(at - first - tap)
        near = ((a + 2) * far - (a + 3)) * far**2 + 1
        tail = ((far - 5) * far + 8) * far * a - 4 * a
        index = np.clip(first + tap, 0, size - 1).astype(int)
        np.add.at(out, (np.arange(to), index), np.where(far <= 1, near, tail))
    return out.astype(np.float32)


def tile_positions(c: Config, positions, p: int):
    """Return the learned positions of a tile, [P, E], merge units contiguous."""
    side = isqrt(p)
    if side**2 != p or side % c.merge:
        raise UserError(f"tiles of {p} patches; must be square, of whole merge units")
    grid = positions[1:].reshape(c.grid, c.grid, -1)
    if side != c.grid:
        weight = jnp.asarray(bicubic_matrix(c.grid, side), fn.to_float32(grid).dtype)
        grid = jnp.einsum("ys,xt,ste->yxe", weight, weight, fn.to_float32(grid))
        grid = grid.astype(positions.dtype)
    units = grid.reshape(side // c.merge, c.merge, side // c.merge, c.merge, -1)
    return units.transpose(0, 2, 1, 3, 4).reshape(p, -1)


def encode_image(c: Config, w: dict, vision: Vision, *, dtype=None, **scan):
    """Return merged image tokens dtype[N, I * M, D], tile by tile, in raster order."""
    dtype = dtype or w["vision.patch"].dtype
    n, i, tiles, p, _ = vision.patches.shape
    count, e = n * i * tiles, c.vision_width

    patches = vision.patches.reshape(count, p, -1).astype(dtype)
    x = jnp.einsum("rpc,ce->rpe", patches, w["vision.patch"].astype(dtype))
    x = x + w["vision.patch_bias"].astype(dtype)
    first = w["vision.cls"].astype(dtype)
    if c.positions:
        positions = w["vision.positions"]
        positions = positions.astype(positions.dtype)
        x = x + tile_positions(c, positions, p).astype(dtype)
        first = first + positions[0].astype(dtype)
    x = jnp.concatenate([jnp.broadcast_to(first, (count, 1, e)), x], axis=1)
    mask = jnp.pad(
        vision.mask.reshape(count, p), ((0, 0), (1, 0)), constant_values=True
    )

    def norm(x, w, name):
        if c.vision_norm == "rms_norm":
            return fn.rms_norm(x, w[name], c.vision_eps)
        return fn.layer_norm(x, w[name], w[name + "_bias"], c.vision_eps)

    def heads(x, w, name):
        y = jnp.einsum("rpe,eah->rpah", x, w[name].astype(dtype))
        if c.vision_bias:
            y = y + w[name + "_bias"].astype(dtype)
        if c.qk_norm and name != "v":
            flat = y.reshape(x.shape)
            y = fn.rms_norm(flat, w[name + "_norm"], QK_NORM_EPS).reshape(y.shape)
        return y

    def layer(x, w, _):
        y = norm(x, w, "norm1")
        y = fn.full_attention(*(heads(y, w, name) for name in "qkv"), mask)
        y = fn.linear(y.reshape(x.shape), w, "o")
        x = x + w["scale1"].astype(dtype) * y
        y = ACTIVATIONS[c.vision_act](fn.linear(norm(x, w, "norm2"), w, "in"))
        return x + w["scale2"].astype(dtype) * fn.linear(y, w, "out"), None

    depth = c.feature % (c.vision_layers + 1)
    if depth:
        stacked = decoder.below(w, "vision.layers.")
        if depth < c.vision_layers:
            stacked = jax.tree.map(lambda stack: stack[:depth], stacked)
        x, _ = fn.scan_layers(layer, x, stacked, **scan)
    x, merger = x[:, 1:], decoder.below(w, "vision.merger.")
    if c.final_norm and c.feature == -1:
        x = fn.layer_norm(x, w["vision.norm"], w["vision.norm_bias"], c.vision_eps)
    # Pixel shuffle: the patches of a merge unit, already neighbours, become one token.
    x = x.reshape(count, p // c.merge**2, c.merge**2 * e)
    x = fn.layer_norm(x, merger["norm"], merger["norm_bias"], MERGER_EPS)
    x = fn.linear(ACTIVATIONS[c.merger_act](fn.linear(x, merger, "in")), merger, "out")
    return fn.raster_order(x.reshape(n * i, -1, c.text.width), vision.order)


def model(raw: dict, where: str = "config.json") -> Model:
    """Return the family's `api.Model` of a parsed `config.json`."""
    config = read_config(raw, where)
    return decoder.model(FAMILY, config, table(config), encode_image, RENAMES)
