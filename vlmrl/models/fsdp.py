"""Parameters that are split over devices, gathered where a layer reads them.

A layer reads nothing of a weight but `astype`. A `ShardedWeight` casts its shard there
and then gathers it over fsdp, so that no more is sent than is read, and one layer is
whole at a time; its gradient is scattered (`sharding.gather`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from vlmrl import sharding
from vlmrl.models import quant
from vlmrl.models.api import Param


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base"],
    meta_fields=["sharding"],
)
@dataclasses.dataclass(frozen=True)
class ShardedWeight:
    """A weight, stacked over layers or not, and the sharding of one layer of it."""

    base: Any  # dtype[...], or what stands for an array: `Int8`, `AdaptedWeight`
    sharding: NamedSharding

    def astype(self, dtype):
        if not isinstance(self.base, quant.Int8):
            return sharding.gather(self.base.astype(dtype), self.sharding)
        whole = sharding.gathered_shardings(self.sharding)
        values = jax.lax.with_sharding_constraint(self.base.values, whole)
        x = quant.Int8(values, self.base.scale).astype(dtype)
        return jax.lax.with_sharding_constraint(x, whole)

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype


def sharded_weights(params: dict, table: dict[str, Param], mesh: Mesh | None) -> dict:
    """Return the parameters of a table as layers read them on a mesh."""
    if mesh is None or mesh.size == 1:
        return params

    def wrap(weight, p: Param):
        lead = int(p.stacked)
        spec = sharding.spec(p.axes[lead:], p.shape[lead:], mesh)
        return ShardedWeight(weight, NamedSharding(mesh, spec))

    return {name: wrap(weight, table[name]) for name, weight in params.items()}


def read_weights(weights: dict, dtype) -> dict:
    """Return a layer's weights with those gathered that a mesh splits."""
    return {
        name: w.astype(dtype) if isinstance(w, ShardedWeight) else w
        for name, w in weights.items()
    }
