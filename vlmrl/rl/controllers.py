"""Controllers: coefficients that follow a measurement, as pure state updates.

Each maps (weight, measurement, settings) to the next weight; the state is that one
number, kept in a checkpoint like any other. Measure over the whole batch, update once
per step, and hand the weight to the next loss as a row of `extra` ('kl_weight',
'entropy_weight': nothing is compiled again) or to the next reward or advantage.

All work on Python floats and on float32[] alike.
"""

from __future__ import annotations

import jax.numpy as jnp

from vlmrl.types import Array


def ppo_kl(weight: Array, kl: Array, target: float) -> Array:
    """Update PPO's adaptive KL coefficient.

      β ← β / 2 where KL < target / 1.5;  β ← 2 β where KL > 1.5 · target;  else β

    https://arxiv.org/abs/1707.06347, section 4

    Args:
      weight: β, above 0 (it would stay there), per nat.
      kl: measured, nats per token or per sequence, as `target` is.
      target: nats, above 0.
    """
    factor = jnp.where(kl > 1.5 * target, 2.0, jnp.where(kl < target / 1.5, 0.5, 1.0))
    return weight * factor


def proportional_kl(
    weight: Array, kl: Array, target: float, *, gain: float = 0.1
) -> Array:
    """Update a KL coefficient proportionally, in log space.

      β ← β · (1 + gain · clip(KL / target − 1, −0.2, 0.2))

    https://arxiv.org/abs/1909.08593, section 2.2

    Args: see `ppo_kl`, and
      gain: K_β, per update.
    """
    return weight * (1 + gain * jnp.clip(kl / target - 1, -0.2, 0.2))


def entropy_target(
    weight: Array, entropy: Array, target: float, *, change: float = 0.005
) -> Array:
    """Update the weight of an entropy bonus that keeps the entropy above a target.

      c ← max(0, c + change) where H < target;  max(0, c − change) where H > target

    The paper pays the bonus only while H ≤ target: see `entropy_bonus`.
    Skywork-OR1: https://arxiv.org/abs/2505.22312

    Args:
      weight: c, at least 0, per nat.
      entropy: H, measured mean per token, nats.
      target: nats.
      change: per update.
    """
    return jnp.maximum(weight + change * jnp.sign(target - entropy), 0)


def entropy_bonus(weight: Array, entropy: Array, target: float) -> Array:
    """Return the weight in use: c where H ≤ target, else 0; see `entropy_target`."""
    return jnp.where(entropy <= target, weight, 0)


def dual_ascent(
    multiplier: Array,
    value: Array,
    threshold: float,
    *,
    rate: float = 0.1,
    max: float = 10.0,
) -> Array:
    """Update the Lagrange multiplier of the constraint E[c] ≥ τ.

      λ ← clip(λ + rate · (τ − mean(c)), 0, max)

    While the constraint is violated its price rises; once it holds with room to spare
    the price falls to 0, and the task alone is optimised. The price enters the reward
    (`rewards.lagrangian_reward`) or the advantage (`advantages.decoupled` with weights
    (1, λ)). Faithful GRPO: https://arxiv.org/abs/2604.08476; the cap is ours, so that
    a constraint that can't be met doesn't drown the task for good.

    Args:
      multiplier: λ, at least 0, in units of reward.
      value: mean of c over the batch, e.g. the consistent ratio; a batch in which
        nothing was judged has none: leave λ as it is.
      threshold: τ.
      rate: η, per update.
      max: upper bound of λ.
    """
    return jnp.clip(multiplier + rate * (threshold - value), 0, max)
