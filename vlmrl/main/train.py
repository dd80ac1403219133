"""Fine-tune a model: GRPO and its relatives, supervised warm start, or a study of
several recipes.

Reads a config, trains every seed of it under WORKDIR/seed-N, evaluates on a held-out
split while training, and exports WORKDIR/seed-N/model in Hugging Face format. The same
command again resumes from the newest checkpoint, to the bit. Several seeds are put
together in WORKDIR/tables, and a study in WORKDIR/report.html.

With config.lora.rank above 0 an adapter is trained, exported in peft's format to
WORKDIR/seed-N/adapter and merged into model/; config.quantize='int8' holds the base
under it in 8 bits.

A run directory holds config.json, environment.json, metrics.jsonl, records/ (one
Parquet file per evaluation), course.jsonl (their measures and changes), rollouts/ (if
kept), checkpoints/, model/, time.jsonl (seconds by phase, a line per step) and
goodput.jsonl (the same, a line per start of the run).

On several hosts the same command runs on each, with the run directory where all see it;
see launch/. SIGTERM to any of them is honoured at the next safe point of all: the state
is saved, and the exit status is 75. A run that hangs ends with 70.
"""

from __future__ import annotations

import functools
from pathlib import Path

from vlmrl import policy as policies
from vlmrl import sharding
from vlmrl.data import loader
from vlmrl.loops import grpo, sft
from vlmrl.main import args
from vlmrl.models import hf
from vlmrl.report import assemble
from vlmrl.run import directory, hosts
from vlmrl.run.phases import STOPPED, Phases, Stopped
from vlmrl.types import UserError

HELP = "fine-tune a model from a config, resumable"
FLAGS = {
    "config": (None, "what to train, e.g. configs/tiny/accuracy.py"),
    "workdir": (None, "run directory; an earlier run in it is resumed"),
    "coordinator": ("", "host:port of process 0, where no cluster says it"),
    "processes": (0, "number of processes (hosts) of the run"),
    "process": (-1, "which of them this is, from 0"),
    "devices": (0, "devices in all; the run ends if there are not as many"),
    "stuck_after": (1800.0, "seconds in one phase after which the run ends with 70"),
}
ALGORITHMS = ("grpo", "sft", "study")


def main(argv):
    config, workdir, ops = args.parse(argv, FLAGS)
    hosts.start(ops.coordinator, ops.processes, ops.process)
    settings = config.to_dict()
    algorithm = settings.pop("algorithm")
    if algorithm not in ALGORITHMS:
        raise UserError(
            f"config.algorithm is '{algorithm}', want one of {', '.join(ALGORITHMS)}"
        )
    if algorithm == "sft":
        if settings["model"]:
            hf.resolve(settings["model"])
        directory.describe_run(workdir, config.to_dict())
        sft.run(workdir=workdir, **settings)
        return 0
    if algorithm == "study":
        from vlmrl.studies import recipes

        recipes.run(workdir, config.to_dict(), show=True, **settings["about"])
        return 0
    grpo.check(settings)
    for part in (settings["data"], settings["eval"]):  # before a model is loaded
        for name in loader.names_of(part["source"] or settings["data"]["source"]):
            if name not in loader.SOURCES:
                loader.where(name, part["split"], workdir / "data")
    say(hosts.check(config.to_json_best_effort(sort_keys=True), ops.devices))
    phases = Phases()
    with phases.watched(workdir / "hosts", ops.stuck_after):
        load = functools.partial(
            policies.load,
            settings.pop("model"),
            **{name: settings.pop(name) for name in grpo.READ},
            mesh=sharding.make_mesh(**settings.pop("mesh")),
        )
        policy = load()
        if hosts.first():
            directory.describe_run(workdir, config.to_dict())
        hosts.wait("config")
        seeds = settings.pop("seeds")
        try:
            for seed in seeds:
                grpo.train(
                    policy or load(),
                    workdir=workdir / f"seed-{seed}",
                    seed=seed,
                    phases=phases,
                    **settings,
                )
                policy = None  # its parameters were the run's
        except Stopped as stop:
            say(
                f"stopped on request in phase {stop} of step {phases.step}; the same "
                "command goes on"
            )
            return STOPPED
        finally:
            report_time(workdir, phases)
    if len(seeds) > 1 and settings["eval"]["every"] and hosts.first():
        info = {"title": settings["recipe"], "Seeds": ", ".join(map(str, seeds))}
        assemble.build(workdir, assemble.find_records(workdir), {}, info)
    return 0


def say(line: str) -> None:
    """To people, once."""
    if hosts.first():
        print(line, flush=True)


def report_time(workdir: Path, phases: Phases) -> None:
    """A line of WORKDIR/goodput.jsonl for this start of the run, and the same to
    people: seconds by phase, and the longest section without a safe point."""
    found = phases.summary()
    if not hosts.first() or not phases.calls:
        return
    directory.append(workdir / "goodput.jsonl", found)
    parts = sorted(found["phases"].items(), key=lambda x: -x[1])
    told = ", ".join(f"{name} {s:.1f}" for name, s in parts if s >= 0.05)
    longest = found["longest"]
    say(
        f"{found['wall']:.1f} s: {told}; longest section that a stop must wait for: "
        f"{longest['seconds']:.1f} s of {longest['phase']}"
    )
