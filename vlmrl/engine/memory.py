"""What a request needs, before anything is compiled for it: bytes against what the
devices have left.

Axis letters: N groups, G branches of each, B = N * G rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import jax

from vlmrl import sharding
from vlmrl.engine.logprobs import logits
from vlmrl.engine.prefix_cache import prefill
from vlmrl.models.api import Model
from vlmrl.types import Group, UserError

ROWS_OF_LOGITS = 4  # float32[B, V] alive while a token is drawn
KEPT = 0.9  # share of free memory that a request may take


class MemoryEstimate(NamedTuple):
    """Bytes a rollout holds besides the parameters, over all devices."""

    prefix: int  # keys and values of the groups' links, and images while they are read
    own: int  # those of the branches
    drawing: int  # logits of a step

    @property
    def total(self) -> int:
        return self.prefix + self.own + self.drawing


def estimate(
    model: Model, params, group: Group, branches: int, length: int, *, slots: int = 0,
    **options,
) -> MemoryEstimate:  # fmt: skip
    """Estimate the memory of `branches` rows of `length` new tokens behind the prefixes
    of a group, on shapes; nothing is computed. With `slots`, so many rows and as many
    groups exist at a time (`engine.continuous_batching`)."""

    def read(params, group):
        return prefill(model, params, group, **options)

    def draw(params, hidden):
        return logits(hidden, model.head(params))

    cache = jax.eval_shape(read, params, group)
    vocabulary = jax.eval_shape(draw, params, cache.hidden).shape[-1]
    groups = group.prefix.ids.shape[0]
    links = sum(_bytes((link.k, link.v)) for link in cache.segments)
    last = cache.segments[-1]
    token = _bytes((last.k, last.v)) // last.mask.size  # of one row
    images = 0 if group.vision is None else 2 * _bytes(group.vision.patches)
    rows = min(slots, branches) if slots else branches
    held = min(slots, groups) if slots else groups
    return MemoryEstimate(
        2 * links * held // groups + images,  # decoding keeps an order of its own
        rows * length * token,
        ROWS_OF_LOGITS * 4 * rows * vocabulary,
    )


def available(device) -> int | None:
    """Bytes a device has left: its allocator's limit less what is in use; of a CPU,
    what the system could give. None where nobody says."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    rows = dict(line.split(":", 1) for line in lines if ":" in line)
    return (
        int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None
    )


def check(
    what: str,
    model: Model,
    params,
    group: Group,
    branches: int,
    length: int,
    *,
    mesh=None,
    there: int | None = None,
    slots: int = 0,
    copy: int = 0,
    **options,
) -> None:
    """Raise if a rollout can't fit; a request that nobody can judge passes.

    Args:
      what: names the request's setting, first word of the error.
      group: of this process, if there are several.
      branches: B = N * G rows of `length` new tokens.
      there: bytes of each device to count on, instead of what `available` says.
      slots: rows at a time, 0 for all.
      copy: bytes of each device that a copy of the weights takes besides.
      options: as for `prefill`.
    Raises:
      UserError: bytes asked, bytes there, and the most groups, or slots, that would
        fit.
    """
    groups = group.prefix.ids.shape[0]

    def of(slots: int) -> MemoryEstimate:
        return estimate(model, params, group, branches, length, slots=slots, **options)

    found = of(slots)
    shards = sharding.batch_shards(mesh) if mesh is not None else 1
    shards = max(1, shards // jax.process_count())  # those that hold these groups
    devices = mesh.local_devices if mesh is not None else jax.local_devices()[:1]
    if there is None:
        each = [available(d) for d in devices]
        if None in each:
            return
        there = int(KEPT * min(each))
        if devices[0].platform == "cpu":  # they share the machine's memory
            there //= len(devices)
    there = max(0, there - copy)
    asked = -(-found.total // shards)
    if asked <= there:
        return
    wanted = f"{groups} groups of {branches // groups} branches"
    if slots:
        wanted += f" in {slots} slots"
        each = range(1, slots)
        kind, most = "slots", bisect_right(each, there, key=lambda n: of(n).total)
    else:
        kind, most = "groups", there * groups // asked // shards * shards
    raise UserError(
        f"{what}: {wanted} of {length} tokens ask for {_gb(asked)} a device (prefixes "
        f"{_gb(found.prefix // shards)}, "
        f"branches {_gb(found.own // shards)}, logits {_gb(found.drawing // shards)}), "
        f"but {_gb(there)} are there"
        + (f" beside a copy of the weights, {_gb(copy)}" if copy else "")
        + "; "
        + (f"at most {most} {kind} fit" if most else f"not even one of the {kind} fits")
    )


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
