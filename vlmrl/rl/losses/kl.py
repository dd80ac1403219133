"""KL divergences from sampled tokens: to a reference, and to the sightless policy.

Axes: B completions (rows), T tokens. Values in nats.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from vlmrl.rl.losses.terms import aggregate, log_ratio
from vlmrl.types import Array, Mean, UserError

ESTIMATORS = ("k1", "k2", "k3")


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
        raise UserError(f"kl estimator: expected one of {names}, got {estimator!r}")
    d = -log_ratio(logprobs, jax.lax.stop_gradient(ref_logprobs), mask)
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
    rows: Array | None = None,
) -> Mean:
    """KL to a reference as a term of the loss.

    An estimate of a value need not have the gradient of that value. On tokens that π
    itself sampled, E[∇k2] = ∇KL(π ‖ ref), with ref · exp(r/β) as the optimum of
    r − β·KL, while E[∇k3] = −E_ref[∇log π] = ∇KL(ref ‖ π), whose optimum is
    ref · β / (λ − r), λ making it sum to 1. Both agree to first order in r/β. k3 is
    the "low-variance KL" of GRPO (https://arxiv.org/abs/2402.03300).

    Args: see `kl` and `terms.aggregate`, and
      rows: float32[B] that multiply the values of every row, no gradient; None is 1.

    Raises:
      UserError: k1, because E[∇k1] = E[∇log π] = 0: as a loss it is pure noise (as a
        penalty inside the reward it is fine); or a setting that doesn't exist.
    """
    if estimator == "k1":
        raise UserError(
            "kl estimator: k1 has zero expected gradient as a loss; expected k2 or k3, "
            "or k1 in the reward"
        )
    values = kl(logprobs, ref_logprobs, mask, estimator)
    if rows is not None:
        values = values * jax.lax.stop_gradient(rows)[:, None]
    return aggregate(values, mask, aggregation, length)


def penalised(rewards: Array, values: Array, mask: Array, weight: float) -> Array:
    """KL in the reward of a completion: r − weight · Σ_t kl_t.

    With k1 the sum is log(π(y)/ref(y)), whose expectation is the KL of whole sequences,
    so the policy gradient of the penalised reward is that of E[r] − weight · KL: here,
    unlike in the loss, k1 is right. https://arxiv.org/abs/1909.08593

    Args:
      rewards: float32[B].
      values: float32[B,T] from `kl` at the sampling parameters; no gradient.
      mask: bool[B,T].
      weight: per nat, at least 0.

    Returns:
      float32[B], in units of reward, no gradient.
    """
    chex.assert_shape(rewards, mask.shape[:1])
    penalty = weight * jnp.where(mask, values, 0).sum(-1)
    return jax.lax.stop_gradient(rewards - penalty)


def to_go(advantages: Array, values: Array, mask: Array, weight: float) -> Array:
    """KL in the reward, token by token: A_t = A − weight · Σ_{i ≥ t} kl_i.

    A token is charged for the divergence that it and later tokens cause, not for the
    earlier. REINFORCE++: https://arxiv.org/abs/2501.03262

    Args:
      advantages: float32[B]; the rest as in `penalised`.

    Returns:
      float32[B,T], 0 where masked, no gradient; surrogates take it as advantages.
    """
    chex.assert_shape(advantages, mask.shape[:1])
    valid = jnp.where(mask, values, 0)
    rest = jnp.cumsum(valid[:, ::-1], -1)[:, ::-1]
    wide = jnp.where(mask, advantages[:, None] - weight * rest, 0)
    return jax.lax.stop_gradient(wide)


def perception(logprobs: Array, masked_logprobs: Array, mask: Array) -> Array:
    """How much the sampled tokens depend on the image: PAPO's implicit perception KL.

      r = exp(logprobs − masked_logprobs);  value = r − log r − 1

    `masked_logprobs` are of the same tokens after the same prompt with a masked image
    (`data.distort.masked`, the paper hides 60 % of the patches), a second branch of
    the loss; the value is maximised. Both branches carry gradients where they were
    computed with them; stop either from outside. Unbounded above, hence the paper's
    small weight (0.01 to 0.02) and its entropy terms on both branches.
    PAPO: https://arxiv.org/abs/2507.06448

    Args:
      logprobs: float32[B,T] with the image.
      masked_logprobs: float32[B,T] with the masked image.
      mask: bool[B,T].

    Returns:
      float32[B,T], at least 0, nats, 0 where masked.
    """
    move = log_ratio(logprobs, masked_logprobs, mask)
    return jnp.expm1(move) - move
