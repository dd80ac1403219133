"""A recipe is data: every choice of the training loop, and what it is when not made.

`make(**settings)` turns a config's fields into records. Each switch is off at its
default, so a plain GRPO config names none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vlmrl.types import UserError


class Constraint(NamedTuple):
    """E[consistent] ≥ threshold as a Lagrange term (`controllers.dual_ascent`). Its
    multiplier prices consistency in reward 'lagrangian', or weighs it in a decoupled
    advantage."""

    threshold: float = 0.0  # τ; 0: no constraint
    rate: float = 0.1  # η per step
    most: float = 10.0
    start: float = 0.0  # λ before the first step


class Ranking(NamedTuple):
    """A zero-sum bonus among the right completions of a group (`advantages.ranked`)."""

    by: str = "p_correct"  # a measured term
    weight: float = 0.0  # reward at stake; 0: none


class Overlong(NamedTuple):
    """What a completion pays that (nearly) ran out of length."""

    limit: int = 0  # tokens at which the soft penalty is full; 0: no penalty
    buffer: int = 0  # tokens over which it grows
    weight: float = 1.0
    filter: bool = False  # leave out of the loss, and of its group, what was cut


class Noise(NamedTuple):
    """A share of every group is sampled from a perturbed image and learnt as if from
    the clean one. NoisyRollout: https://arxiv.org/abs/2504.13055"""

    share: float = 0.0  # of the group; 0: none
    distortion: str = "noisy"  # a key of `data.distort.DISTORTIONS`
    sigma: float = 0.25  # of 'noisy'
    anneal: int = 0  # steps until 'noisy' has faded linearly; 0: never


class Guide(NamedTuple):
    """A share of every group is sampled without the caption and the open think of its
    prompt, and learnt as if written after them. Context distillation, inside a group:
    https://arxiv.org/abs/2112.00861; off-policy members of a group are those of LUFFY:
    https://arxiv.org/abs/2504.14945"""

    share: float = 0.0  # of the group; 0: none


class Replay(NamedTuple):
    """Past groups with non-zero advantages stand in for degenerate ones (`replay.py`).
    VL-Rethinker: https://arxiv.org/abs/2504.08837"""

    capacity: int = 0  # groups held; 0: none
    power: float = 1.0  # drawn in proportion to (mean |advantage|)^power


class Penalty(NamedTuple):
    """KL to the start in the reward (`losses.penalised`, `losses.to_go`)."""

    weight: float = 0.0  # per nat; 0: none
    estimator: str = "k1"
    to_go: bool = False  # token by token, in the advantage


class Judging(NamedTuple):
    """How a judge by name is asked while a run trains. It works beside the sampling
    (`judges.async_judge`) and can't stall a step past `seconds`."""

    url: str = ""  # base URL of an http judge's endpoint
    key_env: str = ""  # environment variable that holds its key
    insecure: bool = False  # plain http to another machine was asked for
    concurrency: int = 16  # requests in flight
    attempts: int = 3  # per request
    max_tokens: int = 2048  # of a reply
    budget_tokens: int = 0  # that the run may spend; 0: no limit
    seconds: float = 60.0  # that a step waits for verdicts after sampling; 0: no limit
    parts: int = (
        1  # a step's prompts are sampled in so many, each judged beside the next
    )


class Recipe(NamedTuple):
    group_size: int  # G completions per prompt
    max_tokens: int  # of a completion
    reward: str  # a key of `rewards.REWARDS`
    advantage: str  # a key of `advantages.ADVANTAGES` or `DECOUPLED`
    mix: Mapping[str, float]  # augmentation: share of prompts per condition
    loss: Mapping[str, Any]  # settings of `losses.policy_objective`
    temperature: float = 1.0  # sampled and scored at
    microbatches: int = 1  # parts of a batch whose gradients are added up
    token_budget: int = 0  # or: at most so many tokens per part; 0: none
    unroll: bool = False  # layers in a Python loop
    remat: str = ""  # a policy of `jax.checkpoint_policies`; '': layers keep all
    wide: bool = True  # the sum over layers in float32, see `engine.score`
    judge: Any = "rule"  # verdicts: 'rule', 'blind', 'shuffle', a judges.Judge, None
    judging: Judging = Judging()
    verifier: str = ""  # of open answers: 'exact', 'math', '' reads an option's text
    reward_options: Mapping[str, float] = {}  # of the reward function
    shaping: Mapping[str, float] = {}  # measured term (`measure.TERMS`) → weight
    least_evidence: int = 12  # distinct words that the term 'evidence' wants
    shortest: int = 8  # tokens; the term 'length' pays for [shortest, longest]
    longest: int = 64
    weights: tuple[float, float] = (1.0, 1.0)  # of task, consistency: decoupled
    ramp: int = 0  # steps over which consistency's weight grows from 0
    constraint: Constraint = Constraint()
    ranking: Ranking = Ranking()
    overlong: Overlong = Overlong()
    rounds: int = 1  # dynamic sampling: draws at most until all groups are mixed
    noise: Noise = Noise()
    guide: Guide = Guide()
    replay_groups: Replay = Replay()
    kl_reward: Penalty = Penalty()
    kl_target: float = 0.0  # nats per token; adapts loss.kl_weight; 0: fixed weight
    kl_rule: str = "ppo"  # 'ppo' or 'proportional'
    entropy_target: float = 0.0  # nats per token; adapts loss.entropy_weight; 0: fixed
    entropy_change: float = 0.005  # of that weight per step
    slots: int = 0  # completions decoded side by side at a time; 0: all of them
    gather: bool = True  # weights lie whole on each data shard while they sample
    lag: int = 0  # 1: rollouts are drawn one update ahead of the one they are used in
    ema: float = 0.0  # decay of the averaged parameters, which are evaluated; 0: none
    freeze: tuple[str, ...] = ()  # prefixes of parameters that take no gradient


_PARTS = {
    "judging": Judging,
    "constraint": Constraint,
    "ranking": Ranking,
    "overlong": Overlong,
    "noise": Noise,
    "guide": Guide,
    "replay_groups": Replay,
    "kl_reward": Penalty,
}
DEFAULTS = Recipe._field_defaults
REQUIRED = tuple(f for f in Recipe._fields if f not in DEFAULTS)


def make(*, field: str = "config", **settings) -> Recipe:
    """A Recipe of plain settings, as a config gives them.

    Args:
      field: how the whole is called in messages.

    Raises:
      UserError: a field that a recipe does not have, or lacks.
    """
    made = {}
    for name, value in settings.items():
        kind = _PARTS.get(name)
        _known(field, name, Recipe._fields)
        if kind is not None and isinstance(value, Mapping):
            for part in value:
                _known(f"{field}.{name}", part, kind._fields)
            value = kind(**value)
        made[name] = value
    if missing := [name for name in REQUIRED if name not in made]:
        raise UserError(f"{field}.{missing[0]}: missing")
    return Recipe(**made)


def _known(field: str, name: str, known) -> None:
    if name not in known:
        raise UserError(f"{field}.{name}: unknown; known: {', '.join(known)}")
