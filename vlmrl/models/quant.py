"""Weights in 8 bits, for a frozen base at half the memory of bfloat16.

A quantised parameter is a pytree in place of the array. Models use nothing of a weight
but `astype`, which dequantises one layer at a time inside the layer scan.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vlmrl.models.api import Param, linear
from vlmrl.types import Array, UserError


class Int8(NamedTuple):
    """values · scale; one scale per output of a linear layer (and per layer)."""

    values: Array  # int8, in the parameter's shape
    scale: Array  # float32, its axes that are read of length 1

    def astype(self, dtype):
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return self.scale.dtype


def check_method(method: str) -> None:
    """Check a quantisation method.

    Raises:
      UserError: it is not 'int8', or qwix is not installed.
    """
    if method != "int8":
        raise UserError(f"quantize: '{method}' is not supported; supported: int8")
    if importlib.util.find_spec("qwix") is None:
        raise UserError(
            "quantize: 'int8' needs qwix, which the extra 'quant' brings: "
            "pip install -e '.[quant]'"
        )


def quantize(array, axes: tuple[int, ...]) -> Int8:
    """Return a linear layer's weights rounded by qwix to −127 … 127 times a scale, one
    for every index along `axes`."""
    import qwix

    q = qwix.quantize(array.astype(jnp.float32), jnp.int8, channelwise_axes=axes)
    return Int8(q.qvalue, q.scale)


def output_axes(p: Param, *, layers: bool = False) -> tuple[int, ...]:
    """Return the axes that a linear layer writes to: of one layer's array, or of the
    whole stacked parameter, the axis of `layers` among them."""
    written, _ = linear(p)
    letters = p.layout.split("->")[1].split()
    lead = len(p.shape) - len(letters)
    axes = tuple(i for i, x in enumerate(letters) if x in written)
    return (*range(lead), *(lead + i for i in axes)) if layers else axes


def shapes_of(p: Param) -> Int8:
    """Return shapes and dtypes of a quantised parameter."""
    axes = output_axes(p, layers=True)
    scale = tuple(s if i in axes else 1 for i, s in enumerate(p.shape))
    make = jax.ShapeDtypeStruct
    return Int8(make(p.shape, jnp.int8), make(scale, jnp.float32))


def shardings_of(p: Param, sharding) -> Int8:
    """Return the shardings of both parts from that of the unquantised parameter."""
    if not isinstance(sharding, NamedSharding):
        return Int8(sharding, sharding)
    axes = output_axes(p, layers=True)
    spec = tuple(sharding.spec) + (None,) * (len(p.shape) - len(sharding.spec))
    spec = [s if i in axes else None for i, s in enumerate(spec)]
    return Int8(sharding, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
