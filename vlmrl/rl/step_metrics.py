"""What a step shows of the policy, and how controllers answer to it."""

from __future__ import annotations

import numpy as np

from vlmrl import sharding
from vlmrl.policy import Policy
from vlmrl.rl import completion_terms as measures
from vlmrl.rl import controllers, rewards
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.rollouts import Drawn, Used
from vlmrl.types import Mean


def start(recipe: Recipe) -> dict[str, float]:
    """The weights that this recipe's controllers move, before the first step."""
    weights = {}
    if recipe.constraint.threshold:
        weights["multiplier"] = float(recipe.constraint.start)
    if recipe.kl_target:
        weights["kl_weight"] = float(recipe.loss["kl_weight"])
    if recipe.entropy_target:
        weights["entropy_weight"] = float(recipe.loss.get("entropy_weight", 0.0))
    return weights


def loss_weights(weights: dict, recipe: Recipe, drawn: Drawn) -> dict[str, float]:
    """Those of them that the next update multiplies terms of its loss with."""
    out = {k: w for k, w in weights.items() if k == "kl_weight"}
    if "entropy_weight" in weights:
        weight, target = weights["entropy_weight"], recipe.entropy_target
        bonus = controllers.entropy_bonus(weight, sampled_entropy(drawn), target)
        out["entropy_weight"] = float(bonus)
    return out


def follow(weights: dict, recipe: Recipe, metrics: dict, drawn: Drawn) -> dict:
    """The weights after a step."""
    out = dict(weights)
    if "multiplier" in out:
        agree = drawn.earned.consistent
        if not np.isnan(agree).all():
            how = recipe.constraint
            out["multiplier"] = controllers.dual_ascent(
                out["multiplier"],
                float(np.nanmean(agree)),
                how.threshold,
                rate=how.rate,
                most=how.most,
            )
    if "kl_weight" in out:
        rule = {
            "ppo": controllers.ppo_kl,
            "proportional": controllers.proportional_kl,
        }[recipe.kl_rule]
        measured = float(metrics["kl_ref"].value)
        out["kl_weight"] = rule(out["kl_weight"], measured, recipe.kl_target)
    if "entropy_weight" in out:
        out["entropy_weight"] = controllers.entropy_target(
            out["entropy_weight"],
            sampled_entropy(drawn),
            recipe.entropy_target,
            change=recipe.entropy_change,
        )
    return {name: float(value) for name, value in out.items()}


def sampled_entropy(drawn: Drawn) -> float:
    """Mean entropy of the next-token distributions sampled from, nats."""
    entropy, mask = sharding.fetch((drawn.rollout.entropy, drawn.rollout.mask))
    return float(entropy[mask].mean())


def measure(policy: Policy, used: Used, drawn: Drawn, weights: dict) -> dict:
    """Metrics of a step that the update does not know.

    reward/…: parts of the reward; degenerate, kept, advantage: see `signals`; length
    and stopped: of completions; think/…: its tokens and entropy, and the guards;
    judge/…: see `verdicts.at_desk`; entropy_answer; control/…: what controllers move;
    lag: updates between the parameters that sampled and those that learn.
    """
    rollout, samples = sharding.fetch(drawn.rollout), drawn.samples
    sizes = [
        [len(policy.processor.token_bytes[i]) for i in row[keep]]
        for row, keep in zip(rollout.tokens, rollout.mask, strict=True)
    ]
    texts, count = [s.text for s in samples], len(samples)
    think, answer = measures.parts_of(sizes, texts, rollout.mask.shape[1])

    def entropy(where):
        where = where & rollout.mask
        return Mean(float(rollout.entropy[where].sum(dtype=np.float64)), where.sum())

    thinks = [s.think for s in samples]
    return {
        "reward": rewards.parts(s.reward for s in samples),
        **used.signal.metrics,
        "length": Mean(rollout.mask.sum(), count),
        "stopped": Mean(rollout.stopped.sum(), count),
        "think": {
            "tokens": Mean(float(think.sum()), count),
            "entropy": entropy(think),
            **measures.guard_metrics(thinks, drawn.written),
        },
        "entropy_answer": entropy(answer),
        "entropy_sampled": entropy(rollout.mask),
        "term": {
            name: Mean(sum(s.terms[name] for s in samples), count)
            for name in samples[0].terms
        },
        "control": {name: Mean(value, 1.0) for name, value in weights.items()},
        "lag": Mean(float(drawn.lag), 1.0),
        **drawn.judged,
    }
