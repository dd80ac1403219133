"""Tensors of files → parameters on the devices, without a second copy anywhere.

Every process reads an equal share of each tensor, in whole rows; the devices gather the
tensor, turn it into our layout, and keep their shards of it in the stacked array. So a
file is read once in all and in long runs, whatever the sharding (columns that a shard
needs would touch every page of it), the host holds its share of one tensor at a time,
and a device, for a moment, one whole tensor.
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


def assemble(p: Param, tensors: list[files.Stored], dtype, place, small: bool):
    """One parameter: its tensors read one after the other, each put in its place.

    Args:
      dtype: None: as stored. place: its sharding; None is the default device.
      small: rounded to 8 bits, as `quant.Int8`.
    """
    dtype = np.dtype(dtype or tensors[0].dtype)
    stacked = p.stacked
    turn = _turner(
        p.layout,
        tuple(p.sizes.items()),
        tensors[0].shape[:1],
        _of_layer(place, stacked),
    )
    scaled, shapes = None, jax.ShapeDtypeStruct(p.shape, dtype)
    if small:
        scaled, shapes, place = quant.outputs(p), quant.like(p), quant.place(p, place)
    if not stacked:
        return _finisher(dtype, scaled, place)(turn(_read(tensors[0], place)))
    stack = _maker(shapes, place)()
    put = _putter(dtype, scaled, place)
    for i, tensor in enumerate(tensors):
        # Blocks, or the next tensor would be read while this one is still held.
        stack = jax.block_until_ready(put(stack, turn(_read(tensor, place)), i))
    return stack


@functools.cache
def _turner(layout: str, sizes, rows: tuple[int, ...], place):
    """part → a layer in our layout, as it is sharded. On its own: a transpose that is
    fused with casts and updates runs four to six times slower on CPUs."""
    everywhere = _everywhere(place)

    def turn(part):
        if everywhere is not None:
            # One gather, said outright: left to itself the partitioner tries an
            # exchange per layout, and mostly ends here, after much compiling.
            part = jax.lax.with_sharding_constraint(part, everywhere)
        part = part[: rows[0]] if rows else part
        return einops.rearrange(part, layout, **dict(sizes))

    return jax.jit(turn, out_shardings=place)


def _finish(layer, dtype, scaled):
    layer = layer.astype(dtype)
    return layer if scaled is None else quant.quantize(layer, scaled)


@functools.cache
def _finisher(dtype, scaled, place):
    return jax.jit(lambda x: _finish(x, dtype, scaled), out_shardings=place)


@functools.cache
def _putter(dtype, scaled, place):
    def put(stack, layer, i):
        update = jax.lax.dynamic_update_index_in_dim
        layer = _finish(layer, dtype, scaled)
        return jax.tree.map(lambda s, x: update(s, x, i, 0), stack, layer)

    return jax.jit(put, donate_argnums=0, out_shardings=place)


@functools.cache
def _maker(shapes, place):
    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.jit(zeros, out_shardings=place)


def _read(tensor: files.Stored, place) -> jax.Array:
    """A tensor as an array over the devices, each holding rows of its own: every byte
    is read by one process. Rows are padded to split evenly; small tensors are whole."""
    place = place.values if isinstance(place, quant.Int8) else place
    shape = tensor.shape
    everywhere = _everywhere(place)
    if everywhere is None:
        return jax.device_put(files.read(tensor), place)
    if tensor.nbytes <= SMALL or not shape:
        whole = files.read(tensor)
        return jax.make_array_from_callback(shape, everywhere, lambda at: whole[at])
    mesh = place.mesh
    rows = -(-shape[0] // mesh.size) * mesh.size

    def part(at):
        start, stop, _ = at[0].indices(rows)
        found = files.read(tensor, start, stop)
        short = stop - start - len(found)
        pad = [(0, short)] + [(0, 0)] * (len(shape) - 1)
        return np.pad(found, pad) if short else found

    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((rows, *shape[1:]), split, part)


def _everywhere(place) -> NamedSharding | None:
    if not isinstance(place, NamedSharding):
        return None
    return NamedSharding(place.mesh, PartitionSpec())


def _of_layer(place, stacked: bool):
    """The sharding of one layer, from that of the stack."""
    if not isinstance(place, NamedSharding) or not stacked:
        return place
    return NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
