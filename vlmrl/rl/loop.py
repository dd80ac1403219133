"""The training loop: prompts → rollouts → rewards → advantages → one update.

A generator: every step yields, so that the caller decides when to evaluate, save and
stop. All that a step depends on is in its `Carry` and in (seed, step, example ids).

What a recipe chooses stands in `recipe.py`; each choice is a pure function, called in
order in `steps`: `rollouts` samples and rewards, `batch_advantages` compares, `learner`
updates, `step_metrics` measures and moves the coefficients of the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vlmrl.rl import learner, replay, rollouts, step_metrics, update
from vlmrl.rl.batch_advantages import compute_advantages
from vlmrl.rl.learner import Learner
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.rollouts import Context, Sample, TrainingBatch
from vlmrl.types import Array, Example, Rollout

__all__ = ["Carry", "Sample", "TrainStep", "begin", "train"]


class Carry(NamedTuple):
    """What a checkpoint holds: restored, the run continues as if never stopped."""

    state: update.TrainState
    position: Any  # int: examples trained on so far, the position in the data stream
    coefficients: dict[str, float] = {}  # that controllers move
    pending: Rollout | None = None  # sampled already for the next step
    replay: replay.ReplayBuffer | None = None


class TrainStep(NamedTuple):
    step: int
    carry: Carry
    metrics: dict
    samples: list[Sample]
    advantages: Array  # float32[N, G], of the samples


def begin(state: update.TrainState, recipe: Recipe, *, prompts: int) -> Carry:
    """Return the Carry before the first step, with the shapes of every later one."""
    size, length = recipe.sampling.group_size, recipe.sampling.max_tokens
    pending = buffer = None
    if recipe.sampling.off_policy_steps:
        pending = replay.zeros((prompts * size,), length)
    if recipe.replay.capacity:
        buffer = replay.empty(recipe.replay.capacity, size, length)
    return Carry(state, 0, step_metrics.init(recipe), pending, buffer)


def train(
    context: Context,
    tx,
    carry: Carry,
    *,
    last: int,
    example_at: Callable[[int], Example] | None = None,
) -> Iterator[TrainStep]:
    """Train from `carry` up to and including step `last`.

    Args:
      context: of the run; its policy's own parameters are the reference of a KL, and
        are read when this is called, not later.
      tx: the optimizer of `carry.state`.
      example_at: the example at a position of the data stream; replay needs it.
    """
    learn = learner.make_learner(context, tx, carry.state)
    return steps(context, learn, carry, last, example_at)


def steps(
    context: Context,
    learn: Learner,
    carry: Carry,
    last: int,
    example_at: Callable[[int], Example] | None,
) -> Iterator[TrainStep]:
    """Yield every step from `carry` to `last`."""
    recipe = context.recipe
    for step in range(int(carry.state.step) + 1, last + 1):
        context.phase("data", step)
        state, coefficients, buffer = carry.state, carry.coefficients, carry.replay
        batch, pending = rollouts.rollout_batch(
            context,
            state.params,
            step,
            pending=carry.pending,
            multiplier=coefficients.get("multiplier", 0.0),
        )
        rewards = learner.apply_kl_penalty(learn, batch)
        advantages = compute_advantages(rewards, recipe, coefficients, step)
        training = TrainingBatch(batch, advantages)
        if buffer is not None:
            training, buffer = replay.replace_idle(
                context, training, buffer, example_at, step=step
            )
        state, metrics = learner.update(learn, state, training, coefficients, step)
        metrics |= training.advantages.metrics
        metrics |= step_metrics.measure(context.policy, batch, coefficients)
        coefficients = step_metrics.update(coefficients, recipe, metrics, batch)
        carry = Carry(state, batch.position, coefficients, pending, buffer)
        yield TrainStep(step, carry, metrics, batch.samples, advantages.values)
