"""Plan a run for machines nobody has rented yet: does it fit, how long will it take?

Compiles the run's own programs (rollout, update, the reference model's pass if there is
a KL term, one pass of the evaluation) ahead of time for a topology, makes no array, and
prints memory per device by part, FLOPs, bytes sent per device by mesh axis, what bounds
each program and the time of a step and of the run.

  vlmrl plan --config configs/plan.py:model=7b --topology v5e:8x8
  vlmrl plan --config configs/plan.py:model=7b --topology h200:8 --mesh fsdp=8

TPU topologies (v5e:8x8, v5p:4x4x4, v6e:16x16) are compiled by libtpu, which needs no
TPU: pip install libtpu. For GPUs (a100:8, h100:8, h200:8), and without libtpu, as many
CPU devices stand in: what is sharded where is then exact, temporary memory is the CPU
compiler's, and the table says so. `host:N` are devices of this machine.

Times are at best: the longest of arithmetic at the data sheet's peak, memory traffic
(weights, caches and optimizer state only) and traffic between chips, none overlapping
another program; what passes between a chip and its host is not counted. --efficiency
says what share of that to expect. With --quick a TPU's compiler takes minutes where it
takes half an hour otherwise; its programs are not those of a run, which need up to half
as much memory again.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import jax
from rich.console import Console

from vlmrl.main import args
from vlmrl.plan import chips, estimate

HELP = "memory, bound, time and cost of a run on a topology, without having it"
FLAGS = {
    "config": (None, "a GRPO recipe, or configs/plan.py for the paper's job"),
    "topology": ("", "chip and slice: v5e:8x8, v5p:4x4x4, v6e:16x16, h200:8, host:8"),
    "mesh": ("", "e.g. fsdp=16,tensor=4; by default chosen from the model"),
    "quick": (False, "compile with little effort: sooner, memory as a rough figure"),
    "only": ([], "programs to plan, as rollout,update"),
    "efficiency": (0.5, "share of the best possible speed that is expected"),
    "out": ("", "file to write the table to as well; its .json holds the numbers"),
}


def main(argv):
    config, _, other = args.parse(argv, FLAGS)
    chips.force_devices(other.topology)
    if other.quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    c = config.to_dict()
    job = estimate.read_job(c)
    place = chips.find(other.topology)
    mesh = estimate.make_mesh(job, place, other.mesh or c.get("mesh"))
    began = time.monotonic()
    costs = []
    planned = estimate.programs_of(
        job, mesh, other.only, **estimate.options_of(place, mesh)
    )
    for (program, groups), (counted, _) in zip(
        planned, estimate.programs_of(job, mesh, other.only), strict=True
    ):
        print(f"compiling {program.name} ...", flush=True)
        costs.append(estimate.cost(job, mesh, place, program, groups, counted))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spent = time.monotonic() - began
    text = estimate.table(c, job, mesh, place, costs, other.efficiency)
    if other.quick:
        text += "\nCompiled with little effort: a run's own programs differ (--quick)."
    memory = peak / estimate.GIB
    text += f"\nplanned in {spent:.0f} s with {memory:.1f} GiB of host memory\n"
    Console(highlight=False, soft_wrap=True).print(text, markup=False)
    if other.out:
        estimate.write(Path(other.out), text, costs)
