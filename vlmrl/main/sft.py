"""Supervised warm start: the same update as RL with cross-entropy for the objective.

Every batch is drawn anew from the scene generator: one scene per group, whose branches
are its questions and one dense description, so the image is encoded once for all.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from pathlib import Path

import jax
import numpy as np

from vlmrl import checkpoint, metrics, prompts, sharding, tokens
from vlmrl.data import scenes, traces
from vlmrl.main import tiny
from vlmrl.models import hf
from vlmrl.rl import losses, update


def batch(
    processor, buckets, mix, style, *, seed, step, groups, branches, look, locate, drill
):
    """(Group, loss mask) number `step` of the stream `seed`: pure in its arguments.

    The first item of a scene is a dense description, or with `locate` names places of
    named objects; with `look` it is the only one, since naming what is where takes the
    most pictures to learn. With `drill` one more item ties options to letters.
    """
    rng = np.random.default_rng([seed, step])
    rows = []
    first = seed * 10**6 + step * groups  # another seed, other pictures
    for index in range(first, first + groups):
        scene = scenes.make_scene("train", index)
        if locate:
            items = [traces.located(scene, rng)]
        else:
            items = [traces.described(scene)]
        while not look and len(items) < branches:
            for example in scenes.questions(scene, rng, branches - len(items)):
                items.append(traces.supervised(example, rng, **mix))
                if drill and len(items) == 2:  # one more of the first question
                    items.append(traces.drilled(example, rng))
        rows.append(
            [
                (tokens.encode(processor, prompts.build(example, style)), text)
                for example, text in items[:branches]
            ]
        )
    return tokens.completion_rows(processor, rows, buckets)


def prefetch(make, first: int, last: int, depth: int = 4):
    """make(first), …, make(last - 1), built ahead by one thread."""
    out: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def work():
        for step in range(first, last):
            try:
                item = make(step)
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


def run(
    *,
    workdir: Path,
    model: str,
    style: str,
    seed: int,
    steps: int,
    look: bool,
    locate: bool,
    drill: bool,
    groups: int,
    branches: int,
    mix: dict,
    buckets: dict,
    optimizer: dict,
    log_every: int,
    save_every: int,
    aggregation: str = "token",
    unroll: bool = False,
    export: str = "",
):
    """Train from random weights (or the directory's own, if it has any) and export."""
    if not model:
        model = workdir / "start"
        tiny.make(model)
    source = hf.resolve(model)
    family = hf.read_model(source)
    processor = tokens.load_processor(source)
    opts = dict(optimizer)
    rate = update.schedule(
        peak=opts.pop("peak"),
        warmup=opts.pop("warmup"),
        steps=opts.pop("horizon") or steps,
        decay=opts.pop("decay"),
    )
    tx = update.optimizer(rate, **opts)
    mesh = sharding.make_mesh()
    places = sharding.param_shardings(mesh, family.table)
    if (source / "model.safetensors").is_file():
        params = hf.load(source, shardings=places)[1]
    else:
        init = jax.jit(family.init, out_shardings=places)
        params = init(jax.random.key(seed))
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
    settings = {"look": look, "locate": locate, "drill": drill}
    settings |= {"seed": seed, "groups": groups, "branches": branches}
    make = functools.partial(batch, processor, sizes, mix, style, **settings)
    clock = time.monotonic()
    with metrics.Writer(workdir, restored=first) as writer:
        totals = None
        for step, (group, mask) in enumerate(
            prefetch(lambda step: make(step=step), start, steps), start + 1
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
                print(f"step {step}/{steps}  " + "  ".join(
                    f"{k.split('/')[-1]} {v:.4g}" for k, v in row.items()
                ), flush=True)  # fmt: skip
            if step % save_every == 0 or step == steps:
                checkpoint.save(points, step, state, keep=2)()
    target = Path(export) if export else workdir / "model"
    if not target.exists():  # else this very command was run before
        hf.save(target, family, state.params, source)
    return target
