"""The training loop: prompts → rollouts → rewards → advantages → one update.

A generator: every step yields, so that who drives it evaluates, saves and stops when it
wants. All that a step depends on is in its `Carry` and in (seed, step, example ids).

What a recipe chooses stands in `recipe.py`; each choice is a pure function, called here
in order: `rollouts` draws and pays, `signals` compares, `learner` updates, `dynamics`
measures and moves the weights of the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vlmrl.policy import Policy
from vlmrl.rl import learner, replay, rollouts, step_metrics, update
from vlmrl.rl import recipe as recipes
from vlmrl.rl.batch_advantages import signal
from vlmrl.rl.rollouts import Sample
from vlmrl.types import Array, Example, Rollout

__all__ = ["Carry", "Sample", "Step", "begin", "train"]


class Carry(NamedTuple):
    """What a checkpoint holds: restored, the run goes on as if never stopped."""

    state: update.State
    position: Any  # int: examples trained on so far (the data frontier)
    weights: dict[str, float] = {}  # that controllers move
    ahead: Rollout | None = None  # drawn already for the next step
    replay: replay.Buffer | None = None


class Step(NamedTuple):
    step: int
    carry: Carry
    metrics: dict
    samples: list[Sample]
    advantages: Array  # float32[N, G], of the samples


def begin(state: update.State, *, prompts: int, **settings) -> Carry:
    """The Carry before the first step, with the shape of every later one."""
    recipe = recipes.make(**settings)
    size, length = recipe.group_size, recipe.max_tokens
    ahead = buffer = None
    if recipe.lag:
        ahead = replay.zeros((prompts * size,), length)
    if recipe.replay_groups.capacity:
        buffer = replay.empty(recipe.replay_groups.capacity, size, length)
    return Carry(state, 0, step_metrics.start(recipe), ahead, buffer)


def train(
    policy: Policy,
    batches: Iterator[tuple[int, list[Example]]],
    tx,
    carry: Carry,
    *,
    seed: int,
    steps: int,
    at: Callable[[int], Example] | None = None,
    phase: Callable[..., None] = lambda name, step=None: None,
    **settings,
) -> Iterator[Step]:
    """Train until `steps` updates are behind `carry`.

    Args:
      policy: its own parameters are what a KL refers to; they are read when this is
        called, and not after.
      batches: (data position after it, examples) per step, from carry.position on.
      at: the example at a position of that stream; group replay needs it.
      phase: told where a phase begins (`phases.Phases`); may raise to stop the run, and
        nothing that `carry` needs is under way then.
      settings: of the recipe, see `recipe.Recipe`.
    """
    recipe = recipes.make(**settings)
    draw = rollouts.drawer(
        policy, recipe, batches, seed=seed, ahead=carry.ahead, phase=phase
    )
    learn = learner.make(policy, tx, carry.state, recipe, seed=seed, phase=phase)
    first = int(carry.state.step) + 1
    return _steps(
        policy, recipe, range(first, steps + 1), carry, draw, learn, at, seed, phase
    )


def _steps(policy, recipe, steps, carry, draw, learn, at, seed, phase):
    for step in steps:
        phase("data", step)
        state, weights = carry.state, carry.weights
        drawn, ahead = draw(state.params, step, weights.get("multiplier", 0.0))
        earned = learn.charge(drawn)
        found = signal(earned, recipe, weights, step)
        used, buffer = rollouts.Used(drawn, found), carry.replay
        if buffer is not None:
            used, buffer = rollouts.replayed(
                policy, recipe, used, buffer, at, seed=seed, step=step
            )
        state, metrics = learn.update(state, used, weights, step)
        metrics |= step_metrics.measure(policy, used, drawn, weights)
        weights = step_metrics.follow(weights, recipe, metrics, drawn)
        carry = Carry(state, drawn.position, weights, ahead, buffer)
        yield Step(step, carry, metrics, drawn.samples, found.advantages)
