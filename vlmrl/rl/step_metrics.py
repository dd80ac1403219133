"""Metrics of a step, and the controllers' coefficients that they update."""

from __future__ import annotations

import numpy as np

from vlmrl.policy import Policy
from vlmrl.rl import completion_terms, controllers
from vlmrl.rl import rewards as rewards_
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.rollouts import RolloutBatch
from vlmrl.types import Mean

KL_RULES = {"ppo": controllers.ppo_kl, "proportional": controllers.proportional_kl}


def init(recipe: Recipe) -> dict[str, float]:
    """Return the coefficients of this recipe's controllers before the first step."""
    coefficients = {}
    if recipe.constraint.threshold:
        coefficients["multiplier"] = float(recipe.constraint.init)
    if recipe.adaptive_kl.target:
        coefficients["kl_weight"] = float(recipe.loss["kl_weight"])
    if recipe.adaptive_entropy.target:
        weight = recipe.loss.get("entropy_weight", 0.0)
        coefficients["entropy_weight"] = float(weight)
    return coefficients


def loss_weights(
    coefficients: dict, recipe: Recipe, batch: RolloutBatch
) -> dict[str, float]:
    """Return those coefficients that weigh terms of the next update's loss."""
    out = {k: w for k, w in coefficients.items() if k == "kl_weight"}
    if "entropy_weight" in coefficients:
        weight, target = coefficients["entropy_weight"], recipe.adaptive_entropy.target
        bonus = controllers.entropy_bonus(weight, sampled_entropy(batch), target)
        out["entropy_weight"] = float(bonus)
    return out


def update(
    coefficients: dict, recipe: Recipe, metrics: dict, batch: RolloutBatch
) -> dict[str, float]:
    """Return the coefficients after a step, from its metrics."""
    out = dict(coefficients)
    consistent, constraint = batch.rewards.consistent, recipe.constraint
    if "multiplier" in out and not np.isnan(consistent).all():
        out["multiplier"] = controllers.dual_ascent(
            out["multiplier"],
            float(np.nanmean(consistent)),
            constraint.threshold,
            rate=constraint.rate,
            max=constraint.max,
        )
    if "kl_weight" in out:
        measured = float(metrics["kl_ref"].value)
        rule = KL_RULES[recipe.adaptive_kl.rule]
        out["kl_weight"] = rule(out["kl_weight"], measured, recipe.adaptive_kl.target)
    if "entropy_weight" in out:
        out["entropy_weight"] = controllers.entropy_target(
            out["entropy_weight"],
            sampled_entropy(batch),
            recipe.adaptive_entropy.target,
            change=recipe.adaptive_entropy.change,
        )
    return {name: float(value) for name, value in out.items()}


def sampled_entropy(batch: RolloutBatch) -> float:
    """Return the mean entropy of the next-token distributions sampled from, nats."""
    return float(batch.host.entropy[batch.host.mask].mean())


def measure(policy: Policy, batch: RolloutBatch, coefficients: dict) -> dict:
    """Return the metrics of a step that neither the update nor the advantages know.

    reward/…: parts of the reward; length and stopped: of completions; think/…: tokens
    and entropy of the chain of thought, and its statistics; judge/…: see
    `verdict_source`; entropy_answer, entropy_sampled: nats per token; control/…: the
    coefficients in use; lag: updates between the parameters that sampled and those
    that learn.
    """
    rollout, samples, count = batch.host, batch.samples, len(batch.samples)
    sizes = [
        [len(policy.processor.token_bytes[i]) for i in row[valid]]
        for row, valid in zip(rollout.tokens, rollout.mask, strict=True)
    ]
    texts = [s.text for s in samples]
    think, answer = completion_terms.parts_of(sizes, texts, rollout.mask.shape[1])

    def entropy(where):
        where = where & rollout.mask
        return Mean(float(rollout.entropy[where].sum(dtype=np.float64)), where.sum())

    return {
        "reward": rewards_.parts(s.reward for s in samples),
        "length": Mean(rollout.mask.sum(), count),
        "stopped": Mean(rollout.stopped.sum(), count),
        "think": {
            "tokens": Mean(float(think.sum()), count),
            "entropy": entropy(think),
            **completion_terms.statistics([s.think for s in samples], batch.prompts),
        },
        "entropy_answer": entropy(answer),
        "entropy_sampled": entropy(rollout.mask),
        "term": {
            name: Mean(sum(s.terms[name] for s in samples), count)
            for name in samples[0].terms
        },
        "control": {name: Mean(value, 1.0) for name, value in coefficients.items()},
        "lag": Mean(float(batch.off_policy_steps), 1.0),
        **batch.judge_metrics,
    }
