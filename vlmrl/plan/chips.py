"""Chips and topologies that a run can be planned for.

Data sheet figures: dense bfloat16 FLOP/s, bytes of memory and its bandwidth, and the
bandwidth of all links to neighbouring chips together.
  TPU   https://cloud.google.com/tpu/docs/v5e, v5p and v6e
  GPU   https://www.nvidia.com/en-us/data-center/h100, h200 and a100
"""

from __future__ import annotations

import math
import os
import re
from importlib.util import find_spec
from typing import NamedTuple

import jax

from vlmrl.types import UserError

GB = 1e9


class Chip(NamedTuple):
    flops: float  # per second
    memory: float  # bytes
    bandwidth: float  # bytes per second from memory
    network: float  # bytes per second to other chips
    platform: str  # 'tpu', 'gpu', 'cpu'
    name: str  # of a TPU's accelerator type, as Google writes it


CHIPS = {
    "v5e": Chip(197e12, 16 * GB, 819 * GB, 200 * GB, "tpu", "v5litepod"),
    "v5p": Chip(459e12, 95 * GB, 2765 * GB, 600 * GB, "tpu", "v5p"),
    "v6e": Chip(918e12, 32 * GB, 1640 * GB, 400 * GB, "tpu", "v6e"),
    "a100": Chip(312e12, 80 * GB, 2039 * GB, 300 * GB, "gpu", ""),
    "h100": Chip(989e12, 80 * GB, 3350 * GB, 450 * GB, "gpu", ""),
    "h200": Chip(989e12, 141 * GB, 4800 * GB, 450 * GB, "gpu", ""),
    # A CPU core, to compare a plan with a run; figures measured for XLA on CPUs,
    # without a network.
    "host": Chip(60e9, 4 * GB, 10 * GB, 5 * GB, "cpu", ""),
}
# Slices on offer, smallest first.
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    **dict.fromkeys(("a100", "h100", "h200"), ("1", "2", "4", "8", "16", "32", "64")),
    "host": ("1", "2", "4", "8"),
}


class Topology(NamedTuple):
    """A slice of a kind of chip, with its devices and what compiles for them."""

    kind: str
    slice: str
    devices: list
    compiler: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]


def parse(text: str) -> tuple[str, str, int]:
    """Return ('v5e', '8x8', 64) of 'v5e:8x8'; UserError if it names none."""
    kind, _, slice_ = text.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", slice_):
        raise UserError(
            f"--topology is '{text}', expected a chip and a slice, as v5e:8x8, "
            f"v5p:4x4x4 or h200:8; chips: {', '.join(CHIPS)}"
        )
    sides = [int(s) for s in slice_.split("x")]
    if CHIPS[kind].platform == "tpu" and len(sides) != len(SLICES[kind][0].split("x")):
        known = ", ".join(SLICES[kind])
        raise UserError(f"--topology is '{text}', but slices of {kind} are {known}")
    return kind, slice_, math.prod(sides)


def find(text: str) -> Topology:
    """Return the topology of that name with devices to compile for: libtpu's where it
    is installed, else CPU devices. Must be called before JAX is initialised."""
    kind, slice_, count = parse(text)
    if CHIPS[kind].platform == "tpu" and find_spec("libtpu"):
        # libtpu would ask the cloud's metadata server what it runs on.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{CHIPS[kind].name}-{count}"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        # Nothing runs, so several processes may load libtpu.
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        from jax.experimental import topologies

        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{kind}:{slice_}"
            )
        except (RuntimeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--topology {text}: no such slice ({reason})") from error
        return Topology(kind, slice_, list(description.devices), "libtpu")
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology {text}: {_no_compiler(kind)}, and there are {len(devices)} "
            f"CPU devices, not {count}"
        )
    return Topology(kind, slice_, devices[:count], "CPU devices in its place")


def force_devices(text: str) -> None:
    """Force as many CPU devices as a topology has, if JAX is not initialised yet."""
    count = parse(text)[2]
    flag = "--xla_force_host_platform_device_count"
    before = os.environ.get("XLA_FLAGS", "")
    if flag not in before:
        os.environ["XLA_FLAGS"] = f"{before} {flag}={count}"


def _no_compiler(kind: str) -> str:
    if CHIPS[kind].platform == "tpu":
        return "no libtpu to compile with (pip install libtpu)"
    return "no compiler for it here"


def smaller(kind: str) -> list[tuple[str, int]]:
    """Return (slice, number of chips) of a kind of chip, smallest first."""
    return [(s, math.prod(int(x) for x in s.split("x"))) for s in SLICES[kind]]
