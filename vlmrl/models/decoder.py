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

from vlmrl import sharding
from vlmrl.models import layers as fn
from vlmrl.models import rows
from vlmrl.models.api import (
    CacheSegment,
    Model,
    NewTokens,
    Param,
    SlidingWindow,
    bind,
    declare,
)
from vlmrl.models.fsdp import sharded_weights
from vlmrl.models.hf_config import Section
from vlmrl.types import Tokens, UserError, Vision

HEADS = ("batch", None, "kv_heads")  # axes of queries, keys and values
FAR = 2**30  # positions: a window that spans any sequence


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


class Traits(NamedTuple):
    """What a family's config.json does not say of its decoder."""

    qkv_bias: bool | None = None  # of queries, keys and values, the output having none;
    # None: `attention_bias` of the file decides for all four
    qk_norm: bool = False  # queries and keys are normalised
    head_dim: int | None = None  # where the file has none; None: width / heads
    theta: float = 1e4  # base of the rotary frequencies, where the file has none
    sections: tuple[int, ...] | None = None  # M-RoPE's, likewise; None: one axis
    interleaved: bool = False  # how frequencies are dealt to sections (`read_rope`)


# -- config.json -----------------------------------------------------------------------


def read_config(text: Section, traits: Traits, *, tied: bool | None = None) -> Config:
    """Return the decoder of a `config.json`, or of the part of it that is on text.

    Args:
      tied: whether the embedding is the head, where another part of the file says so.
    Raises:
      UserError: a field is missing, or asks for something the decoder does not do.
    """
    text.one_of("hidden_act", ("silu",))
    bias = bool(text.get("attention_bias", False))
    heads, width = text.require("num_attention_heads"), text.require("hidden_size")
    size = text.get("head_dim") or traits.head_dim or width // heads
    kv_heads = text.get("num_key_value_heads") or heads
    if heads % kv_heads or size % 2:
        raise UserError(
            f"{text.where}: {heads} query heads must be a multiple of {kv_heads} "
            f"key-value heads, and the head width {size} even"
        )
    return Config(
        vocab=text.require("vocab_size"),
        width=width,
        layers=text.require("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        mlp=text.require("intermediate_size"),
        eps=text.require("rms_norm_eps"),
        rope=read_rope(text, size, traits),
        tied=bool(text.get("tie_word_embeddings", False) if tied is None else tied),
        windows=_windows(text),
        qkv_bias=bias if traits.qkv_bias is None else traits.qkv_bias,
        o_bias=bias if traits.qkv_bias is None else False,
        mlp_bias=bool(text.get("mlp_bias", False)),
        qk_norm=traits.qk_norm,
    )


def _windows(text: Section) -> tuple[int, ...]:
    """Return the sliding window of every layer: of those called so, or of those from
    max_window_layers on; none unless the file says that windows are used."""
    count = text.require("num_hidden_layers")
    size = text.get("sliding_window") if text.get("use_sliding_window") else None
    full, sliding = "full_attention", "sliding_attention"
    kinds = text.get("layer_types")
    if kinds is None:
        first = text.get("max_window_layers", count) if size else count
        kinds = [full] * min(first, count) + [sliding] * (count - first)
    if not set(kinds) <= {full, sliding} or (sliding in kinds and len(kinds) != count):
        raise text.error(
            "layer_types", f"must name {count} layers, each '{full}' or '{sliding}'"
        )
    if sliding not in kinds:
        return (0,) * count
    if not size:
        raise text.error(
            "layer_types",
            "has sliding layers, which need 'use_sliding_window' and 'sliding_window'",
        )
    return tuple(size if kind == sliding else 0 for kind in kinds)


def read_rope(text: Section, size: int, traits: Traits) -> Rope:
    """Return the rotary positions of a head of width `size`, by the type the file
    names.

    Section i of the frequencies turns by axis i mod 3. They follow each other, or are
    dealt in turn (time, height, width) for as long as height and width have any.
    Frequencies are rounded to float32 step by step, as transformers computes them: at
    position p an angle is p ulps off otherwise. The type 'dynamic' slows them down by
    the length of a sequence once that exceeds max_position_embeddings: keys cached
    before that would no longer fit, so longer sequences are refused (`layers`).
    """
    raw = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    kind = raw.get("rope_type", raw.get("type", "default"))
    if raw.get("partial_rotary_factor", text.get("partial_rotary_factor", 1)) != 1:
        raise UserError(f"{text.where}: partial_rotary_factor must be 1")
    if kind not in ROPES:
        raise UserError(
            f"{text.where}: rope type '{kind}' is not supported; supported: "
            + ", ".join(ROPES)
        )
    theta = raw.get("rope_theta") or text.get("rope_theta") or traits.theta
    original = text.get("max_position_embeddings")
    raw = {"original_max_position_embeddings": original, **raw, "rope_theta": theta}
    steps = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = np.float32(1) / np.float32(theta) ** steps
    try:
        frequencies, scale = ROPES[kind](frequencies, raw)
    except (KeyError, TypeError) as e:
        raise UserError(
            f"{text.where}: rope type '{kind}' needs numbers: {e}"
        ) from None
    longest = text.require("max_position_embeddings") if kind == "dynamic" else 0
    axes = [0] * (size // 2)
    if traits.sections is not None:
        sections = raw.get("mrope_section", traits.sections)
        if sum(sections) * 2 != size:
            raise UserError(
                f"{text.where}: mrope_section {list(sections)} must sum to half the "
                f"head width, {size // 2}"
            )
        axes = [i % 3 for i, n in enumerate(sections) for _ in range(n)]
        if traits.interleaved:
            axes = [i % 3 * (i < 3 * sections[i % 3]) for i in range(size // 2)]
    return Rope(tuple(map(float, frequencies)), tuple(axes), float(scale), longest)


# Functions of (unscaled frequencies float32[H / 2], the file's fields) that return
# (frequencies, scale of cosine and sine).


def _unscaled(f, raw):
    return f, 1.0


def _linear(f, raw):
    return f / np.float32(raw["factor"]), 1.0


def _llama3(f, raw):
    """Divide the frequencies of long wavelengths by a factor, keep those of short ones,
    and interpolate between (Llama 3.1, https://arxiv.org/abs/2407.21783)."""
    low, high = raw["low_freq_factor"], raw["high_freq_factor"]
    old, factor = raw["original_max_position_embeddings"], np.float32(raw["factor"])
    wavelength = np.float32(2 * math.pi) / f
    weight = (np.float32(old) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - weight) * f / factor + weight * f
    scaled = np.where(wavelength > old / low, f / factor, f)
    middle = (wavelength >= old / high) & (wavelength <= old / low)
    return np.where(middle, between, scaled), 1.0


def _yarn(f, raw):
    """Divide by a factor the frequencies that turn less than beta_slow times over the
    original length, keep those of more than beta_fast turns, and sharpen attention
    (https://arxiv.org/abs/2309.00071)."""
    old, factor = raw["original_max_position_embeddings"], raw["factor"]
    size, theta = 2 * len(f), raw["rope_theta"]

    def index(turns):
        return size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def sharpen(weight):
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    low = index(raw.get("beta_fast") or 32)
    high = index(raw.get("beta_slow") or 1)
    if raw.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 * (low == high)
    steps = np.arange(len(f), dtype=np.float32)
    weight = np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    scaled = np.float32(1) / (np.float32(factor) / f)
    scale = raw.get("attention_factor")
    if scale is None:
        both = raw.get("mscale"), raw.get("mscale_all_dim")
        scale = sharpen(both[0]) / sharpen(both[1]) if all(both) else sharpen(1)
    return scaled * weight + f * (1 - weight), scale


ROPES: dict[str, Callable] = {
    "default": _unscaled,
    "mrope": _unscaled,
    "dynamic": _unscaled,  # up to max_position_embeddings, see `read_rope`
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


# -- parameters ------------------------------------------------------------------------


def table(
    c: Config, prefix: str = "model.", head: str = "lm_head.weight"
) -> dict[str, Param]:
    """Return the decoder's part of a parameter table; tensors are stored under
    `prefix`, and an untied head as `head`."""
    d, m, n, k, h = c.width, c.mlp, c.layers, c.kv_heads, c.head_dim
    r, name, layer = c.heads // k, "text.layers.", prefix + "layers.{}."
    attention, stored = layer + "self_attn.", prefix + "embed_tokens.weight"
    axes, same = ("vocab", "embed"), "... -> ..."
    embedding = Param((c.vocab, d), axes, 0.02, stored, same, {}, "embedding")
    out = {"text.embed": embedding}
    out |= rows.norm(name + "norm1", layer + "input_layernorm", n, d)
    for x in "qkv":
        size = {"k": k, "r": r, "h": h} if x == "q" else {"k": k, "h": h}
        out |= rows.heads(name + x, f"{attention}{x}_proj", n, d, size, bias=c.qkv_bias)
    for x in "qk" if c.qk_norm else "":
        out |= rows.norm(f"{name}{x}_norm", f"{attention}{x}_norm", n, h)
    out[name + "o"] = Param(
        (n, k, r, h, d),
        (None, "kv_heads", None, None, "embed"),
        (2 * n * k * r * h) ** -0.5,
        attention + "o_proj.weight",
        "d (k r h) -> k r h d",
        {"k": k, "r": r},
    )
    if c.o_bias:
        out[name + "o_bias"] = rows.vector((n, d), rows.OUT, attention + "o_proj.bias")
    out |= rows.norm(name + "norm2", layer + "post_attention_layernorm", n, d)
    mlp = {
        "gate": ("gate_proj", (d, m), rows.UP),
        "up": ("up_proj", (d, m), rows.UP),
        "down": ("down_proj", (m, d), rows.DOWN),
    }
    at = layer + "mlp."
    out |= rows.linears(name, at, n, mlp, bias=c.mlp_bias, residual=("down",))
    out |= rows.norm("text.norm", prefix + "norm", 0, d)
    if not c.tied:
        out["text.head"] = embedding._replace(name=head, role="head")
    return out


def below(w: dict, prefix: str) -> dict:
    """Return the parameters whose names start with `prefix`, by what follows it."""
    return {n[len(prefix) :]: p for n, p in w.items() if n.startswith(prefix)}


# -- forward ---------------------------------------------------------------------------


def embed(w, tokens: Tokens, features=None, *, dtype=None):
    """Return token embeddings; image tokens take the features their index names.

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
    mesh=None,
    **scan,
):
    """Run all decoder layers over new tokens (see `api.Model`).

    Args:
      float32_residual: keep the residual stream in float32. In bfloat16 it would be
        rounded twice per layer, which is most of what separates two computations of
        one log-prob. Rematerialised layers save this stream.
      mesh, scan: unroll and remat of `scan_layers`.
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
    ropes = [fn.rope(v.positions, *c.rope[:3], dtype) for v in new_tokens]
    sizes = [size or FAR for size in c.windows]
    positions = [s.positions for s in cached] + [v.positions[:, 0] for v in new_tokens]
    features = [_deep_features(c, v) for v in new_tokens]

    def layer(xs, inputs, i):
        w, stored = inputs
        segments = [(k, v, s.mask) for (k, v), s in zip(stored, cached, strict=True)]
        out, computed = [], []
        for x, new, rope, deep in zip(xs, new_tokens, ropes, features, strict=True):
            q, k, v = sharding.constrain(
                mesh, _queries_keys_values(c, w, x, rope, dtype), HEADS
            )
            segments.append((k, v, new.mask))
            computed.append((k, v))
            window = None
            if any(c.windows):
                window = SlidingWindow(
                    jnp.asarray(sizes)[i], tuple(positions[: len(segments)])
                )
            y = attend(q, new, tuple(segments), window)
            y = sharding.constrain(mesh, y, HEADS)
            x = _output_and_mlp(c, w, x, y)
            out.append(_add_deep_features(x, deep, i))
        return tuple(out), tuple(computed)

    stored = tuple((s.k, s.v) for s in cached)
    begin = tuple(v.x[..., : c.width] for v in new_tokens)
    xs, computed = fn.scan_layers(
        layer,
        tuple(map(fn.to_float32, begin)) if float32_residual else begin,
        (below(w, "text.layers."), stored),
        tuple(range(c.layers)),
        mesh=mesh,
        **scan,
    )
    hidden = tuple(fn.rms_norm(x, w["text.norm"], c.eps).astype(dtype) for x in xs)
    segments = tuple(
        CacheSegment(k, v, new.mask, new.positions[:, 0])
        for (k, v), new in zip(computed, new_tokens, strict=True)
    )
    return hidden, segments


def _queries_keys_values(c: Config, w: dict, x, rope, dtype):
    """Return (q dtype[B, T, K, R, H], k, v dtype[B, T, K, H]) of a layer's input."""

    def normed(x, name):
        return fn.rms_norm(x, w[name], c.eps) if c.qk_norm else x

    y = fn.rms_norm(x, w["norm1"], c.eps).astype(dtype)
    q = jnp.einsum("btd,dkrh->btkrh", y, w["q"].astype(dtype)) + _bias(w, "q", dtype)
    k = jnp.einsum("btd,dkh->btkh", y, w["k"].astype(dtype)) + _bias(w, "k", dtype)
    v = jnp.einsum("btd,dkh->btkh", y, w["v"].astype(dtype)) + _bias(w, "v", dtype)
    q = fn.rotate(normed(q, "q_norm"), *rope)
    return q, fn.rotate(normed(k, "k_norm"), *rope), v


def _output_and_mlp(c: Config, w: dict, x, y):
    """Add to the residual stream x what attention gave, y dtype[B, T, K, R, H], and
    the MLP's output."""
    dtype = y.dtype
    y = jnp.einsum("btkrh,krhd->btd", y, w["o"].astype(dtype)) + _bias(w, "o", dtype)
    x = x + y
    y = fn.rms_norm(x, w["norm2"], c.eps).astype(dtype)
    biases = [w[n + "_bias"] for n in ("gate", "up", "down")] if c.mlp_bias else None
    return x + fn.gated_mlp(y, w["gate"], w["up"], w["down"], biases)


def _bias(w: dict, name: str, dtype):
    return w[name + "_bias"].astype(dtype) if name + "_bias" in w else 0


def _deep_features(c: Config, new: NewTokens):
    """Return the J features per token that are added after the first J layers,
    dtype[B, T, J, D], or None."""
    count = new.x.shape[-1] // c.width - 1
    if not count:
        return None
    return new.x[..., c.width :].reshape(*new.mask.shape, count, -1)


def _add_deep_features(x, features, i):
    if features is None:
        return x
    count = features.shape[2]
    own = jnp.take(features, jnp.minimum(i, count - 1), axis=2)
    return x + jnp.where(i < count, own, 0)


class Decoder(nn.Module):
    """Module that declares a family's table; its methods are `api.Model`'s
    functions.

    `config.text` is the decoder's config; `tower(config, params, vision, **options)`
    the family's `encode_image`, None if it reads text only.
    """

    family: str
    config: Any
    table: Any
    tower: Callable | None

    def setup(self):
        self.w = declare(self, self.table)

    def encode_image(self, vision: Vision, *, mesh=None, **options):
        if self.tower is None:
            raise UserError(f"model family '{self.family}' reads text only, no images")
        w = sharded_weights(self.w, self.table, mesh)
        features = self.tower(self.config, w, vision, mesh=mesh, **options)
        return sharding.constrain(mesh, features)

    def embed(self, tokens: Tokens, features=None, *, dtype=None, mesh=None):
        w = sharded_weights(self.w, self.table, mesh)["text.embed"]
        x = embed(w, tokens, features, dtype=dtype)
        return sharding.constrain(mesh, x)

    def layers(self, new_tokens, cached, attend, *, mesh=None, **options):
        if all(x.mask.shape[1] == 1 for x in new_tokens):
            # A decoding step: its weights are gathered before the first token, or are
            # more than its activations; the partitioner chooses.
            mesh = None
        w = sharded_weights(self.w, self.table, mesh)
        c = self.config.text
        return layers(c, w, new_tokens, cached, attend, mesh=mesh, **options)

    def head(self):
        return self.w["text.embed" if self.config.text.tied else "text.head"]


def model(
    family: str, config, table: dict[str, Param], tower=None, renames=()
) -> Model:
    """Return a family as `api.Model`: its config (`config.text` a decoder's `Config`),
    its whole parameter table and, if it sees, its `encode_image` (see `Decoder`)."""
    return bind(family, Decoder(family, config, table, tower), table, renames)
