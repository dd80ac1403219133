"""The text decoder of every family: grouped-query attention with rotary positions, RMS
norms and a gated MLP, over the segments of a prefix cache.

What differs between families is data: biases, norms of queries and keys, sliding
windows, frequencies, and which position axis each frequency turns by. Axis letters:
B rows, T tokens, D width, K key-value heads, R query heads per key-value head, H head
width, F MLP width, V vocabulary, J layers that take image features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vlmrl.models import layers as fn
from vlmrl.models.api import (
    CacheSegment,
    Model,
    NewTokens,
    Param,
    SlidingWindow,
    bind,
    declare,
    linear_rows,
    norm_rows,
)
from vlmrl.types import Tokens, UserError, Vision

FAR = 2**30  # a window nothing lies outside of


class Rope(NamedTuple):
    """Rotary positions of a head of width H; see `layers.rope`."""

    frequencies: tuple[float, ...]  # H / 2, radians per position
    axes: tuple[int, ...]  # H / 2: the position axis each one turns by
    scale: float  # of cosine and sine
    longest: int = 0  # tokens of a sequence that these hold for; 0: of any length


class Config(NamedTuple):
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    eps: float
    rope: Rope
    tied: bool  # the embedding is the head
    windows: tuple[int, ...]  # per layer, in positions; 0 sees everything
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool


# -- config.json -----------------------------------------------------------------------


def need(part: dict, key: str, where: str, prefix: str = ""):
    """part[key]; a UserError names the field if there is none."""
    if part.get(key) is None:
        raise UserError(f"{where}: field '{prefix}{key}' is missing")
    return part[key]


def read_config(
    text: dict,
    where: str,
    prefix: str = "",
    *,
    tied: bool | None = None,
    qkv_bias: bool | None = None,
    qk_norm: bool = False,
    head_dim: int | None = None,
    theta: float = 1e4,
    sections: tuple[int, ...] | None = None,
    interleaved: bool = False,
) -> Config:
    """The decoder of a `config.json`, or of the part of it called `prefix`.

    Args:
      tied: whether the embedding is the head, where another part of the file says so.
      qkv_bias: queries, keys and values have a bias and the output has none; None: the
        file's `attention_bias` says it of all four.
      qk_norm: queries and keys are normalised.
      head_dim, theta, sections: where the file is silent; None: width / heads, and
        positions with one axis.
      interleaved: how frequencies are dealt to the sections (see `read_rope`).
    Raises:
      UserError: a field is missing, or asks for something the decoder does not do.
    """

    def get(key):
        return need(text, key, where, prefix)

    if text.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: field '{prefix}hidden_act' must be 'silu'")
    bias = bool(text.get("attention_bias", False))
    heads, width = get("num_attention_heads"), get("hidden_size")
    size = text.get("head_dim") or head_dim or width // heads
    kv_heads = text.get("num_key_value_heads") or heads
    if heads % kv_heads or size % 2:
        raise UserError(
            f"{where}: {heads} query heads must be a multiple of {kv_heads} key-value "
            f"heads, and the head width {size} even"
        )
    return Config(
        vocab=get("vocab_size"),
        width=width,
        layers=get("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        mlp=get("intermediate_size"),
        eps=get("rms_norm_eps"),
        rope=read_rope(text, where, size, theta, sections, interleaved),
        tied=bool(text.get("tie_word_embeddings", False) if tied is None else tied),
        windows=_windows(text, where, prefix),
        qkv_bias=bias if qkv_bias is None else qkv_bias,
        o_bias=bias if qkv_bias is None else False,
        mlp_bias=bool(text.get("mlp_bias", False)),
        qk_norm=qk_norm,
    )


def _windows(text: dict, where: str, prefix: str) -> tuple[int, ...]:
    """Sliding window of every layer: those called so, or those from max_window_layers
    on; none unless the file says that windows are used."""
    count = need(text, "num_hidden_layers", where, prefix)
    size = text.get("sliding_window") if text.get("use_sliding_window") else None
    full, sliding = "full_attention", "sliding_attention"
    kinds = text.get("layer_types")
    if kinds is None:
        first = text.get("max_window_layers", count) if size else count
        kinds = [full] * min(first, count) + [sliding] * (count - first)
    if not set(kinds) <= {full, sliding} or (sliding in kinds and len(kinds) != count):
        raise UserError(
            f"{where}: field '{prefix}layer_types' must name {count} layers, each "
            f"'{full}' or '{sliding}'"
        )
    if sliding not in kinds:
        return (0,) * count
    if not size:
        raise UserError(
            f"{where}: field '{prefix}layer_types' has sliding layers, which need "
            f"'{prefix}use_sliding_window' and '{prefix}sliding_window'"
        )
    return tuple(size if kind == sliding else 0 for kind in kinds)


def read_rope(
    text: dict,
    where: str,
    size: int,
    theta: float,
    sections: tuple[int, ...] | None,
    interleaved: bool,
) -> Rope:
    """Rotary positions of a head of width `size`, by the type the file names.

    Section i of the frequencies turns by axis i mod 3. They follow each other, or are
    dealt in turn (time, height, width) for as long as height and width have any.
    Frequencies are rounded to float32 step by step, as transformers computes them: at
    position p an angle is p ulps off otherwise. The type 'dynamic' slows them down by
    the length of a sequence once that exceeds max_position_embeddings: what was cached
    before it did no longer fits then, so longer sequences are refused (`layers`).
    """
    raw = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    kind = raw.get("rope_type", raw.get("type", "default"))
    if raw.get("partial_rotary_factor", text.get("partial_rotary_factor", 1)) != 1:
        raise UserError(f"{where}: partial_rotary_factor must be 1")
    if kind not in ROPES:
        raise UserError(
            f"{where}: rope type '{kind}' is not supported; supported: "
            + ", ".join(ROPES)
        )
    theta = raw.get("rope_theta") or text.get("rope_theta") or theta
    old = text.get("max_position_embeddings")
    raw = {"original_max_position_embeddings": old, **raw, "rope_theta": theta}
    steps = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain = np.float32(1) / np.float32(theta) ** steps
    try:
        frequencies, scale = ROPES[kind](plain, raw)
    except (KeyError, TypeError) as e:
        raise UserError(f"{where}: rope type '{kind}' needs numbers: {e}") from None
    axes = [0] * (size // 2)
    if sections is not None:
        sections = raw.get("mrope_section", sections)
        if sum(sections) * 2 != size:
            raise UserError(
                f"{where}: mrope_section {list(sections)} must sum to half the head "
                f"width, {size // 2}"
            )
        axes = [i % 3 for i, n in enumerate(sections) for _ in range(n)]
        if interleaved:
            axes = [i % 3 * (i < 3 * sections[i % 3]) for i in range(size // 2)]
    longest = 0
    if kind == "dynamic":
        longest = need(text, "max_position_embeddings", where)
    return Rope(tuple(map(float, frequencies)), tuple(axes), float(scale), longest)


def _default(plain, raw):
    return plain, 1.0


def _linear(plain, raw):
    return plain / np.float32(raw["factor"]), 1.0


def _llama3(plain, raw):
    """Long wavelengths are slowed down by a factor, short ones kept, those between
    interpolated (Llama 3.1, https://arxiv.org/abs/2407.21783)."""
    low, high = raw["low_freq_factor"], raw["high_freq_factor"]
    old, factor = raw["original_max_position_embeddings"], np.float32(raw["factor"])
    wavelength = np.float32(2 * math.pi) / plain
    keep = (np.float32(old) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - keep) * plain / factor + keep * plain
    slow = np.where(wavelength > old / low, plain / factor, plain)
    middle = (wavelength >= old / high) & (wavelength <= old / low)
    return np.where(middle, between, slow), 1.0


def _yarn(plain, raw):
    """Frequencies that turn less than beta_slow times over the original length are
    slowed down, those of more than beta_fast turns kept; attention is sharpened
    (https://arxiv.org/abs/2309.00071)."""
    old, factor = raw["original_max_position_embeddings"], raw["factor"]
    size, theta = 2 * len(plain), raw["rope_theta"]

    def place(turns):
        return size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def sharpen(weight):
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    low = place(raw.get("beta_fast") or 32)
    high = place(raw.get("beta_slow") or 1)
    if raw.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 * (low == high)
    steps = np.arange(len(plain), dtype=np.float32)
    slowed = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    slow = np.float32(1) / (np.float32(factor) / plain)
    scale = raw.get("attention_factor")
    if scale is None:
        both = raw.get("mscale"), raw.get("mscale_all_dim")
        scale = sharpen(both[0]) / sharpen(both[1]) if all(both) else sharpen(1)
    return slow * slowed + plain * (1 - slowed), scale


ROPES: dict[str, Callable] = {
    "default": _default,
    "mrope": _default,
    "dynamic": _default,  # up to max_position_embeddings, see `read_rope`
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


# -- parameters ------------------------------------------------------------------------


def rows(c: Config, at: str = "model.", head: str = "lm_head.weight"):
    """The decoder's rows of a parameter table; tensors are stored below `at`."""
    d, m, n, k, h = c.width, c.mlp, c.layers, c.kv_heads, c.head_dim
    r = c.heads // k
    vocab, plain = ("vocab", "embed"), "... -> ..."
    name = at + "embed_tokens.weight"
    out = {"text.embed": Param((c.vocab, d), vocab, 0.02, name, plain, {}, "embedding")}
    at_layer = at + "layers.{}."
    out |= norm_rows("text.layers.norm1", at_layer + "input_layernorm", n, d)
    for name, letters in {"q": "k r h", "k": "k h", "v": "k h"}.items():
        sizes = {"k": k, "r": r} if name == "q" else {"k": k}
        shape = (k, r, h) if name == "q" else (k, h)
        axes = ("kv_heads", *[None] * (len(shape) - 1))
        stored = at_layer + f"self_attn.{name}_proj"
        out[f"text.layers.{name}"] = Param(
            (n, d, *shape),
            (None, "embed", *axes),
            d**-0.5,
            stored + ".weight",
            f"({letters}) d -> d {letters}",
            sizes,
        )
        if c.qkv_bias:
            layout = f"({letters}) -> {letters}"
            out[f"text.layers.{name}_bias"] = Param(
                (n, *shape),
                (None, *axes),
                0,
                stored + ".bias",
                layout,
                sizes,
                decay=False,
            )
    if c.qk_norm:
        for name in ("q_norm", "k_norm"):
            stored = at_layer + "self_attn." + name
            out |= norm_rows("text.layers." + name, stored, n, h)
    stored = at_layer + "self_attn.o_proj"
    out["text.layers.o"] = Param(
        (n, k, r, h, d),
        (None, "kv_heads", None, None, "embed"),
        (2 * n * k * r * h) ** -0.5,
        stored + ".weight",
        "d (k r h) -> k r h d",
        {"k": k, "r": r},
    )
    if c.o_bias:
        axes = (None, "embed")
        out["text.layers.o_bias"] = Param(
            (n, d), axes, 0, stored + ".bias", plain, {}, decay=False
        )
    out |= norm_rows("text.layers.norm2", at_layer + "post_attention_layernorm", n, d)
    wide, back, bias = ("embed", "mlp"), ("mlp", "embed"), c.mlp_bias
    mlp = at_layer + "mlp."
    out |= linear_rows("text.layers.gate", mlp + "gate_proj", n, d, m, wide, bias=bias)
    out |= linear_rows("text.layers.up", mlp + "up_proj", n, d, m, wide, bias=bias)
    out |= linear_rows(
        "text.layers.down", mlp + "down_proj", n, m, d, back, bias=bias, adds=True
    )
    out |= norm_rows("text.norm", at + "norm", 0, d)
    if not c.tied:
        out["text.head"] = Param((c.vocab, d), vocab, 0.02, head, plain, {}, "head")
    return out


def below(w: dict, prefix: str) -> dict:
    """The parameters whose names start with `prefix`, by what follows it."""
    return {n[len(prefix) :]: p for n, p in w.items() if n.startswith(prefix)}


# -- forward ---------------------------------------------------------------------------


def embed(w, tokens: Tokens, features=None, *, dtype=None):
    """Token embeddings; image tokens take the features their index names.

    `features` dtype[N, M, D * (1 + J)] belong to the groups; tokens may have N * G
    rows. What the features have beyond D is zero on text.
    """
    x = w.astype(dtype or w.dtype)[tokens.ids]
    if features is None:
        return x
    n, (b, s, d) = features.shape[0], x.shape
    index = jnp.maximum(tokens.image, 0).reshape(n, -1)
    picked = jnp.take_along_axis(features, index[..., None], axis=1)
    picked = picked.reshape(b, s, -1).astype(x.dtype)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, picked.shape[-1] - d)))
    return jnp.where((tokens.image >= 0)[..., None], picked, x)


def layers(
    c: Config,
    w: dict,
    new_tokens: tuple[NewTokens, ...],
    cached: tuple[CacheSegment, ...],
    attend,
    *,
    float32_residual=True,
    **scan,
):
    """Run all decoder layers over new tokens (see `api.Model`).

    Args:
      float32_residual: keep the residual stream in float32. In bfloat16 it would be
        rounded twice per layer, which is most of what separates two computations of
        one log-prob. Rematerialised layers save this stream.
      scan: unroll, remat and mesh of `scan_layers`.
    Raises:
      UserError: cached and new tokens, padding included, are more than the config's
        rope allows.
    """
    dtype = new_tokens[0].x.dtype
    length = sum(x.mask.shape[1] for x in (*cached, *new_tokens))
    if 0 < c.rope.longest < length:
        raise UserError(
            f"config.json has rope type 'dynamic' and max_position_embeddings "
            f"{c.rope.longest}; sequences of up to {length} tokens need more, which "
            "changes the frequencies and is not supported: shorten prompt or completion"
        )
    turns = c.rope[:3]
    ropes = [fn.rope(v.positions, *turns, dtype) for v in new_tokens]
    sizes = [size or FAR for size in c.windows]
    positions = [s.positions for s in cached] + [v.positions[:, 0] for v in new_tokens]
    # J features per token, added after the first J layers: [B, T, J, D]
    deep = [
        v.x[..., c.width :].reshape(*v.mask.shape, v.x.shape[-1] // c.width - 1, -1)
        if v.x.shape[-1] > c.width
        else None
        for v in new_tokens
    ]

    def added(x, deep, i):
        if deep is None:
            return x
        count = deep.shape[2]
        here = jnp.take(deep, jnp.minimum(i, count - 1), axis=2)
        return x + jnp.where(i < count, here, 0)

    def layer(xs, inputs, i):
        w, stored = inputs

        def bias(name):
            return w[name + "_bias"].astype(dtype) if name + "_bias" in w else 0

        def normed(x, name):
            return fn.rms_norm(x, w[name], c.eps) if name in w else x

        segments = [(k, v, s.mask) for (k, v), s in zip(stored, cached, strict=True)]
        mlp_bias = [w[n + "_bias"] for n in ("gate", "up", "down") if n + "_bias" in w]
        out, made = [], []
        for x, new, rope, more in zip(xs, new_tokens, ropes, deep, strict=True):
            y = fn.rms_norm(x, w["norm1"], c.eps).astype(dtype)
            q = jnp.einsum("btd,dkrh->btkrh", y, w["q"].astype(dtype)) + bias("q")
            k = jnp.einsum("btd,dkh->btkh", y, w["k"].astype(dtype)) + bias("k")
            v = jnp.einsum("btd,dkh->btkh", y, w["v"].astype(dtype)) + bias("v")
            q = fn.rotate(normed(q, "q_norm"), *rope)
            k = fn.rotate(normed(k, "k_norm"), *rope)
            segments.append((k, v, new.mask))
            made.append((k, v))
            window = None
            if any(c.windows):
                window = SlidingWindow(
                    jnp.asarray(sizes)[i], tuple(positions[: len(segments)])
                )
            y = attend(q, new, tuple(segments), window)
            y = jnp.einsum("btkrh,krhd->btd", y, w["o"].astype(dtype)) + bias("o")
            x = x + y
            y = fn.rms_norm(x, w["norm2"], c.eps).astype(dtype)
            x = x + fn.gated_mlp(y, w["gate"], w["up"], w["down"], mlp_bias)
            out.append(added(x, more, i))
        return tuple(out), tuple(made)

    stored = tuple((s.k, s.v) for s in cached)
    begin = tuple(v.x[..., : c.width] for v in new_tokens)
    xs, made = fn.scan_layers(
        layer,
        tuple(map(fn.wide, begin)) if float32_residual else begin,
        (below(w, "text.layers."), stored),
        tuple(range(c.layers)),
        **scan,
    )
    hidden = tuple(fn.rms_norm(x, w["text.norm"], c.eps).astype(dtype) for x in xs)
    computed = tuple(
        CacheSegment(k, v, new.mask, new.positions[:, 0])
        for (k, v), new in zip(made, new_tokens, strict=True)
    )
    return hidden, computed


class Decoder(nn.Module):
    """Declares a family's table; the methods are `api.Model`'s functions.

    `config.text` is the decoder's config; `tower(config, params, vision, **options)`
    the family's `encode_image`, None if it reads text only.
    """

    family: str
    config: Any
    table: Any
    tower: Callable | None

    def setup(self):
        self.w = declare(self, self.table)

    def encode_image(self, vision: Vision, **options):
        if self.tower is None:
            raise UserError(f"model family '{self.family}' reads text only, no images")
        return self.tower(self.config, self.w, vision, **options)

    def embed(self, tokens: Tokens, features=None, *, dtype=None):
        return embed(self.w["text.embed"], tokens, features, dtype=dtype)

    def layers(self, new_tokens, cached, attend, **options):
        return layers(self.config.text, self.w, new_tokens, cached, attend, **options)

    def head(self):
        return self.w["text.embed" if self.config.text.tied else "text.head"]


def model(
    family: str, config, table: dict[str, Param], tower=None, renames=()
) -> Model:
    """A family as `api.Model`: its config (`config.text` a decoder's `Config`), its
    whole parameter table and, if it sees, its `encode_image` (see `Decoder`)."""
    return bind(family, Decoder(family, config, table, tower), table, renames)
