"""Memory check: bytes that a rollout needs against what the devices have left, before
anything is compiled.

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

LOGITS_COPIES = 4  # float32[B, V] alive while a token is sampled
USABLE = 0.9  # share of free memory that a rollout may take


class RolloutRequest(NamedTuple):
    group: Group  # of this process, if there are several
    rows: int  # B
    length: int  # T, new tokens of a row at most
    slots: int = 0  # rows and groups at a time (`engine.continuous_batching`); 0: all

    @property
    def groups(self) -> int:
        return self.group.prefix.ids.shape[0]


class MemoryEstimate(NamedTuple):
    """Bytes of a rollout besides the parameters, over all devices."""

    prefixes: int  # their keys and values, and images while they are read
    branches: int  # keys and values of the new tokens
    logits: int  # of a step

    @property
    def total(self) -> int:
        return self.prefixes + self.branches + self.logits


def estimate(model: Model, params, request: RolloutRequest, **options):
    """Return the MemoryEstimate of a request, from shapes alone.

    Args:
      options: as for `prefill`.
    """

    def run(params, group):
        cache = prefill(model, params, group, **options)
        return cache, logits(cache.hidden, model.head(params))

    group, rows, length, slots = request
    cache, raw = jax.eval_shape(run, params, group)
    prefixes = sum(_bytes((s.k, s.v)) for s in cache.segments)
    last = cache.segments[-1]
    token = _bytes((last.k, last.v)) // last.mask.size  # of one row
    images = 0 if group.vision is None else 2 * _bytes(group.vision.patches)
    rows = min(slots, rows) if slots else rows
    groups = min(slots, request.groups) if slots else request.groups
    return MemoryEstimate(
        # Twice: decoding copies the cache to the layout BKTH.
        2 * prefixes * groups // request.groups + images,
        rows * length * token,
        LOGITS_COPIES * 4 * rows * raw.shape[-1],
    )


def available(device) -> int | None:
    """Return the bytes a device has left: its allocator's limit less what is in use; of
    a CPU, what the system could give. None if unknown."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" not in fields:
        return None
    return int(fields["MemAvailable"].split()[0]) * 1024


def usable(mesh=None) -> int | None:
    """Return the bytes of each device that a rollout may take; None if unknown."""
    devices = mesh.local_devices if mesh is not None else jax.local_devices()[:1]
    each = [available(d) for d in devices]
    if None in each:
        return None
    share = int(USABLE * min(each))
    # CPU devices share the machine's memory.
    return share // len(devices) if devices[0].platform == "cpu" else share


def check(
    field: str,
    model: Model,
    params,
    request: RolloutRequest,
    *,
    mesh=None,
    limit: int | None = None,
    copy: int = 0,
    **options,
) -> None:
    """Check that a rollout fits; one whose memory is unknown passes.

    Args:
      field: the setting that the request comes from, first word of the error.
      limit: bytes of each device that may be taken, instead of `usable`.
      copy: bytes of each device that a copy of the parameters takes besides.
      options: as for `prefill`.
    Raises:
      UserError: bytes needed, bytes available, and how many groups, or slots, fit.
    """
    limit = usable(mesh) if limit is None else limit
    if limit is None:
        return
    limit = max(0, limit - copy)
    need = estimate(model, params, request, **options)
    shards = sharding.batch_shards(mesh) if mesh is not None else 1
    shards = max(1, shards // jax.process_count())  # those of this process's groups
    each = -(-need.total // shards)
    if each <= limit:
        return
    groups, slots = request.groups, request.slots
    what = f"{groups} groups of {request.rows // groups} branches"
    if slots:
        what += f" in {slots} slots"

        def total(n: int) -> int:
            return estimate(model, params, request._replace(slots=n), **options).total

        kind, fitting = "slots", bisect_right(range(1, slots), limit, key=total)
    else:
        kind, fitting = "groups", limit * groups // each // shards * shards
    parts = (f"{name} {_gb(n // shards)}" for name, n in need._asdict().items())
    beside = f" beside a copy of the weights, {_gb(copy)}" if copy else ""
    raise UserError(
        f"{field}: {what} of {request.length} tokens need {_gb(each)} per device "
        f"({', '.join(parts)}), available: {_gb(limit)}{beside}; "
        + (f"at most {fitting} {kind} fit" if fitting else f"not even one of the {kind}"
           " fits")
    )  # fmt: skip


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
