"""Read completions: the strict parser, and those of other tools."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.prompts import styles
from vlmrl.types import Example

PARSER = "strict-1"  # stored with every record; change it with any rule below


class Parsed(NamedTuple):
    """The parts of an assistant turn."""

    think: str | None  # verbatim text inside <think>; None if it was never opened
    answer: str | None  # verbatim text of the last answer block; None if malformed
    option: int  # index the answer names, -1 if none or ambiguous
    strict: bool  # the turn is <think>…</think><answer>…</answer> and nothing else
    closed: bool  # <think> was opened and closed


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


def read(text: str, example: Example, name: str) -> Parsed:
    """Read a whole assistant turn by the rule of a style, prefill included.

    The rules of other tools read the text after </think>, if any, and know no answer
    tags: `answer` is then that text and `strict` is False.
    """
    rules = styles.style(name)
    form = "text" if example.open else rules.form
    parsed = parse(text, example.options, form)
    if rules.parser == PARSER:
        return parsed
    reply = text.rpartition("</think>")[2].strip()
    option = PARSERS[rules.parser](reply, example.options)
    return Parsed(parsed.think, reply, option, False, parsed.closed)


_REFUSALS = (
    "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def _vlmevalkit(reply: str, options: tuple[str, ...]) -> int:
    """Read the only option letter among its words, if among the last four; else the
    only option whose text it contains, unless it is twice as long as all together."""
    if any(refusal in reply for refusal in _REFUSALS):
        return -1
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", reply).split()
    named = [i for i, letter in enumerate(LETTERS[: len(options)]) if letter in words]
    if len(named) == 1 and words.index(LETTERS[named[0]]) > len(words) - 5:
        return named[0]
    if len(reply) > 2 * sum(map(len, options)):
        return -1
    contained = [i for i, o in enumerate(options) if o.lower() in reply.lower()]
    return contained[0] if len(contained) == 1 else -1


def _yes_no(reply: str, options: tuple[str, ...]) -> int:
    """Read yes or no as a word, exactly one of them."""
    words = re.sub(r"[^\w\s]", " ", reply.lower()).split()
    if ("yes" in words) == ("no" in words):
        return -1
    return _exact("yes" if "yes" in words else "no", options)


def _exact(reply: str, options: tuple[str, ...]) -> int:
    lowered = [o.lower().strip() for o in options]
    return (
        lowered.index(reply.lower().strip()) if reply.lower().strip() in lowered else -1
    )


def _first_letter(reply: str, options: tuple[str, ...]) -> int:
    """Read a letter of either case that opens the answer, brackets aside, whatever
    follows: `Because` is B."""
    match = re.match(r"[(\s]*([A-Za-z])", reply)
    return _within(match[1], options) if match else -1


def _vstar(reply: str, options: tuple[str, ...]) -> int:
    """Read, in this order: an opening letter A to D, one after `answer` (is), in
    brackets, before a full stop or bracket, alone between blanks, or the only such
    letter."""
    reply = reply.upper()
    patterns = (
        r"^([A-D])",
        r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
    for pattern in patterns:
        if match := re.search(pattern, reply):
            return _within(match[1], options)
    letters = re.findall(r"[A-D]", reply)
    return _within(letters[0], options) if len(letters) == 1 else -1


def _by(reply: str, options: tuple[str, ...], patterns: Sequence[str], flags=0) -> int:
    """Return the letter that the first matching pattern names."""
    matches = (re.search(pattern, reply, flags) for pattern in patterns)
    return next((_within(f[1], options) for f in matches if f), -1)


def _3dsrbench(reply: str, options: tuple[str, ...]) -> int:
    """Read, in this order: an opening capital A to D, one after `answer` (is), in
    brackets, before a full stop, or as a word."""
    after = [
        rf"{who}nswer(?: is)?[:\s]+([A-D])" for who in ("[Aa]", "[Tt]he a", "[Mm]y a")
    ]
    rest = (r"\(([A-D])\)", r"([A-D])\.", r"\b([A-D])\b")
    return _by(reply, options, (r"^([A-D])(?:[.\s)]|$)", *after, *rest))


def _mmvp(reply: str, options: tuple[str, ...]) -> int:
    """Read A or B of either case, in this order: opening, after `answer is`, after
    `option`, before a blank or the end, or as the first letter of a word that opens."""
    opening = r"^\s*\(?([AB])(?:\)?\.?\s*$|\)?[.\s])"
    after = (r"answer\s+is\s+\(?([AB])", r"option\s+\(?([AB])")
    rest = (r"([AB])\)?(?:\s|$)", r"^([AB])")
    return _by(reply, options, (opening, *after, *rest), re.I)


def _first_word(reply: str, options: tuple[str, ...]) -> int:
    """Read the first word, punctuation aside, if it is a letter of either case."""
    word = re.sub(r"[^\w\s]", "", reply).strip().partition(" ")[0]
    return _within(word, options) if re.fullmatch("[A-Za-z]", word) else -1


def _first_number(reply: str, options: tuple[str, ...]) -> int:
    match = re.search(r"\d+", reply)
    return _exact(str(int(match[0])), options) if match else -1


def _within(letter: str, options: tuple[str, ...]) -> int:
    index = LETTERS.index(letter.upper())
    return index if index < len(options) else -1


# Answer, options → index or -1, as the named tool reads it.
PARSERS: dict[str, Callable[[str, tuple[str, ...]], int]] = {
    PARSER: lambda reply, options: parse(reply, options).option,
    "vlmevalkit-1": _vlmevalkit,
    "vlmevalkit-yes-no-1": _yes_no,
    "lmms-first-letter-1": _first_letter,
    "lmms-vstar-1": _vstar,
    "lmms-3dsrbench-1": _3dsrbench,
    "lmms-mmvp-1": _mmvp,
    "lmms-first-word-1": _first_word,
    "lmms-exact-1": _exact,
    "lmms-first-number-1": _first_number,
}
