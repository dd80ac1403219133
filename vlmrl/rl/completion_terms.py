"""What is measured of a completion, by name: shaping terms, scores to rank by, guards.

A term is one number per completion that a recipe may add to the reward (`shaping`) or
rank right completions by (`ranking`). Guards are logged whatever the recipe pays for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.prompts.parsing import Parsed
from vlmrl.rl import cot_statistics, rewards
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Array, Mean, Prompt


class Seen(NamedTuple):
    """What a term may look at."""

    parsed: Parsed
    think: str  # '' if none
    prompt: Prompt
    tokens: int  # sampled
    letters: Array | None  # float[C] probabilities after the think; None: not asked for


def _confidence(seen: Seen, recipe: Recipe) -> float:
    """`rewards.confidence_reward` of the answer that was given, less the accuracy that
    the reward pays already: −(p − correct)²; 0 where nothing was answered."""
    option, answer = seen.parsed.option, seen.prompt.example.answer
    if option < 0 or seen.letters is None:
        return 0.0
    correct = float(option == answer)
    return rewards.confidence_reward(correct, float(seen.letters[option])) - correct


def _p_correct(seen: Seen, recipe: Recipe) -> float:
    if seen.letters is None:
        return 0.0
    return float(seen.letters[seen.prompt.example.answer])


# By name in `shaping` and `ranking`; those in LETTERED read the think back.
TERMS: dict[str, Callable[[Seen, Recipe], float]] = {
    "evidence": lambda s, r: cot_statistics.evidence_reward(s.think, r.least_evidence),
    "length": lambda s, r: rewards.length_reward(s.tokens, r.shortest, r.longest),
    "repetition": lambda s, r: rewards.repetition_penalty(
        cot_statistics.distinct(s.think)
    ),
    "copied": lambda s, r: -cot_statistics.copied(s.think, s.prompt.text),
    "confidence": _confidence,
    "p_correct": _p_correct,
}
LETTERED = ("confidence", "p_correct")


def terms(names: Sequence[str], seen: Seen, recipe: Recipe) -> dict[str, float]:
    return {name: TERMS[name](seen, recipe) for name in names}


def guard_metrics(
    thinks: Sequence[str], prompts: Sequence[Prompt]
) -> dict[str, Mean | dict]:
    """The guards of a batch: evidence, template rate, distinct-n, copied prompt.

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
    """Which sampled tokens are of the think, and which of the answer.

    A token is of the think if it begins before </think> does and after <think> ended
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
