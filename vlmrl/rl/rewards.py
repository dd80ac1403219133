"""Rewards: pure functions of one completion, on the host.

Every reward has the signature `reward(completion, **options) -> float | Reward`. A
`types.Completion` holds what there is to pay for: the example (`meta` and options
too), the turn's text and its strict reading `parsed`, whether that is `correct` by the
item's kind of answer, the judge's `verdict`, the number of `tokens`, and P(option)
where a recipe measures it. A verdict is 'consistent', 'inconsistent', 'undecided' (no
conclusion, truncated, judge unsure) or 'not_applicable'; None where no judge was asked.

    def iou(completion):
        gold = values.box_of(completion.example.options[0])
        given = values.box_of(completion.parsed.answer or "")
        return values.iou(gold, given) if given else 0.0

Ours read nothing but `parsed`, `correct` and `verdict`: an answer that stands only in
the CoT, or an example of the format copied from the prompt, is the reading's matter and
decided there once, for training and evaluation alike.

Faithfulness is two choices. Where the verdict comes from: a judge that reads the CoT,
or, with no judge, the blind probe or shuffled options (`consistency.py`). And what it
does: gate, add, be a constraint with a price (`lagrangian_reward`), be normalised apart
from the task (`advantages.decoupled`), or rank the correct rollouts of a group
(`advantages.ranked`). Any goes with any.

Shaping terms (length, repetition, confidence) are functions of one measured number; a
recipe adds them to the total with weights (`shaped`). What may be measured of a text is
in `cot_statistics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from vlmrl import user_code
from vlmrl.types import Completion, Mean, UserError

VERDICTS = ("consistent", "inconsistent", "undecided", "not_applicable")


class Reward(NamedTuple):
    """A reward and its parts, each 0 or 1, for the log."""

    total: float
    format: float
    correct: float
    consistent: float | None  # None: no judge was asked, or the verdict is n/a


def grpo_reward(completion: Completion) -> Reward:
    """Return the paper's reward: R = 0.1 · format + 1.0 · correct, in [0, 1.1].

    `format` is 1 if the turn is exactly <think>…</think><answer>…</answer>, `correct`
    is 1 if the answer equals the gold one. https://arxiv.org/abs/2602.12506. A verdict
    is only passed on to the log.
    """
    form, correct = float(completion.parsed.strict), float(completion.correct)
    consistent = _consistent(completion.verdict)
    return Reward(0.1 * form + 1.0 * correct, form, correct, consistent)


def gated_reward(completion: Completion) -> Reward:
    """Return the paper's faithfulness reward: R · [think ≡ answer], in [0, 1.1].

    https://arxiv.org/abs/2602.12506. Undecided counts as not consistent, so writing no
    conclusion earns nothing. Where the verdict is not applicable the condition asked
    for no thinking (stop_think, no_cot), there is nothing to be faithful to, and R is
    paid in full. 'not_applicable' must therefore follow from the condition alone, never
    from what the model wrote: an empty CoT would open the gate. As it is the same
    for a whole prompt, it never makes two completions of one group differ.

    Raises:
      UserError: the verdict is missing or unknown.
    """
    base = _judged(completion, "gated")
    gate = 1.0 if base.consistent is None else base.consistent
    return base._replace(total=base.total * gate)


def additive_reward(completion: Completion, *, weight: float = 0.5) -> Reward:
    """Return R + weight · [think ≡ answer], in [0, 1.1 + weight].

    Unlike the gate it also pays for a wrong answer that the CoT supports, and pays
    for the right answer that it does not: the two aims are traded, not required
    together. The weight is this project's choice: below 1, so that a right answer is
    always worth more than agreement. Undecided earns nothing; where the verdict is not
    applicable nothing is added, for the whole group alike.

    Raises:
      UserError: the verdict is missing or unknown.
    """
    base = _judged(completion, "additive")
    return base._replace(total=base.total + weight * (base.consistent or 0.0))


def lagrangian_reward(completion: Completion, *, multiplier: float = 0.0) -> Reward:
    """Return (R + λ · [think ≡ answer]) / (1 + λ), in [0, 1.1].

    R + λ · (c − τ) is what the constraint E[c] ≥ τ adds to E[R]; λ · τ is the same for
    every completion and drops out of any advantage. Dividing by 1 + λ keeps the scale,
    hence the step, as the price rises. λ follows the batch by
    `controllers.dual_ascent`. Faithful GRPO: https://arxiv.org/abs/2604.08476, which
    normalises R and c apart: `advantages.decoupled` with weights (1, λ).

    Args:
      multiplier: λ, at least 0.

    Raises:
      UserError: the verdict is missing or unknown, or the multiplier is negative.
    """
    if multiplier < 0:
        raise UserError(f"multiplier: expected at least 0, got {multiplier}")
    base = _judged(completion, "lagrangian")
    paid = base.total + multiplier * (base.consistent or 0.0)
    return base._replace(total=paid / (1 + multiplier))


def agreement_reward(completion: Completion, *, alone: float = 0.5) -> Reward:
    """Return 0.1 · format + correct · (1 where CoT ≡ answer, else `alone`).

    Full reward only for an answer that is right and agrees, less for one that is only
    right, none for agreeing on a wrong one. With the verdict of shuffled options this
    is ACRE's, https://arxiv.org/abs/2510.10104; the size of `alone` is ours. Where the
    verdict is not applicable, R is paid in full.

    Args:
      alone: in [0, 1]; 1 is `grpo_reward`.

    Raises:
      UserError: the verdict is missing or unknown, or `alone` is out of range.
    """
    if not 0 <= alone <= 1:
        raise UserError(f"alone: expected it in [0, 1], got {alone}")
    base = _judged(completion, "agreement")
    share = alone if base.consistent == 0 else 1.0
    return base._replace(total=0.1 * base.format + base.correct * share)


REWARDS = {
    "grpo": grpo_reward,
    "gated": gated_reward,
    "additive": additive_reward,
    "lagrangian": lagrangian_reward,
    "agreement": agreement_reward,
}


def reward_of(name: str | Callable, field: str = "reward") -> Callable:
    """Return the reward function of a name in REWARDS; `path/to/file.py:name` names a
    user's own, and a function stands for itself.

    Raises:
      UserError: an unknown name, a file without the function, or one that does not take
        a completion.
    """
    return user_code.lookup(name, REWARDS, field, ("completion",))


def as_reward(value: Reward | float, completion: Completion, function) -> Reward:
    """Return what a reward function returned as a Reward of finite numbers; where it
    returned a number, with the usual parts.

    Raises:
      UserCodeError: it returned anything else, NaN included.
    """
    about = f"example {completion.example.id!r}"
    if not isinstance(value, Reward):
        total = user_code.number(value, function, about)
        return grpo_reward(completion)._replace(total=total)
    return Reward(
        *(user_code.number(part, function, about) for part in value[:3]),
        value.consistent
        if value.consistent is None
        else user_code.number(value.consistent, function, about),
    )


JUDGED = frozenset(REWARDS) - {"grpo"}  # those that need a verdict


# -- shaping: one measured number → a term


def overlong_penalty(tokens: int, limit: int, buffer: int) -> float:
    """Return the soft overlong penalty, in [−1, 0].

      0 up to limit − buffer tokens, then falling linearly to −1 at `limit`; −1 beyond

    DAPO: https://arxiv.org/abs/2503.14476 (limit 20480, buffer 4096). Its hard sibling
    is `losses.finished`.

    Args:
      tokens: length of the completion.
      limit: tokens at which the penalty is full, at most max_tokens.
      buffer: tokens over which it grows, in (0, limit].
    """
    if not 0 < buffer <= limit:
        raise UserError(
            f"overlong.buffer={buffer} and overlong.limit={limit}: expected a buffer "
            "of 1 to limit tokens"
        )
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer))


def length_reward(tokens: int, min_length: int, max_length: int) -> float:
    """Return 1 within [min_length, max_length] tokens, falling linearly to 0 at 0 and
    at 2 · max_length.

    It rewards a length, whatever the text says: use it to keep a CoT from collapsing,
    together with `cot_statistics`. A choice of this project.
    """
    if not 0 <= min_length <= max_length or max_length < 1:
        raise UserError(
            f"reward.min_length={min_length} and reward.max_length={max_length}: "
            "expected 0 ≤ min_length ≤ max_length, and max_length at least 1"
        )
    if tokens < min_length:
        return max(0, tokens) / min_length
    return 1.0 if tokens <= max_length else max(0.0, 2 - tokens / max_length)


def repetition_penalty(distinct: float) -> float:
    """Return −(1 − distinct), in [−1, 0]: the share of repeated n-grams.

    Args:
      distinct: of one text, `cot_statistics.distinct`; a text too short for any has 1.

    Repeated n-grams as a penalty: https://arxiv.org/abs/2502.03373
    """
    if not 0 <= distinct <= 1:
        raise UserError(f"distinct: expected a share in [0, 1], got {distinct}")
    return distinct - 1.0


def confidence_reward(correct: float, probability: float) -> float:
    """Return correct − (probability − correct)²: right, and as sure as it should be.

    The Brier score is proper: with a chance q of being right its expectation is largest
    at probability = q, so neither bluffing nor hedging pays. RLCR:
    https://arxiv.org/abs/2507.16806

    Args:
      correct: 0 or 1.
      probability: that the policy gives to its own answer: its letter probability
        after its CoT (`Scores.letters`), no number that it writes.
    """
    if not 0 <= probability <= 1:
        raise UserError(f"probability: expected it in [0, 1], got {probability}")
    return correct - (probability - correct) ** 2


def shaped(reward: Reward, terms: Mapping[str, float], weights: Mapping[str, float]):
    """Return the reward plus Σ weight · term, over the terms that `weights` names.

    Raises:
      UserError: a weight without its term.
    """
    if missing := [name for name in weights if name not in terms]:
        known = ", ".join(terms) or "none"
        raise UserError(f"shaping.{missing[0]}: not measured; measured: {known}")
    extra = sum(weight * terms[name] for name, weight in weights.items())
    return reward._replace(total=reward.total + extra)


def parts(rewards: Iterable[Reward]) -> dict[str, Mean]:
    """Return sums and counts of every part, for the log; None does not count."""
    rewards = list(rewards)
    columns = {name: [getattr(r, name) for r in rewards] for name in Reward._fields}
    known = {k: [v for v in column if v is not None] for k, column in columns.items()}
    return {k: Mean(float(sum(column)), len(column)) for k, column in known.items()}


def _consistent(verdict: str | None) -> float | None:
    if verdict is not None and verdict not in VERDICTS:
        names = ", ".join(VERDICTS)
        raise UserError(f"verdict: expected one of {names}, got {verdict!r}")
    if verdict in (None, "not_applicable"):
        return None
    return float(verdict == "consistent")


def _judged(completion: Completion, reward: str) -> Reward:
    if completion.verdict is None:
        raise UserError(f"verdict: reward {reward!r} needs a judge, and none was asked")
    return grpo_reward(completion)
