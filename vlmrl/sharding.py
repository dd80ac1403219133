"""The mesh and all sharding rules, from logical to mesh axes; no other file names mesh
axes.

Parameters carry logical axes (`models/api.py: Param.axes`); arrays of a batch are split
along their first axis (groups, or groups × branches in group order, so that all
branches of a group are on its shard).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlmrl.types import UserError

AXES = ("data", "fsdp", "tensor")
HOST = "pinned_host"  # JAX's memory kind: host memory that devices can read

# logical axis → mesh axis. Axes that are not named are replicated.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "residual": "tensor",  # the residual stream, where rematerialised layers save it
    "vocab": "tensor",
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Return a mesh (data, fsdp, tensor); one size may be -1: what is left.

    Raises:
      UserError: the sizes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        known = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = len(devices) // max(1, known)
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh: expected sizes that multiply to {len(devices)} devices (one may be "
            f"-1), got data={data}, fsdp={fsdp}, tensor={tensor}"
        )
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh):
    """Return the PartitionSpec of one array; an axis that its mesh axes don't divide is
    replicated."""

    def mesh_axes(name, size):
        rule = RULES.get(name)
        names = (rule,) if isinstance(rule, str) else rule or ()
        return rule if names and size % _size(mesh, names) == 0 else None

    return PartitionSpec(*(mesh_axes(a, s) for a, s in zip(axes, shape, strict=True)))


def param_shardings(mesh: Mesh, table) -> dict[str, NamedSharding]:
    """Return name → NamedSharding for a parameter table (name → Param)."""
    return {
        n: NamedSharding(mesh, spec(p.axes, p.shape, mesh)) for n, p in table.items()
    }


def like_params(mesh: Mesh, tree, shardings: dict[str, NamedSharding]):
    """Return shardings of a tree with dicts like the parameters' (an optimizer state):
    a leaf below a parameter's name is sharded like it, others are replicated."""
    replicated = replicate(mesh)

    def of_leaf(path, leaf):
        names = [str(getattr(k, "key", "")) for k in path]
        known = [shardings[n] for n in names if n in shardings]
        return known[-1] if known and len(known[-1].spec) == leaf.ndim else replicated

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def on_host(shardings, tree):
    """Return the same shardings in the memory of the devices' hosts; scalars of `tree`
    stay on the devices.

    Raises:
      UserError: devices that can't read their host's memory.
    """

    def move(sharding, x):
        return sharding.with_memory_kind(HOST) if x.ndim else sharding

    mesh = jax.tree.leaves(shardings)[0].mesh
    for device in mesh.local_devices[:1]:
        kinds = [m.kind for m in device.addressable_memories()]
        if HOST not in kinds:
            raise UserError(
                f"optimizer.offload: expected a device with {HOST} memory, got "
                f"{device.device_kind} with {', '.join(kinds)}; set offload=False"
            )
    return jax.tree.map(move, shardings, tree)


def is_on_host(x) -> bool:
    return x.sharding is not None and x.sharding.memory_kind == HOST


def to_devices(tree):
    """Within jit: move arrays in host memory to the devices."""
    return jax.device_put(tree, jax.memory.Space.Device)


def gathered_shardings(shardings):
    """Return the shardings with nothing split over fsdp, as parameters are while they
    sample: one gather before the first token instead of one, or of a sum over all
    devices, in every layer of every token."""

    def without_fsdp(x):
        names = (n if n != "fsdp" else None for n in x.spec)
        return NamedSharding(x.mesh, PartitionSpec(*names))

    return jax.tree.map(without_fsdp, shardings)


def bytes_per_device(tree, shardings) -> int:
    """Return the bytes of one device for a tree with these shardings."""

    def of_leaf(x, sharding):
        return int(np.prod(sharding.shard_shape(x.shape))) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, tree, shardings)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis, groups or groups × branches, over
    the data axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicate(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh | None) -> int:
    """Return how many parts a batch is split into; N must be a multiple of it."""
    return 1 if mesh is None else _size(mesh, RULES["batch"])


def constrain(mesh: Mesh | None, tree, axes=("batch",), last: str | None = None):
    """Within jit: split activations over the mesh by their logical axes.

    Left to itself, the partitioner may keep weights split and replicate the batch:
    every device then computes all rows and sums them over devices in every layer.

    Args:
      tree: arrays [B, ...].
      axes: of the first dimensions.
      last: of the last dimension; None keeps it whole on every device.
      Dimensions between them, and an axis whose mesh axes don't divide its dimension,
      are left to the partitioner: with all dimensions given, XLA drops the split of
      what rematerialised layers save.
    """
    if mesh is None or mesh.size == 1:
        return tree

    def of_array(x):
        names = [*axes, *(None,) * (x.ndim - len(axes))]
        names[-1] = last or names[-1]
        known = spec(tuple(names), x.shape, mesh)
        free, ends = PartitionSpec.UNCONSTRAINED, (*range(len(axes)), x.ndim - 1)
        parts = (
            p if p or (i in ends and not n) else free
            for i, (n, p) in enumerate(zip(names, known, strict=True))
        )
        place = NamedSharding(mesh, PartitionSpec(*parts))
        return jax.lax.with_sharding_constraint(x, place)

    return jax.tree.map(of_array, tree)


def constrain_params(mesh: Mesh | None, table, tree: dict):
    """Within jit: split gradients, by parameter's name, as the parameters are."""
    if mesh is None or mesh.size == 1:
        return tree
    shardings = param_shardings(mesh, {n: table[n] for n in tree})
    return jax.lax.with_sharding_constraint(tree, shardings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(x, sharding: NamedSharding):
    """Within jit: gather over fsdp a parameter with this sharding. Its gradient, a sum
    over the batch, is scattered: each device receives its own shard of it."""
    x = jax.lax.with_sharding_constraint(x, sharding)
    return jax.lax.with_sharding_constraint(x, gathered_shardings(sharding))


def _gather_forward(x, sharding):
    return gather(x, sharding), None


def _gather_backward(sharding, _, g):
    return (jax.lax.with_sharding_constraint(g, sharding),)


gather.defvjp(_gather_forward, _gather_backward)


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
    """Return host copies of whole batch arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def get(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(get, tree)


def part(mesh: Mesh) -> tuple[int, int]:
    """Return (index, count): which part of a batch is this process's, of how many.
    Processes whose devices share rows (a tensor axis across hosts) have the same part.

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
            "mesh: expected data × fsdp to be a multiple of the processes, or tensor "
            f"of the devices of a process, got {dict(mesh.shape)}, where process "
            f"{here} has no contiguous equal part of a batch"
        )
    return index, len(owners) // size


def local_rows(tree):
    """Return host copies of this process's rows of batch arrays, in order."""

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
    """Return `function(q, keys, values, valid, own)` of `engine/splash.py` mapped over
    devices by groups and key-value heads: q [B, T, K, R, H]; per segment, keys and
    values [b, S, K, H], valid bool[b, S]; own bool[B, T]. Along an axis that its mesh
    axes don't divide, every device computes all."""
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


def per_row(mesh: Mesh | None, function):
    """Return `function(weight, mask, *rows)` mapped over devices by rows, arrays
    [B, ...]: each device takes its own of them and of the results.

    The weight [V, D], split over fsdp along D, is gathered before the function runs;
    its gradient is summed there, then over devices, and scattered. Vocabulary stays
    split over tensor.
    """
    shards = batch_shards(mesh)

    def run(weight, mask, *rows):
        if shards == 1 or len(rows[0]) % shards:
            return function(weight, mask, *rows)
        row = PartitionSpec(RULES["batch"])
        fsdp = spec((None, "embed"), weight.shape, mesh)

        def of_device(weight, mask, *rows):
            # In float32: XLA for CPUs aborts on a sum over devices in less here. Said
            # before anything reads the weight, that its gradients differ by device:
            # they are summed at this place, once.
            whole = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
            other = tuple(n for n in RULES["batch"] if n != fsdp[1])
            whole = jax.lax.pcast(whole, other, to="varying")
            if fsdp[1]:
                whole = jax.lax.all_gather(whole, fsdp[1], axis=1, tiled=True)
            return function(whole.astype(weight.dtype), mask, *rows)

        return jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(fsdp, PartitionSpec(), *(row for _ in rows)),
            out_specs=row,
            axis_names=set(RULES["batch"]),
        )(weight, mask, *rows)

    return run
