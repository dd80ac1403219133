"""Wrong answers to questions that come without options, drawn by seed.

Misleading texts need a wrong option to assert: a count one to three off, the other of
yes and no, another direction or colour, a number nearby, a box beside the right one, or
an answer of the same kind to another question of the set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmrl.data.reading import draw, normal

WORDS = (
    ("yes", "no"),
    ("true", "false"),
    ("left", "right"),
    ("above", "below"),
    ("top", "bottom", "middle"),
    ("front", "back", "left", "right"),
    ("in front", "behind", "left", "right"),
    ("up", "down"),
    ("north", "south", "east", "west"),
    (
        *"red blue green yellow black white brown orange purple pink gray grey".split(),
        *"silver gold beige".split(),
    ),
    tuple(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    ),
    ("man", "woman", "boy", "girl"),
    ("day", "night"),
    ("summer", "winter", "spring", "autumn"),
)
_BOX = re.compile(r"\[(-?[\d.]+), (-?[\d.]+), (-?[\d.]+), (-?[\d.]+)\]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def wrong(
    answer: str, *words: object, pool: Sequence[str] = (), n: int = 3
) -> tuple[str, ...]:
    """Return at most n wrong answers, none equal to the right one or to another.

    Args:
      answer: the right one.
      *words: what the draw depends on: seed, set, id.
      pool: answers of other rows, in any order.
    """
    candidates = _candidates(answer, pool)
    keep, seen = [], {normal(answer)}
    for text in sorted(candidates, key=lambda t: (draw("wrong", *words, t), t)):
        if normal(text) not in seen and len(keep) < n:
            seen.add(normal(text))
            keep.append(text)
    return tuple(keep)


def _candidates(answer: str, pool: Sequence[str]) -> list[str]:
    plain = normal(answer)
    for kind in WORDS:
        if plain in kind:
            return [_as(answer, w) for w in kind if {w, plain} != {"gray", "grey"}]
    if box := _BOX.fullmatch(answer):
        return _boxes([float(v) for v in box.groups()])
    if re.fullmatch(r"-?\d+", plain):
        low = int(plain) if plain.startswith("-") else 0
        near = [int(plain) + d for d in (-3, -2, -1, 1, 2, 3)]
        return [str(v) for v in near if v >= min(low - 3, 0) and (v >= 0 or low < 0)]
    if numbers := list(_NUMBER.finditer(answer)):
        return [t for m in numbers for t in _near(answer, m)]
    kind = len(plain.split())
    same = [p for p in pool if not _NUMBER.search(p) and abs(len(p.split()) - kind) < 2]
    known = {w for words in WORDS for w in words}
    return [p for p in same if normal(p) not in known]


def _as(answer: str, word: str) -> str:
    return word.capitalize() if answer[:1].isupper() else word


def _near(answer: str, m: re.Match) -> list[str]:
    """Return the answer with one of its numbers changed by one to three of its last
    places."""
    decimals = m[0].partition(".")[2]
    step = 10 ** -len(decimals)
    out = []
    for d in (-3, -2, -1, 1, 2, 3):
        value = float(m[0]) + d * step
        if value > 0:
            text = f"{value:.{len(decimals)}f}"
            out.append(answer[: m.start()] + text + answer[m.end() :])
    return out


def _boxes(box: list[float]) -> list[str]:
    """Return boxes of the same size beside the right one, in positive pixels."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    moved = [
        (x1 + dx * w, y1 + dy * h) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    moved += [(x1 + w, y1 + h), (x1 + 2 * w, y1)]
    return [
        "[" + ", ".join(_short(v) for v in (x, y, x + w, y + h)) + "]"
        for x, y in moved
        if x >= 0 and y >= 0
    ]


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
