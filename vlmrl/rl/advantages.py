"""Advantages: how much better a completion did than the others of its group.

All take rewards float32[N,G] (N advantage groups of G completions) and a mask
bool[N,G], False on completions that take no part (padding, filtered out): they neither
shift the group's statistics nor get an advantage, whatever number or NaN they hold.
Rewards are data: nothing here is meant to be differentiated.

A group whose valid rewards are all equal says nothing about what to prefer. Its
advantages are exactly 0 (deviations are taken from the group's minimum first: eight
times 1.1 has no exact float32 mean, and a rounding error over a rounding error is a
full-sized advantage). So are those of a group with one valid completion.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp

from vlmrl.types import Array, Mean


def dr_grpo(rewards: Array, mask: Array) -> Array:
    """Group-centred reward, not scaled: A = r − mean(r).

    Without the division by the deviation, easy and hard groups (whose rewards hardly
    vary) don't weigh more than the others. Dr. GRPO: https://arxiv.org/abs/2503.20783

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].

    Returns:
      float32[N,G], in units of reward, 0 where masked.
    """
    return _centred(rewards, mask)


def grpo(rewards: Array, mask: Array, *, ddof: int = 1, eps: float = 1e-6) -> Array:
    """Group-normalised reward: A = (r − mean(r)) / (std(r) + eps).

    GRPO: https://arxiv.org/abs/2402.03300, which leaves the kind of std open. Here it
    is sqrt(Σ(r − mean)² / (n − ddof)) over the n valid rewards of the group; ddof = 1
    (Bessel's correction) is what verl and TRL compute, ddof = 0 divides by n.

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].
      ddof: 0 or 1.
      eps: added to the std, in units of reward.

    Returns:
      float32[N,G], without unit, 0 where masked.
    """
    centred = _centred(rewards, mask)
    n = mask.sum(-1, keepdims=True)
    variance = jnp.square(centred).sum(-1, keepdims=True) / jnp.maximum(n - ddof, 1)
    return centred / (jnp.sqrt(variance) + eps)


def rloo(rewards: Array, mask: Array) -> Array:
    """Leave-one-out baseline: A_i = r_i − mean_{j≠i}(r_j) = n/(n−1) (r_i − mean(r)).

    The baseline doesn't depend on the completion it is subtracted from, hence the
    policy gradient is unbiased; `dr_grpo`'s is (n−1)/n of it.
    RLOO: https://arxiv.org/abs/2402.14740

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].

    Returns:
      float32[N,G], in units of reward, 0 where masked.
    """
    n = mask.sum(-1, keepdims=True)
    return _centred(rewards, mask) * (n / jnp.maximum(n - 1, 1))


ADVANTAGES = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def degenerate(rewards: Array, mask: Array) -> Mean:
    """Groups whose valid rewards are all equal, over groups with a valid reward.

    Such a group gives no gradient; the share is the part of the batch that is wasted.

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].

    Returns:
      Mean of scalars: number of degenerate groups, number of groups.
    """
    equal = (_shifted(rewards, mask) == 0).all(-1)
    valid = mask.any(-1)
    return Mean((equal & valid).sum(), valid.sum())


def _shifted(rewards: Array, mask: Array) -> Array:
    """Rewards minus the smallest valid one of their group, 0 where masked."""
    chex.assert_rank(rewards, 2)
    chex.assert_equal_shape([rewards, mask])
    lowest = jnp.where(mask, rewards, jnp.inf).min(-1, keepdims=True)
    return jnp.where(mask, rewards - lowest, 0)


def _centred(rewards: Array, mask: Array) -> Array:
    shifted = _shifted(rewards, mask)
    n = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    return jnp.where(mask, shifted - shifted.sum(-1, keepdims=True) / n, 0)
