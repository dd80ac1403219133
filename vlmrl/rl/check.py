"""Does a recipe contradict itself? Asked before anything is loaded.

`check(settings)` reads a config as plain data and raises a UserError that names both
fields at odds. What a field means is checked where it is used; the loss is traced on
shapes, so whatever a loss refuses is refused here, too.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vlmrl.client import http
from vlmrl.data import distort
from vlmrl.judges import named
from vlmrl.judges.judge import Judge
from vlmrl.rl import augment, completion_terms, rewards, verify
from vlmrl.rl import recipe as recipes
from vlmrl.rl.advantages import ADVANTAGES, DECOUPLED, GROUPED
from vlmrl.rl.losses import ESTIMATORS, SURROGATES, policy_objective
from vlmrl.rl.recipe import Recipe
from vlmrl.types import UserError

# By name; a `judges.Judge` serves as well, and so do the names of `judges.named`.
JUDGES = ("rule", "blind", "shuffle")

# Of jax.checkpoint_policies: what a layer keeps for its gradients.
SAVED = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")


def check(settings: Mapping[str, Any], field: str = "config") -> None:
    """Refuse settings that contradict each other. Fields that are missing are not used.

    Args:
      settings: of one recipe:
        group_size, max_tokens, temperature, top_k, top_p   of the rollout
        reward       a key of REWARDS; judge: where its verdict comes from, None for
                     nobody; verifier: of open answers
        advantage    a key of ADVANTAGES or DECOUPLED
        loss         of `policy_objective`
        mix          augmentation
        the rest     as `recipe.Recipe` has them
      field: how the whole is called in messages.

    Raises:
      UserError: one line, naming both fields.
    """
    get = settings.get
    loss = dict(get("loss") or {})
    reward, advantage = get("reward", "grpo"), get("advantage", "grpo")
    _known(f"{field}.reward", reward, rewards.REWARDS)
    _known(f"{field}.advantage", advantage, {**ADVANTAGES, **DECOUPLED})
    size = get("group_size", 2)
    if size < 1:
        raise UserError(f"{field}.group_size is {size}, want at least 1")
    if size == 1 and (advantage in GROUPED or advantage in DECOUPLED):
        raise UserError(
            f"{field}.group_size is 1, but {field}.advantage={advantage!r} compares the"
            " completions of a group: want at least 2, or advantage='reinforce_pp'"
        )
    judge = get("judge", "rule")
    if (
        isinstance(judge, str)
        and judge not in ("", *JUDGES)
        and not {":", ","} & set(judge)
    ):
        raise UserError(
            f"{field}.judge is {judge!r}, want one of {', '.join(JUDGES)}, or model:DIR"
            " or http:MODEL"
        )
    if reward in rewards.JUDGED and not judge:
        raise UserError(
            f"{field}.reward={reward!r} needs a verdict, but {field}.judge is "
            f"{get('judge')!r}: name a judge, or reward='grpo'"
        )
    if advantage in DECOUPLED and not get("judge", "rule"):
        raise UserError(
            f"{field}.advantage={advantage!r} normalises consistency apart, but "
            f"{field}.judge is {get('judge')!r}: name a judge"
        )
    if get("verifier"):
        _known(f"{field}.verifier", get("verifier"), verify.VERIFIERS)
    if get("verifier") == "math":
        verify.Math()
    if not get("temperature", 1.0) > 0:
        raise UserError(
            f"{field}.temperature is {get('temperature')}, but the rollouts of "
            f"{field}.group_size={size} must differ: want above 0"
        )
    for cut, whole in (("top_p", 1.0), ("top_k", 0)):
        value = get(cut, whole)
        if value != whole:
            raise UserError(
                f"{field}.{cut}={value} cuts the sampler's distribution, but "
                f"{field}.loss compares it with the trainer's, which is whole: no "
                f"importance ratio would be exact; want {cut}={whole}"
            )
    if get("kl_target") and not loss.get("kl_weight"):
        raise UserError(
            f"{field}.kl_target={get('kl_target')} adapts {field}.loss.kl_weight, which"
            f" is {loss.get('kl_weight', 0)} and would stay so: want a weight above 0"
        )
    augment.check(get("mix") or {}, f"{field}.mix")
    known = {n: v for n, v in settings.items() if n in recipes.Recipe._fields}
    known = dict.fromkeys(recipes.REQUIRED) | known
    known |= {"group_size": size, "reward": reward, "advantage": advantage}
    recipe = recipes.make(field=field, **known)
    _check_rewards(recipe, field)
    _check_draws(recipe, field)
    _check_judging(recipe, field)
    check_loss(loss, f"{field}.loss")


def _check_rewards(recipe: Recipe, field: str) -> None:
    """What is paid: shaping, ranking, the constraint, overlong."""
    for name in recipe.shaping:
        _known(f"{field}.shaping.{name}", name, completion_terms.TERMS)
    if recipe.ranking.weight:
        _known(f"{field}.ranking.by", recipe.ranking.by, completion_terms.TERMS)
    takes = inspect.signature(rewards.REWARDS[recipe.reward]).parameters
    for name in recipe.reward_options:
        if name not in list(takes)[3:]:
            raise UserError(
                f"{field}.reward_options.{name}: no option of {field}.reward="
                f"{recipe.reward!r}"
            )
    prices = recipe.reward == "lagrangian" or recipe.advantage in DECOUPLED
    if recipe.constraint.threshold and not prices:
        raise UserError(
            f"{field}.constraint.threshold={recipe.constraint.threshold} has no place "
            f"in {field}.reward={recipe.reward!r} and {field}.advantage="
            f"{recipe.advantage!r}: want reward='lagrangian' or advantage='decoupled'"
        )
    if recipe.reward == "lagrangian" and not recipe.constraint.threshold:
        raise UserError(
            f"{field}.reward='lagrangian', but {field}.constraint.threshold is 0: the "
            "multiplier would stay where it starts"
        )
    long = recipe.overlong
    if long.limit:
        if recipe.max_tokens and long.limit > recipe.max_tokens:
            raise UserError(
                f"{field}.overlong.limit={long.limit} is beyond {field}.max_tokens="
                f"{recipe.max_tokens}: no completion would pay the whole penalty"
            )
        rewards.overlong_penalty(0, long.limit, long.buffer)
    if recipe.kl_reward.weight:
        _known(f"{field}.kl_reward.estimator", recipe.kl_reward.estimator, ESTIMATORS)
    _known(f"{field}.kl_rule", recipe.kl_rule, ("ppo", "proportional"))
    for name in ("kl_target", "entropy_target"):
        if getattr(recipe, name) < 0:
            raise UserError(
                f"{field}.{name} is {getattr(recipe, name)}, want 0 or more"
            )


def _check_draws(recipe: Recipe, field: str) -> None:
    """How rollouts are drawn: lag, dynamic sampling, noise, replay, averages."""
    if recipe.lag not in (0, 1):
        raise UserError(f"{field}.lag is {recipe.lag}, want 0 or 1")
    if recipe.slots < 0:
        raise UserError(f"{field}.slots is {recipe.slots}, want 0 or more")
    if recipe.rounds < 1:
        raise UserError(f"{field}.rounds is {recipe.rounds}, want 1 or more")
    if recipe.lag and recipe.rounds > 1:
        raise UserError(
            f"{field}.lag=1 draws a step ahead, but {field}.rounds={recipe.rounds} "
            "draws until groups are mixed, which is known only after judging: want one"
        )
    if recipe.rounds > 1 and recipe.group_size < 2:
        raise UserError(
            f"{field}.rounds={recipe.rounds} wants groups that hold a right and a "
            f"wrong completion, but {field}.group_size is {recipe.group_size}"
        )
    size = recipe.group_size
    for name in ("noise", "guide"):
        share = getattr(recipe, name).share
        if share and not 0 < round(share * size) < size:
            raise UserError(
                f"{field}.{name}.share={share} of {field}.group_size={size} leaves no "
                "completion of one kind: want a share of whole completions below 1"
            )
    if recipe.guide.share and recipe.noise.share:
        raise UserError(
            f"{field}.guide.share={recipe.guide.share} and {field}.noise.share="
            f"{recipe.noise.share} both sample a share elsewhere: want one of them"
        )
    if recipe.guide.share and recipe.loss and recipe.loss.get("importance") is not None:
        raise UserError(
            f"{field}.guide.share={recipe.guide.share} learns what was sampled from "
            f"another prompt as if from this one, which {field}.loss.importance would "
            "correct away: want one of them"
        )
    _known(f"{field}.noise.distortion", recipe.noise.distortion, distort.DISTORTIONS)
    if recipe.replay_groups.capacity < 0:
        raise UserError(
            f"{field}.replay_groups.capacity is {recipe.replay_groups.capacity}, want "
            "0 or more"
        )
    if not 0 <= recipe.ema < 1:
        raise UserError(f"{field}.ema is {recipe.ema}, want a decay in [0, 1)")
    if recipe.remat:
        _known(f"{field}.remat", recipe.remat, SAVED)
    if recipe.token_budget < 0 or recipe.microbatches < 1:
        raise UserError(
            f"{field}.token_budget is {recipe.token_budget} and {field}.microbatches "
            f"is {recipe.microbatches}: want at least 0 and 1"
        )


def _check_judging(recipe: Recipe, field: str) -> None:
    """Who is asked for verdicts, where, and for how long."""
    how, judge = recipe.judging, recipe.judge
    kinds = set()
    if isinstance(judge, str) and judge and judge not in JUDGES:
        kinds = {k for k, _ in named.parse(judge, endpoint(how), f"{field}.judge")}
    if how.url and "http" not in kinds and not isinstance(judge, Judge):
        raise UserError(
            f"{field}.judging.url={how.url!r}, but {field}.judge={judge!r} asks nobody "
            "there: want judge='http:MODEL', or no url"
        )
    if how.seconds < 0 or ("http" in kinds and not how.seconds):
        raise UserError(
            f"{field}.judging.seconds is {how.seconds}, but {field}.judge={judge!r} "
            "could then stall a step: want more than 0"
        )
    for name in ("concurrency", "attempts", "max_tokens", "parts"):
        if getattr(how, name) < 1:
            raise UserError(
                f"{field}.judging.{name} is {getattr(how, name)}, want 1 or more"
            )
    if how.parts > 1:
        at_once = {
            "lag": recipe.lag,
            "noise.share": recipe.noise.share,
            "guide.share": recipe.guide.share,
        }
        for other, value in at_once.items():
            if value:
                raise UserError(
                    f"{field}.judging.parts={how.parts} samples prompts in parts, but "
                    f"{field}.{other}={value} draws them at once: want one of the two"
                )


def endpoint(how: recipes.Judging) -> http.Endpoint:
    """Where an http judge is asked."""
    fields = ("key_env", "insecure", "concurrency", "attempts")
    return http.Endpoint(how.url, "", **{name: getattr(how, name) for name in fields})


def check_loss(loss: Mapping[str, Any], field: str = "config.loss") -> None:
    """Refuse settings that `policy_objective` would, by tracing it on shapes.

    Raises:
      UserError: an unknown setting, k1 as a loss, 'constant' without its length, a clip
        range that makes no sense, ….
    """
    if loss.get("kl_estimator") == "k1" and loss.get("kl_weight"):
        raise UserError(
            f"{field}.kl_estimator='k1' with {field}.kl_weight={loss['kl_weight']}: k1 "
            "has zero expected gradient as a loss; want k2 or k3, or k1 in the reward"
        )
    surrogate = loss.get("surrogate", "clipped")
    if isinstance(surrogate, str):
        _known(f"{field}.surrogate", surrogate, SURROGATES)
        takers = (policy_objective, SURROGATES[surrogate])
        names = {
            p.name
            for p in itertools.chain(
                *(inspect.signature(f).parameters.values() for f in takers)
            )
            if p.kind is p.KEYWORD_ONLY
        } - {"weights", "noise"}
        if unknown := [name for name in loss if name not in names]:
            known = ", ".join(sorted(names))
            raise UserError(
                f"{field}.{unknown[0]}: no setting of {field}.surrogate={surrogate!r}; "
                f"want one of {known}"
            )
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    names = ("old", "ref", "masked", "sampler")
    extra = {f"{name}_logprobs": tokens for name in names} | {
        "advantages": jax.ShapeDtypeStruct((2,), jnp.float32),
        "noise": tokens,
    }
    mask = jax.ShapeDtypeStruct((2, 3), bool)

    def objective(logprobs, entropy, mask, extra):
        return policy_objective(logprobs, entropy, mask, extra, **loss)

    try:
        jax.eval_shape(objective, tokens, tokens, mask, extra)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def _known(field: str, value, known) -> None:
    if value not in known:
        raise UserError(f"{field} is {value!r}, want one of {', '.join(known)}")
