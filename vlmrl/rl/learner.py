"""One update from one training batch: the log-probs that the loss needs, then the step.

Axes: N prompts, G completions of each, B = N * G rows, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.engine.score import completions
from vlmrl.policy import Policy, prefixes
from vlmrl.rl import losses, sampling, step_metrics
from vlmrl.rl import update as updates
from vlmrl.rl.batch_advantages import Rewards
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.rollouts import Context, RolloutBatch, TrainingBatch
from vlmrl.types import Array, Group


class Learner(NamedTuple):
    """What every update of a run shares; its programs are compiled once."""

    context: Context
    needs: frozenset[str]  # of the loss, see `losses.needs`
    logprobs: Callable  # (params, group) -> float32[B, T]
    with_branches: Callable  # (group, rollout) -> the group with its completions
    reference: Any  # parameters before the first update; None: nothing refers to them
    step: Callable  # (state, update.Batch) -> (state, metrics)


def make_learner(context: Context, tx, state: updates.TrainState) -> Learner:
    """Return the Learner of a run.

    Args:
      tx: the optimizer of `state`.
    """
    policy, recipe = context.policy, context.recipe
    needs = losses.needs(recipe.loss)
    options = score_options(policy, recipe)

    def copied(params):
        return jax.tree.map(jnp.copy, policy.cast(params))

    # The update takes the memory of its parameters; the reference must outlive it.
    refers = "ref_logprobs" in needs or recipe.kl_penalty.weight
    parts = {
        "microbatches": recipe.learner.microbatches,
        "token_budget": recipe.learner.token_budget,
    }
    step = updates.make_update(
        policy.model,
        tx,
        functools.partial(_objective, recipe.loss),
        freeze=recipe.optimizer.freeze,
        ema=recipe.learner.ema,
        unroll=recipe.learner.unroll,
        **parts,
        **options,
    )
    logprobs = updates.make_logprobs(policy.model, **parts, **options)
    return Learner(
        context,
        needs,
        jax.jit(logprobs),
        jax.jit(completions),
        jax.jit(copied)(policy.params) if refers else None,
        updates.jit_update(step, state),
    )


def score_options(policy: Policy, recipe: Recipe) -> dict:
    """Return the options of `engine.score.score` for a recipe's completions."""
    return {
        "temperature": recipe.sampling.temperature,
        "banned": policy.stops.banned,
        "attend": policy.attend,
        "dtype": policy.compute,
        "float32_residual": recipe.learner.float32_residual,
        "remat": recipe.learner.remat or None,
    }


def _objective(loss, logp, entropy, mask, extra):
    if "loss_mask" in extra:
        mask = mask & extra["loss_mask"][:, None]
    return losses.policy_objective(logp, entropy, mask, extra, **loss)


def apply_kl_penalty(learner: Learner, batch: RolloutBatch) -> Rewards:
    """Return the rewards less `kl_reward.weight` · KL to the reference, summed over a
    completion; unchanged where the recipe has no such penalty, or has it token by
    token in the advantage."""
    penalty, rewards = learner.context.recipe.kl_penalty, batch.rewards
    if not penalty.weight or penalty.to_go:
        return rewards
    group = learner.with_branches(batch.group, batch.rollout)
    values = _kl(learner, batch, _scored(learner, learner.reference, group))
    flat, mask = rewards.total.reshape(-1), batch.rollout.mask
    total = losses.penalised(flat, values, mask, penalty.weight)
    return rewards._replace(total=np.asarray(total).reshape(rewards.total.shape))


def update(
    learner: Learner,
    state: updates.TrainState,
    training: TrainingBatch,
    coefficients: dict[str, float],
    step: int,
) -> tuple[updates.TrainState, dict]:
    """Return the state after one update, and its metrics; takes the old state's
    memory."""
    context, batch, masked = learner.context, training.batch, None
    group = learner.with_branches(batch.group, batch.rollout)
    extra = _extra(learner, state, training, group, step)
    rows = len(batch.host.tokens)
    for name, weight in step_metrics.loss_weights(
        coefficients, context.recipe, batch
    ).items():
        extra[name] = context.policy.put(np.full(rows, weight, np.float32))
    if "masked_logprobs" in learner.needs:
        masked = _masked(learner, batch)
    context.phase("update")
    done = learner.step(state, updates.Batch(group, extra, masked))
    return jax.block_until_ready(done)


def _extra(
    learner: Learner, state, training: TrainingBatch, group: Group, step: int
) -> dict[str, Array]:
    """Return the rows that the objective reads, see `losses.policy_objective`."""
    recipe, put = learner.context.recipe, learner.context.policy.put
    batch, advantages, needs = training.batch, training.advantages, learner.needs
    rollout, penalty = batch.rollout, recipe.kl_penalty
    extra = {
        "old_logprobs": rollout.logprobs,
        "advantages": put(np.asarray(advantages.values).reshape(-1)),
    }
    if "sampler_logprobs" in needs or recipe.noise.share or recipe.distillation.share:
        # Off-policy rollouts are corrected, and rollouts of another prompt are learned,
        # against the log-probs of the parameters before the update, not the sampler's.
        extra["sampler_logprobs"] = rollout.logprobs
        extra["old_logprobs"] = _scored(learner, state.params, group)
    if "ref_logprobs" in needs or penalty.to_go:
        extra["ref_logprobs"] = _scored(learner, learner.reference, group)
    if penalty.to_go:
        values = _kl(learner, batch, extra["ref_logprobs"])
        extra["advantages"] = losses.to_go(
            extra["advantages"], values, rollout.mask, penalty.weight
        )
    if recipe.overlong.filter or recipe.sampling.resampling_rounds > 1:
        extra["loss_mask"] = put(np.asarray(advantages.loss_mask).reshape(-1))
    if "noise" in needs:
        rng = np.random.default_rng([learner.context.seed, step])
        extra["noise"] = put(rng.random(batch.host.mask.shape, np.float32))
    return extra


def _masked(learner: Learner, batch: RolloutBatch) -> Group:
    """Return the completions behind prompts whose images are mostly black, for the
    perception term (`losses.perception`)."""
    policy, seed = learner.context.policy, learner.context.seed
    prompts = policy.write(sampling.distorted(batch.prompts, "masked", seed))
    return learner.with_branches(policy.put(prefixes(policy, prompts)), batch.rollout)


def _scored(learner: Learner, params, group: Group) -> Array:
    learner.context.phase("score")
    return jax.block_until_ready(learner.logprobs(params, group))


def _kl(learner: Learner, batch: RolloutBatch, reference: Array) -> Array:
    estimator, rollout = learner.context.recipe.kl_penalty.estimator, batch.rollout
    return losses.kl(rollout.logprobs, reference, rollout.mask, estimator)
