"""The loss as the update step calls it: a surrogate and weighted terms.

Axes: B completions (rows), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from vlmrl import user_code
from vlmrl.metrics import Max
from vlmrl.rl.losses.importance import correction
from vlmrl.rl.losses.kl import kl, kl_loss, perception
from vlmrl.rl.losses.surrogates import SURROGATES, PolicyLoss, surrogate_of
from vlmrl.rl.losses.terms import aggregate, cross_entropy, total
from vlmrl.types import Array, Mean, UserError


def policy_objective(
    logprobs: Array,
    entropy: Array,
    mask: Array,
    extra: dict[str, Array],
    *,
    surrogate: str | Callable[..., PolicyLoss] = "clipped",
    kl_weight: float = 0.0,
    kl_estimator: str = "k3",
    entropy_weight: float = 0.0,
    perception_weight: float = 0.0,
    importance: dict[str, Any] | None = None,
    aggregation: str = "token",
    length: int | None = None,
    **settings,
) -> tuple[Mean, dict[str, Mean | Max]]:
    """Return surrogate + kl_weight · KL(π, ref) − entropy_weight · H(π)
    − perception_weight · perception, and metrics, for the update step.

    Args:
      logprobs: float32[B,T].
      entropy: float32[B,T] of the next-token distributions, nats.
      mask: bool[B,T].
      extra: 'old_logprobs' float32[B,T], 'advantages' float32[B] or float32[B,T], and
        what the settings need:
          'ref_logprobs'      float32[B,T]  kl_weight
          'masked_logprobs'   float32[B,T]  perception_weight, see `perception`
          'sampler_logprobs'  float32[B,T]  importance; 'old_logprobs' are then the
                                            trainer's at the parameters that sampled
          'noise'             float32[B,T]  surrogate 'clip_cov'
          'kl_weight', 'entropy_weight'     float32[B]: weights that change from step
                                            to step (rl/controllers.py), instead of
                                            the settings of that name
      surrogate: a key of SURROGATES, path/to/file.py:name, or a function of the same
        signature; it is given `settings`.
      kl_weight, kl_estimator: see `kl_loss`; weight per nat.
      entropy_weight: bonus per nat.
      perception_weight: per nat.
      importance: settings of `correction`; None for no correction.
      aggregation, length: of all terms alike, see `aggregate`.

    Returns:
      The loss, and by name the metrics of the surrogate, of the correction, 'entropy',
      'kl_ref' and 'perception'.

    Raises:
      UserError: a term asked for without its log-probs; see also the terms.
    """
    reduce = {"aggregation": aggregation, "length": length}
    loss, metrics = _surrogate(
        logprobs, mask, extra, surrogate, importance, {**settings, **reduce}
    )
    metrics["entropy"] = aggregate(jax.lax.stop_gradient(entropy), mask)
    if entropy_weight or "entropy_weight" in extra:
        weight, rows = _weight(extra, "entropy_weight", entropy_weight)
        bonus = entropy if rows is None else entropy * rows[:, None]
        loss = total(loss, (-weight, aggregate(bonus, mask, **reduce)))
    if kl_weight or "kl_weight" in extra:
        _needs(extra, "ref_logprobs", f"kl_weight={kl_weight}")
        ref = extra["ref_logprobs"]
        weight, rows = _weight(extra, "kl_weight", kl_weight)
        penalty = kl_loss(
            logprobs, ref, mask, estimator=kl_estimator, rows=rows, **reduce
        )
        loss = total(loss, (weight, penalty))
        values = kl(jax.lax.stop_gradient(logprobs), ref, mask, "k3")
        metrics["kl_ref"] = aggregate(values, mask)
    if perception_weight:
        _needs(extra, "masked_logprobs", f"perception_weight={perception_weight}")
        values = perception(logprobs, extra["masked_logprobs"], mask)
        loss = total(loss, (-perception_weight, aggregate(values, mask, **reduce)))
        metrics["perception"] = aggregate(jax.lax.stop_gradient(values), mask)
    return loss, metrics


def _surrogate(
    logprobs: Array,
    mask: Array,
    extra: dict[str, Array],
    surrogate: str | Callable[..., PolicyLoss],
    importance: dict[str, Any] | None,
    settings: dict[str, Any],
) -> tuple[Mean, dict[str, Mean | Max]]:
    """Return the policy loss, and its metrics and those of the correction."""
    surrogate = surrogate_of(surrogate, "surrogate")
    if surrogate is SURROGATES["clip_cov"]:
        _needs(extra, "noise", "surrogate='clip_cov'")
        settings = {**settings, "noise": extra["noise"]}
    old, correction_metrics = extra["old_logprobs"], {}
    if importance is not None:
        _needs(extra, "sampler_logprobs", f"importance={importance}")
        sampler = extra["sampler_logprobs"]
        weights, correction_metrics = correction(old, sampler, mask, **importance)
        settings = {**settings, "weights": weights}
    result = user_code.call(
        surrogate, logprobs, old, extra["advantages"], mask, **settings
    )
    if not isinstance(getattr(result, "loss", None), Mean):
        got = f"{type(result).__name__} {result!r:.60}"
        problem = f"expected a NamedTuple with a Mean 'loss', got {got}"
        raise user_code.failure(surrogate, "", problem)
    metrics = {**result._asdict(), **correction_metrics}
    return metrics.pop("loss"), metrics


def needs(loss: Mapping[str, Any]) -> frozenset[str]:
    """Return the names that `policy_objective` needs in `extra` under these settings,
    besides 'old_logprobs' and 'advantages'."""
    needed = {
        "ref_logprobs": bool(loss.get("kl_weight")),
        "masked_logprobs": bool(loss.get("perception_weight")),
        "sampler_logprobs": loss.get("importance") is not None,
        "noise": loss.get("surrogate") in ("clip_cov", SURROGATES["clip_cov"]),
    }
    return frozenset(name for name, needs_it in needed.items() if needs_it)


def supervised_objective(
    logprobs: Array, entropy: Array, mask: Array, extra: dict[str, Array], **settings
) -> tuple[Mean, dict[str, Mean]]:
    """Return `cross_entropy` with the signature of `policy_objective`."""
    loss, sure = cross_entropy(logprobs, mask, **settings)
    return loss, {"sure": sure, "entropy": aggregate(entropy, mask)}


def _needs(extra: dict[str, Array], name: str, setting: str) -> None:
    if name not in extra:
        raise UserError(f"{setting}: expected {name}, got none")


def _weight(extra, name: str, setting: float) -> tuple[float, Array | None]:
    """Return a term's weight and its rows' weights: the setting, or `extra`'s rows."""
    return (1.0, extra[name]) if name in extra else (setting, None)
