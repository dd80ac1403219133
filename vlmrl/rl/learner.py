"""One update from one draw: gather what the loss wants to know, then learn from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.engine.score import completions, score
from vlmrl.policy import Policy, prefixes
from vlmrl.rl import losses, rollouts, step_metrics, update
from vlmrl.rl.batch_advantages import Earned
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.rollouts import Drawn, Used
from vlmrl.types import Array, Group, Rollout


class Learner(NamedTuple):
    charge: Callable  # (drawn) -> Earned, less the KL where the reward pays for it
    update: Callable  # (state, used, weights, step) -> (state, metrics)


def make(
    policy: Policy,
    tx,
    state: update.State,
    recipe: Recipe,
    *,
    seed: int,
    phase: Callable[..., None],
) -> Learner:
    """The Learner of a run; its programs are compiled once. `phase` as in `loop`."""
    needs = losses.needs(recipe.loss)
    how = {"temperature": recipe.temperature, "banned": policy.stops.banned}
    how |= {"attend": policy.attend, "mesh": policy.mesh}
    how |= {
        "dtype": policy.compute,
        "float32_residual": recipe.wide,
        "remat": recipe.remat or None,
    }
    score_fn = jax.jit(lambda p, group: score(policy.model, p, group, **how)[0])
    grow = jax.jit(completions)
    # The update takes its parameters' memory; the start must outlive it.
    refers = "ref_logprobs" in needs or recipe.kl_reward.weight

    def copied(params):
        return jax.tree.map(jnp.copy, policy.read(params))

    start = jax.jit(copied)(policy.params) if refers else None

    def objective(logp, entropy, mask, extra):
        if "keep" in extra:
            mask = mask & extra["keep"][:, None]
        return losses.policy_objective(logp, entropy, mask, extra, **recipe.loss)

    step_fn = update.jit_update(
        update.make_update(
            policy.model,
            tx,
            objective,
            microbatches=recipe.microbatches,
            token_budget=recipe.token_budget,
            freeze=recipe.freeze,
            ema=recipe.ema,
            unroll=recipe.unroll,
            **how,
        ),
        state,
    )

    def scored(params, group: Group) -> Array:
        phase("score")
        return jax.block_until_ready(score_fn(params, group))

    def charge(drawn: Drawn) -> Earned:
        penalty, earned = recipe.kl_reward, drawn.earned
        if not penalty.weight or penalty.to_go:
            return earned
        values = cost(drawn.rollout, scored(start, grow(drawn.group, drawn.rollout)))
        flat, mask = earned.total.reshape(-1), drawn.rollout.mask
        total = losses.penalised(flat, values, mask, penalty.weight)
        return earned._replace(total=np.asarray(total).reshape(earned.total.shape))

    def cost(rollout: Rollout, ref: Array) -> Array:
        kind = recipe.kl_reward.estimator
        return losses.kl(rollout.logprobs, ref, rollout.mask, kind)

    def extra_of(state, used: Used, group: Group, weights: dict, step: int) -> dict:
        """Rows of what the objective reads, see `losses.policy_objective`."""
        rollout, found, put = used.drawn.rollout, used.signal, policy.put
        rows = rollout.tokens.shape[0]
        extra = {
            "old_logprobs": rollout.logprobs,
            "advantages": put(np.asarray(found.advantages).reshape(-1)),
        }
        if "sampler_logprobs" in needs or recipe.noise.share or recipe.guide.share:
            # Staleness is corrected, and rollouts of another prompt are learnt, against
            # what the parameters before the update say, not what the sampler said.
            extra["sampler_logprobs"] = rollout.logprobs
            extra["old_logprobs"] = scored(state.params, group)
        if "ref_logprobs" in needs or recipe.kl_reward.to_go:
            extra["ref_logprobs"] = scored(start, group)
        if recipe.kl_reward.to_go:
            values, weight = (
                cost(rollout, extra["ref_logprobs"]),
                recipe.kl_reward.weight,
            )
            extra["advantages"] = losses.to_go(
                extra["advantages"], values, rollout.mask, weight
            )
        if recipe.overlong.filter or recipe.rounds > 1:
            extra["keep"] = put(np.asarray(found.keep).reshape(-1))
        if "noise" in needs:
            rng = np.random.default_rng([seed, step])
            extra["noise"] = put(rng.random(rollout.mask.shape, np.float32))
        moved = step_metrics.loss_weights(weights, recipe, used.drawn)
        return extra | {
            name: put(np.full(rows, weight, np.float32))
            for name, weight in moved.items()
        }

    def learn(state, used: Used, weights: dict, step: int):
        drawn = used.drawn
        group = grow(drawn.group, drawn.rollout)
        extra, second = extra_of(state, used, group, weights, step), None
        if "masked_logprobs" in needs:
            seen = policy.write(rollouts.masked(drawn.written, seed))
            second = grow(policy.put(prefixes(policy, seen)), drawn.rollout)
        phase("update")
        return jax.block_until_ready(step_fn(state, update.Batch(group, extra, second)))

    return Learner(charge, learn)
