"""Qwen2.5-VL (https://arxiv.org/abs/2502.13923): windowed vision tower, 2 × 2 merger,
grouped-query decoder with biases and multimodal rotary positions.

Equal to transformers' `Qwen2_5_VLForConditionalGeneration`. Axis letters: N groups,
I images, W windows, P patches of a window, E vision width, A vision heads, B rows,
T tokens, D text width, K key-value heads, R query heads per key-value head, H head
width, F MLP width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vlmrl.models import layers as fn
from vlmrl.models.api import Level, Model, Param, Segment, bind, declare
from vlmrl.types import Tokens, UserError, Vision

FAMILY = "qwen2_5_vl"


class Config(NamedTuple):
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    eps: float
    theta: float
    sections: tuple[int, ...]
    tied: bool
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
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal_patch * self.patch**2


def read_config(raw: dict, where: str) -> Config:
    """Config of a `config.json`, in the flat layout of the hub or the nested one.

    Raises:
      UserError: a field is missing, or asks for something this family does not do.
    """
    text, vision = raw.get("text_config") or raw, raw.get("vision_config", {})

    def need(part: dict, key: str, name: str):
        if key not in part:
            raise UserError(f"{where}: field '{name}{key}' is missing")
        return part[key]

    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    theta = rope.get("rope_theta", text.get("rope_theta", 1e6))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UserError(f"{where}: rope type '{kind}' is not 'default' or 'mrope'")
    if text.get("use_sliding_window"):
        raise UserError(f"{where}: use_sliding_window must be false")
    for part, name in ((text, ""), (vision, "vision_config.")):
        if part.get("hidden_act", "silu") != "silu":
            raise UserError(f"{where}: field '{name}hidden_act' must be 'silu'")
    t = lambda key: need(text, key, "")  # noqa: E731
    v = lambda key: need(vision, key, "vision_config.")  # noqa: E731
    config = Config(
        vocab=t("vocab_size"),
        width=t("hidden_size"),
        layers=t("num_hidden_layers"),
        heads=t("num_attention_heads"),
        kv_heads=t("num_key_value_heads"),
        mlp=t("intermediate_size"),
        eps=t("rms_norm_eps"),
        theta=theta,
        sections=tuple(rope.get("mrope_section", (16, 24, 24))),
        tied=bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
        vision_width=v("hidden_size"),
        vision_layers=v("depth"),
        vision_heads=v("num_heads"),
        vision_mlp=v("intermediate_size"),
        patch=v("patch_size"),
        temporal_patch=v("temporal_patch_size"),
        channels=vision.get("in_channels", vision.get("in_chans", 3)),
        merge=v("spatial_merge_size"),
        window=v("window_size"),
        full_layers=tuple(v("fullatt_block_indexes")),
    )
    if sum(config.sections) * 2 != config.head_dim:
        raise UserError(
            f"{where}: mrope_section {list(config.sections)} must sum to half the head "
            f"width, {config.head_dim // 2}"
        )
    return config


def table(c: Config) -> dict[str, Param]:
    """The parameter table. Stacked rows carry the layer axis first.

    Random weights (tests, the tiny model's start) keep activations at unit scale: 1 / √
    of the inputs' number, less where a layer adds to the residual stream.
    """
    e, a, u = c.vision_width, c.vision_heads, c.merge**2
    d, k, r, h = c.width, c.kv_heads, c.heads // c.kv_heads, c.head_dim
    rows: dict[str, Param] = {}

    def add(name, shape, axes, hf, layout="... -> ...", init=0.02, **sizes):
        rows[name] = Param(shape, axes, init, hf, layout, sizes)

    def linear(name, hf, n, i, o, axes, bias, adds=False):
        """A stacked linear layer of n layers, [i, o]; HF stores [o, i]."""
        lead = (n,) if n else ()
        pre = (None,) if n else ()
        std = (i * (2 * n if adds else 1)) ** -0.5
        add(name, (*lead, i, o), (*pre, *axes), hf + ".weight", "o i -> i o", std)
        if bias:
            shape, last = (*lead, o), (*pre, axes[1])
            add(name + "_bias", shape, last, hf + ".bias", init=0)

    def norm(name, hf, n, size):
        lead, pre = ((n,), (None,)) if n else ((), ())
        add(name, (*lead, size), (*pre, None), hf + ".weight", init=-1)

    # -- vision tower
    add(
        "vision.patch",
        (c.patch_dim, e),
        (None, "embed"),
        "visual.patch_embed.proj.weight",
        "e c t y x -> (c t y x) e",
        c=c.channels,
        t=c.temporal_patch,
        y=c.patch,
        x=c.patch,
    )
    n, at = c.vision_layers, "visual.blocks.{}."
    norm("vision.layers.norm1", at + "norm1", n, e)
    add(
        "vision.layers.qkv",
        (n, e, 3, a, e // a),
        (None, "embed", None, "kv_heads", None),
        at + "attn.qkv.weight",
        "(q a h) e -> e q a h",
        e**-0.5,
        q=3,
        a=a,
    )
    add(
        "vision.layers.qkv_bias",
        (n, 3, a, e // a),
        (None, None, "kv_heads", None),
        at + "attn.qkv.bias",
        "(q a h) -> q a h",
        0,
        q=3,
        a=a,
    )
    linear("vision.layers.o", at + "attn.proj", n, e, e, (None, "embed"), True, True)
    norm("vision.layers.norm2", at + "norm2", n, e)
    m = c.vision_mlp
    linear("vision.layers.gate", at + "mlp.gate_proj", n, e, m, ("embed", "mlp"), True)
    linear("vision.layers.up", at + "mlp.up_proj", n, e, m, ("embed", "mlp"), True)
    both = ("mlp", "embed")
    linear("vision.layers.down", at + "mlp.down_proj", n, m, e, both, True, True)
    norm("vision.merger.norm", "visual.merger.ln_q", 0, e)
    both = ("embed", "mlp")
    linear("vision.merger.in", "visual.merger.mlp.0", 0, u * e, u * e, both, True)
    both = ("mlp", "embed")
    linear("vision.merger.out", "visual.merger.mlp.2", 0, u * e, d, both, True)

    # -- decoder
    vocab = ("vocab", "embed")
    add("text.embed", (c.vocab, d), vocab, "model.embed_tokens.weight")
    n, at = c.layers, "model.layers.{}."
    norm("text.layers.norm1", at + "input_layernorm", n, d)
    shapes = {"q": (k, r, h), "k": (k, h), "v": (k, h)}
    for name, shape in shapes.items():
        letters = "k r h" if name == "q" else "k h"
        sizes = {"k": k, "r": r} if name == "q" else {"k": k}
        axes = ("kv_heads", *[None] * (len(shape) - 1))
        hf = at + f"self_attn.{name}_proj"
        add(
            f"text.layers.{name}",
            (n, d, *shape),
            (None, "embed", *axes),
            hf + ".weight",
            f"({letters}) d -> d {letters}",
            d**-0.5,
            **sizes,
        )
        add(
            f"text.layers.{name}_bias",
            (n, *shape),
            (None, *axes),
            hf + ".bias",
            f"({letters}) -> {letters}",
            0,
            **sizes,
        )
    add(
        "text.layers.o",
        (n, k, r, h, d),
        (None, "kv_heads", None, None, "embed"),
        at + "self_attn.o_proj.weight",
        "d (k r h) -> k r h d",
        (2 * n * k * r * h) ** -0.5,
        k=k,
        r=r,
    )
    norm("text.layers.norm2", at + "post_attention_layernorm", n, d)
    m = c.mlp
    linear("text.layers.gate", at + "mlp.gate_proj", n, d, m, ("embed", "mlp"), False)
    linear("text.layers.up", at + "mlp.up_proj", n, d, m, ("embed", "mlp"), False)
    both = ("mlp", "embed")
    linear("text.layers.down", at + "mlp.down_proj", n, m, d, both, False, True)
    norm("text.norm", "model.norm", 0, d)
    if not c.tied:
        add("text.head", (c.vocab, d), vocab, "lm_head.weight")
    return rows


# transformers 5 names the tensors of its checkpoints differently from the hub's.
RENAMES = (("model.visual.", "visual."), ("model.language_model.", "model."))


class Qwen25VL(nn.Module):
    """Declares the table's parameters; the methods are `api.Model`'s functions."""

    config: Config

    def setup(self):
        self.w = declare(self, table(self.config))

    def _layers(self, prefix):
        return {n[len(prefix) :]: w for n, w in self.w.items() if n.startswith(prefix)}

    def encode_image(self, vision: Vision, *, dtype=None, unroll=False, remat=None):
        """Merged image tokens dtype[N, I * M, D], in raster order per image."""
        c, w = self.config, self.w
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
        x, _ = fn.scan_layers(
            layer, x, self._layers("vision.layers."), flags, unroll=unroll, remat=remat
        )
        x = fn.rms_norm(x, w["vision.merger.norm"], 1e-6)
        x = x.reshape(rows, win * p // c.merge**2, c.merge**2 * e)
        for name in ("in", "out"):
            x = jnp.einsum("nme,ef->nmf", x, w[f"vision.merger.{name}"].astype(dtype))
            x = x + w[f"vision.merger.{name}_bias"].astype(dtype)
            x = jax.nn.gelu(x, approximate=False) if name == "in" else x
        order = vision.order.reshape(rows, -1)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
        return x.reshape(n, -1, c.width)

    def embed(self, tokens: Tokens, features=None, *, dtype=None):
        """Token embeddings; image tokens take the features their index names.

        `features` dtype[N, M, D] belong to the groups; tokens may have N * G rows.
        """
        w = self.w["text.embed"]
        x = w.astype(dtype or w.dtype)[tokens.ids]
        if features is None:
            return x
        n, b = features.shape[0], x.shape[0]
        index = jnp.maximum(tokens.image, 0).reshape(n, -1)
        picked = jnp.take_along_axis(features, index[..., None], axis=1)
        picked = picked.reshape(b, -1, x.shape[-1]).astype(x.dtype)
        return jnp.where((tokens.image >= 0)[..., None], picked, x)

    def layers(
        self,
        levels: tuple[Level, ...],
        cached: tuple[Segment, ...],
        attend,
        *,
        unroll=False,
        remat=None,
    ):
        """All decoder layers over new levels of a chain (see `api.Model`).

        `attend(q, level, links)` mixes: q dtype[B, T, K, R, H]; links, in chain order
        and ending with the level itself, are (k, v, mask) with k, v dtype[b, S, K, H].
        """
        c = self.config
        dtype = levels[0].x.dtype
        ropes = [
            fn.mrope(v.positions, c.head_dim, c.theta, c.sections, dtype)
            for v in levels
        ]

        def layer(xs, inputs, _):
            w, stored = inputs
            links = [(k, v, s.mask) for (k, v), s in zip(stored, cached, strict=True)]
            out, made = [], []
            for x, level, rope in zip(xs, levels, ropes, strict=True):
                y = fn.rms_norm(x, w["norm1"], c.eps)
                q = jnp.einsum("btd,dkrh->btkrh", y, w["q"].astype(dtype))
                k = jnp.einsum("btd,dkh->btkh", y, w["k"].astype(dtype))
                v = jnp.einsum("btd,dkh->btkh", y, w["v"].astype(dtype))
                q = fn.rotate(q + w["q_bias"].astype(dtype), *rope)
                k = fn.rotate(k + w["k_bias"].astype(dtype), *rope)
                v = v + w["v_bias"].astype(dtype)
                links.append((k, v, level.mask))
                made.append((k, v))
                y = attend(q, level, tuple(links))
                x = x + jnp.einsum("btkrh,krhd->btd", y, w["o"].astype(dtype))
                y = fn.rms_norm(x, w["norm2"], c.eps)
                out.append(x + fn.gated_mlp(y, w["gate"], w["up"], w["down"]))
            return tuple(out), tuple(made)

        stored = tuple((s.k, s.v) for s in cached)
        xs, made = fn.scan_layers(
            layer,
            tuple(v.x for v in levels),
            (self._layers("text.layers."), stored),
            unroll=unroll,
            remat=remat,
        )
        norm = self.w["text.norm"]
        hidden = tuple(fn.rms_norm(x, norm, c.eps) for x in xs)
        segments = tuple(
            Segment(k, v, level.mask)
            for (k, v), level in zip(made, levels, strict=True)
        )
        return hidden, segments

    def head(self):
        return self.w["text.embed" if self.config.tied else "text.head"]


def model(raw: dict, where: str = "config.json") -> Model:
    """The family's `api.Model` of a parsed `config.json`."""
    config = read_config(raw, where)
    return bind(FAMILY, Qwen25VL(config), table(config))
