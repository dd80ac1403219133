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

from vlmrl.rl import augment, rewards, verify
from vlmrl.rl.advantages import ADVANTAGES, DECOUPLED, GROUPED
from vlmrl.rl.losses import SURROGATES, policy_objective
from vlmrl.types import UserError


def check(settings: Mapping[str, Any], field: str = "config") -> None:
    """Refuse settings that contradict each other. Fields that are missing are not used.

    Args:
      settings: of one recipe:
        group_size, max_tokens, temperature, top_k, top_p   of the rollout
        replay       the trainer masks what the sampler's top-k and top-p cut
        reward       a key of REWARDS; judge: where its verdict comes from, None for
                     nobody; verifier: of open answers
        advantage    a key of ADVANTAGES or DECOUPLED
        loss         of `policy_objective`
        overlong     limit and buffer of the penalty
        mix          augmentation
        kl_target    of the adaptive KL weight
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
    if reward in rewards.JUDGED and not get("judge", "rule"):
        raise UserError(
            f"{field}.reward={reward!r} needs a verdict, but {field}.judge is "
            f"{get('judge')!r}: name a judge, or reward='grpo'"
        )
    if advantage in DECOUPLED and not get("judge", "rule"):
        raise UserError(
            f"{field}.advantage={advantage!r} normalises consistency apart, but "
            f"{field}.judge is {get('judge')!r}: name a judge"
        )
    if get("verifier") is not None:
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
        if value != whole and not get("replay"):
            raise UserError(
                f"{field}.{cut}={value} cuts the sampler's distribution, but "
                f"{field}.replay is {get('replay', False)}: the trainer scores the "
                f"whole one, and no importance ratio is exact; want {cut}={whole}, or "
                "replay=True"
            )
    if get("kl_target") is not None and not loss.get("kl_weight"):
        raise UserError(
            f"{field}.kl_target={get('kl_target')} adapts {field}.loss.kl_weight, which"
            f" is {loss.get('kl_weight', 0)} and would stay so: want a weight above 0"
        )
    overlong = get("overlong")
    if overlong:
        limit = overlong.get("limit", 0)
        if "max_tokens" in settings and limit > settings["max_tokens"]:
            raise UserError(
                f"{field}.overlong.limit={limit} is beyond {field}.max_tokens="
                f"{settings['max_tokens']}: no completion would pay the whole penalty"
            )
        rewards.overlong_penalty(0, limit, overlong.get("buffer", 0))
    augment.check(get("mix") or {}, f"{field}.mix")
    check_loss(loss, f"{field}.loss")


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
