"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) on any linear layer, the
vision tower's included.

A linear layer W becomes W + α/rank · A B. Shapes and axes come from the family's
parameter table, so that an adapter is sharded like the weights it belongs to. Adapted
parameters are the base's and, under 'lora.<name>.a' and '.b', the adapters'; the sum is
computed in float32 one layer at a time, inside the layer scan, and rounded to the
forward pass's dtype, as merged weights are; the base takes no gradients. Adapters are
exported in the format of peft (`peft.py`), or merged into the base.

    adapter = lora.Adapter(rank=16, alpha=32.0, targets=("text.*",))
    adapted = lora.attach(model, adapter)
    params = lora.init(model, adapter, params, key)
    state = update.init_state(params, tx, freeze=tuple(model.table))
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.models.api import Model, Param, linear
from vlmrl.sharding import param_shardings
from vlmrl.types import UserError

PREFIX = "lora."
ROOT = "base_model.model."  # what peft puts before the path of a module
RANK = "lora"  # name of the rank's axis in layouts


class Adapter(NamedTuple):
    """Rank, scale and layers of low-rank adapters."""

    rank: int
    alpha: float  # the sum is scaled by alpha / rank
    targets: tuple[str, ...] = ("text.*",)  # patterns of names in the parameter table


def attach(model: Model, adapter: Adapter) -> Model:
    """Return the model with adapters: the same functions, of params with adapters.

    Raises:
      UserError: a target matches no linear layer, or the rank is not positive.
    """
    added = rows(model, adapter)

    def with_adapters(function):
        def call(params, *args, **kwargs):
            # The base is frozen: its gradients are never computed.
            base = {n: jax.lax.stop_gradient(params[n]) for n in model.table}
            adapted = adapted_params(model, adapter, params | base)
            return function(adapted, *args, **kwargs)

        return call

    def init_both(key, dtype=jnp.float32):
        first, second = jax.random.split(key)
        return init(model, adapter, model.init(first, dtype), second, dtype)

    return model._replace(
        table=model.table | added,
        init=init_both,
        encode_image=with_adapters(model.encode_image),
        embed=with_adapters(model.embed),
        layers=with_adapters(model.layers),
        head=with_adapters(model.head),
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "a", "b"],
    meta_fields=["spec", "scale"],
)
@dataclasses.dataclass(frozen=True)
class AdaptedWeight:
    """A weight and its adapter, added where a layer reads it by `astype`."""

    base: Any  # dtype[...], or `quant.Int8`
    a: Any  # [rank, inputs...]
    b: Any  # [rank, outputs...]
    spec: str
    scale: float

    def astype(self, dtype):
        kind = jnp.promote_types(self.a.dtype, jnp.float32)
        a, b = self.a.astype(kind), self.b.astype(kind)
        delta = einops.einsum(a, b, self.spec)
        return (self.base.astype(kind) + self.scale * delta).astype(dtype)

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype


def targets(model: Model, adapter: Adapter) -> tuple[str, ...]:
    """Return the names of the adapted parameters.

    Raises:
      UserError: a target matches no linear layer, or the rank is not positive.
    """
    known = [n for n, p in model.table.items() if linear(p)]
    for pattern in adapter.targets:
        if not any(fnmatchcase(n, pattern) for n in known):
            raise UserError(
                f"adapter target '{pattern}' is no linear layer of {model.family}; "
                f"these are: {', '.join(known)}"
            )
    if adapter.rank < 1:
        raise UserError(f"adapter rank: expected 1 or more, got {adapter.rank}")
    return tuple(n for n in known if any(fnmatchcase(n, t) for t in adapter.targets))


def rows(model: Model, adapter: Adapter) -> dict[str, Param]:
    """Return the adapters' rows of the parameter table; names are peft's.

    A is initialised as noise of the variance that peft's Kaiming init has, B as zero,
    so that the adapted model starts as the base.
    """
    out = {}
    for name in targets(model, adapter):
        p = model.table[name]
        left, right = (side.strip() for side in p.layout.split("->"))
        letters = right.split()
        lead = p.shape[: len(p.shape) - len(letters)]
        size = dict(zip(letters, p.shape[len(lead) :], strict=True))
        axis = dict(zip(letters, p.axes[len(lead) :], strict=True))
        groups = re.findall(r"\([^)]*\)|[^\s()]+", left)
        module = ROOT + model.module_name(p.name.removesuffix(".weight"))
        for letter, names, group in zip("ba", linear(p), groups, strict=True):
            stored = f"{group} {RANK}" if letter == "b" else f"{RANK} {group}"
            width = math.prod(size[x] for x in names)
            out[f"{PREFIX}{name}.{letter}"] = Param(
                (*lead, adapter.rank, *(size[x] for x in names)),
                (*(None for _ in lead), None, *(axis[x] for x in names)),
                0 if letter == "b" else (3 * width) ** -0.5,
                f"{module}.lora_{letter.upper()}.weight",
                f"{stored} -> {RANK} {' '.join(names)}",
                {x: n for x, n in p.sizes.items() if x in names},
                role="adapter",
            )
    return out


def init(model: Model, adapter: Adapter, params, key, dtype=jnp.float32) -> dict:
    """Return the base's params and new adapters, on the same devices."""
    added = rows(model, adapter)
    keys = jax.random.split(key, len(added))
    new = {
        name: p.init * jax.random.normal(k, p.shape, dtype)
        for (name, p), k in zip(added.items(), keys, strict=True)
    }
    return params | put_like(params, added, new)


def adapted_params(model: Model, adapter: Adapter, params) -> dict:
    """Return params of the base in which an adapted weight is an `AdaptedWeight`: those
    of `merge`, without a copy of the base."""
    scale = adapter.alpha / adapter.rank
    base = {n: params[n] for n in model.table}
    for name in targets(model, adapter):
        a, b = (params[f"{PREFIX}{name}.{x}"] for x in "ab")
        base[name] = AdaptedWeight(base[name], a, b, _einsum(model.table[name]), scale)
    return base


def merge(model: Model, adapter: Adapter, params, dtype=None) -> dict:
    """Return params of the base with the adapters added to it in float32.

    Args:
      model: the base. dtype: of the merged parameters; None: as the base's.
    """

    @functools.partial(jax.jit, static_argnames=("stacked", "dtype"))
    def add(weight, stacked, dtype):
        def layer(weight):
            return weight.astype(dtype)

        # Layer by layer: the stacked difference never exists.
        return jax.lax.map(layer, weight) if stacked else layer(weight)

    merged = {}
    for name, x in adapted_params(model, adapter, params).items():
        kind, adapted = np.dtype(dtype or x.dtype), isinstance(x, AdaptedWeight)
        stacked = model.table[name].stacked
        merged[name] = add(x, stacked, kind) if adapted else x.astype(kind)
    return merged


def _einsum(p: Param) -> str:
    """Return the pattern of A B, in the layout of the weight."""
    outputs, inputs = (" ".join(x) for x in linear(p))
    return f"{RANK} {inputs}, {RANK} {outputs} -> {p.layout.split('->')[1].strip()}"


def put_like(params, table: dict[str, Param], values) -> dict:
    """Return values of a table's rows on the devices of params, sharded by axes."""
    leaf = jax.tree.leaves(params)[0]
    mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
    if mesh is None:
        return {n: jnp.asarray(x) for n, x in values.items()}
    shardings = param_shardings(mesh, table)
    return {n: jax.device_put(x, shardings[n]) for n, x in values.items()}
