"""The kinds of answer, and which kind a gold answer is where its set doesn't say."""

from __future__ import annotations

import re

from vlmrl.answers.numbers import quantity
from vlmrl.types import Example

# How a reply is compared with the gold answer (`equality.py`): options by the letter or
# text named; numbers with words and units; mathematics; boxes by overlap; other text.
KINDS = ("option", "number", "maths", "box", "text")
OPEN = KINDS[1:]  # of questions that are asked without options

_BOX = re.compile(r"\s*[\[(](?:\s*-?[0-9.]{1,12}\s*,){3}\s*-?[0-9.]{1,12}\s*[\])]\s*")
_MATHS = re.compile(
    r"\\(?:frac|dfrac|sqrt|pi|le|ge|cdot|times|theta|pm|infty|cup|angle|text)(?![a-z])"
    r"|[\^=√π≤≥±∞∪]|[<>]\s*-?[0-9]|[0-9]\s*[-+*/]\s*[0-9a-z]|^[0-9.]+[a-z]$|^\s*[(\[{].*[0-9].*[)\]}]$"
)


def infer(gold: str) -> str:
    """Return the kind of a gold answer to an open question: 'box' for four numbers in
    brackets, 'number' for one quantity, 'maths' where it has signs of mathematics, else
    'text'."""
    if _BOX.fullmatch(gold):
        return "box"
    if quantity(gold) is not None:
        return "number"
    return "maths" if len(gold) <= 300 and _MATHS.search(gold) else "text"


def kind_of(example: Example) -> str:
    """Return how the answers to an example are compared: its `kind`, inferred from the
    gold answer where an open one was stored before examples had kinds."""
    if example.open and example.kind not in OPEN:
        known = 0 <= example.answer < len(example.options)
        return infer(example.options[example.answer]) if known else "text"
    return example.kind
