"""Losses: functions of log-probs, advantages and masks that return sums and counts.

  terms.py        per-token values → a sum and a count; supervised learning; filters
  surrogates.py   policy losses: PPO and its relatives, by name in SURROGATES
  kl.py           KL to a reference, in the loss or in the reward; perception (PAPO)
  importance.py   correction for a sampler that is not the trainer
  objective.py    their sum, with the signature that the update step calls

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

from vlmrl.rl.losses.importance import LEVELS, MODES, correction
from vlmrl.rl.losses.kl import (
    ESTIMATORS,
    kl,
    kl_loss,
    penalised,
    perception,
    to_go,
)
from vlmrl.rl.losses.objective import needs, policy_objective, supervised_objective
from vlmrl.rl.losses.surrogates import (
    SURROGATES,
    PolicyLoss,
    cispo,
    clip_cov,
    clipped,
    gspo,
    gspo_token,
    kl_cov,
)
from vlmrl.rl.losses.terms import (
    AGGREGATIONS,
    Supervised,
    aggregate,
    cross_entropy,
    finished,
    total,
)

__all__ = [
    "AGGREGATIONS",
    "ESTIMATORS",
    "LEVELS",
    "MODES",
    "SURROGATES",
    "PolicyLoss",
    "Supervised",
    "aggregate",
    "cispo",
    "clip_cov",
    "clipped",
    "correction",
    "cross_entropy",
    "finished",
    "gspo",
    "gspo_token",
    "kl",
    "kl_cov",
    "kl_loss",
    "needs",
    "penalised",
    "perception",
    "policy_objective",
    "supervised_objective",
    "to_go",
    "total",
]
