"""Fine-tune a model: GRPO and its relatives, or supervised warm start.

Reads a config, trains every seed of it under WORKDIR/seed-N, evaluates on a held-out
split while training, and exports WORKDIR/seed-N/model in Hugging Face format. The same
command again resumes from the newest checkpoint, to the bit.

A run directory holds config.json, environment.json, metrics.jsonl, records/ (one
Parquet file per evaluation), checkpoints/ and model/.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import jax

import vlmrl
from vlmrl import checkpoint, metrics, perturb
from vlmrl.data import loader
from vlmrl.engine import policy as policies
from vlmrl.eval import records
from vlmrl.eval.evaluate import evaluator
from vlmrl.main import args, sft
from vlmrl.main.progress import bar
from vlmrl.models import hf
from vlmrl.rl import advantages, augment, loop, rewards, update
from vlmrl.rl import check as recipe_check
from vlmrl.types import UserError

HELP = "fine-tune a model from a config, resumable"
FLAGS = {
    "config": (None, "what to train, e.g. configs/tiny/accuracy.py"),
    "workdir": (None, "run directory; an earlier run in it is resumed"),
}
ALGORITHMS = ("grpo", "sft")
DECAYS = ("constant", "cosine", "linear")


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    settings = config.to_dict()
    algorithm = settings.pop("algorithm")
    if algorithm not in ALGORITHMS:
        raise UserError(
            f"config.algorithm is '{algorithm}', want one of {', '.join(ALGORITHMS)}"
        )
    if algorithm == "sft":
        if settings["model"]:
            hf.resolve(settings["model"])
        describe_run(workdir, config.to_dict())
        sft.run(workdir=workdir, **settings)
        return
    check(settings)
    policy = policies.load(settings.pop("model"), style=settings.pop("style"))
    describe_run(workdir, config.to_dict())
    for seed in settings.pop("seeds"):
        train(policy, workdir=workdir / f"seed-{seed}", seed=seed, **settings)


def check(settings: dict) -> None:
    """Refuse a config that contradicts itself before anything is loaded."""
    for field, value, known in (
        ("reward", settings["reward"], rewards.REWARDS),
        ("advantage", settings["advantage"], advantages.ADVANTAGES),
        ("optimizer.decay", settings["optimizer"]["decay"], DECAYS),
        ("data.source", settings["data"]["source"], loader.SOURCES),
    ):
        if value not in known:
            names = ", ".join(known)
            raise UserError(f"config.{field} is '{value}', want one of {names}")
    data, held_out = settings["data"], settings["eval"]
    if data["split"] == held_out["split"]:
        raise UserError(
            f"config.eval.split is '{data['split']}', the split that is trained on"
        )
    if data["size"] < settings["prompts"]:
        raise UserError(
            f"config.data.size is {data['size']}, fewer than the "
            f"{settings['prompts']} prompts of a step (config.prompts)"
        )
    for name in held_out["conditions"]:
        perturb.check(name)
    augment.check(settings["mix"], "config.mix")
    if settings["temperature"] <= 0:
        raise UserError(
            f"config.temperature is {settings['temperature']}: rollouts of a group "
            "must differ, so it must be above 0"
        )
    if settings["group_size"] < 2:
        raise UserError(
            f"config.group_size is {settings['group_size']}: an advantage compares the "
            "completions of a group, so it must be at least 2"
        )
    recipe_check.check(settings)
    for what, parts in (
        ("devices", jax.device_count()),
        ("microbatches", settings["microbatches"]),
    ):
        if settings["prompts"] < 1 or settings["prompts"] % parts:
            raise UserError(
                f"config.prompts is {settings['prompts']}, want a multiple of the "
                f"{parts} {what}"
            )


def train(
    policy: policies.Policy,
    *,
    workdir: Path,
    seed: int,
    recipe: str,
    steps: int,
    prompts: int,
    optimizer: dict,
    data: dict,
    eval: dict,
    save_every: int,
    keep: int,
    **settings,
) -> tuple[dict, list[Path]]:
    """One seed of one recipe: (parameters, record files of its evaluations)."""
    workdir.mkdir(parents=True, exist_ok=True)
    sizes = {data["split"]: data["size"], eval["split"]: eval["size"]}
    prepared = loader.prepare(data["source"], sizes, workdir.parent / "data")
    source = loader.load(prepared, data["split"])
    held_out = list(loader.load(prepared, eval["split"]))
    run_eval = evaluator(
        policy,
        eval["conditions"],
        max_tokens=eval["max_tokens"],
        batch=min(16, eval["size"]),
    )

    opts = dict(optimizer)
    rate = update.schedule(
        peak=opts.pop("peak"),
        warmup=opts.pop("warmup"),
        steps=steps,
        decay=opts.pop("decay"),
    )
    opts["freeze"] = tuple(opts.get("freeze", ()))
    tx = update.optimizer(rate, **opts)
    params = jax.tree.map(lambda x: x.copy(), policy.params)  # the update donates
    carry = loop.Carry(update.init_state(params, tx), 0)
    points = workdir / "checkpoints"
    restored = checkpoint.latest(points)
    if restored is not None:
        carry, _ = checkpoint.restore(points, restored, carry)
    batches = loader.batches(source, seed=seed, batch=prompts, start=carry.position)
    run = loop.train(policy, batches, tx, carry, seed=seed, steps=steps, **settings)
    kept = workdir / "records"
    kept.mkdir(exist_ok=True)
    clock = time.monotonic()
    with (
        metrics.Writer(workdir, restored=restored) as writer,
        bar(f"train {recipe} seed {seed}", steps, restored or 0) as advance,
    ):
        for step, carry, numbers, _ in run:
            row = metrics.values(numbers)
            row["seconds"], clock = time.monotonic() - clock, time.monotonic()
            writer.write(step, row)
            advance(1, f"reward {row['reward/total']:.2f}")
            if eval["every"] and (step % eval["every"] == 0 or step == steps):
                found = run_eval(
                    carry.state.params,
                    held_out,
                    recipe=recipe,
                    seed=seed,
                    step=step,
                    split=eval["split"],
                )
                records.write(kept / f"step-{step:06d}.parquet", found)
                clock = time.monotonic()
            if step % save_every == 0 or step == steps:
                checkpoint.save(points, step, carry, keep=keep)()
    target = workdir / "model"
    if not target.exists():
        hf.save(target, policy.model, carry.state.params, policy.source)
    return carry.state.params, [kept / p.name for p in sorted(kept.glob("*.parquet"))]


def describe_run(workdir: Path, config: dict) -> None:
    """config.json and environment.json of a run directory.

    Raises:
      UserError: the directory holds results of another config.
    """
    text = json.dumps(config, indent=1, default=list) + "\n"
    path = workdir / "config.json"
    if path.is_file() and path.read_text() != text and _results(workdir):
        old = json.loads(path.read_text())
        new = json.loads(text)
        names = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        raise UserError(
            f"{workdir}: holds a run of another config (it differs in "
            f"{', '.join(names)}); give another --workdir"
        )
    path.write_text(text)
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    environment = {
        "vlmrl": vlmrl.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "packages": {p: version(p) for p in packages},
        "revision": _revision(),
    }
    (workdir / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")


def _results(workdir: Path) -> bool:
    """Is there anything in a run directory that took work?"""
    names = ("checkpoints/*", "records/*.parquet", "records.parquet")
    depths = ("", "*/", "*/*/")  # seeds of recipes
    return any(any(workdir.glob(d + name)) for d in depths for name in names)


def _revision() -> str | None:
    """Git revision of the checkout, with '+' if it has changes; None outside one."""
    import subprocess

    git = shutil.which("git")
    if git is None:
        return None

    def say(*words):
        top = Path(vlmrl.__file__).resolve().parents[1]
        done = subprocess.run(
            [git, "-C", str(top), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    revision = say("rev-parse", "HEAD")
    return revision and revision + ("+" if say("status", "--porcelain") else "")
