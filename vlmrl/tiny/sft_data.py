"""SFT data of the tiny model: questions about scenes and auxiliary texts.

A group is one scene, whose branches are its items, so that its image is encoded once.
Every batch is drawn anew: it is a pure function of the seed and the step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlmrl import perturb
from vlmrl.data import scenes, traces
from vlmrl.prompts import styles, tokens
from vlmrl.types import Group, Prompt, UserError


class SceneItems(NamedTuple):
    """What the groups of a batch hold."""

    groups: int  # scenes per step
    branches: dict[str, int]  # items of each kind (ITEMS) behind a scene
    mix: dict[str, float]  # see `traces.supervised`
    style: str  # prompt style
    pictures: bool = True  # else the items are asked as text alone
    opening: str = ""  # of a text that begins so, only this is learnt; '': all of it


def check(items: SceneItems) -> None:
    """Raise UserError for a kind of item that does not exist or a negative number."""
    for kind, number in items.branches.items():
        if kind not in ITEMS or number < 0:
            raise UserError(
                f"config.branches.{kind} is {number}, expected 0 or more items for "
                f"each of {', '.join(ITEMS)}"
            )


def batch(
    processor, buckets, items: SceneItems, *, seed: int, step: int
) -> tuple[Group, np.ndarray]:
    """Return (Group, mask bool[B, T] of the tokens to learn) of a step."""
    rng = np.random.default_rng([seed, step])
    first = seed * 10**6 + step * items.groups  # another seed, other scenes
    rows = []
    for index in range(first, first + items.groups):
        scene = scenes.make_scene("train", index)
        pairs: list[tuple] = []
        for kind, number in items.branches.items():
            goal = len(pairs) + number
            while len(pairs) < goal:
                pairs += ITEMS[kind](scene, rng, goal - len(pairs), items.mix)
        if not items.pictures:
            pairs = [(example._replace(images=()), text) for example, text in pairs]
        rows.append(
            [
                _row(processor, styles.build(e, items.style, processor.render), text)
                for e, text in pairs
            ]
        )
    group, mask = tokens.completion_rows(processor, rows, buckets)
    if items.opening:
        opening = processor.encode_plain(items.opening)
        short = [text.startswith(items.opening) for row in rows for _, text in row]
        within = np.cumsum(mask, axis=1) <= len(opening)
        mask &= within | ~np.array(short)[:, None]
    return group, mask


def _row(processor, prompt: Prompt, text: str) -> tuple[tokens.Encoded, str]:
    """Return the prompt, and what is left of a turn that the template opened."""
    opened = perturb.is_open(prompt.turn)
    rest = text.removeprefix("<think>") if opened else text
    return tokens.encode(processor, prompt), rest


# kind → (scene, rng, n, mix) → up to n pairs (example, text to learn)
ITEMS = {
    "described": lambda scene, rng, n, mix: [traces.described(scene)],
    "located": lambda scene, rng, n, mix: [traces.located(scene, rng)],
    "listed": lambda scene, rng, n, mix: [traces.listed(scene, rng)],
    "drilled": lambda scene, rng, n, mix: [
        traces.drilled(example, rng) for example in scenes.questions(scene, rng, n)
    ],
    "questions": lambda scene, rng, n, mix: [
        traces.supervised(example, rng, **mix)
        for example in scenes.questions(scene, rng, n)
    ],
}
