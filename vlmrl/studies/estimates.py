"""How long the jobs of a study take and what memory they need, roughly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlmrl.data import loader
from vlmrl.data.sets import SETS
from vlmrl.models import registry
from vlmrl.plan.chips import CHIPS, Chip
from vlmrl.studies.jobs import Job
from vlmrl.types import UserError

IMAGE_TOKENS, TEXT_TOKENS = 1000, 250  # assumed of an example
UNKNOWN_SIZE = 8_300_000_000  # parameters of the 7B models here, tuned from one base


class Estimate(NamedTuple):
    seconds: float
    memory: float  # bytes per device


def _chip(c: dict) -> Chip:
    name = c["device"]["chip"]
    if name not in CHIPS:
        raise UserError(
            f"config.device.chip: expected one of {', '.join(CHIPS)}, got {name!r}"
        )
    return CHIPS[name]


def estimate(job: Job, c: dict) -> Estimate | None:
    """Return the estimate of an evaluation, None for other jobs.

    Prompts run at a share of the chip's FLOP/s (`config.device.efficiency`), decoding
    at its memory bandwidth, once per batch and token. Weights are bfloat16, split over
    the mesh's tensor axis and gathered over fsdp, with a third on top.
    """
    if job.kind != "evaluate":
        return None
    size = _parameters(job.about["model"])
    about, kernel = job.about, job.about["kernel"]
    device, mesh = c["device"], c["mesh"]
    chip, count = _chip(c), device["count"]
    examples = about["size"] or _examples(about["source"], about["split"]) or 1000
    conditions = len(about["conditions"]) * (1 + len(about["images"]))
    branches = conditions * kernel["samples"]
    read = IMAGE_TOKENS * (1 + len(about["images"])) + TEXT_TOKENS * conditions
    flops = 2.0 * size * examples * (read + branches * about["max_tokens"] / 2)
    passes = math.ceil(examples / 16) * about["max_tokens"] * 0.6
    seconds = flops / (chip.flops * device["efficiency"] * count)
    seconds += passes * 2 * size / (chip.bandwidth * count)
    shares = [n if n > 0 else count for n in (mesh["fsdp"], mesh["tensor"])]
    copies = 1 + 1 / shares[0] if shares[0] > 1 else 1
    return Estimate(seconds, copies * 2 * size * 1.33 / shares[1])


def _parameters(name: str) -> int:
    known = registry.published()
    if name in known and not Path(name).is_dir():
        return registry.build_model(known[name], name).size
    if name == "tiny" or Path(name).is_dir():
        return registry.read_model(name).size
    return UNKNOWN_SIZE


def _examples(source: str, split: str) -> int | None:
    if split in loader.splits_of(source, loader.ROOT):
        return len(loader.examples_of(source, split, 0, loader.ROOT))
    return SETS[source].splits.get(split) if source in SETS else None


def describe(jobs: Sequence[Job], c: dict) -> str:
    """Return the plan as text: the jobs left, their time and memory."""
    left = [(job, estimate(job, c)) for job in jobs if not job.done]
    lines = [f"{c['title']}: {len(jobs)} jobs, {len(jobs) - len(left)} done"]
    for job, expected in left:
        time = f"  about {_duration(expected.seconds)}" if expected else ""
        lines.append(f"  {job.kind:9}{job.name}{time}")
    known = [expected for _, expected in left if expected]
    if not known:
        return "\n".join(lines)
    device = c["device"]
    chip = _chip(c)
    memory = max(x.memory for x in known)
    lines.append(
        f"  in all about {_duration(sum(x.seconds for x in known))} and "
        f"{memory / 1e9:.1f} GB of weights per device, on {device['count']} × "
        f"{device['chip']} (config.device); jobs without an estimate not counted"
    )
    if memory > chip.memory:
        lines.append(
            f"  that is more than the {chip.memory / 1e9:.0f} GB of a device "
            "(config.device.chip): raise config.mesh.tensor"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
