"""Train a model on given texts: the supervised warm start of the toy models.

Reads a config, trains with cross-entropy on the texts its source generates, and exports
WORKDIR/model in Hugging Face format. The same command again resumes from the newest
checkpoint. WORKDIR also holds config.json, environment.json, metrics.jsonl and
checkpoints/.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax

from vlmrl import policy as policies
from vlmrl import sharding
from vlmrl.judges import synthetic
from vlmrl.loops import sft
from vlmrl.main import args
from vlmrl.main.progress import say
from vlmrl.models import hf, registry, weights
from vlmrl.prompts import tokens
from vlmrl.rl import update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.run import directory
from vlmrl.tiny import judge_data, make, sft_data
from vlmrl.types import UserError

HELP = "supervised fine-tuning of a toy model from a config, resumable"
FLAGS = {
    "config": (None, "what to train, e.g. configs/tiny/sft.py:stage=letters"),
    "workdir": (None, "run directory; an earlier run in it is resumed"),
}
# config.source → what makes the directory to start from, where no model is named
SOURCES = {"scenes": make.make, "lessons": make.make_judge}


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    args.check_algorithm(config, "sft")
    c = config.to_dict()
    source = c.get("source", "scenes")
    check(c, source)
    if c["model"]:
        registry.resolve(c["model"])
    directory.describe_run(workdir, config.to_dict())
    start = c["model"] or workdir / "start"
    if not c["model"]:
        SOURCES[source](start)
    model = registry.read_model(start)
    processor = tokens.load_processor(registry.resolve(start))
    mesh = sharding.make_mesh()
    options = OptimizerOptions(**c["optimizer"])
    names = ("steps", "log_every", "save_every", "aggregation", "unroll", "average")
    params = first_params(c, source, model, processor, start, mesh)
    processor = policies.with_tags(processor, c.get("tags", "auto"), model, params)
    say(processor.about_tags())
    params = sft.train(
        model,
        params,
        update.optimizer(options, model.table, steps=c["steps"]),
        batches(c, source, processor),
        sft.SupervisedRun(**{name: c[name] for name in names if name in c}),
        workdir=workdir,
        mesh=mesh,
        say=say,
    )
    target = Path(c.get("export") or workdir / "model")
    if not target.exists():  # else this very command was run before
        plain = processor.tags.mode == "plain"
        hf.save(target, model, params, registry.resolve(start), plain_tags=plain)


def check(c: dict, source: str) -> None:
    """Raise UserError for fields that are wrong by themselves."""
    if source not in SOURCES:
        known = ", ".join(SOURCES)
        raise UserError(f"config.source is '{source}', expected one of {known}")
    if source == "lessons" and c["seed"] == synthetic.HELD_OUT:
        raise UserError(
            f"config.seed is {c['seed']}, expected another: judges are tested on the "
            "traces of this one"
        )
    if c["groups"] < 1 or c["groups"] % jax.device_count():
        raise UserError(
            f"config.groups is {c['groups']}, expected a multiple of the "
            f"{jax.device_count()} devices"
        )
    if source == "scenes":
        sft_data.check(scene_items(c))


def scene_items(c: dict) -> sft_data.SceneItems:
    return sft_data.SceneItems(
        **{name: c[name] for name in sft_data.SceneItems._fields if name in c}
    )


def first_params(c, source, model, processor, start, mesh) -> dict[str, jax.Array]:
    """Return the weights that come with the model, else random ones."""
    shardings = sharding.param_shardings(mesh, model.table)
    if registry.has_weights(start):
        return weights.load(start, shardings=shardings)[1]
    init = jax.jit(functools.partial(make.start, model), out_shardings=shardings)
    params = init(jax.random.key(c["seed"]))
    return make.begin_judge(params, processor) if source == "lessons" else params


def batches(c: dict, source: str, processor) -> sft.Batches:
    """Return the function that makes the batch of a step."""
    sizes = tokens.Buckets(**{k: tuple(v) for k, v in c["buckets"].items()})
    if source == "lessons":
        draw = functools.partial(
            judge_data.batch, processor, sizes, groups=c["groups"], mix=c["mix"]
        )
    else:
        draw = functools.partial(sft_data.batch, processor, sizes, scene_items(c))
    return lambda step: draw(seed=c["seed"], step=step)
