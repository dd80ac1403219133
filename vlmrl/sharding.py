"""Mesh, and the rules from logical to mesh axes: the only file that names the latter.

Parameters carry logical axes (`models/api.py: Param.axes`); arrays of a batch are split
along their leading axis (groups, or groups × branches in group order, so that a group
never leaves its shard).
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlmrl.types import UserError

AXES = ("data", "fsdp", "tensor")
HOST = "pinned_host"  # JAX's name of the host memory that devices can read

# logical axis → mesh axis. Axes that are not named are replicated.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh (data, fsdp, tensor); one of the sizes may be -1: what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        known = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = len(devices) // max(1, known)
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh: data={data}, fsdp={fsdp}, tensor={tensor} do not multiply to the "
            f"{len(devices)} devices at hand (one size may be -1)"
        )
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh):
    """PartitionSpec of one array; an axis its mesh axes do not divide is replicated."""

    def place(name, size):
        rule = RULES.get(name)
        names = (rule,) if isinstance(rule, str) else rule or ()
        return rule if names and size % _size(mesh, names) == 0 else None

    return PartitionSpec(*(place(a, s) for a, s in zip(axes, shape, strict=True)))


def param_shardings(mesh: Mesh, table) -> dict[str, NamedSharding]:
    """name → NamedSharding for a parameter table (name → Param)."""
    return {
        n: NamedSharding(mesh, spec(p.axes, p.shape, mesh)) for n, p in table.items()
    }


def like_params(mesh: Mesh, tree, shardings: dict[str, NamedSharding]):
    """Shardings of any tree that holds dicts shaped like the parameters (an optimizer
    state): a leaf below a parameter's name is placed like it, other leaves replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path, leaf):
        names = [str(getattr(k, "key", "")) for k in path]
        found = [shardings[n] for n in names if n in shardings]
        fits = found and len(found[-1].spec) == leaf.ndim
        return found[-1] if fits else replicated

    return jax.tree_util.tree_map_with_path(place, tree)


def on_host(places, tree):
    """The same shardings in the memory of the devices' hosts; single numbers of `tree`
    stay on the devices.

    Raises:
      UserError: devices that can't read their host's memory.
    """

    def move(place, x):
        return place.with_memory_kind(HOST) if x.ndim else place

    mesh = jax.tree.leaves(places)[0].mesh
    for device in mesh.local_devices[:1]:
        kinds = [m.kind for m in device.addressable_memories()]
        if HOST not in kinds:
            raise UserError(
                f"optimizer.offload: {device.device_kind} has no {HOST} memory, only "
                f"{', '.join(kinds)}; want offload=False"
            )
    return jax.tree.map(move, places, tree)


def is_on_host(x) -> bool:
    return x.sharding is not None and x.sharding.memory_kind == HOST


def to_devices(tree):
    """Within jit: what lies on the host, brought to the devices."""
    return jax.device_put(tree, jax.memory.Space.Device)


def gathered(places):
    """The places with nothing split over fsdp: how weights lie while they sample. One
    gather before the first token stands for one, or a sum over all devices, in every
    layer of every token."""

    def place(x):
        names = (n if n != "fsdp" else None for n in x.spec)
        return NamedSharding(x.mesh, PartitionSpec(*names))

    return jax.tree.map(place, places)


def bytes_each(tree, places) -> int:
    """Bytes of one device if the tree lay so."""

    def one(x, place):
        return int(np.prod(place.shard_shape(x.shape))) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(one, tree, places)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis, groups or groups × branches, over
    the data axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicate(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | None) -> int:
    """Into how many parts a batch is split: N must be a multiple of it."""
    return 1 if mesh is None else _size(mesh, RULES["batch"])


def over_tensor(mesh: Mesh | None, tree, split: bool):
    """Within jit: activations [..., D] cut along D over the tensor axis, whose devices
    hold each the whole otherwise, or whole again; where they divide D."""
    size = 1 if mesh is None else mesh.shape["tensor"]

    def place(x):
        if size == 1 or x.shape[-1] % size:
            return x
        free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        last = PartitionSpec(*free, "tensor" if split else None)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, last))

    return jax.tree.map(place, tree)


def shard_batch(mesh: Mesh, tree):
    """Put host arrays on the mesh, split along axis 0.

    Every process gives the whole batch and keeps its rows; arrays that several
    processes hold already stay as they are.
    """
    sharding = batch_sharding(mesh)

    def put(x):
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    return jax.tree.map(put, tree)


def join_batch(mesh: Mesh, tree):
    """Put arrays that hold only this process's rows (`part`) on the mesh; the whole
    batch has them in the order of the parts."""
    if jax.process_count() == 1:
        return shard_batch(mesh, tree)
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def fetch(tree):
    """Host copies of batch arrays, whole, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def get(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(get, tree)


def part(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which part of a batch this process holds, of how many. Processes
    whose devices share rows (a tensor axis across hosts) hold the same part.

    Raises:
      UserError: a process whose rows are no contiguous part of equal size.
    """
    owners = [
        {d.process_index for d in row}
        for row in mesh.devices.reshape(batch_shards(mesh), -1)
    ]
    here = jax.process_index()
    mine = [i for i, processes in enumerate(owners) if here in processes]
    size, index = len(mine), mine[0] // len(mine)
    alike = all(o == owners[mine[0]] for o in (owners[i] for i in mine))
    if mine != list(range(index * size, (index + 1) * size)) or not alike:
        raise UserError(
            f"mesh {dict(mesh.shape)}: the rows of a batch that process {here} holds "
            "are not one equal part of it; make data × fsdp a multiple of the "
            "processes, or tensor a multiple of the devices of a process"
        )
    return index, len(owners) // size


def rows(tree):
    """Host copies of batch arrays (axis 0 split as `batch_sharding`): this process's
    rows, in order."""

    def get(x):
        if jax.process_count() == 1 or not isinstance(x, jax.Array):
            return np.asarray(x)
        if x.is_fully_replicated or x.is_fully_addressable:
            return np.asarray(x)
        parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(get, tree)


def _size(mesh: Mesh, names) -> int:
    return int(np.prod([mesh.shape[n] for n in names]))


def per_group_and_head(mesh: Mesh, function, groups: int, heads: int):
    """`function(q, keys, values, valid, own)` of `engine/splash.py` on every device's
    own groups and key-value heads: q [B, T, K, R, H], keys and values [b, S, K, H],
    valid bool[b, S] per link, own bool[B, T]. An axis that its mesh axes do not divide
    is computed by all of them."""
    batch = spec(("batch",), (groups,), mesh)[0]
    head = spec(("kv_heads",), (heads,), mesh)[0]
    row = PartitionSpec(batch)
    q, kv = (PartitionSpec(batch, None, head, *r) for r in ((None, None), (None,)))
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(q, kv, kv, row, row),
        out_specs=q,
        check_vma=False,
    )
