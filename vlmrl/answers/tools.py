"""How other tools read an answer, and of which kinds of question."""

from __future__ import annotations

import functools
import numbers
import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl import user_code
from vlmrl.answers.strict import PARSER, parse

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
    match = re.search(r"[0-9]+", reply)
    return _exact(match[0].lstrip("0") or "0", options) if match else -1


def _within(letter: str, options: tuple[str, ...]) -> int:
    index = LETTERS.index(letter.upper())
    return index if index < len(options) else -1


class Parser(NamedTuple):
    """A tool's rule. Where an item is of another kind than the tool made it for, its
    answer is compared by the item's kind (`equality.py`): a rule for letters would find
    the letter of a hidden candidate in "A dozen of them."."""

    read: Callable[[str, tuple[str, ...]], int]  # (reply, options) → option or -1
    kinds: tuple[str, ...] = ("option",)


PARSERS: dict[str, Parser] = {
    PARSER: Parser(lambda reply, options: parse(reply, options).option),
    "vlmevalkit-1": Parser(_vlmevalkit),
    "vlmevalkit-yes-no-1": Parser(_yes_no),
    "lmms-first-letter-1": Parser(_first_letter),
    "lmms-vstar-1": Parser(_vstar),
    "lmms-3dsrbench-1": Parser(_3dsrbench),
    "lmms-mmvp-1": Parser(_mmvp),
    "lmms-first-word-1": Parser(_first_word),
    "lmms-exact-1": Parser(_exact, ("option", "text")),
    "lmms-first-number-1": Parser(_first_number, ("number",)),
}


def parser_of(name: str) -> Parser:
    """Return the parser of a name; `path/to/file.py:name` names a user's own, which
    reads questions with options, as most others do.

    Raises:
      UserError: an unknown name, a file without the function or with another one.
    """
    function = user_code.lookup(
        name, PARSERS, "", ("reply", "options"), kind="answer parser"
    )
    return Parser(_checked(function)) if user_code.is_own(name) else function


@functools.lru_cache
def _checked(function: Callable) -> Callable[[str, tuple[str, ...]], int]:
    def parser(reply: str, options: tuple[str, ...]) -> int:
        about = f"reply {reply!r:.80}"
        option = user_code.call(function, reply, options, about=about)
        whole = isinstance(option, numbers.Integral) and not isinstance(option, bool)
        if not whole or not -1 <= option < max(1, len(options)):
            problem = f"expected an option's index or -1, got {option!r:.60}"
            raise user_code.failure(function, about, problem)
        return int(option)

    return parser
