"""The seam between model families and everything else.

A family gives a `Model`: pure functions of a flat parameter dict, name → array. The
engine never sees a module, and a family never sees a sampler or a loss.

Every text forward, whether prefill, decode, scoring or probe, is one call of
`Model.layers`: new tokens (`NewTokens`) attend to the segments of a prefix cache
(`CacheSegment`), to the rows of earlier new tokens that they continue, and causally to
themselves. Row b of B new rows continues row b // (B / b') of a segment with b' rows.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from vlmrl.types import Array


class Param(NamedTuple):
    """One row of a family's parameter table: it drives init, sharding, import, export,
    parameter counts, weight decay and rounding.

    `layout` is an einops pattern from the Hugging Face array (left) to ours (right);
    its reverse exports. `sizes` gives the lengths of axes that share a bracket.
    A '{}' in `name` stands for the layer number: such rows are stacked on axis 0.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical, one per dimension
    init: float  # standard deviation of a normal; 0 is zeros, −1 is ones
    name: str  # in Hugging Face checkpoints
    layout: str
    sizes: dict[str, int]
    role: str = "text"  # 'vision', 'embedding', 'head', 'adapter'; else of the decoder
    decay: bool = True  # AdamW's weight decay applies
    float32: bool = False  # stays so where parameters are rounded to compute

    @property
    def stacked(self) -> bool:
        """Whether axis 0 is the layer."""
        return "{}" in self.name

    @property
    def stored_names(self) -> list[str]:
        """Names of the tensors that the row is stored as."""
        n = self.shape[0] if self.stacked else 1
        return [self.name.format(i) for i in range(n)]

    @property
    def stored_shape(self) -> list[int]:
        """Shape of each of those tensors."""
        left, right = self.layout.split(" -> ")
        shape = self.shape[1:] if self.stacked else self.shape
        array = np.broadcast_to(np.int8(0), shape)
        return list(einops.rearrange(array, f"{right} -> {left}", **self.sizes).shape)


class NewTokens(NamedTuple):
    """Rows of tokens to compute, branches of the segments before them."""

    x: Array  # dtype[B, T, D]: embedded, as `Model.embed` gives it
    positions: Array  # int32[B, 3, T]: M-RoPE (time, height, width)
    mask: Array  # bool[B, T]
    limits: tuple[Array | None, ...] = ()  # per earlier segment (cached, then new):
    # int32[B], attend to its first tokens only; None or missing: to all valid ones


class CacheSegment(NamedTuple):
    """Keys and values of tokens, stored once for all the branches behind them."""

    k: Array  # dtype[L, B, S, K, H]
    v: Array  # dtype[L, B, S, K, H]
    mask: Array  # bool[B, S]
    positions: Array  # int32[B, S]: on the time axis; sliding windows count them


class SlidingWindow(NamedTuple):
    """A sliding window: a query at position p sees keys at p − size + 1 … p. Positions
    are logical: branches, padding and limits don't change what is visible."""

    size: Array  # int32[]
    positions: tuple[Array, ...]  # int32[b, S] per segment, the queries' own last


class Model(NamedTuple):
    """A family with its config bound. D is the text width.

    init(key, dtype) -> params
    encode_image(params, vision) -> dtype[N, I * M, D]: merged tokens in raster order;
        D * (1 + J) for a family that adds features to its first J layers as well
    embed(params, tokens, features | None) -> dtype[B, S, D], as wide as the features
    layers(params, new_tokens, cached, attend, **options) -> (hidden states per
        `NewTokens`, after the final norm, dtype[B, T, D]; a `CacheSegment` of each).
        attend(q, new, segments, window) -> dtype[B, T, K, R, H]: q has that shape;
        segments, the new tokens last, are (k, v, mask), k and v dtype[b, S, K, H];
        window is None or a SlidingWindow
    head(params) -> dtype[V, D]: rows of the output matrix
    mesh: over which parameters and batches are split (`on`); None: one device
    renames: pairs (prefix that transformers 5 gives to names of modules and, in some
        files, of tensors; prefix that the table has, which is the hub's)
    """

    family: str
    config: Any
    table: dict[str, Param]
    init: Callable
    encode_image: Callable
    embed: Callable
    layers: Callable
    head: Callable
    renames: tuple[tuple[str, str], ...] = ()
    mesh: Mesh | None = None

    def on(self, mesh: Mesh | None) -> Model:
        """Return the model with its activations split over a mesh, and parameters
        gathered where they are read (`fsdp.ShardedWeight`)."""
        names = ("encode_image", "embed", "layers")
        bound = {n: functools.partial(getattr(self, n), mesh=mesh) for n in names}
        return self._replace(mesh=mesh, **bound)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(p.shape) for p in self.table.values())

    def hub_name(self, name: str) -> str:
        """Return the name a tensor has on the hub, whichever transformers wrote it."""
        return _replace_prefix(name, self.renames)

    def module_name(self, name: str) -> str:
        """Return the name that transformers 5 has for what the hub calls `name`."""
        return _replace_prefix(name, [(hub, module) for module, hub in self.renames])


def _replace_prefix(name: str, pairs) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def linear(p: Param) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Names of the axes that a linear layer writes and reads, in the order they are
    stored in; None for what is none (embeddings, norms, biases, convolutions)."""
    left, right = (side.strip() for side in p.layout.split("->"))
    groups = re.findall(r"\([^)]*\)|[^\s()]+", left)
    if len(groups) != 2 or "..." in left or "(" in right:
        return None
    outputs, inputs = (tuple(g.strip("()").split()) for g in groups)
    return outputs, inputs


def declare(module: nn.Module, table: dict[str, Param]) -> dict[str, jax.Array]:
    """Declare every row of a table as a Linen parameter with its logical axes."""

    def init(p: Param):
        if p.init < 0:
            return nn.initializers.ones
        return nn.initializers.normal(p.init) if p.init else nn.initializers.zeros

    return {
        name: module.param(name, nn.with_logical_partitioning(init(p), p.axes), p.shape)
        for name, p in table.items()
    }


def bind(family: str, module: nn.Module, table: dict[str, Param], renames=()) -> Model:
    """Model of a Linen module whose methods are named as Model's fields."""

    def method(name):
        def call(params, *args, **kwargs):
            return module.apply({"params": params}, *args, method=name, **kwargs)

        return call

    def init(key, dtype=jnp.float32):
        boxed = module.init(key, method="head")["params"]
        return {k: v.astype(dtype) for k, v in nn.meta.unbox(boxed).items()}

    names = ("encode_image", "embed", "layers", "head")
    functions = (method(n) for n in names)
    return Model(family, module.config, table, init, *functions, renames)
