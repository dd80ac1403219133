"""From what completions earned to advantages, and to who takes part in the loss.

Pure functions of [N,G] arrays: N prompts, G completions of each.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vlmrl.metrics import Max
from vlmrl.rl import advantages
from vlmrl.rl.advantages import ADVANTAGES, DECOUPLED
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Array, Mean


class Earned(NamedTuple):
    """What completions earned; float32[N,G] unless said."""

    total: Array  # reward, shaping included
    correct: Array  # 0 or 1
    consistent: Array  # 0 or 1, NaN where no verdict applies
    stopped: Array  # bool[N,G]: ended by itself
    scores: Array | None = None  # what right completions are ranked by


class Signal(NamedTuple):
    advantages: Array  # float32[N,G]
    keep: Array  # bool[N,G]: takes part in the loss
    metrics: dict[str, Mean | Max]


def signal(earned: Earned, recipe: Recipe, weights: dict, step: int) -> Signal:
    """Advantages of a batch.

    The overlong filter takes what was cut out of its group; dynamic sampling drops
    groups that are all right or all wrong; ranking adds its bonus to the reward; a
    decoupled advantage normalises task and consistency apart.

    Args:
      earned: of the whole batch.
      weights: that controllers move; 'multiplier' is λ of the constraint.
      step: counts from 1, for the ramp of consistency's weight.
    """
    valid = np.ones(np.shape(earned.total), bool)
    if recipe.overlong.filter:
        valid &= np.asarray(earned.stopped, bool)
    reward = jnp.asarray(earned.total, jnp.float32)
    if recipe.ranking.weight:
        among = valid & (np.asarray(earned.correct) > 0)
        scores = jnp.asarray(earned.scores, jnp.float32)
        reward += recipe.ranking.weight * advantages.ranked(scores, jnp.asarray(among))
    keep = jnp.asarray(valid)
    if recipe.rounds > 1:
        keep = advantages.mixed(jnp.asarray(earned.correct), keep)
    if recipe.advantage in DECOUPLED:
        found = _decoupled(reward, earned.consistent, keep, recipe, weights, step)
    else:
        found = ADVANTAGES[recipe.advantage](reward, keep)
    size = jnp.where(keep, jnp.abs(found), 0)
    return Signal(
        found,
        keep,
        {
            "degenerate": advantages.degenerate(reward, jnp.asarray(valid)),
            "kept": Mean(keep.sum(), keep.size),
            "advantage": Mean(size.sum(), keep.sum()),
        },
    )


def _decoupled(reward, consistent, keep, recipe: Recipe, weights, step: int):
    task, other = recipe.weights
    other = weights.get("multiplier", other)
    if recipe.ramp:
        other = other * min(1.0, step / recipe.ramp)
    known = ~np.isnan(consistent)
    parts = jnp.stack([reward, jnp.asarray(np.nan_to_num(consistent), jnp.float32)])
    masks = jnp.stack([keep, keep & jnp.asarray(known)])
    return DECOUPLED[recipe.advantage](parts, masks, (task, other))
