"""Importance correction: the sampler's distribution is not the trainer's.

A sampler with other kernels, another precision or parameters that are a step old draws
from μ, the trainer computes gradients under π_old. Weights π_old / μ correct the
expectation; their tails are bounded by truncating (TIS) or by masking (MIS).

Axes: B completions (rows), T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vlmrl.metrics import Max
from vlmrl.rl.losses.terms import LOG_RATIO_LIMIT, aggregate, log_ratio
from vlmrl.types import Array, Mean, UserError

LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "mask")


def correction(
    logprobs: Array,
    sampler_logprobs: Array,
    mask: Array,
    *,
    level: str = "token",
    mode: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
) -> tuple[Array, dict[str, Mean | Max]]:
    """Weights for the surrogate's tokens.

      ρ_t = exp(logprobs_t − sampler_logprobs_t)
      token      w = ρ_t: biased for sequences, of small variance
      sequence   w = Π_t ρ_t for all tokens of a row: unbiased, of large variance
      geometric  w = (Π_t ρ_t)^(1/|y|): a drift per token; meant for masking

      truncate   min(w, high), and 0 below `low`
      mask       w where low ≤ w ≤ high, else 0

    A rejected token keeps its place in the loss's count, so that the sum stays an
    estimate over all that was sampled. TIS: https://fengyao.notion.site/off-policy-rl;
    masking at token level is IcePop's, https://arxiv.org/abs/2510.18855, at sequence
    level https://richardli.xyz/rl-collapse

    Args:
      logprobs: float32[B,T], the trainer's at the parameters that sampled.
      sampler_logprobs: float32[B,T], as the sampler recorded them.
      mask: bool[B,T].
      level, mode: see above.
      low: at least 0; high: above it and at least 1, so that weight 1 passes.

    Returns:
      float32[B,T] without gradient, 0 where masked, and metrics per valid token:
      'weight' (before the bounds), 'weight_max', 'rejected', 'truncated', 'mismatch'
      (KL(μ ‖ π_old) by k3, nats).

    Raises:
      UserError: an unknown level or mode, or bounds that reject a weight of 1.
    """
    for name, value, known in (("level", level, LEVELS), ("mode", mode, MODES)):
        if value not in known:
            raise UserError(
                f"importance.{name}: expected one of {', '.join(known)}, got {value!r}"
            )
    if not 0 <= low <= 1 <= high:
        raise UserError(
            f"importance.low={low} and importance.high={high}: expected 0 ≤ low ≤ 1 ≤ "
            "high, so that a sampler equal to the trainer is left alone"
        )
    move = log_ratio(*jax.lax.stop_gradient((logprobs, sampler_logprobs)), mask)
    raw = move
    if level != "token":
        raw = jnp.broadcast_to(move.sum(-1, keepdims=True), move.shape)
        if level == "geometric":
            raw = raw / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    raw = jnp.exp(jnp.clip(raw, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    above = raw > high
    rejected = (raw < low) | (above & (mode == "mask"))
    weight = jnp.where(mask & ~rejected, jnp.minimum(raw, high), 0)

    def share(event):
        return aggregate(event.astype(raw.dtype), mask)

    return weight, {
        "weight": aggregate(raw, mask),
        "weight_max": Max(jnp.where(mask, raw, 0).max()),
        "rejected": share(rejected),
        "truncated": share(above & (mode == "truncate")),
        "mismatch": aggregate(jnp.expm1(move) - move, mask),
    }
