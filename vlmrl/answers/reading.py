"""The one reading of an assistant turn: training, records, scores and imports use it.

A turn has three readings. Strict: what stands in the answer block, by the parser of the
prompt style. Lenient: what a fair reader would say the turn answers. Forced: the option
of the highest probability after the answer was opened; only the engine has that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vlmrl.answers import equality, lenient, tools
from vlmrl.answers.kinds import kind_of
from vlmrl.answers.strict import PARSER, answer_of, parse, read_option
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
    pairs = list(zip(texts, examples, strict=True))
    strict = [_strict(t, e, rules) for t, e in pairs]
    fair = [
        lenient.answer(t, () if e.open else e.options, p)
        for (t, e), p in zip(pairs, strict, strict=True)
    ]
    # Open items: the candidate that each answer equals, in one batch.
    by_kind = [i for i, e in enumerate(examples) if e.open]
    own = rules.parser == PARSER
    blocks = [
        answer_of(texts[i], strict[i]) if own else strict[i].answer for i in by_kind
    ]
    answers = [*blocks, *(fair[i].text for i in by_kind)]
    items = [examples[i] for i in by_kind] * 2
    named = equality.candidates(
        [(a or "", e) for a, e in zip(answers, items, strict=True)]
    )
    equal = {i: named[k :: len(by_kind)] for k, i in enumerate(by_kind)}
    out = []
    for i, (e, p, f) in enumerate(zip(examples, strict, fair, strict=True)):
        option, other = equal[i] if e.open else (p.option, f.option)
        if e.open and _made_for(rules, e):
            option = p.option
        if option >= 0:  # the strict reading holds where it named an option
            other = option
        out.append(
            Reading(
                p._replace(option=option),
                option >= 0 and option == e.answer,
                other,
                other >= 0 and other == e.answer,
            )
        )
    return out


def _made_for(rules: styles.Style, example: Example) -> bool:
    """Return whether another tool's parser reads the item."""
    kinds = tools.parser_of(rules.parser).kinds
    return rules.parser != PARSER and kind_of(example) in kinds


def check(style: str) -> None:
    """Raise UserError unless a prompt style and its parser are known."""
    tools.parser_of(styles.style(style).parser)


def _strict(text: str, example: Example, rules: styles.Style) -> Parsed:
    parsed = parse(text, example.options, "text" if example.open else rules.form)
    if rules.parser == PARSER:
        return parsed
    reply = text.rpartition("</think>")[2].strip()
    if _made_for(rules, example):
        option = tools.parser_of(rules.parser).read(reply, example.options)
    else:
        option = -1 if example.open else read_option(reply, example.options)
    return Parsed(parsed.think, reply, option, False, parsed.closed)
