"""Rewards of a batch → advantages, and the mask of who takes part in the loss.

Pure functions of [N,G] arrays: N prompts, G completions of each.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vlmrl.metrics import Max
from vlmrl.rl import advantages
from vlmrl.rl.advantages import DECOUPLED
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Array, Mean


class Rewards(NamedTuple):
    """Rewards of a batch and what they depend on; float32[N,G] unless noted."""

    total: Array  # shaping included
    correct: Array  # 0 or 1
    consistent: Array  # 0 or 1, NaN where no verdict applies
    stopped: Array  # bool[N,G]: ended by itself
    scores: Array | None = None  # that right completions are ranked by


class Advantages(NamedTuple):
    values: Array  # float32[N,G]
    loss_mask: Array  # bool[N,G]: takes part in the loss
    metrics: dict[str, Mean | Max]


def compute_advantages(
    rewards: Rewards, recipe: Recipe, coefficients: dict, step: int
) -> Advantages:
    """Return the advantages of a batch.

    The overlong filter takes completions that were cut off out of their group; dynamic
    sampling drops groups that are all right or all wrong; ranking adds its bonus to
    the reward; a decoupled advantage normalises task and consistency separately.

    Args:
      coefficients: of the controllers; 'multiplier' is λ of the constraint.
      step: counts from 1, for the warm-up of consistency's weight.
    """
    valid = np.ones(np.shape(rewards.total), bool)
    if recipe.overlong.filter:
        valid &= np.asarray(rewards.stopped, bool)
    reward = jnp.asarray(rewards.total, jnp.float32)
    if recipe.ranking.weight:
        among = valid & (np.asarray(rewards.correct) > 0)
        scores = jnp.asarray(rewards.scores, jnp.float32)
        reward += recipe.ranking.weight * advantages.ranked(scores, jnp.asarray(among))
    mask = jnp.asarray(valid)
    if recipe.sampling.resampling_rounds > 1:
        mask = advantages.mixed(jnp.asarray(rewards.correct), mask)
    if recipe.advantage.name in DECOUPLED:
        weights = _weights(recipe, coefficients, step)
        values = _decoupled(
            reward, rewards.consistent, mask, recipe.advantage.name, weights
        )
    else:
        advantage = advantages.advantage_of(recipe.advantage.name, "advantage.name")
        values = advantage(reward, mask)
    size = jnp.where(mask, jnp.abs(values), 0)
    metrics = {
        "degenerate": advantages.degenerate(reward, jnp.asarray(valid)),
        "kept": Mean(mask.sum(), mask.size),
        "advantage": Mean(size.sum(), mask.sum()),
    }
    return Advantages(values, mask, metrics)


def _weights(recipe: Recipe, coefficients: dict, step: int) -> tuple[float, float]:
    """Return the weights of task and consistency at a step."""
    task, consistency = recipe.advantage.weights
    consistency = coefficients.get("multiplier", consistency)
    if recipe.advantage.warmup:
        consistency = consistency * min(1.0, step / recipe.advantage.warmup)
    return task, consistency


def _decoupled(reward, consistent, mask, name: str, weights) -> Array:
    known = ~np.isnan(consistent)
    parts = jnp.stack([reward, jnp.asarray(np.nan_to_num(consistent), jnp.float32)])
    masks = jnp.stack([mask, mask & jnp.asarray(known)])
    return DECOUPLED[name](parts, masks, weights)
