"""Supervised fine-tuning: the update of RL with cross-entropy for the objective.

The caller brings the model, its first parameters and a function that makes the batch of
a step; what the batches hold is not known here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from vlmrl import metrics, sharding
from vlmrl.models.api import Model
from vlmrl.rl import losses, update
from vlmrl.run import checkpoint
from vlmrl.types import Group

# step -> (Group, bool[B, T]: the branches' tokens to learn); pure in its argument
Batches = Callable[[int], tuple[Group, np.ndarray]]


class SupervisedRun(NamedTuple):
    """How long a run is and what it leaves on the way."""

    steps: int
    log_every: int  # steps between rows of metrics
    save_every: int  # steps between checkpoints
    aggregation: str = "token"  # of the loss, see `rl.losses`
    unroll: bool = False  # layers in a Python loop instead of a scan
    average: int = 1  # newest checkpoints whose mean is returned


def train(
    model: Model,
    params: dict[str, jax.Array],
    tx: optax.GradientTransformation,
    batch_at: Batches,
    run: SupervisedRun,
    *,
    workdir: Path,
    mesh: Any,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, jax.Array]:
    """Return the trained parameters; metrics and checkpoints go to `workdir`, whose
    newest checkpoint is continued.

    Args:
      params: on `mesh`; given up with the first update.
      say: called with a line of text for each row of metrics.
    """

    def objective(logp, entropy, mask, extra):
        return losses.supervised_objective(
            logp, entropy, extra["mask"], extra, aggregation=run.aggregation
        )

    state = update.init_state(params, tx)
    step_fn = update.jit_update(
        update.make_update(model.on(mesh), tx, objective, unroll=run.unroll),
        state,
    )
    points = workdir / "checkpoints"
    restored = checkpoint.latest(points)
    if restored is not None:
        state, _ = checkpoint.restore(points, restored, state)
    began, totals = time.monotonic(), None
    batches = prefetch(batch_at, restored or 0, run.steps)
    with metrics.Writer(workdir, restored=restored) as writer:
        for step, (group, mask) in enumerate(batches, (restored or 0) + 1):
            batch = sharding.shard_batch(mesh, update.Batch(group, {"mask": mask}))
            state, numbers = step_fn(state, batch)
            totals = numbers if totals is None else metrics.add(totals, numbers)
            if step % run.log_every == 0 or step == run.steps:
                row = metrics.values(totals, "sft")
                row["seconds_per_step"] = (time.monotonic() - began) / run.log_every
                began, totals = time.monotonic(), None
                writer.write(step, row)
                values = (f"{k.split('/')[-1]} {v:.4g}" for k, v in row.items())
                say(f"step {step}/{run.steps}  {'  '.join(values)}")
            if step % run.save_every == 0 or step == run.steps:
                checkpoint.save(points, step, state, keep=max(2, run.average))()
    return mean_params(points, run.average, state)


def prefetch(batch_at: Batches, first: int, last: int, depth: int = 4) -> Iterator:
    """Yield batch_at(first), …, batch_at(last - 1), built ahead by one thread."""
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


def mean_params(
    points: Path, count: int, like: update.TrainState
) -> dict[str, jax.Array]:
    """Return the mean of the parameters of the newest `count` checkpoints, which stands
    for a learning rate that decays at the end."""
    steps = checkpoint.steps(points)[-count:]
    params = [checkpoint.restore(points, step, like)[0].params for step in steps]
    return jax.tree.map(lambda *x: sum(x[1:], x[0]) / len(x), *params)
