"""Losses: functions of log-probs, advantages and masks that return sums and counts.

Axes: B completions (rows), T tokens. What is masked takes part in nothing: it may hold
NaN, and its gradient is exactly 0. Prompt and prefilled tokens are masked by whoever
made the mask. Log-probs are natural logarithms; those that are compared (new, old,
reference) are of the same distribution: same temperature, same banned tokens.

A loss is composed of terms, all aggregated alike and hence over the same count:

    policy = clipped(logprobs, old_logprobs, advantages, mask)
    kl = kl_loss(logprobs, ref_logprobs, mask)
    loss = total(policy.loss, (0.01, kl), (-0.001, aggregate(entropy, mask)))

`policy_objective` is that sum in the signature the update step calls, (logprobs,
entropy, mask, extra) -> (loss, metrics); `supervised_objective` is its sibling.

What is differentiated is `loss.sum`; the gradient is divided by the global count. A
new loss is one function that returns a NamedTuple with a Mean named `loss`; its other
fields are metrics. Settings that contradict each other raise when a loss is traced, so
`jax.eval_shape` checks a config in no time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from vlmrl.metrics import Max
from vlmrl.types import Array, Mean, UserError

# |log ratio| beyond which exp is not trusted: e^20 is 5e8. Only an overflow guard.
_LOG_RATIO_LIMIT = 20.0

AGGREGATIONS = ("token", "sequence", "constant")
ESTIMATORS = ("k1", "k2", "k3")


class Policy(NamedTuple):
    """A policy loss, and what it saw; the metrics are per valid token."""

    loss: Mean
    clipped_low: Mean  # share with A < 0 and ratio < 1 − clip_low: no gradient
    clipped_high: Mean  # share with A > 0 and ratio > 1 + clip_high: no gradient
    ratio: Mean  # importance ratio before clipping
    ratio_max: Max
    outside: Mean  # share with a ratio outside [0.9, 1.1]
    kl_old: Mean  # KL(old ‖ new) by k3, nats


class Supervised(NamedTuple):
    """A supervised loss; its metric is per valid token."""

    loss: Mean
    sure: Mean  # share with p > ½, hence certainly the greedy token


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
        needed by, 'constant'.

    Raises:
      UserError: unknown aggregation, or one that contradicts `length`.
    """
    chex.assert_rank(values, 2)
    chex.assert_equal_shape([values, mask])
    if aggregation not in AGGREGATIONS:
        names = ", ".join(AGGREGATIONS)
        raise UserError(f"aggregation: got {aggregation!r}, want one of {names}")
    if (aggregation == "constant") != (length is not None):
        raise UserError(
            f"aggregation={aggregation!r} and length={length} contradict each other: "
            "'constant' needs a length in tokens, the others take none"
        )
    if length is not None and length <= 0:
        raise UserError(f"length: got {length}, want a positive number of tokens")
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


def clipped(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: str = "token",
    length: int | None = None,
) -> Policy:
    """PPO's clipped surrogate, per token, with GRPO's one advantage per completion.

      ratio = exp(logprobs − old_logprobs)
      loss  = −min(ratio · A, clip(ratio, 1 − clip_low, 1 + clip_high) · A)

    A token has no gradient once the policy has already moved it far enough in the
    direction its advantage asks for. PPO: https://arxiv.org/abs/1707.06347, GRPO:
    https://arxiv.org/abs/2402.03300, clip_high above clip_low ("clip-higher"): DAPO,
    https://arxiv.org/abs/2503.14476

    Args:
      logprobs: float32[B,T] of the parameters being differentiated.
      old_logprobs: float32[B,T] of the parameters that sampled; no gradient.
      advantages: float32[B]; no gradient.
      mask: bool[B,T].
      clip_low: in [0, 1].
      clip_high: at least 0.
      aggregation: see `aggregate`.
      length: see `aggregate`.

    Raises:
      UserError: a clip range or an aggregation that makes no sense.
    """
    if not 0 <= clip_low <= 1:
        raise UserError(f"clip_low: got {clip_low}, want 0 to 1 (ratio ≥ 1 − clip_low)")
    if not clip_high >= 0:
        raise UserError(f"clip_high: got {clip_high}, want at least 0")
    chex.assert_shape(advantages, (logprobs.shape[0],))
    old_logprobs, advantages = jax.lax.stop_gradient((old_logprobs, advantages))
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    ratio = jnp.exp(log_ratio)
    advantage = jnp.where(mask, advantages[:, None], 0)
    low = (advantage < 0) & (ratio < 1 - clip_low)
    high = (advantage > 0) & (ratio > 1 + clip_high)
    bounded = jnp.where(low, 1 - clip_low, jnp.where(high, 1 + clip_high, ratio))

    def share(event):
        return aggregate(event.astype(ratio.dtype), mask)

    raw = jax.lax.stop_gradient(ratio)
    return Policy(
        loss=aggregate(-bounded * advantage, mask, aggregation, length),
        clipped_low=share(low),
        clipped_high=share(high),
        ratio=aggregate(raw, mask),
        ratio_max=Max(jnp.where(mask, raw, 0).max()),
        outside=share((raw < 0.9) | (raw > 1.1)),
        kl_old=aggregate(jax.lax.stop_gradient(jnp.expm1(log_ratio) - log_ratio), mask),
    )


def kl(
    logprobs: Array, ref_logprobs: Array, mask: Array, estimator: str = "k3"
) -> Array:
    """Per-token estimates of KL(π ‖ ref) from tokens that π sampled.

    With d = log ref − log π of the sampled token: k1 = −d, k2 = d²/2, k3 = e^d − 1 − d.
    k1 and k3 are unbiased, k2 is not; k3 is never negative and varies less than k1.
    http://joschu.net/blog/kl-approx.html

    Args:
      logprobs: float32[B,T].
      ref_logprobs: float32[B,T]; no gradient.
      mask: bool[B,T].
      estimator: 'k1', 'k2' or 'k3'.

    Returns:
      float32[B,T], nats, 0 where masked.

    Raises:
      UserError: unknown estimator.
    """
    if estimator not in ESTIMATORS:
        names = ", ".join(ESTIMATORS)
        raise UserError(f"kl estimator: got {estimator!r}, want one of {names}")
    d = -_log_ratio(logprobs, jax.lax.stop_gradient(ref_logprobs), mask)
    if estimator == "k1":
        return -d
    return jnp.square(d) / 2 if estimator == "k2" else jnp.expm1(d) - d


def kl_loss(
    logprobs: Array,
    ref_logprobs: Array,
    mask: Array,
    *,
    estimator: str = "k3",
    aggregation: str = "token",
    length: int | None = None,
) -> Mean:
    """KL to a reference as a term of the loss.

    An estimate of a value need not have the gradient of that value. On tokens that π
    itself sampled, E[∇k2] = ∇KL(π ‖ ref), with ref · exp(r/β) as the optimum of
    r − β·KL, while E[∇k3] = −E_ref[∇log π] = ∇KL(ref ‖ π), whose optimum is
    ref · β / (λ − r), λ making it sum to 1. Both agree to first order in r/β. k3 is
    the "low-variance KL" of GRPO (https://arxiv.org/abs/2402.03300).

    Raises:
      UserError: k1, because E[∇k1] = E[∇log π] = 0: as a loss it is pure noise (as a
        penalty inside the reward it is fine); or a setting that doesn't exist.
    """
    if estimator == "k1":
        raise UserError(
            "kl estimator: k1 has zero expected gradient as a loss; want k2 or k3, or "
            "subtract k1 from the reward"
        )
    values = kl(logprobs, ref_logprobs, mask, estimator)
    return aggregate(values, mask, aggregation, length)


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


def policy_objective(
    logprobs: Array,
    entropy: Array,
    mask: Array,
    extra: dict[str, Array],
    *,
    surrogate: Callable[..., Policy] = clipped,
    kl_weight: float = 0.0,
    kl_estimator: str = "k3",
    entropy_weight: float = 0.0,
    aggregation: str = "token",
    length: int | None = None,
    **settings,
) -> tuple[Mean, dict[str, Mean | Max]]:
    """surrogate + kl_weight · KL(π, ref) − entropy_weight · H(π), for the update step.

    Args:
      logprobs: float32[B,T].
      entropy: float32[B,T] of the next-token distributions, nats.
      mask: bool[B,T].
      extra: 'old_logprobs' float32[B,T], 'advantages' float32[B] and, if kl_weight,
        'ref_logprobs' float32[B,T].
      surrogate: a loss with the signature of `clipped`, given `settings`.
      kl_weight, kl_estimator: see `kl_loss`; weight per nat.
      entropy_weight: bonus per nat.
      aggregation, length: of all terms alike, see `aggregate`.

    Returns:
      The loss, and by name the metrics of the surrogate, 'kl_ref' and 'entropy'.

    Raises:
      UserError: a KL asked for without reference log-probs; see also the terms.
    """
    how = {"aggregation": aggregation, "length": length}
    old, advantages = extra["old_logprobs"], extra["advantages"]
    policy = surrogate(logprobs, old, advantages, mask, **how, **settings)
    metrics = policy._asdict()
    loss = metrics.pop("loss")
    metrics["entropy"] = aggregate(jax.lax.stop_gradient(entropy), mask)
    if entropy_weight:
        loss = total(loss, (-entropy_weight, aggregate(entropy, mask, **how)))
    if kl_weight and "ref_logprobs" not in extra:
        raise UserError(f"kl_weight={kl_weight} needs ref_logprobs, and there are none")
    if kl_weight:
        ref = extra["ref_logprobs"]
        penalty = kl_loss(logprobs, ref, mask, estimator=kl_estimator, **how)
        loss = total(loss, (kl_weight, penalty))
        values = kl(jax.lax.stop_gradient(logprobs), ref, mask, "k3")
        metrics["kl_ref"] = aggregate(values, mask)
    return loss, metrics


def supervised_objective(
    logprobs: Array, entropy: Array, mask: Array, extra: dict[str, Array], **settings
) -> tuple[Mean, dict[str, Mean]]:
    """`cross_entropy` for the update step, with the signature of `policy_objective`."""
    loss, sure = cross_entropy(logprobs, mask, **settings)
    return loss, {"sure": sure, "entropy": aggregate(entropy, mask)}


def _log_ratio(new: Array, old: Array, mask: Array) -> Array:
    """new − old, 0 where masked, within the overflow guard; float32[B,T].

    Masked before exp or a product sees it: there a NaN would come back in the gradient,
    whatever a later mask says.
    """
    chex.assert_rank(new, 2)
    chex.assert_equal_shape([new, old, mask])
    difference = jnp.where(mask, new - old, 0)
    return jnp.clip(difference, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
