"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685) on any linear layer, the
vision tower's included.

A linear layer W gets a sum W + α/rank · A B. Shapes and axes come from the family's
parameter table, so that an adapter is sharded like the weights it belongs to. Adapted
parameters are the base's and, under 'lora.<name>.a' and '.b', the adapters'; the sum is
formed in float32 one layer at a time, inside the layer scan, and rounded to the forward
pass's dtype, as merged weights are; the base takes no gradients. Adapters leave in the
format of peft, or merged into the base.

    adapter = lora.Adapter(rank=16, alpha=32.0, targets=("text.*",))
    adapted = lora.attach(model, adapter)
    params = lora.start(model, adapter, params, key)
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
ADDED = "lora"  # name of the rank's axis in layouts


class Adapter(NamedTuple):
    """Which layers are adapted, and how."""

    rank: int
    alpha: float  # the sum is scaled by alpha / rank
    targets: tuple[str, ...] = ("text.*",)  # patterns of names in the parameter table


def attach(model: Model, adapter: Adapter) -> Model:
    """The model with adapters: the same functions of params that hold adapters too.

    Raises:
      UserError: a target matches no linear layer, or the rank is not positive.
    """
    added = rows(model, adapter)

    def adapted(params):
        # The base is frozen: its gradients are never computed.
        held = {n: jax.lax.stop_gradient(params[n]) for n in model.table}
        return joined(model, adapter, params | held)

    def over(function):
        def call(params, *args, **kwargs):
            return function(adapted(params), *args, **kwargs)

        return call

    def init(key, dtype=jnp.float32):
        first, second = jax.random.split(key)
        return start(model, adapter, model.init(first, dtype), second, dtype)

    return model._replace(
        table=model.table | added,
        init=init,
        encode_image=over(model.encode_image),
        embed=over(model.embed),
        layers=over(model.layers),
        head=over(model.head),
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "a", "b"],
    meta_fields=["spec", "scale"],
)
@dataclasses.dataclass(frozen=True)
class Sum:
    """An adapted weight, which is formed where a layer asks for it by `astype`."""

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
    def ndim(self):
        return self.base.ndim

    @property
    def dtype(self):
        return self.base.dtype


def targets(model: Model, adapter: Adapter) -> tuple[str, ...]:
    """Names of the adapted parameters."""
    known = [n for n, p in model.table.items() if linear(p)]
    for pattern in adapter.targets:
        if not any(fnmatchcase(n, pattern) for n in known):
            raise UserError(
                f"adapter target '{pattern}' is no linear layer of {model.family}; "
                f"these are: {', '.join(known)}"
            )
    if adapter.rank < 1:
        raise UserError(f"adapter rank is {adapter.rank}, want 1 or more")
    return tuple(n for n in known if any(fnmatchcase(n, t) for t in adapter.targets))


def rows(model: Model, adapter: Adapter) -> dict[str, Param]:
    """The adapters' rows of the parameter table, named as peft names the tensors.

    A begins as noise of the variance that peft's Kaiming start has, B at zero, so that
    the adapted model begins as the base.
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
            theirs = f"{group} {ADDED}" if letter == "b" else f"{ADDED} {group}"
            width = math.prod(size[x] for x in names)
            out[f"{PREFIX}{name}.{letter}"] = Param(
                (*lead, adapter.rank, *(size[x] for x in names)),
                (*(None for _ in lead), None, *(axis[x] for x in names)),
                0 if letter == "b" else (3 * width) ** -0.5,
                f"{module}.lora_{letter.upper()}.weight",
                f"{theirs} -> {ADDED} {' '.join(names)}",
                {x: n for x, n in p.sizes.items() if x in names},
                role="adapter",
            )
    return out


def start(model: Model, adapter: Adapter, params, key, dtype=jnp.float32) -> dict:
    """The base's params and fresh adapters, placed on the same devices."""
    added = rows(model, adapter)
    keys = jax.random.split(key, len(added))

    def make(p, k):
        return p.init * jax.random.normal(k, p.shape, dtype)

    fresh = {n: make(p, k) for (n, p), k in zip(added.items(), keys, strict=True)}
    return params | placed(params, added, fresh)


def joined(model: Model, adapter: Adapter, params) -> dict:
    """Params of the base in which an adapted weight is a `Sum`, formed where it is
    read: what `merge` gives, without a copy of the base."""
    scale = adapter.alpha / adapter.rank
    held = {n: params[n] for n in model.table}
    for name in targets(model, adapter):
        a, b = (params[f"{PREFIX}{name}.{x}"] for x in "ab")
        held[name] = Sum(held[name], a, b, _spec(model.table[name]), scale)
    return held


def merge(model: Model, adapter: Adapter, params, dtype=None) -> dict:
    """Params of the base with the adapters added to it in float32.

    Args:
      model: the base. dtype: of the merged parameters; None: as the base's.
    """

    @functools.partial(jax.jit, static_argnames=("stacked", "kind"))
    def add(weight, stacked, kind):
        def one(weight):
            return weight.astype(kind)

        # Layer by layer: the stacked difference never exists.
        return jax.lax.map(one, weight) if stacked else one(weight)

    merged = {}
    for name, x in joined(model, adapter, params).items():
        kind, stacked = np.dtype(dtype or x.dtype), model.table[name].stacked
        plain = not isinstance(x, Sum)
        merged[name] = x.astype(kind) if plain else add(x, stacked, kind)
    return merged


def _spec(p: Param) -> str:
    outputs, inputs = (" ".join(x) for x in linear(p))
    return f"{ADDED} {inputs}, {ADDED} {outputs} -> {p.layout.split('->')[1].strip()}"


def placed(params, table, values) -> dict:
    """Values of a table's rows on the devices that params lie on, sharded by axes."""
    leaf = jax.tree.leaves(params)[0]
    mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
    if mesh is None:
        return {n: jnp.asarray(x) for n, x in values.items()}
    places = param_shardings(mesh, table)
    return {n: jax.device_put(x, places[n]) for n, x in values.items()}
