"""Per-token values to sums and counts, and the log ratio every comparison starts from.

Axes: B completions (rows), T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp

from vlmrl.types import Array, Mean, UserError

# |log ratio| beyond which exp is not trusted: e^20 is 5e8. Only an overflow guard.
LOG_RATIO_LIMIT = 20.0

AGGREGATIONS = ("token", "sequence", "constant")


def aggregate(
    values: Array,
    mask: Array,
    aggregation: str = "token",
    length: int | None = None,
) -> Mean:
    """Per-token values to one sum and one count.

      token     Σ v / number of valid tokens: every token weighs the same (DAPO)
      sequence  Σ_b mean_t(v) / number of rows: every row weighs the same, so a token
                of a long row weighs less (GRPO as published)
      constant  Σ v / (length · number of rows): every token weighs the same, whatever
                the lengths in the batch (Dr. GRPO, https://arxiv.org/abs/2503.20783)

    Rows without a valid token are padding and aren't counted.

    Args:
      values: float32[B,T].
      mask: bool[B,T].
      aggregation: 'token', 'sequence' or 'constant'.
      length: the constant, in tokens (the longest completion allowed); only for, and
        needed by, 'constant'. It has no default: the padded T changes with the bucket
        that a batch falls into, and the size of the loss with it.

    Raises:
      UserError: unknown aggregation, or one that contradicts `length`.
    """
    chex.assert_rank(values, 2)
    chex.assert_equal_shape([values, mask])
    if aggregation not in AGGREGATIONS:
        names = ", ".join(AGGREGATIONS)
        raise UserError(f"aggregation: expected one of {names}, got {aggregation!r}")
    if (aggregation == "constant") != (length is not None):
        raise UserError(
            f"aggregation={aggregation!r} and length={length} contradict each other: "
            "'constant' needs a length in tokens (max_tokens), the others take none"
        )
    if length is not None and length <= 0:
        raise UserError(f"length: expected a positive number of tokens, got {length}")
    values = jnp.where(mask, values, 0)
    tokens = mask.sum(-1, dtype=values.dtype)
    rows = mask.any(-1).sum(dtype=values.dtype)
    if aggregation == "token":
        return Mean(values.sum(), tokens.sum())
    if aggregation == "sequence":
        return Mean((values.sum(-1) / jnp.maximum(tokens, 1)).sum(), rows)
    return Mean(values.sum() / length, rows)


def total(loss: Mean, *terms: tuple[float, Mean]) -> Mean:
    """loss + Σ weight · term. All must be aggregated alike: one count serves them."""
    return Mean(loss.sum + sum(w * term.sum for w, term in terms), loss.count)


def finished(mask: Array, stopped: Array) -> Array:
    """Overlong filter: no token of a completion that ran out of length.

    A truncated completion was not wrong, it was cut; the filter keeps its reward from
    teaching anything. The same flags, as bool[N,G], are the mask of the advantages if
    it shall not shift its group either. DAPO: https://arxiv.org/abs/2503.14476

    Args:
      mask: bool[B,T].
      stopped: bool[B], ended by itself (`Rollout.stopped`).

    Returns:
      bool[B,T].
    """
    chex.assert_shape(stopped, mask.shape[:1])
    return mask & stopped[:, None]


class Supervised(NamedTuple):
    """A supervised loss; its metric is per valid token."""

    loss: Mean
    sure: Mean  # share with p > ½, hence certainly the greedy token


def cross_entropy(
    logprobs: Array,
    mask: Array,
    *,
    aggregation: str = "token",
    length: int | None = None,
) -> Supervised:
    """Supervised fine-tuning: −log p of the tokens to learn, in nats.

    Args:
      logprobs: float32[B,T] of the target tokens.
      mask: bool[B,T], True on tokens to learn.
    """
    logprobs = jnp.where(mask, logprobs, 0)
    sure = (logprobs > jnp.log(0.5)).astype(logprobs.dtype)
    return Supervised(
        loss=aggregate(-logprobs, mask, aggregation, length),
        sure=aggregate(sure, mask),
    )


def log_ratio(new: Array, old: Array, mask: Array) -> Array:
    """new − old, 0 where masked, within the overflow guard; float32[B,T].

    Masked before exp or a product sees it: there a NaN would come back in the gradient,
    whatever a later mask says.
    """
    chex.assert_rank(new, 2)
    chex.assert_equal_shape([new, old, mask])
    difference = jnp.where(mask, new - old, 0)
    return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def per_token(advantages: Array, mask: Array) -> Array:
    """float32[B] or float32[B,T] as float32[B,T], 0 where masked."""
    if advantages.ndim == 1:
        chex.assert_shape(advantages, mask.shape[:1])
        advantages = advantages[:, None]
    else:
        chex.assert_equal_shape([advantages, mask])
    return jnp.where(mask, advantages, 0)
