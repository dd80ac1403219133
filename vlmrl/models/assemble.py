"""Tensors of files → parameters on the devices, without a second copy anywhere.

Every process reads an equal share of each tensor, in whole rows; the devices gather the
tensor, rearrange it into our layout, and keep their shards of it in the stacked array.
So a file is read once in all and in long runs, whatever the sharding (columns that a
shard needs would touch every page of it), the host has its share of one tensor at a
time, and a device, for a moment, one whole tensor.
"""

from __future__ import annotations

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmrl.models import files, quant
from vlmrl.models.api import Param

SMALL = 2**20  # bytes of a tensor that every process reads by itself


def assemble(
    p: Param, tensors: list[files.StoredTensor], dtype, sharding, int8: bool
) -> jax.Array | quant.Int8:
    """Return one parameter; read its tensors one after the other.

    Args:
      dtype: None: as stored. sharding: None: on the default device.
      int8: round to 8 bits, `quant.Int8`.
    """
    dtype = np.dtype(dtype or tensors[0].dtype)
    rearrange = _rearranger(
        p.layout,
        tuple(p.sizes.items()),
        tensors[0].shape[:1],
        _of_layer(sharding, p.stacked),
    )
    axes, shapes = None, jax.ShapeDtypeStruct(p.shape, dtype)
    if int8:
        axes, shapes = quant.output_axes(p), quant.shapes_of(p)
        sharding = quant.shardings_of(p, sharding)
    if not p.stacked:
        layer = rearrange(_read(tensors[0], sharding))
        return _converter(dtype, axes, sharding)(layer)
    stack = _allocator(shapes, sharding)()
    put = _putter(dtype, axes, sharding)
    for i, tensor in enumerate(tensors):
        # Block, or the next tensor is read while this one is still in memory.
        layer = rearrange(_read(tensor, sharding))
        stack = jax.block_until_ready(put(stack, layer, i))
    return stack


@functools.cache
def _rearranger(layout: str, sizes, rows: tuple[int, ...], sharding):
    """Return the program rows of a tensor → a layer in our layout, as it is sharded. It
    stands alone: a transpose that is fused with casts and updates runs four to six
    times slower on CPUs."""
    replicated = _replicated(sharding)

    def rearrange(part):
        if replicated is not None:
            # One gather, stated outright: left to itself the partitioner tries an
            # exchange per layout, and mostly ends here, after much compiling.
            part = jax.lax.with_sharding_constraint(part, replicated)
        part = part[: rows[0]] if rows else part
        return einops.rearrange(part, layout, **dict(sizes))

    return jax.jit(rearrange, out_shardings=sharding)


def _convert(layer, dtype, axes):
    layer = layer.astype(dtype)
    return layer if axes is None else quant.quantize(layer, axes)


@functools.cache
def _converter(dtype, axes, sharding):
    return jax.jit(lambda x: _convert(x, dtype, axes), out_shardings=sharding)


@functools.cache
def _putter(dtype, axes, sharding):
    def put(stack, layer, i):
        update = jax.lax.dynamic_update_index_in_dim
        layer = _convert(layer, dtype, axes)
        return jax.tree.map(lambda s, x: update(s, x, i, 0), stack, layer)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


@functools.cache
def _allocator(shapes, sharding):
    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.jit(zeros, out_shardings=sharding)


def _read(tensor: files.StoredTensor, sharding) -> jax.Array:
    """Return a tensor as an array over the devices, each having rows of its own: every
    byte is read by one process. Rows are padded to split evenly; small tensors are
    whole."""
    sharding = sharding.values if isinstance(sharding, quant.Int8) else sharding
    shape, replicated = tensor.shape, _replicated(sharding)
    if replicated is None:
        return jax.device_put(files.read(tensor), sharding)
    if tensor.nbytes <= SMALL or not shape:
        whole = files.read(tensor)
        return jax.make_array_from_callback(shape, replicated, lambda at: whole[at])
    mesh = sharding.mesh
    rows = -(-shape[0] // mesh.size) * mesh.size

    def part(at):
        start, stop, _ = at[0].indices(rows)
        own = files.read(tensor, start, stop)
        missing = stop - start - len(own)
        pad = [(0, missing)] + [(0, 0)] * (len(shape) - 1)
        return np.pad(own, pad) if missing else own

    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((rows, *shape[1:]), split, part)


def _replicated(sharding) -> NamedSharding | None:
    if not isinstance(sharding, NamedSharding):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec())


def _of_layer(sharding, stacked: bool):
    """Return the sharding of one layer, from that of the stack."""
    if not isinstance(sharding, NamedSharding) or not stacked:
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
