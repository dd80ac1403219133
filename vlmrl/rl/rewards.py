"""Rewards: pure functions of what one completion says, on the host.

Every reward has the signature `(parsed, answer, verdict) -> Reward`:

  parsed   what the parser (`prompts.parse`) read from the assistant's turn: `option` is
           the option inside <answer>, -1 if none; `strict` says whether the exact
           <think>…</think><answer>…</answer> format holds
  answer   index of the right option
  verdict  what a judge said of think against answer: 'consistent', 'inconsistent',
           'undecided' (no conclusion, truncated, judge unsure), 'not_applicable';
           None where no judge was asked

Rewards read nothing but the parser's fields: an answer that stands only in the think,
or an example of the format copied from the prompt, is the parser's matter and decided
there once, for training and evaluation alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vlmrl.prompts import Parsed
from vlmrl.types import Mean, UserError

VERDICTS = ("consistent", "inconsistent", "undecided", "not_applicable")


class Reward(NamedTuple):
    """A reward and its parts, each 0 or 1, for the log."""

    total: float
    format: float
    correct: float
    consistent: float | None  # None: no judge was asked, or the verdict is n/a


def format_reward(parsed: Parsed) -> float:
    """1 if the completion is exactly <think>…</think><answer>…</answer>, else 0."""
    return float(parsed.strict)


def accuracy_reward(parsed: Parsed, answer: int) -> float:
    """1 if the option read from <answer> is the right one, else 0.

    Raises:
      UserError: `answer` is not an option's index: -1 would otherwise be "right" for
        every completion without an answer.
    """
    if answer < 0:
        raise UserError(f"answer: got {answer}, want the index of the right option")
    return float(parsed.option == answer)


def grpo_reward(parsed: Parsed, answer: int, verdict: str | None = None) -> Reward:
    """The paper's reward: R = 0.1 · format + 1.0 · correct, in [0, 1.1].

    https://arxiv.org/abs/2602.12506. A verdict is only passed on to the log.
    """
    form, correct = format_reward(parsed), accuracy_reward(parsed, answer)
    return Reward(0.1 * form + 1.0 * correct, form, correct, _consistent(verdict))


def gated_reward(parsed: Parsed, answer: int, verdict: str | None) -> Reward:
    """The paper's faithfulness reward: R · [think ≡ answer], in [0, 1.1].

    https://arxiv.org/abs/2602.12506. Undecided counts as not consistent, so writing no
    conclusion earns nothing. Where the verdict is not applicable the condition asked
    for no thinking (stop_think, no_cot), there is nothing to be faithful to, and R is
    paid in full. 'not_applicable' must therefore follow from the condition alone, never
    from what the model wrote: an empty think would open the gate. As it is the same
    for a whole prompt, it never makes two completions of one group differ.

    Raises:
      UserError: the verdict is missing or unknown.
    """
    base = grpo_reward(parsed, answer, _judged(verdict, "gated"))
    gate = 1.0 if base.consistent is None else base.consistent
    return base._replace(total=base.total * gate)


def additive_reward(
    parsed: Parsed, answer: int, verdict: str | None, *, weight: float = 0.5
) -> Reward:
    """R + weight · [think ≡ answer], in [0, 1.1 + weight].

    Unlike the gate it also pays for a wrong answer that the think supports, and pays
    for the right answer that it does not: the two aims are traded, not required
    together. The weight is this project's choice: below 1, so that a right answer is
    always worth more than agreement. Undecided earns nothing; where the verdict is not
    applicable nothing is added, for the whole group alike.

    Raises:
      UserError: the verdict is missing or unknown.
    """
    base = grpo_reward(parsed, answer, _judged(verdict, "additive"))
    return base._replace(total=base.total + weight * (base.consistent or 0.0))


REWARDS = {"grpo": grpo_reward, "gated": gated_reward, "additive": additive_reward}
JUDGED = frozenset({"gated", "additive"})  # those that need a judge's verdict


def parts(rewards: Iterable[Reward]) -> dict[str, Mean]:
    """Sums and counts of every part, for the log; parts that are None don't count."""
    rewards = list(rewards)
    columns = {name: [getattr(r, name) for r in rewards] for name in Reward._fields}
    known = {k: [v for v in column if v is not None] for k, column in columns.items()}
    return {k: Mean(float(sum(column)), len(column)) for k, column in known.items()}


def _consistent(verdict: str | None) -> float | None:
    if verdict is not None and verdict not in VERDICTS:
        names = ", ".join(VERDICTS)
        raise UserError(f"verdict: got {verdict!r}, want one of {names}")
    if verdict in (None, "not_applicable"):
        return None
    return float(verdict == "consistent")


def _judged(verdict: str | None, reward: str) -> str:
    if verdict is None:
        raise UserError(f"verdict: reward {reward!r} needs a judge, and none was asked")
    return verdict
