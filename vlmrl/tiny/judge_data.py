"""SFT data of the tiny judge: reasoning whose conclusion is known, and a reply.

An example is an item with the conclusion of its reasoning, from `judges.synthetic` or,
for a share, in the words of the tiny model's reasoning about scenes. The reply's first
word is the one that `judges.model` reads: Yes, No, or None where nothing is concluded.
After Yes and No comes the letter of the conclusion, which nothing reads: it
teaches the model to look for it.
"""

from __future__ import annotations

import functools
from string import ascii_uppercase as LETTERS

import numpy as np

from vlmrl.data import scenes
from vlmrl.data.drawing import make_scene
from vlmrl.judges import model, prompt, synthetic
from vlmrl.judges.judge import JudgeItem
from vlmrl.judges.synthetic import Trace
from vlmrl.prompts import tokens

REPLIES = {"consistent": "Yes", "inconsistent": "No", "undecided": "None"}
BLOCK = 8  # steps that are drawn together, so that a batch has rows of about a length


def batch(processor, buckets, *, seed, step, groups, mix):
    """Return (Group, loss mask) number `step` of the stream `seed`: a pure function.

    `mix` holds shares of the kinds of `synthetic.trace`, and of 'scenes'.
    """
    block, part = divmod(step, BLOCK)
    drawn = _block(seed, block, groups, tuple(mix.items()))
    part = np.random.default_rng([seed, block]).permutation(BLOCK)[part]
    write = model.writer(processor.tokenizer, prompt.load(), True)
    rows = []
    for trace in drawn[part * groups : (part + 1) * groups]:
        row = tokens.encode(processor, (write(trace.item), ()), name=trace.item.id)
        rows.append([(row, reply(trace))])
    return tokens.completion_rows(processor, rows, buckets)


@functools.lru_cache(2)
def _block(seed: int, block: int, groups: int, mix: tuple) -> list[Trace]:
    """Return the examples of BLOCK steps, short ones first."""
    first = block * groups * BLOCK
    numbers = range(first, first + groups * BLOCK)
    drawn = [judge_example(seed, number, dict(mix)) for number in numbers]
    return sorted(drawn, key=lambda t: len(t.item.think))


def judge_example(seed: int, number: int, mix: dict[str, float]) -> Trace:
    """Return example `number` of a seed."""
    kinds = {kind: share for kind, share in mix.items() if kind != "scenes"}
    rng = np.random.default_rng([seed, number, 1])
    if rng.random() < mix.get("scenes", 0) / sum(mix.values()):
        return _of_scene(seed, number, rng)
    return synthetic.trace(seed, number, kinds)


def reply(trace: Trace) -> str:
    if trace.conclusion < 0:
        return REPLIES[trace.label]
    return f"{REPLIES[trace.label]} {LETTERS[trace.conclusion]}"


def _of_scene(seed: int, number: int, rng) -> Trace:
    """Write a CoT about a scene that concludes an option drawn at random, or nothing.

    It may go on after "but I think", as the tiny model does after a prefilled
    conclusion, contradict itself, or be cut.
    """
    (example,) = scenes.questions(make_scene("train", seed * 10**6 + number), rng, 1)
    options = example.options
    goal, other = map(int, rng.choice(len(options), size=2, replace=False))
    *looks, state, _ = [s + "." for s in example.trace.rstrip(".").split(". ")]
    if rng.random() < 0.7:  # else the right one's, whatever is concluded
        state = example.thinks[goal].split(". ")[0] + "."
    before = [*looks[int(rng.integers(len(looks) + 1)) :], state]
    before = before if rng.random() < 0.8 else []
    end = scenes.conclusion(options, goal, rng.random() < 0.5)
    kind = rng.choice(["ends", "but", "clash", "cut"], p=[0.52, 0.3, 0.1, 0.08])
    conclusion = goal
    if kind == "but":
        joint = " but I think" + (" " if rng.random() < 0.5 else "")
        further = looks[: int(rng.integers(len(looks) + 1))]
        conclusion = -1
        if rng.random() < 0.4:
            further.append(scenes.conclusion(options, other, rng.random() < 0.5))
            conclusion = other
        end = end.rstrip(".") + joint + " ".join(further)
    elif kind == "clash":
        end, conclusion = f"So it is {options[goal]}, answer {LETTERS[other]}.", -1
    elif kind == "cut":
        end, conclusion = " ".join(end.split()[: int(rng.integers(1, 4))]), -1
    answered = other if kind == "clash" and rng.random() < 0.7 else goal
    if conclusion >= 0:
        others = [k for k in range(len(options)) if k != conclusion]
        answered = conclusion if rng.random() < 0.5 else int(rng.choice(others))
    think = " ".join([*before, end]).strip()
    item = JudgeItem(f"{seed}-{number}", example.question, options, think, answered)
    return Trace(item, conclusion, "scenes")
