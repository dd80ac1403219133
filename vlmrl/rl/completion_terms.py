"""Measured terms of a completion, by name: shaping terms and scores to rank by.

A term is one number per completion that a recipe may add to the reward (`shaping`) or
rank right completions by (`ranking`). The statistics of the batch's chains of thought
are logged whatever the recipe rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vlmrl import user_code
from vlmrl.rl import cot_statistics, rewards
from vlmrl.rl.recipe import RewardOptions
from vlmrl.types import Array, Completion, Mean, Prompt

Term = Callable[[Completion], float]


def _confidence(completion: Completion, options: RewardOptions) -> float:
    """Return `rewards.confidence_reward` of the given answer, less the accuracy that
    the reward has already: −(p − correct)²; 0 where there is no answer."""
    option = completion.parsed.option
    if option < 0 or completion.options is None:
        return 0.0
    correct = float(completion.correct)
    probability = float(completion.options[option])
    return rewards.confidence_reward(correct, probability) - correct


def _p_correct(completion: Completion, options: RewardOptions) -> float:
    if completion.options is None:
        return 0.0
    return float(completion.options[completion.example.answer])


# By name in `shaping` and `ranking`, functions of a completion and of the recipe's
# numbers; those in LETTERED need a probe (`cot_probe`).
TERMS: dict[str, Callable[[Completion, RewardOptions], float]] = {
    "evidence": lambda c, o: cot_statistics.evidence_reward(c.think, o.min_evidence),
    "length": lambda c, o: rewards.length_reward(c.tokens, o.min_length, o.max_length),
    "repetition": lambda c, o: rewards.repetition_penalty(
        cot_statistics.distinct(c.think)
    ),
    "copied": lambda c, o: -cot_statistics.copied(c.think, c.prompt),
    "confidence": _confidence,
    "p_correct": _p_correct,
}
LETTERED = ("confidence", "p_correct")


def term_of(name: str, options: RewardOptions, field: str = "shaping") -> Term:
    """Return the term of a name in TERMS; `path/to/file.py:name` names a user's own, a
    function of a completion.

    Raises:
      UserError: an unknown name, a file without the function, or one that does not take
        a completion.
    """
    function = user_code.lookup(name, TERMS, field, ("completion",))
    if not user_code.is_own(name):
        return lambda completion: function(completion, options)

    def term(completion: Completion) -> float:
        about = f"example {completion.example.id!r}"
        value = user_code.call(function, completion, about=about)
        return user_code.number(value, function, about)

    return term


def terms(
    names: Sequence[str], completion: Completion, options: RewardOptions
) -> dict[str, float]:
    """Return the terms of a completion, by short name."""
    return {user_code.short(name): term_of(name, options)(completion) for name in names}


def statistics(
    thinks: Sequence[str], prompts: Sequence[Prompt]
) -> dict[str, Mean | dict]:
    """Return statistics of a batch's chains of thought (`cot_statistics`).

    Args:
      thinks: one per completion, '' if none, in branch order.
      prompts: one per group.
    """
    each = len(thinks) // len(prompts)
    items = [prompts[i // each] for i in range(len(thinks))]

    def share(values):
        return Mean(float(sum(values)), len(thinks))

    return {
        "evidence": share(cot_statistics.evidence(t) for t in thinks),
        "template": cot_statistics.template_rate(
            thinks, [p.example.options for p in items], [p.example.id for p in items]
        ),
        "distinct_2": cot_statistics.distinct_n(thinks, 2),
        "repeated_3": share(1 - cot_statistics.distinct(t) for t in thinks),
        "copied": share(
            cot_statistics.copied(t, p.text) for t, p in zip(thinks, items, strict=True)
        ),
        "no_think": share(not t.strip() for t in thinks),
    }


def parts_of(
    sizes: Sequence[Sequence[int]], texts: Sequence[str], length: int
) -> tuple[Array, Array]:
    """Return which sampled tokens are of the chain of thought, and which of the answer.

    A token is of the CoT if it begins before </think> does and after <think> ended
    (where the completion has one), and of the answer if it begins after </think>.

    Args:
      sizes: bytes of every sampled token, per completion.
      texts: what they decode to.
      length: T.

    Returns:
      bool[B,T], bool[B,T].
    """
    think = np.zeros((len(texts), length), bool)
    answer = np.zeros((len(texts), length), bool)
    for i, (row, text) in enumerate(zip(sizes, texts, strict=True)):
        begins = np.cumsum([0, *row])[:-1]
        raw = text.encode()
        opened, close = raw.find(b"<think>"), raw.find(b"</think>")
        start = opened + len(b"<think>") if opened >= 0 else 0
        stop = close if close >= 0 else len(raw)
        think[i, : len(row)] = (begins >= start) & (begins < stop)
        answer[i, : len(row)] = (close >= 0) & (begins >= close + len(b"</think>"))
    return think, answer
