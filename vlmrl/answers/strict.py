"""The strict parser: the parts of an assistant turn, and the option it names."""

from __future__ import annotations

import re
from string import ascii_uppercase as LETTERS

from vlmrl.types import Parsed

PARSER = "strict-1"  # stored with every record; change it with any rule below


_STRICT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)

_ANSWER_TAG = re.compile(r"</?answer>")


def parse(text: str, options: tuple[str, ...], form: str = "letter") -> Parsed:
    """Read a whole assistant turn, prefill included. Never raises on any text.

    Tags (exact spelling, lower case):
      - strict: exactly one of each of the four tags, in order, with only white space
        around and between the two blocks. What the blocks hold does not matter here.
      - think: from the first <think> to the first </think> after it. Left open, it
        runs to the next <answer>, else to the end, and `closed` is False.
      - answer blocks: <answer> and </answer> must alternate; a nested, unopened or
        unclosed one makes the whole turn unreadable (option -1, answer None).
      - a block inside a closed <think> is not an answer by itself, but one that names
        another option than the answer makes the turn ambiguous (-1).
      - several blocks count if all name the same option, else -1. Neither is strict.
      - text outside the blocks is never searched for an answer.
    Options: see `read_option`.

    Args:
      text: prefill + completion.
      options: option texts, the added abstain option included.
      form: which reading wins where an option's text is itself a letter.
    """
    opened = text.find("<think>")
    think, closed, inside = None, False, range(0)
    if opened >= 0:
        start = opened + len("<think>")
        end = text.find("</think>", start)
        closed = end >= 0
        if closed:
            inside = range(start, end)
        else:
            end = text.find("<answer>", start)
        think = text[start : end if end >= 0 else len(text)]

    tags = list(_ANSWER_TAG.finditer(text))
    wellformed = len(tags) % 2 == 0 and all(
        (tag[0] == "<answer>") == (i % 2 == 0) for i, tag in enumerate(tags)
    )
    blocks = [
        (a.start() not in inside, text[a.end() : b.start()])
        for a, b in zip(tags[::2], tags[1::2], strict=False)
    ]
    outside = [block for out, block in blocks if out]
    answer, option = None, -1
    if wellformed and outside:
        answer = outside[-1]
        named = {read_option(block, options, form) for block in outside}
        aside = {read_option(block, options, form) for out, block in blocks if not out}
        named |= aside - {-1}
        option = named.pop() if len(named) == 1 else -1
    strict = (
        len(tags) == 2
        and text.count("<think>") == text.count("</think>") == 1
        and _STRICT.fullmatch(text) is not None
    )
    return Parsed(think, answer, option, strict, closed)


def answer_of(text: str, parsed: Parsed) -> str | None:
    """Return the answer to an open question: that of a turn's answer blocks, None where
    they differ in more than blanks and case."""
    if parsed.answer is None or text.count("<answer>") == 1:
        return parsed.answer
    outside = text
    if parsed.closed:
        before, _, rest = text.partition("<think>")
        outside = before + rest.partition("</think>")[2]
    blocks = re.findall(r"<answer>(.*?)</answer>", outside, re.DOTALL)
    return parsed.answer if len({_normal(b) for b in blocks}) == 1 else None


_LETTER_FORM = re.compile(
    r"(?:\(([A-Z])\)[.:]?|([A-Z])[.:)]|([A-Z])(?=\s|$))\s*(.*)", re.DOTALL
)


def read_option(answer: str, options: tuple[str, ...], form: str = "letter") -> int:
    """Return the option that the text of an answer names, -1 if not exactly one.

    Accepted, after trimming white space:
      - a capital ASCII letter of an option: `B`, `(B)`, `B.`, `B)`, `B:`, `(B).`;
      - the letter with its option's own text: `B. two`, `(B) two`, `B two`;
      - the option's text alone, if only one option has it.
    Texts are compared case-folded, white space collapsed, a final full stop dropped.
    Lower-case letters, letters of other scripts or widths, letters beyond the options,
    a letter with another option's text, and anything longer are -1. If an option's
    text is itself a letter, `form` 'letter' reads the letter, 'text' the text.
    """
    letter = text = -1
    if match := _LETTER_FORM.fullmatch(answer.strip()):
        index = LETTERS.index(match[1] or match[2] or match[3])
        rest = _normal(match[4])
        if index < len(options) and rest in ("", _normal(options[index])):
            letter = index
    same = [i for i, o in enumerate(options) if _normal(o) == _normal(answer)]
    if len(same) == 1 and _normal(answer):
        text = same[0]
    first, second = (text, letter) if form == "text" else (letter, text)
    return first if first >= 0 else second


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
