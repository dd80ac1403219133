"""Supervised targets for the warm start on `scenes`.

A completion is `<think>` + text + `</think>\\n<answer>B</answer>`. The text is brief
(the conclusion alone) or careful (the reference CoT, a small step per sentence). As in
real data, some examples have a true caption or a true CoT already started, ask for the
answer at once or offer "I'm not sure"; nothing here misleads.
"""

from __future__ import annotations

import numpy as np

from vlmrl.data import scenes
from vlmrl.data.drawing import Scene
from vlmrl.types import Example

UNSURE = "I'm not sure"


def describe(scene: Scene) -> str:
    """Return sentences about every object in reading order, then which of an
    overlapping pair is in front."""
    objects = sorted(scene.objects, key=lambda o: (o.row, o.column))
    lines = [
        f"a {o.size} {o.colour} {o.shape} is in {scenes.row(o)} {scenes.column(o)}"
        for o in objects
    ]
    if scene.overlap:
        far, near = (scene.objects[i] for i in scene.overlap)
        lines.append(f"{scenes.name(near)} is in front of {scenes.name(far)}")
    return " ".join(map(scenes.sentence, lines))


def described(scene: Scene) -> tuple[Example, str]:
    """Return the auxiliary item 'Describe the picture.', without options, and its
    target."""
    example = scenes.picture(scene, "describe", "Describe the picture.")
    return example, describe(scene)


def located(scene: scenes.Scene, rng: np.random.Generator) -> tuple[Example, str]:
    """Return the auxiliary item 'Where is everything?': place or size of every object
    by its name, in random order, so that each sentence is a look at what was named
    first."""
    lines = []
    for i in rng.permutation(len(scene.objects)):
        o = scene.objects[i]
        row, column = scenes.row(o), scenes.column(o)
        fact = rng.choice(
            [f"in {row} {column}", f"in {row}", f"in {column}", o.size],
            p=[0.4, 0.15, 0.15, 0.3],
        )
        lines.append(f"{scenes.name(o)} is {fact}")
    if scene.overlap:
        far, near = (scene.objects[i] for i in scene.overlap)
        lines.append(f"{scenes.name(near)} is in front of {scenes.name(far)}")
    example = scenes.picture(scene, "locate", "Where is everything?")
    return example, " ".join(map(scenes.sentence, lines))


def drilled(example: Example, rng: np.random.Generator) -> tuple[Example, str]:
    """Return the auxiliary item that ties options to letters: the end of a CoT, four
    times, for options drawn with replacement, so that only a look-up gives the letter;
    a question asks for it but once. With the letter in the conclusion it is learnt
    first."""
    lines = []
    for i in rng.integers(len(example.options), size=4):
        by_letter = rng.random() < 0.5
        end = scenes.conclusion(example.options, i, by_letter)
        if not by_letter:
            end += f"</think>\n<answer>{chr(ord('A') + i)}</answer>"
        lines.append(end)
    return example, " ".join(lines)


WORDS = (
    "left right above below red green blue yellow purple black circle square triangle "
    "star cross small large one two three four five row column front neither size same "
    "picture shape larger answer more less they overlap other colour what which"
).split()


def listed(scene: Scene, rng: np.random.Generator) -> tuple[Example, str]:
    """Return the auxiliary item 'Name every letter.' of three to five words, whose
    letters are asked for six times in all: the shortest text in which a letter is
    looked up."""
    words = [WORDS[i] for i in rng.permutation(len(WORDS))[: rng.integers(3, 6)]]
    example = scenes.picture(scene, "list", "Name every letter.")
    asked = rng.integers(len(words), size=6)
    text = ",".join(f" {words[i]} {chr(ord('A') + i)}" for i in asked)
    return example._replace(options=tuple(words)), "So" + text


def _sentences(text: str) -> list[str]:
    return [part.rstrip(".") + "." for part in text.split(". ")]


def supervised(
    example: Example,
    rng: np.random.Generator,
    *,
    brief: float = 0.55,
    caption: float = 0.12,
    started: float = 0.12,
    direct: float = 0.08,
    abstain: float = 0.05,
) -> tuple[Example, str]:
    """Return (the example in a context, the assistant's text after its prefill).

    `brief` is the share of one-sentence CoTs; `caption`, `started`, `direct` and
    `abstain` are the shares of the contexts, at most one per example. A started CoT
    is the first sentences, possibly all and closed, of the text the model would have
    written, or of the right CoT where that is a bare conclusion. A direct answer
    opens before the tag's `>`, which tokenizers of the family join to the letter.
    """
    steps = _sentences(example.trace)
    short = rng.random() < brief
    text = steps[-1:] if short else steps
    letter = chr(ord("A") + example.answer)
    end = f"</think>\n<answer>{letter}</answer>"
    edges = np.cumsum([caption, started, direct, abstain])
    context = int(np.searchsorted(edges, rng.random(), side="right"))
    if context == 0:
        words = scenes.sentence(example.statements[example.answer])
        example = example._replace(condition="correct_caption", caption=words)
    elif context == 1:
        text = _sentences(example.thinks[example.answer]) if short else text
        given = int(rng.integers(1, len(text) + 1))
        prefill = "<think>" + " ".join(text[:given])
        rest = "".join(" " + part for part in text[given:]) + end
        if given == len(text) and rng.random() < 0.5:
            closed = "</think>"  # as in a prompt that ends the reasoning
            prefill, rest = prefill + closed, rest.removeprefix(closed)
        return example._replace(condition="correct_think", prefill=prefill), rest
    elif context == 2:
        example = example._replace(condition="no_cot", direct=True, prefill="<answer")
        return example, f">{letter}</answer>"
    elif context == 3:
        example = example._replace(
            condition="abstain+base",
            options=(*example.options, UNSURE),
            abstain=len(example.options),
        )
    return example, "<think>" + " ".join(text) + end
