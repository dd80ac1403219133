"""PolicyLoss losses: what to make of the ratio between the new and the sampling policy.

All have the signature

    (logprobs, old_logprobs, advantages, mask, *, aggregation, length, weights)
        -> PolicyLoss

and settings of their own. In every one the gradient at ratio 1 is that of REINFORCE,
−A ∇log π (but for the tokens that Clip-Cov draws); they differ in what they do once the
policy has moved.

  logprobs      float32[B,T] of the parameters being differentiated
  old_logprobs  float32[B,T] of the parameters that sampled; no gradient
  advantages    float32[B], or float32[B,T] where tokens differ; no gradient
  mask          bool[B,T]
  aggregation, length   see `terms.aggregate`
  weights       float32[B,T] that multiply every token's loss (`importance.correction`),
                no gradient; None is 1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vlmrl import user_code
from vlmrl.metrics import Max
from vlmrl.rl.losses.terms import aggregate, log_ratio, per_token
from vlmrl.types import Array, Mean, UserError


class PolicyLoss(NamedTuple):
    """A policy loss and its metrics, which are per valid token."""

    loss: Mean
    clipped_low: Mean  # share with A < 0 and ratio < 1 − clip_low
    clipped_high: Mean  # share with A > 0 and ratio > 1 + clip_high
    clipped_dual: Mean  # share with A < 0 and ratio > clip_dual
    chosen: Mean  # share a covariance rule chose (Clip-Cov, KL-Cov)
    ratio: Mean  # importance ratio per token before clipping
    ratio_max: Max
    outside: Mean  # share with a ratio outside [0.9, 1.1]
    kl_old: Mean  # KL(old ‖ new) by k3, nats


def clipped(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float | None = None,
    aggregation: str = "token",
    length: int | None = None,
    weights: Array | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate, per token, with GRPO's one advantage per completion.

      ratio = exp(logprobs − old_logprobs)
      loss  = −min(ratio · A, clip(ratio, 1 − clip_low, 1 + clip_high) · A)
      and with clip_dual = c, where A < 0: −max(min(…), c · A)

    A token has no gradient once the policy has already moved it far enough in the
    direction its advantage asks for; the dual clip also ends the gradient of a bad
    token whose ratio has grown beyond c, where the loss is otherwise unbounded. PPO:
    https://arxiv.org/abs/1707.06347, GRPO: https://arxiv.org/abs/2402.03300, clip_high
    above clip_low ("clip-higher"): DAPO, https://arxiv.org/abs/2503.14476, dual clip
    (c = 3): https://arxiv.org/abs/1912.09729

    Args: see the module, and
      clip_low: in [0, 1].
      clip_high: at least 0.
      clip_dual: above 1 + clip_high, or None.

    Raises:
      UserError: a clip range or an aggregation that makes no sense.
    """
    _check(clip_low, clip_high, clip_dual)
    move, advantage = _inputs(logprobs, old_logprobs, advantages, mask)
    ratio = jnp.exp(move)
    values, low, high, dual = _clip(ratio, advantage, clip_low, clip_high, clip_dual)
    reduce = (aggregation, length)
    return _policy(values, move, mask, reduce, weights, low=low, high=high, dual=dual)


def gspo(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    aggregation: str = "sequence",
    length: int | None = None,
    weights: Array | None = None,
) -> PolicyLoss:
    """The clipped surrogate of the whole sequence's ratio, length-normalised.

      s = exp(mean_t(logprobs − old_logprobs)) = (π(y) / π_old(y))^(1/|y|)
      loss = −min(s · A, clip(s, 1 − clip_low, 1 + clip_high) · A) per sequence

    A reward is paid for a sequence, so the ratio is of the sequence; a completion is
    clipped as a whole. s moves far less than a token's ratio, hence the narrow range.
    With aggregation 'sequence' (the paper's) every completion weighs the same; 'token'
    weighs it by its length. GSPO: https://arxiv.org/abs/2507.18071

    Args: see the module, and
      advantages: float32[B].
      clip_low: in [0, 1].
      clip_high: at least 0.
    """
    _check(clip_low, clip_high)
    chex.assert_rank(advantages, 1)
    move, advantage = _inputs(logprobs, old_logprobs, advantages, mask)
    ratio = jnp.where(mask, jnp.exp(_mean(move, mask)), 1)
    values, low, high, _ = _clip(ratio, advantage, clip_low, clip_high)
    return _policy(
        values, move, mask, (aggregation, length), weights, low=low, high=high
    )


def gspo_token(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    aggregation: str = "sequence",
    length: int | None = None,
    weights: Array | None = None,
) -> PolicyLoss:
    """GSPO whose advantages may differ from token to token.

      s_t = sg(s) · π_t / sg(π_t), so its value is the sequence's ratio and its gradient
      s · ∇log π_t;  loss_t = −min(s_t · A_t, clip(s_t, …) · A_t)

    With one advantage per completion it has GSPO's value and gradient.
    https://arxiv.org/abs/2507.18071, section on GSPO-token
    """
    _check(clip_low, clip_high)
    move, advantage = _inputs(logprobs, old_logprobs, advantages, mask)
    stopped = jax.lax.stop_gradient(move)
    ratio = jnp.exp(_mean(stopped, mask) + move - stopped)
    values, low, high, _ = _clip(ratio, advantage, clip_low, clip_high)
    return _policy(
        values, move, mask, (aggregation, length), weights, low=low, high=high
    )


def cispo(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    aggregation: str = "token",
    length: int | None = None,
    weights: Array | None = None,
) -> PolicyLoss:
    """REINFORCE with a clipped, detached importance weight.

      loss = −sg(clip(ratio, 1 − clip_low, 1 + clip_high)) · A · logprobs

    No token ever loses its gradient: rare words that open a new thought ("wait") have
    large ratios, and PPO's clip silences them after one step. The value of the loss
    means nothing, its gradient does. `clipped_*` count weights that were clipped. The
    paper leaves the lower side open (clip_low = 1) and tunes the upper one; a weight of
    at most 5 is ScaleRL's (https://arxiv.org/abs/2510.13786).
    CISPO: https://arxiv.org/abs/2506.13585

    Args: see the module, and
      clip_low: in [0, 1]; 1 bounds nothing.
      clip_high: at least 0.
    """
    _check(clip_low, clip_high)
    move, advantage = _inputs(logprobs, old_logprobs, advantages, mask)
    ratio = jax.lax.stop_gradient(jnp.exp(move))
    weight = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    values = -weight * advantage * jnp.where(mask, logprobs, 0)
    low, high = ratio < 1 - clip_low, ratio > 1 + clip_high
    return _policy(
        values, move, mask, (aggregation, length), weights, low=low, high=high
    )


def clip_cov(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    noise: Array,
    cov_share: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: str = "token",
    length: int | None = None,
    weights: Array | None = None,
) -> PolicyLoss:
    """PPO's clip, and no gradient for a few tokens of high covariance, drawn at random.

      cov_t = (log π_t − mean(log π)) · (A_t − mean(A)), means over the valid tokens
      drawn: max(1, ⌊cov_share · number of tokens⌋) of the unclipped tokens with
      cov_low < cov < cov_high

    The entropy falls in proportion to this covariance, and a handful of tokens carry
    most of it. Means and draw are over the rows given, so over a microbatch where the
    batch is split. Clip-Cov: https://arxiv.org/abs/2505.22617

    Args: see the module, and
      noise: float32[B,T], uniform random numbers of independent tokens (`extra`'s
        'noise'): the tokens of least noise are drawn.
      cov_share: of the valid tokens, in (0, 1].
      cov_low, cov_high: range of covariances, nats × advantage.
    """
    _check(clip_low, clip_high)
    _check_share(cov_share)
    chex.assert_equal_shape([noise, mask])
    move, advantage = _inputs(logprobs, old_logprobs, advantages, mask)
    ratio = jnp.exp(move)
    values, low, high, _ = _clip(ratio, advantage, clip_low, clip_high)
    cov = _covariance(logprobs, advantage, mask)
    able = mask & ~low & ~high & (cov > cov_low) & (cov < cov_high)
    drawn = _top(jnp.where(able, -noise, -jnp.inf), mask, cov_share)
    values = jnp.where(drawn, jax.lax.stop_gradient(values), values)
    reduce = (aggregation, length)
    events = {"low": low, "high": high, "chosen": drawn}
    return _policy(values, move, mask, reduce, weights, **events)


def kl_cov(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    cov_share: float = 2e-3,
    cov_weight: float = 1.0,
    aggregation: str = "token",
    length: int | None = None,
    weights: Array | None = None,
) -> PolicyLoss:
    """Policy gradient without clip, and a pull back for the tokens of most covariance.

      loss_t = −ratio_t · A_t, and + cov_weight · |log ratio_t| for the
      max(1, ⌊cov_share · number of tokens⌋) tokens with the largest cov_t (`clip_cov`)

    KL-Cov: https://arxiv.org/abs/2505.22617 (a share of 2e-3 for 7B, 2e-4 for 32B). At
    ratio 1 the pull has no gradient: here |0|' = 0, while that of `jnp.abs` is 1.

    Args: see the module, and
      cov_share: of the valid tokens, in (0, 1].
      cov_weight: per nat.
    """
    _check_share(cov_share)
    move, advantage = _inputs(logprobs, old_logprobs, advantages, mask)
    cov = _covariance(logprobs, advantage, mask)
    chosen = _top(jnp.where(mask, cov, -jnp.inf), mask, cov_share)
    values = -jnp.exp(move) * advantage
    away = move * jax.lax.stop_gradient(jnp.sign(move))  # |move|, flat at 0
    values = values + jnp.where(chosen, cov_weight * away, 0)
    reduce = (aggregation, length)
    return _policy(values, move, mask, reduce, weights, chosen=chosen)


# By name in a config; `policy_objective` also takes a function of your own.
SURROGATES = {
    "clipped": clipped,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "cispo": cispo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}


def surrogate_of(name: str | Callable, field: str) -> Callable[..., PolicyLoss]:
    """Return the function of a name in SURROGATES; `path/to/file.py:name` names a
    user's own, and a function stands for itself.

    Raises:
      UserError: an unknown name, a file without the function or with another one.
    """
    takes = ("logprobs", "old_logprobs", "advantages", "mask")
    return user_code.lookup(name, SURROGATES, field, takes)


def _inputs(logprobs, old_logprobs, advantages, mask) -> tuple[Array, Array]:
    """Log ratio and advantages, both float32[B,T] and 0 where masked."""
    old_logprobs, advantages = jax.lax.stop_gradient((old_logprobs, advantages))
    advantage = per_token(advantages, mask)
    return log_ratio(logprobs, old_logprobs, mask), advantage


def _mean(move: Array, mask: Array) -> Array:
    """Mean over the valid tokens of every row, float32[B,1]."""
    return move.sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)


def _clip(ratio, advantage, clip_low, clip_high, clip_dual=None):
    """Loss per token, and where each bound holds."""
    low = (advantage < 0) & (ratio < 1 - clip_low)
    high = (advantage > 0) & (ratio > 1 + clip_high)
    bounded = jnp.where(low, 1 - clip_low, jnp.where(high, 1 + clip_high, ratio))
    dual = jnp.zeros_like(low)
    if clip_dual is not None:
        dual = (advantage < 0) & (ratio > clip_dual)
        bounded = jnp.where(dual, clip_dual, bounded)
    return -bounded * advantage, low, high, dual


def _covariance(logprobs: Array, advantage: Array, mask: Array) -> Array:
    """Centred log-prob times centred advantage of every token, without gradient."""
    logprobs = jax.lax.stop_gradient(jnp.where(mask, logprobs, 0))
    n = jnp.maximum(mask.sum(), 1)
    return (logprobs - logprobs.sum() / n) * (advantage - advantage.sum() / n)


def _top(scores: Array, mask: Array, share: float) -> Array:
    """The max(1, ⌊share · valid tokens⌋) tokens of highest score, never those of −∞."""
    n = mask.sum()
    # 1e-4: in float32 0.29 · 100 falls short of 29.
    count = jnp.maximum(1, jnp.floor(share * n + 1e-4)).astype(int)
    ranked = jnp.sort(scores.reshape(-1), descending=True)
    return (scores >= ranked[count - 1]) & (scores > -jnp.inf)


def _policy(values, move, mask, reduce, weights, **events) -> PolicyLoss:
    """Return the aggregated loss, and the metrics that all surrogates share.

    Args:
      reduce: (aggregation, length).
      events: bool[B,T] by name: low, high, dual, chosen; none where left out.
    """
    raw = jax.lax.stop_gradient(jnp.exp(move))
    none = jnp.zeros_like(mask)

    def share(name):
        return aggregate(events.get(name, none).astype(raw.dtype), mask)

    if weights is not None:
        chex.assert_equal_shape([weights, mask])
        values = values * jnp.where(mask, jax.lax.stop_gradient(weights), 0)
    return PolicyLoss(
        loss=aggregate(values, mask, *reduce),
        clipped_low=share("low"),
        clipped_high=share("high"),
        clipped_dual=share("dual"),
        chosen=share("chosen"),
        ratio=aggregate(raw, mask),
        ratio_max=Max(jnp.where(mask, raw, 0).max()),
        outside=aggregate(((raw < 0.9) | (raw > 1.1)).astype(raw.dtype), mask),
        kl_old=aggregate(jax.lax.stop_gradient(jnp.expm1(move) - move), mask),
    )


def _check(clip_low: float, clip_high: float, clip_dual: float | None = None) -> None:
    if not 0 <= clip_low <= 1:
        raise UserError(
            f"clip_low: expected 0 to 1 (ratio ≥ 1 − clip_low), got {clip_low}"
        )
    if not clip_high >= 0:
        raise UserError(f"clip_high: expected at least 0, got {clip_high}")
    if clip_dual is not None and not clip_dual > 1 + clip_high:
        raise UserError(
            f"clip_dual: expected more than 1 + clip_high = {1 + clip_high:g} "
            f"(the usual 3), or None, got {clip_dual}"
        )


def _check_share(cov_share: float) -> None:
    if not 0 < cov_share <= 1:
        raise UserError(
            f"cov_share: expected a share of tokens in (0, 1], got {cov_share}"
        )
