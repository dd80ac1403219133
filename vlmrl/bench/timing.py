"""Time alternatives in turns, run peers in processes of their own, measure this
machine's ceilings, and record results."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import shipped
from vlmrl.bench import workloads
from vlmrl.types import UserError

PEERS = shipped.DIRECTORY / "third_party" / "peers"
REST = 0.5  # seconds after a peer's turn, for its threads to stop spinning


def result(
    name: str,
    value: float | None,
    definition: str,
    *,
    bar: float | None = None,
    less: bool = False,
    unit: str = "ratio",
    seconds: dict | None = None,
    **more,
) -> dict:
    """Return the record of one number. `bar` is its target, an upper bound where `less`
    is better; a value of None was not measured, and the definition says why."""
    return dict(name=name, value=value, unit=unit, bar=bar, less=less,
                definition=definition, seconds=seconds, **more)  # fmt: skip


def interleave(sides: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every side, run in turns `rounds` times after a warm-up. A
    side that returns a float reports its own time (a peer in its own process)."""
    out = {name: [] for name in sides}
    for turn in range(-1, rounds):
        for name, run in sides.items():
            spent, output = timed(run)
            peer = isinstance(output, float)
            if peer:
                time.sleep(REST)
            if turn >= 0:
                out[name].append(output if peer else spent)
    return out


def timed(run: Callable, *given):
    """Return (seconds, the ready output) of run(*given)."""
    begin = time.perf_counter()
    output = jax.block_until_ready(run(*given))
    return time.perf_counter() - begin, output


def ratio(seconds: dict[str, list[float]], other: str, this: str) -> float:
    """Return the median over rounds of other / this, the speed-up of this."""
    pairs = zip(seconds[other], seconds[this], strict=True)
    return statistics.median(a / b for a, b in pairs)


def measured(run: Callable, rounds: int) -> float:
    """Return the median seconds of a side by itself."""
    return statistics.median(interleave({"it": run}, rounds)["it"])


# -- the machine's ceilings ------------------------------------------------------------


class Machine(NamedTuple):
    """Ceilings measured in this run."""

    bandwidth: float  # bytes per second read from memory
    flops: float  # multiply-adds × 2 per second of a large product


def machine(dtype, *, small: bool = False) -> Machine:
    """Measure the bandwidth of reading (or copying, if faster) an array far larger than
    any cache, and the FLOP/s of multiplying random square matrices; best of seven."""
    gpu = jax.default_backend() != "cpu"
    size = 2**22 if small else 2**32 if gpu else 2**29
    side = 256 if small else 8192 if gpu else 2048
    rows = jnp.ones((size // jnp.dtype(dtype).itemsize // 1024, 1024), dtype)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    read, copy = jax.jit(lambda x: x.sum(-1)), jax.jit(jnp.negative)
    multiply = jax.jit(lambda a, b: a @ b)

    def best(function, *args):
        seconds = interleave({"it": lambda: function(*args)}, 7)["it"]
        return min(seconds)

    moved = max(rows.nbytes / best(read, rows), 2 * rows.nbytes / best(copy, rows))
    return Machine(moved, 2 * side**3 / best(multiply, a, b))


# -- peers -----------------------------------------------------------------------------


class Peer(NamedTuple):
    once: Callable[[], float]  # runs it once; seconds
    versions: dict[str, str]


@contextlib.contextmanager
def peer(name, config, model, params, inputs, **settings):
    """Start a peer in a process of its own and yield it as a Peer.

    Args:
      name: of its script in third_party/peers, which says what it is given.
      params: written to a checkpoint that it loads; None for config.json alone, and
        random parameters of its own.
      inputs: arrays by name, for --inputs.
      settings: further flags of the script: new, samples, device, ….
    Raises:
      UserError: no environment, or it ended before it was ready or while it ran.
    """
    settings = {"threads": len(os.sched_getaffinity(0)), **settings}
    script = [sys.executable, str(PEERS / f"{name}.py")]
    if subprocess.run([*script, "--prepare"], stdout=sys.stderr).returncode:
        raise UserError(f"peer {name}: no environment for it could be made")
    with tempfile.TemporaryDirectory(prefix="vlmrl-bench-") as place:
        directory = workloads.write(Path(place), config, model, params)
        np.savez(Path(place) / "inputs.npz", **inputs)
        words = [
            *(*script, "--model", str(directory), "--inputs", f"{place}/inputs.npz"),
            "--serve",
        ]
        for flag, value in settings.items():
            words += [f"--{flag}", str(value)]
        log = Path(place) / "stderr"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True,
            )  # fmt: skip

        def answer() -> dict:
            for line in process.stdout:
                if line.startswith("{"):  # what else is printed is the peer's chatter
                    return json.loads(line)
            lines = log.read_text(errors="replace").strip().splitlines()
            why = lines[-1].strip() if lines else "no output"
            raise UserError(f"peer {name}: exit status {process.wait()}: {why[:300]}")

        def once() -> float:
            process.stdin.write("go\n")
            process.stdin.flush()
            return float(answer()["seconds"])

        with process:
            yield Peer(once, answer()["versions"])


def compare(
    config: dict,
    model,
    params,
    inputs: dict,
    ours: Callable,
    rounds: int,
    peers: dict[str, tuple[dict, dict]],
) -> tuple[list[dict], dict[str, list[float]]]:
    """Time peers and `ours` in turns, on the same model and inputs.

    Args:
      config, model, params, inputs: as for `peer`.
      peers: name of a script → (its settings, arguments of `result` but for the value).

    Returns:
      A result per peer, its seconds / ours; and the seconds of every side. A peer that
      can't run has no value, and its definition is the reason.
    """
    sides: dict[str, Callable] = {"vlmrl": ours}
    versions, absent = {}, {}
    with contextlib.ExitStack() as stack:
        for name, (settings, _) in peers.items():
            start = peer(name, config, model, params, inputs, **settings)
            try:
                one = stack.enter_context(start)
            except UserError as error:
                absent[name] = str(error)
                continue
            sides[name] = one.once
            versions |= one.versions
        seconds = interleave(sides, rounds)
    results = []
    for name, (_, arguments) in peers.items():
        if name in absent:
            measured = {"value": None, "definition": absent[name]}
        else:
            both = {n: seconds[n] for n in ("vlmrl", name)}
            value = ratio(seconds, name, "vlmrl")
            measured = {"value": value, "seconds": both, "versions": versions}
        results.append(result(**arguments | measured))
    return results, seconds
