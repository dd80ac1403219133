"""Supervised warm start: the same update as RL with cross-entropy for the objective.

Every batch is drawn anew from a generator. `scenes`: one scene per group, whose
branches are its questions and auxiliary items, so the image is encoded once for all.
`lessons`: thinks to judge, for the tiny judge (vlmrl/judges/judge_data.py).
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from pathlib import Path

import jax
import numpy as np

from vlmrl import metrics, sharding
from vlmrl.data import scenes, traces
from vlmrl.judges import synthetic
from vlmrl.models import hf, registry, weights
from vlmrl.prompts import styles, tokens
from vlmrl.rl import losses, update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.run import checkpoint
from vlmrl.tiny import judge_data, make
from vlmrl.types import UserError


def batch(
    processor, buckets, style, *, seed, step, groups, branches, mix, pictures=True,
    opening="",
):  # fmt: skip
    """(Group, loss mask) number `step` of the stream `seed`: pure in its arguments.

    `branches` says how many items of what kind a picture has (ITEMS); without
    `pictures` they are asked as text alone. Of a text that begins with `opening` only
    that is learnt ('': all of every text).
    """
    rng = np.random.default_rng([seed, step])
    rows = []
    first = seed * 10**6 + step * groups  # another seed, other pictures
    for index in range(first, first + groups):
        scene = scenes.make_scene("train", index)
        pairs = []
        for kind, number in branches.items():
            made = []
            while len(made) < number:
                made += ITEMS[kind](scene, rng, number - len(made), mix)
            pairs += made
        if not pictures:
            pairs = [(example._replace(images=()), text) for example, text in pairs]
        rows.append(
            [
                (tokens.encode(processor, styles.build(example, style)), text)
                for example, text in pairs
            ]
        )
    group, mask = tokens.completion_rows(processor, rows, buckets)
    if opening:
        size = len(processor.tokenizer.encode(opening, add_special_tokens=False))
        short = [text.startswith(opening) for row in rows for _, text in row]
        mask &= (np.cumsum(mask, axis=1) <= size) | ~np.array(short)[:, None]
    return group, mask


# kind → (scene, rng, n, mix) → up to n pairs (example, text to learn)
ITEMS = {
    "described": lambda scene, rng, n, mix: [traces.described(scene)],
    "located": lambda scene, rng, n, mix: [traces.located(scene, rng)],
    "listed": lambda scene, rng, n, mix: [traces.listed(scene, rng)],
    "drilled": lambda scene, rng, n, mix: [
        traces.drilled(example, rng) for example in scenes.questions(scene, rng, n)
    ],
    "questions": lambda scene, rng, n, mix: [
        traces.supervised(example, rng, **mix)
        for example in scenes.questions(scene, rng, n)
    ],
}


def prefetch(batch_at, first: int, last: int, depth: int = 4):
    """batch_at(first), …, batch_at(last - 1), built ahead by one thread."""
    out: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def work():
        for step in range(first, last):
            try:
                item = batch_at(step)
            except BaseException as e:
                item = e
            while not stop.is_set():
                try:
                    out.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or isinstance(item, BaseException):
                return

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(first, last):
            item = out.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


# what is learnt → what makes the directory to start from
SOURCES = {"scenes": make.make, "lessons": make.make_judge}


def run(
    *,
    workdir: Path,
    model: str,
    seed: int,
    steps: int,
    groups: int,
    mix: dict,
    buckets: dict,
    optimizer: dict,
    log_every: int,
    save_every: int,
    source: str = "scenes",
    style: str = "",
    branches: dict | None = None,
    aggregation: str = "token",
    unroll: bool = False,
    pictures: bool = True,
    opening: str = "",
    export: str = "",
    average: int = 1,
    say=lambda line: None,
):
    """Train from random weights (or the directory's own, if it has any) and export; of
    several checkpoints, with `average`, the mean of the last ones."""
    if source not in SOURCES:
        raise UserError(
            f"config.source is '{source}', want one of {', '.join(SOURCES)}"
        )
    if source == "lessons" and seed == synthetic.HELD_OUT:
        raise UserError(f"config.seed is {seed}: the traces that judges are tested on")
    if not model:
        model = workdir / "start"
        SOURCES[source](model)
    where = registry.resolve(model)
    family = registry.read_model(where)
    processor = tokens.load_processor(where)
    for kind, number in (branches or {}).items():
        if kind not in ITEMS or number < 0:
            raise UserError(
                f"config.branches.{kind} is {number}, want a number of items for "
                f"each of {', '.join(ITEMS)}"
            )
    if groups < 1 or groups % jax.device_count():
        raise UserError(
            f"config.groups is {groups}, want a multiple of the "
            f"{jax.device_count()} devices"
        )
    options = OptimizerOptions(**optimizer)
    tx = update.optimizer(options, family.table, steps=steps)
    mesh = sharding.make_mesh()
    places = sharding.param_shardings(mesh, family.table)
    if registry.has_weights(model):
        params = weights.load(model, shardings=places)[1]
    else:
        init = jax.jit(functools.partial(make.start, family), out_shardings=places)
        params = init(jax.random.key(seed))
        if source == "lessons":
            params = make.begin_judge(params, processor)
    state = update.init_state(params, tx)

    def objective(logp, entropy, mask, extra):
        return losses.supervised_objective(
            logp, entropy, extra["mask"], extra, aggregation=aggregation
        )

    step_fn = update.jit_update(
        update.make_update(family, tx, objective, unroll=unroll), state
    )
    points = workdir / "checkpoints"
    first = checkpoint.latest(points)
    if first is not None:
        state, _ = checkpoint.restore(points, first, state)
    start = first or 0
    sizes = tokens.Buckets(**{k: tuple(v) for k, v in buckets.items()})
    settings = {"seed": seed, "groups": groups, "mix": mix}
    if source == "lessons":
        batch_at = functools.partial(judge_data.batch, processor, sizes, **settings)
    else:
        settings |= {"branches": branches, "pictures": pictures, "opening": opening}
        batch_at = functools.partial(batch, processor, sizes, style, **settings)
    clock = time.monotonic()
    with metrics.Writer(workdir, restored=first) as writer:
        totals = None
        for step, (group, mask) in enumerate(
            prefetch(lambda step: batch_at(step=step), start, steps), start + 1
        ):
            data = update.Batch(group, {"mask": mask})
            data = sharding.shard_batch(mesh, data)
            state, numbers = step_fn(state, data)
            totals = numbers if totals is None else metrics.add(totals, numbers)
            if step % log_every == 0 or step == steps:
                row = metrics.values(totals, "sft")
                row["seconds_per_step"] = (time.monotonic() - clock) / log_every
                clock, totals = time.monotonic(), None
                writer.write(step, row)
                values = (f"{k.split('/')[-1]} {v:.4g}" for k, v in row.items())
                say(f"step {step}/{steps}  {'  '.join(values)}")
            if step % save_every == 0 or step == steps:
                checkpoint.save(points, step, state, keep=max(2, average))()
    target = Path(export) if export else workdir / "model"
    if not target.exists():  # else this very command was run before
        hf.save(target, family, mean_params(points, average, state), where)
    return target


def mean_params(
    points: Path, count: int, like: update.TrainState
) -> dict[str, jax.Array]:
    """The mean of the parameters of the last `count` checkpoints: what a rate that
    falls in the end would come to."""
    steps = checkpoint.steps(points)[-count:]
    held = [checkpoint.restore(points, step, like)[0].params for step in steps]
    return jax.tree.map(lambda *x: sum(x[1:], x[0]) / len(x), *held)
