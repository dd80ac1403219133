"""A recipe as nested records: every choice of the training loop and its default.

This is the one place of these defaults. Config files start from `as_dict()`, `--help`
shows the comments here, and `make` reads a config's fields back. Each switch is off at
its default. Where a field names a function of ours, `path/to/file.py:name` names a
user's own (`user_code.py`). This module imports neither JAX nor a config library.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vlmrl.types import UserError


class SamplingOptions(NamedTuple):
    """How completions are sampled."""

    group_size: int = 8  # G completions per prompt
    max_tokens: int = 512  # of a completion
    temperature: float = 1.0  # sampled and scored at
    off_policy_steps: int = 0  # 1: sample one update before the one that learns from it
    resampling_rounds: int = 1  # dynamic sampling: at most, until all groups are mixed
    gather_params: bool = True  # gather over fsdp once, before the first token


class NoiseOptions(NamedTuple):
    """A share of every group is sampled from a distorted image and learned as if from
    the clean one. NoisyRollout: https://arxiv.org/abs/2504.13055"""

    share: float = 0.0  # of every group, sampled from a distorted image; 0: none
    distortion: str = "noisy"  # data/distort.py: DISTORTIONS, or path/to/file.py:name
    sigma: float = 0.25  # of 'noisy', as a share of the range of values
    anneal: int = 0  # steps until 'noisy' has faded linearly; 0: never


class DistillationOptions(NamedTuple):
    """A share of every group is sampled without the caption and the open chain of
    thought of its prompt, and learned as if written after them. Context distillation,
    inside a group: https://arxiv.org/abs/2112.00861; off-policy members of a group:
    LUFFY, https://arxiv.org/abs/2504.14945"""

    share: float = 0.0  # of every group, sampled without the misleading text; 0: none


class VerdictOptions(NamedTuple):
    """Who gives verdicts, and how a judge by name is asked. It works beside the
    sampling and can't stall a step beyond `seconds`."""

    name: Any = "rule"  # 'rule', 'blind', 'shuffle', judges/named.py, a file; '': no
    url: str = ""  # base URL of an http judge, as http://127.0.0.1:8000/v1
    key_env: str = ""  # environment variable that holds its key
    insecure: bool = False  # allow plain http to another machine
    concurrency: int = 16  # requests in flight
    attempts: int = 3  # per request
    max_tokens: int = 2048  # of a reply
    budget_tokens: int = 0  # that a seed may spend; 0: no limit
    seconds: float = 60.0  # that a step waits at most, then: undecided; 0: no limit
    parts: int = 1  # of a step's prompts, each judged while the next is sampled


class RewardOptions(NamedTuple):
    """What a completion is rewarded for."""

    name: Any = "grpo"  # rl/rewards.py: REWARDS, path/to/file.py:name, or a function
    options: Mapping[str, float] = {}  # keyword arguments of that function
    shaping: Mapping[str, float] = {}  # rl/completion_terms.py: TERMS, or file → weight
    measure_options: bool = False  # P(option) after the CoT, as `completion.options`
    min_evidence: int = 12  # distinct words for the full term 'evidence'
    min_length: int = 8  # tokens; the term 'length' rewards [min_length, max_length]
    max_length: int = 64  # tokens


class OverlongOptions(NamedTuple):
    """What happens to completions that (nearly) ran out of length. DAPO:
    https://arxiv.org/abs/2503.14476"""

    limit: int = 0  # tokens at which the soft penalty is full; 0: no penalty
    buffer: int = 0  # tokens over which it grows
    weight: float = 1.0  # of the penalty
    filter: bool = False  # leave completions that were cut off out of loss and group


class KLPenaltyOptions(NamedTuple):
    """KL to the starting policy in the reward (`losses.penalised`, `losses.to_go`)."""

    weight: float = 0.0  # per nat; 0: none
    estimator: str = "k1"  # 'k1', 'k2' or 'k3'
    to_go: bool = False  # token by token, in the advantage (REINFORCE++)


class AdvantageOptions(NamedTuple):
    """How rewards of a group become advantages."""

    name: str = "grpo"  # rl/advantages.py: ADVANTAGES, DECOUPLED, or a file's
    weights: tuple[float, float] = (1.0, 1.0)  # of task and consistency, if decoupled
    warmup: int = 0  # steps over which consistency's weight grows from 0; 0: at once


class RankingOptions(NamedTuple):
    """A zero-sum bonus among the right completions of a group (`advantages.ranked`)."""

    by: str = "p_correct"  # a term, rl/completion_terms.py: TERMS, or a file's
    weight: float = 0.0  # reward at stake; 0: none


class ConstraintOptions(NamedTuple):
    """E[consistent] ≥ threshold as a Lagrange term (`controllers.dual_ascent`). Its
    multiplier λ prices consistency in reward 'lagrangian', or weighs it in a decoupled
    advantage."""

    threshold: float = 0.0  # τ; 0: no constraint
    rate: float = 0.1  # λ per step and unit of violation
    max: float = 10.0  # upper bound of λ
    init: float = 0.0  # λ before the first step


class ReplayOptions(NamedTuple):
    """Past groups with non-zero advantages replace groups without one (`replay.py`).
    VL-Rethinker: https://arxiv.org/abs/2504.08837"""

    capacity: int = 0  # groups in the buffer; 0: no replay
    power: float = 1.0  # drawn in proportion to (mean |advantage|)^power


class AdaptiveKLOptions(NamedTuple):
    """A controller of loss.kl_weight (`controllers.ppo_kl`)."""

    target: float = 0.0  # nats per token; 0: the weight stays
    rule: str = "ppo"  # 'ppo' or 'proportional'


class AdaptiveEntropyOptions(NamedTuple):
    """A controller of loss.entropy_weight (`controllers.entropy_target`)."""

    target: float = 0.0  # nats per token; 0: the weight stays
    change: float = 0.005  # of the weight, per step


class LearnerOptions(NamedTuple):
    """How the gradient of a batch is computed, and what is averaged."""

    microbatches: int = 1  # parts of a batch whose gradients are summed
    token_budget: int = 0  # or: tokens of a part at most; 0: as `microbatches`
    unroll: bool = False  # layers in a Python loop instead of a scan
    remat: str = ""  # 'nothing_saveable': recompute layers for their gradients; '': no
    float32_residual: bool = True  # the residual stream in float32 while scoring
    ema: float = 0.0  # decay of averaged parameters, evaluated and exported; 0: none


class OptimizerOptions(NamedTuple):
    """AdamW (or Muon) after clipping by global norm, and its learning rate."""

    peak: float = 1e-6  # learning rate after warm-up
    warmup: int = 0  # steps of linear warm-up
    decay: str = "constant"  # 'constant', 'cosine' or 'linear'
    horizon: int = 0  # steps that the decay is for; 0: those of the run
    weight_decay: float = 0.0  # of matrices and embeddings
    clip: float = 1.0  # global gradient norm
    b1: float = 0.9  # decay of Adam's first moment
    b2: float = 0.99  # decay of Adam's second moment
    muon: float = 0.0  # rate of matrices by Muon, in peaks; 0: AdamW
    embed: float = 1.0  # rate of the embedding, in peaks
    offload: bool = False  # moments in the hosts' memory
    freeze: tuple[str, ...] = ()  # prefixes of parameters that take no gradient


class Recipe(NamedTuple):
    sampling: SamplingOptions = SamplingOptions()
    noise: NoiseOptions = NoiseOptions()
    distillation: DistillationOptions = DistillationOptions()
    mix: Mapping[str, float] = {}  # augmentation: share of prompts per condition
    judge: VerdictOptions = VerdictOptions()
    reward: RewardOptions = RewardOptions()
    overlong: OverlongOptions = OverlongOptions()
    kl_penalty: KLPenaltyOptions = KLPenaltyOptions()
    advantage: AdvantageOptions = AdvantageOptions()
    ranking: RankingOptions = RankingOptions()
    constraint: ConstraintOptions = ConstraintOptions()
    replay: ReplayOptions = ReplayOptions()
    loss: Mapping[str, Any] = {}  # arguments of `losses.policy_objective`
    adaptive_kl: AdaptiveKLOptions = AdaptiveKLOptions()
    adaptive_entropy: AdaptiveEntropyOptions = AdaptiveEntropyOptions()
    learner: LearnerOptions = LearnerOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    slots: int = 0  # completions decoded side by side, on one data shard; 0: all


SECTIONS: dict[str, Callable] = {
    name: type(default)
    for name, default in Recipe._field_defaults.items()
    if hasattr(default, "_fields")
}

# Names of fields in configs of earlier versions → their names now.
RENAMED = {
    "group_size": "sampling.group_size",
    "max_tokens": "sampling.max_tokens",
    "temperature": "sampling.temperature",
    "lag": "sampling.off_policy_steps",
    "rounds": "sampling.resampling_rounds",
    "gather": "sampling.gather_params",
    "guide": "distillation",
    "guide.share": "distillation.share",
    "judge": "judge.name",
    "judging": "judge",
    **{f"judging.{f}": f"judge.{f}" for f in VerdictOptions._fields if f != "name"},
    "reward": "reward.name",
    "reward_options": "reward.options",
    "shaping": "reward.shaping",
    "least_evidence": "reward.min_evidence",
    "shortest": "reward.min_length",
    "longest": "reward.max_length",
    "kl_reward": "kl_penalty",
    **{f"kl_reward.{f}": f"kl_penalty.{f}" for f in KLPenaltyOptions._fields},
    "advantage": "advantage.name",
    "weights": "advantage.weights",
    "ramp": "advantage.warmup",
    "constraint.most": "constraint.max",
    "constraint.start": "constraint.init",
    "replay_groups": "replay",
    **{f"replay_groups.{f}": f"replay.{f}" for f in ReplayOptions._fields},
    "kl_target": "adaptive_kl.target",
    "kl_rule": "adaptive_kl.rule",
    "entropy_target": "adaptive_entropy.target",
    "entropy_change": "adaptive_entropy.change",
    "microbatches": "learner.microbatches",
    "token_budget": "learner.token_budget",
    "unroll": "learner.unroll",
    "remat": "learner.remat",
    "wide": "learner.float32_residual",
    "ema": "learner.ema",
}


# Fields of earlier versions that are gone → where their choice is made now.
REMOVED = {
    "verifier": "the data say how an answer is compared (`kind` of each item)",
}


def make(*, field: str = "config", **settings) -> Recipe:
    """Return the Recipe of plain settings, as a config gives them: sections as mappings
    or records, or single fields by dotted name.

    >>> make(mix={}, **{"sampling.group_size": 4}).sampling.group_size
    4

    Args:
      field: name of the whole in messages.

    Raises:
      UserError: a field that a recipe doesn't have, by an earlier name or a typo.
    """
    recipe = Recipe()
    for name, value in settings.items():
        section, _, inner = name.partition(".")
        kind = SECTIONS.get(section)
        if kind is None or (not inner and isinstance(value, kind)):
            _known(field, name, Recipe._fields)
            recipe = recipe._replace(**{name: value})
            continue
        if not inner and not isinstance(value, Mapping):
            known = ", ".join(kind._fields)
            hint = f"; it is {field}.{RENAMED[name]} now" if name in RENAMED else ""
            raise UserError(
                f"{field}.{name}: expected a section of fields ({known}), got "
                f"{value!r}{hint}"
            )
        fields = {inner: value} if inner else value
        for part in fields:
            _known(f"{field}.{section}", part, kind._fields, f"{section}.{part}")
        old = getattr(recipe, section)
        recipe = recipe._replace(**{section: old._replace(**fields)})
    return recipe


def get(recipe: Recipe, name: str) -> Any:
    """Return a field by dotted name.

    >>> get(Recipe(), "sampling.group_size")
    8
    """
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def as_dict(recipe: Recipe | None = None) -> dict[str, Any]:
    """Return a recipe (by default one of defaults) as nested dicts, as `make` reads."""
    recipe = recipe or Recipe()
    return {
        name: dict(value._asdict()) if hasattr(value, "_fields") else value
        for name, value in recipe._asdict().items()
    }


def comments() -> dict[str, str]:
    """Return the comment of every field by dotted name, for help texts."""
    out = {}
    for prefix, kind in [("", Recipe), *((f"{n}.", k) for n, k in SECTIONS.items())]:
        for line in inspect.getsource(kind).splitlines():
            if match := re.match(r"    (\w+): .*?  # (.*)", line):
                out[prefix + match[1]] = match[2]
    return out


def _known(field: str, name: str, known, dotted: str = "") -> None:
    if name in known:
        return
    if (dotted or name) in RENAMED:
        top = field.removesuffix("." + dotted.partition(".")[0]) if dotted else field
        raise UserError(f"{field}.{name}: it is {top}.{RENAMED[dotted or name]} now")
    if (dotted or name) in REMOVED:
        raise UserError(f"{field}.{name}: gone; {REMOVED[dotted or name]}")
    raise UserError(f"{field}.{name}: unknown; known: {', '.join(known)}")
