"""Train every seed of a GRPO config, one after the other, in one run directory."""

from __future__ import annotations

import functools
from pathlib import Path

from vlmrl import policy as policies
from vlmrl import sharding
from vlmrl.data import loader
from vlmrl.loops import grpo, run_config
from vlmrl.run import directory, hosts
from vlmrl.run.phases import Phases, Stopped
from vlmrl.run.progress import SILENT, Display


def check(config: dict, workdir: Path) -> None:
    """Raise UserError for a config that contradicts itself or names data that is not
    there, before a model is loaded."""
    run_config.check(config)
    for part in (config["data"], config["eval"]):
        for name in loader.names_of(part["source"] or config["data"]["source"]):
            if loader.is_procedural(name):
                loader.source_of(name)
            else:
                loader.where(name, part["split"], workdir / "data")


def train(
    config: dict,
    workdir: Path,
    *,
    stuck_after: float = 1800.0,
    display: Display = SILENT,
) -> bool:
    """Train each seed under WORKDIR/seed-N, resuming what is there.

    Args:
      config: fields of a config for GRPO (configs/tiny/grpo.py), passed by `check`.
      stuck_after: seconds in one phase after which the process ends (`run/phases.py`).
    Returns:
      Whether it is complete; False where a stop was requested and the state saved.
    """
    settings = {k: v for k, v in config.items() if k != "algorithm"}
    phases = Phases()
    with phases.watched(workdir / "hosts", stuck_after):
        load = functools.partial(
            policies.load,
            settings.pop("model"),
            **{name: settings.pop(name) for name in run_config.READ},
            mesh=sharding.make_mesh(**settings.pop("mesh")),
        )
        policy = load()
        display.say(policy.processor.about_tags())
        if hosts.first():
            for line in directory.describe_run(workdir, config):
                display.say(line)
        hosts.wait("config")
        seeds = settings.pop("seeds")
        training = run_config.from_config(settings)
        try:
            for seed in seeds:
                grpo.run(
                    policy or load(),
                    training,
                    workdir=workdir / f"seed-{seed}",
                    seed=seed,
                    phases=phases,
                    display=display,
                )
                policy = None  # its parameters were the run's
        except Stopped as stop:
            display.say(
                f"stopped on request in phase {stop} of step {phases.step}; the same "
                "command goes on"
            )
            return False
        finally:
            _report_time(workdir, phases, display)
    return True


def _report_time(workdir: Path, phases: Phases, display: Display) -> None:
    """Append seconds by phase of this start to WORKDIR/goodput.jsonl and show them,
    with the longest section without a safe point."""
    summary = phases.summary()
    if not hosts.first() or not phases.calls:
        return
    directory.append(workdir / "goodput.jsonl", summary)
    parts = sorted(summary["phases"].items(), key=lambda x: -x[1])
    times = ", ".join(f"{name} {s:.1f}" for name, s in parts if s >= 0.05)
    longest = summary["longest"]
    display.say(
        f"{summary['wall']:.1f} s: {times}; longest section that a stop must wait for: "
        f"{longest['seconds']:.1f} s of {longest['phase']}"
    )
