"""Refuse recipes that contradict themselves, before anything is loaded.

`check(settings)` reads a config as plain data and raises a UserError that names the
fields that contradict each other. The loss is traced on shapes, so whatever a loss
refuses is refused here, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vlmrl import user_code
from vlmrl.client import http
from vlmrl.data import distort
from vlmrl.judges import named
from vlmrl.judges.judge import Judge
from vlmrl.rl import augment, rewards, step_metrics
from vlmrl.rl import recipe as recipes
from vlmrl.rl.advantages import DECOUPLED, GROUPED, advantage_of
from vlmrl.rl.completion_terms import TERMS, term_of
from vlmrl.rl.losses import ESTIMATORS, SURROGATES, policy_objective
from vlmrl.rl.losses.surrogates import surrogate_of
from vlmrl.rl.recipe import Recipe, RewardOptions, VerdictOptions
from vlmrl.types import UserError

# By name; a `judges.Judge` serves as well, and so do the names of `judges.named`.
JUDGES = ("rule", "blind", "shuffle")

# Of jax.checkpoint_policies: what a layer saves for its gradients.
REMAT = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
DECAYS = ("constant", "cosine", "linear")

# Field → what resolves its name, ours or a user's own: (name, field) → function.
NAMES = {
    "reward.name": rewards.reward_of,
    "advantage.name": advantage_of,
    "noise.distortion": distort.distortion_of,
    "ranking.by": lambda name, field: term_of(name, RewardOptions(), field),
}
# Field → the values it may have; a field that is '' is not used.
CHOICES = {
    "kl_penalty.estimator": ESTIMATORS,
    "adaptive_kl.rule": step_metrics.KL_RULES,
    "learner.remat": REMAT,
    "optimizer.decay": DECAYS,
}
# Field → (smallest, largest) value; None: no bound.
BOUNDS = {
    "sampling.group_size": (1, None),
    "sampling.off_policy_steps": (0, 1),
    "sampling.resampling_rounds": (1, None),
    "slots": (0, None),
    "replay.capacity": (0, None),
    "adaptive_kl.target": (0, None),
    "adaptive_entropy.target": (0, None),
    "learner.microbatches": (1, None),
    "learner.token_budget": (0, None),
    "judge.concurrency": (1, None),
    "judge.attempts": (1, None),
    "judge.max_tokens": (1, None),
    "judge.parts": (1, None),
    "judge.seconds": (0, None),
}


def check(settings: Mapping[str, Any], field: str = "config") -> Recipe:
    """Return the recipe of settings; refuse settings that contradict each other.

    Args:
      settings: sections and fields of `recipe.Recipe`; what is missing is at its
        default.
      field: name of the whole in messages.

    Raises:
      UserError: one line, naming the fields.
    """
    recipe = recipes.make(field=field, **settings)
    for name, known in CHOICES.items():
        value = recipes.get(recipe, name)
        if value != "":
            _known(f"{field}.{name}", value, known)
    for name, resolve in NAMES.items():
        resolve(recipes.get(recipe, name), f"{field}.{name}")
    for name, (low, high) in BOUNDS.items():
        value = recipes.get(recipe, name)
        if value < low or (high is not None and value > high):
            expected = f"{low} or more" if high is None else f"{low} to {high}"
            raise UserError(f"{field}.{name} is {value}, expected {expected}")
    if not 0 <= recipe.learner.ema < 1:
        raise UserError(
            f"{field}.learner.ema is {recipe.learner.ema}, expected a decay in [0, 1)"
        )
    augment.check(recipe.mix, f"{field}.mix")
    _check_groups(recipe, field)
    _check_rewards(recipe, field)
    _check_sampling(recipe, field)
    _check_judge(recipe, field)
    check_loss(recipe.loss, f"{field}.loss")
    return recipe


def _check_groups(recipe: Recipe, field: str) -> None:
    """Check that a group has several completions, and different ones, to compare."""
    size, name = recipe.sampling.group_size, recipe.advantage.name
    if size == 1 and (name in GROUPED or name in DECOUPLED):
        raise UserError(
            f"{field}.sampling.group_size is 1, but {field}.advantage.name={name!r} "
            "compares the completions of a group: expected at least 2, or "
            "advantage.name='reinforce_pp'"
        )
    if not recipe.sampling.temperature > 0:
        raise UserError(
            f"{field}.sampling.temperature is {recipe.sampling.temperature}, but the "
            f"completions of {field}.sampling.group_size={size} must differ: expected "
            "above 0"
        )
    rounds = recipe.sampling.resampling_rounds
    if rounds > 1 and size < 2:
        raise UserError(
            f"{field}.sampling.resampling_rounds={rounds} needs groups with a right and"
            f" a wrong completion, but {field}.sampling.group_size is {size}"
        )


def _check_rewards(recipe: Recipe, field: str) -> None:
    """Check reward, shaping, constraint, overlong penalty and KL controller."""
    reward, judge, advantage = recipe.reward, recipe.judge.name, recipe.advantage.name
    if isinstance(reward.name, str) and reward.name in rewards.JUDGED and not judge:
        raise UserError(
            f"{field}.reward.name={reward.name!r} needs a verdict, but "
            f"{field}.judge.name is {judge!r}: name a judge, or reward.name='grpo'"
        )
    if advantage in DECOUPLED and not judge:
        raise UserError(
            f"{field}.advantage.name={advantage!r} normalises consistency separately, "
            f"but {field}.judge.name is {judge!r}: name a judge"
        )
    for name in reward.shaping:
        term_of(name, reward, f"{field}.reward.shaping.{name}")
    terms = dict.fromkeys((*reward.shaping, recipe.ranking.by))
    user_code.distinct(terms, TERMS, f"{field}.reward.shaping")
    function = rewards.reward_of(reward.name, f"{field}.reward.name")
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes = {p.name for p in parameters}
    for name in reward.options:
        if name not in takes and all(p.kind is not p.VAR_KEYWORD for p in parameters):
            raise UserError(
                f"{field}.reward.options.{name}: no option of {field}.reward.name="
                f"{reward.name!r}"
            )
    needed = {
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }
    if missing := sorted(needed - set(reward.options)):
        raise UserError(
            f"{field}.reward.options: expected a value of {', '.join(missing)}, which "
            f"{field}.reward.name={reward.name!r} needs"
        )
    threshold = recipe.constraint.threshold
    if threshold and reward.name != "lagrangian" and advantage not in DECOUPLED:
        raise UserError(
            f"{field}.constraint.threshold={threshold} has no effect with "
            f"{field}.reward.name={reward.name!r} and {field}.advantage.name="
            f"{advantage!r}: expected reward.name='lagrangian' or "
            "advantage.name='decoupled'"
        )
    if reward.name == "lagrangian" and not threshold:
        raise UserError(
            f"{field}.reward.name='lagrangian', but {field}.constraint.threshold is 0: "
            "the multiplier would stay at its first value"
        )
    limit, length = recipe.overlong.limit, recipe.sampling.max_tokens
    if limit:
        if limit > length:
            raise UserError(
                f"{field}.overlong.limit={limit} is beyond {field}.sampling.max_tokens="
                f"{length}: no completion could have the full penalty"
            )
        rewards.overlong_penalty(0, limit, recipe.overlong.buffer)
    target, weight = recipe.adaptive_kl.target, recipe.loss.get("kl_weight", 0)
    if target and not weight:
        raise UserError(
            f"{field}.adaptive_kl.target={target} adapts {field}.loss.kl_weight, which "
            f"is {weight} and would stay so: expected a weight above 0"
        )


def _check_sampling(recipe: Recipe, field: str) -> None:
    """Check what can't be sampled together."""
    sampling, size = recipe.sampling, recipe.sampling.group_size
    if sampling.off_policy_steps and sampling.resampling_rounds > 1:
        raise UserError(
            f"{field}.sampling.off_policy_steps=1 samples a step early, but "
            f"{field}.sampling.resampling_rounds={sampling.resampling_rounds} samples "
            "until groups are mixed, which is known only after judging: expected one "
            "of the two"
        )
    for name in ("noise", "distillation"):
        share = getattr(recipe, name).share
        if share and not 0 < round(share * size) < size:
            raise UserError(
                f"{field}.{name}.share={share} of {field}.sampling.group_size={size} "
                "leaves no completion of one kind: expected a share of whole "
                "completions below 1"
            )
    share = recipe.distillation.share
    if share and recipe.noise.share:
        raise UserError(
            f"{field}.distillation.share={share} and {field}.noise.share="
            f"{recipe.noise.share} both sample a share from another prompt: expected "
            "one of them"
        )
    if share and recipe.loss.get("importance") is not None:
        raise UserError(
            f"{field}.distillation.share={share} learns completions of another prompt "
            f"as if of this one, which {field}.loss.importance would correct away: "
            "expected one of them"
        )


def _check_judge(recipe: Recipe, field: str) -> None:
    """Check who gives verdicts, where, and for how long."""
    options, judge, kinds = recipe.judge, recipe.judge.name, set()
    if isinstance(judge, str) and judge and judge not in JUDGES:
        if not {":", ","} & set(judge):
            raise UserError(
                f"{field}.judge.name is {judge!r}, expected one of {', '.join(JUDGES)},"
                f" model:DIR, http:MODEL or {user_code.FORM}"
            )
        parsed = named.parse(judge, endpoint(options), f"{field}.judge.name")
        kinds = {k for k, _ in parsed}
    if options.url and "http" not in kinds and not isinstance(judge, Judge):
        raise UserError(
            f"{field}.judge.url={options.url!r}, but {field}.judge.name={judge!r} asks "
            "nobody there: expected judge.name='http:MODEL', or no url"
        )
    if "http" in kinds and not options.seconds:
        raise UserError(
            f"{field}.judge.seconds is {options.seconds}, but {field}.judge.name="
            f"{judge!r} could then stall a step: expected more than 0"
        )
    if options.parts > 1:
        for name in (
            "sampling.off_policy_steps",
            "noise.share",
            "distillation.share",
        ):
            if value := recipes.get(recipe, name):
                raise UserError(
                    f"{field}.judge.parts={options.parts} samples prompts in parts, but"
                    f" {field}.{name}={value} samples them at once: expected one of the"
                    " two"
                )


def endpoint(options: VerdictOptions) -> http.Endpoint:
    """Return where an http judge is asked."""
    fields = ("key_env", "insecure", "concurrency", "attempts")
    return http.Endpoint(options.url, "", **{n: getattr(options, n) for n in fields})


def check_loss(loss: Mapping[str, Any], field: str = "config.loss") -> None:
    """Refuse settings that `policy_objective` would, by tracing it on shapes.

    Raises:
      UserError: an unknown setting, k1 as a loss, 'constant' without its length, a clip
        range that makes no sense, ….
    """
    if loss.get("kl_estimator") == "k1" and loss.get("kl_weight"):
        raise UserError(
            f"{field}.kl_estimator='k1' with {field}.kl_weight={loss['kl_weight']}: k1 "
            "has zero expected gradient as a loss; expected k2 or k3, or k1 in the "
            "reward"
        )
    surrogate = loss.get("surrogate", "clipped")
    surrogate_of(surrogate, f"{field}.surrogate")
    if isinstance(surrogate, str) and surrogate in SURROGATES:
        names = _keywords(policy_objective) | _keywords(SURROGATES[surrogate])
        names -= {"weights", "noise"}
        if unknown := [name for name in loss if name not in names]:
            raise UserError(
                f"{field}.{unknown[0]}: no setting of {field}.surrogate={surrogate!r}; "
                f"expected one of {', '.join(sorted(names))}"
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


def _keywords(function) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _known(field: str, value, known) -> None:
    if value not in known:
        raise UserError(f"{field} is {value!r}, expected one of {', '.join(known)}")
