"""Boxes in a text, and distances between texts."""

from __future__ import annotations

import re

Box = tuple[float, float, float, float]
_DIGITS = r"(-?[0-9]{1,12}(?:\.[0-9]{1,12})?)"
_NUMBER = rf"\s*{_DIGITS}\s*"
_BETWEEN = r"(?:,|\)\s*,\s*\(|\]\s*,\s*\[)"  # (x1, y1), (x2, y2) is a box as well
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER}{_BETWEEN}{_NUMBER},{_NUMBER}[\])]")

_BARE = re.compile(r"(?:\s*,\s*|\s+)".join([_DIGITS] * 4))


def boxes(text: str) -> list[Box]:
    """Return every `[x1, y1, x2, y2]` of a text, also written `(x1, y1), (x2, y2)`."""
    return [tuple(map(float, match.groups())) for match in _BOX.finditer(text)]


def box_of(text: str) -> Box | None:
    """Return the box of a text that names exactly one, or is its four numbers, else
    None."""
    bare = _BARE.fullmatch(text.strip())
    named = {tuple(map(float, bare.groups()))} if bare else set(boxes(text))
    return named.pop() if len(named) == 1 else None


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = sum(max(0.0, r[2] - r[0]) * max(0.0, r[3] - r[1]) for r in (a, b))
    return shared / (area - shared) if area > shared else 0.0


def distance(a: str, b: str, longest: int = 1000) -> int:
    """Return the edit distance (Levenshtein) of the first `longest` characters."""
    a, b = a[:longest], b[:longest]
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
