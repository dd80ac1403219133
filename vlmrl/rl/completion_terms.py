"""Measured terms of a completion, by name: shaping terms and scores to rank by.

A term is one number per completion that a recipe may add to the reward (`shaping`) or
rank right completions by (`ranking`). The statistics of the batch's chains of thought
are logged whatever the recipe rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.rl import cot_statistics, rewards
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Array, Mean, Parsed, Prompt


class TermInputs(NamedTuple):
    """What a term is a function of."""

    parsed: Parsed
    think: str  # chain of thought, '' if none
    prompt: Prompt
    tokens: int  # sampled
    letters: Array | None  # float[C] P(option) after the CoT; None: not measured


def _confidence(inputs: TermInputs, recipe: Recipe) -> float:
    """Return `rewards.confidence_reward` of the given answer, less the accuracy that
    the reward has already: −(p − correct)²; 0 where there is no answer."""
    option, answer = inputs.parsed.option, inputs.prompt.example.answer
    if option < 0 or inputs.letters is None:
        return 0.0
    correct = float(option == answer)
    return rewards.confidence_reward(correct, float(inputs.letters[option])) - correct


def _p_correct(inputs: TermInputs, recipe: Recipe) -> float:
    if inputs.letters is None:
        return 0.0
    return float(inputs.letters[inputs.prompt.example.answer])


# By name in `shaping` and `ranking`; those in LETTERED need a probe (`cot_probe`).
TERMS: dict[str, Callable[[TermInputs, Recipe], float]] = {
    "evidence": lambda s, r: cot_statistics.evidence_reward(
        s.think, r.reward.min_evidence
    ),
    "length": lambda s, r: rewards.length_reward(
        s.tokens, r.reward.min_length, r.reward.max_length
    ),
    "repetition": lambda s, r: rewards.repetition_penalty(
        cot_statistics.distinct(s.think)
    ),
    "copied": lambda s, r: -cot_statistics.copied(s.think, s.prompt.text),
    "confidence": _confidence,
    "p_correct": _p_correct,
}
LETTERED = ("confidence", "p_correct")


def terms(names: Sequence[str], inputs: TermInputs, recipe: Recipe) -> dict[str, float]:
    return {name: TERMS[name](inputs, recipe) for name in names}


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
