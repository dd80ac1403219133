"""The one reading of an assistant turn: training, records, scores and imports use it.

A turn has three readings. Strict: what stands in the answer block, by the parser of the
prompt style. Lenient: what a fair reader would say the turn answers. Forced: the option
of the highest probability after the answer was opened; only the engine has that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlmrl.answers import equality, lenient, tools
from vlmrl.answers.strict import PARSER, parse
from vlmrl.prompts import styles
from vlmrl.types import Example, Parsed


class Reading(NamedTuple):
    """How a whole assistant turn reads."""

    parsed: Parsed  # strict; of an open item `option` is the candidate that is equal
    correct: bool  # the strict answer equals the gold one
    lenient: int  # option of the lenient reading, -1 if none
    lenient_correct: bool


def read(text: str, example: Example, style: str) -> Reading:
    """Read one turn; see `read_all`."""
    return read_all([text], [example], style)[0]


def read_all(
    texts: Sequence[str], examples: Sequence[Example], style: str
) -> list[Reading]:
    """Read whole assistant turns by the rules of a prompt style. Never raises on any
    text.

    The rules of other tools read the text after </think>, if any, and know no answer
    tags: `answer` is then that text and `strict` is False.

    Args:
      texts: what the prompt began of each turn (`Prompt.turn`) and the completion.
      examples: the item of each.
    """
    rules = styles.style(style)
    strict = [_strict(t, e, rules) for t, e in zip(texts, examples, strict=True)]
    readers = [
        lenient.answer(t, e.options if not e.open else (), p)
        for t, e, p in zip(texts, examples, strict, strict=True)
    ]
    open_answers = [
        (i, side, answer)
        for i, e in enumerate(examples)
        if e.open
        for side, answer in ((0, strict[i].answer), (1, readers[i].text))
        if answer
    ]
    named = equality.candidates(
        [(answer, examples[i]) for i, _, answer in open_answers]
    )
    options = [
        [-1, -1] if e.open else [p.option, r.option]
        for e, p, r in zip(examples, strict, readers, strict=True)
    ]
    for (i, side, _), option in zip(open_answers, named, strict=True):
        options[i][side] = option
    return [
        Reading(
            p._replace(option=a),
            a >= 0 and a == e.answer,
            b,
            b >= 0 and b == e.answer,
        )
        for p, e, (a, b) in zip(strict, examples, options, strict=True)
    ]


def check(style: str) -> None:
    """Raise UserError unless a prompt style and its parser are known."""
    tools.parser_of(styles.style(style).parser)


def _strict(text: str, example: Example, rules: styles.Style) -> Parsed:
    parsed = parse(text, example.options, "text" if example.open else rules.form)
    if rules.parser == PARSER:
        return parsed
    reply = text.rpartition("</think>")[2].strip()
    option = tools.parser_of(rules.parser)(reply, example.options)
    return Parsed(parsed.think, reply, option, False, parsed.closed)
