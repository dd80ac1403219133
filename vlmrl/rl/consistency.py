"""Verdicts without a judge: does the CoT, put to the model again, give its answer?

Both read a completion's CoT back to the policy and compare what it then answers; the
verdict has a judge's labels, so every reward that needs one takes it.

  blind probe       the CoT without the image: if the answer can't be read off the
                    CoT, the CoT did not carry it
  shuffled options  the same CoT, its letters remapped, under options in another
                    order: an answer that follows the place and not the CoT gives
                    itself away (ACRE, https://arxiv.org/abs/2510.10104)

These functions make the second prompt's parts and score what came back; reading it
back is one more branch of the group (engine).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.judges import patterns
from vlmrl.perturb import TAGS
from vlmrl.types import Example, UserError

OPENING = "</think>\n<answer"  # what follows a CoT that is read back; no bracket: `>A`
# is one token for Qwen's tokenizer


# -- the blind probe


def blind_verdict(
    letters: Sequence[float],
    predicted: int,
    applicable: bool = True,
    *,
    min_probability: float = 0.0,
) -> str:
    """Judge whether the answer is the option that the CoT alone implies.

    Args:
      letters: float[C], probabilities of the options after the CoT, re-read without
        the image and with its literal conclusion stripped (`Scores.blind[:, 1]`).
      predicted: option parsed from the answer, -1 if none.
      applicable: see `judges.rule.applicable`.
      min_probability: below which the CoT implies nothing. At 0 the prior of a
        CoT that says nothing still names a letter, and agrees by chance.

    Returns:
      'not_applicable'; 'undecided' where nothing was answered, or the CoT implies
      nothing (too little, or two options alike); 'consistent'; 'inconsistent'.
    """
    if not applicable:
        return "not_applicable"
    best = max(letters, default=0.0)
    implied = [i for i, p in enumerate(letters) if p == best]
    if predicted < 0 or len(implied) != 1 or best < min_probability:
        return "undecided"
    return "consistent" if implied == [predicted] else "inconsistent"


_SENTENCE = re.compile(r"(?<=[.!?;…])\s+|\n+")
_STATES = re.compile(
    r"^\W*(?i:so|thus|hence|therefore)\b|\b(?:(?i:answers?|options?|choices?|choose|"
    r"correct|conclu\w+|boxed)|[B-HJ-Z]|A(?=[.)]|$))(?![\w'])"
)


def stripped(think: str) -> str:
    """Return the CoT without its literal conclusion: the argument alone.

    Its last sentence goes, and every sentence that opens with so, thus, hence or
    therefore, or names an answer, option, choice, conclusion or a letter by itself.
    Without this a CoT that is nothing but "The answer is B." would imply its answer
    perfectly.
    """
    sentences = [s for s in _SENTENCE.split(think.strip()) if s][:-1]
    return " ".join(s for s in sentences if not _STATES.search(s))


# -- shuffled options


class Shuffle(NamedTuple):
    """An example with its options in another order."""

    example: Example
    order: tuple[int, ...]  # option i of `example` was option order[i]


def shuffle(example: Example, seed: int) -> Shuffle:
    """Shuffle the options, never into the same order, by (seed, id).

    Answer, suggested option, statements and CoTs move along; an abstain option stays
    last. Captions and other texts of a condition name options by their text, not their
    letter, and stay as they are.

    Raises:
      UserError: fewer than two options that can move.
    """
    count = len(example.options) - (example.abstain >= 0)
    if count < 2:
        raise UserError(
            f"example {example.id!r}: {count} options to shuffle, expected at least 2"
        )
    orders, attempt = tuple(range(count)), 0
    while orders == tuple(range(count)):
        drawn = [_draw(seed, example.id, attempt, i) for i in range(count)]
        orders, attempt = (
            tuple(sorted(range(count), key=drawn.__getitem__)),
            attempt + 1,
        )
    order = (*orders, *range(count, len(example.options)))

    def moved(entries):  # an abstain option has no statement and no CoT
        return tuple(entries[old] for old in order if old < len(entries))

    def place(old):
        return order.index(old) if old >= 0 else old

    return Shuffle(
        example._replace(
            options=moved(example.options),
            answer=place(example.answer),
            suggested=place(example.suggested),
            statements=moved(example.statements),
            thinks=moved(example.thinks),
        ),
        order,
    )


def _draw(seed: int, name: str, attempt: int, option: int) -> bytes:
    text = f"shuffle\0{seed}\0{name}\0{attempt}\0{option}"
    return hashlib.sha256(text.encode()).digest()


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_ORDINAL = re.compile(rf"\b({'|'.join(_ORDINALS)})(\s+(?:option|choice)\b)", re.I)


def remap(think: str, order: Sequence[int], options: Sequence[str] = ()) -> str:
    """Rewrite letters, and "second option", of a CoT for the new order.

    A letter is a capital by itself: B, (B), B., "option B". "A" and "I" count only
    where they can't be words. A letter that is itself an option's text names that text,
    not a place, and stays. Everything is replaced at once, so swaps don't collide.

    Args:
      think: text without tags.
      order: of `Shuffle`.
      options: the original option texts.
    """
    new = {old: LETTERS[i] for i, old in enumerate(order)}
    texts = {o.strip() for o in options}

    def letter(match: re.Match) -> str:
        name = match[1] or match[2]
        index = LETTERS.index(name)
        if index not in new or name in texts:
            return match[0]
        if match[2] and name in "AI" and not _is_letter(think, match):
            return match[0]
        return match[0].replace(name, new[index])

    def ordinal(match: re.Match) -> str:
        index = _ORDINALS.index(match[1].lower())
        if index not in new or LETTERS.index(new[index]) >= len(_ORDINALS):
            return match[0]
        word = _ORDINALS[LETTERS.index(new[index])]
        return (word.capitalize() if match[1][0].isupper() else word) + match[2]

    return _ORDINAL.sub(ordinal, patterns.BARE_LETTER.sub(letter, think))


def _is_letter(text: str, match: re.Match) -> bool:
    """Return whether a bare "A" or "I" names an option, from its context."""
    before, after = text[: match.start()][-24:], text[match.end() :][:24]
    if patterns.NAMES_LETTER.search(before):
        return True
    if match[2] == "I":
        return False
    return re.match(r"\s*(?:[.):,]|$)", after) is not None or (
        not patterns.AFTER_ARTICLE.match(after)
    )


def reread(changed: Shuffle, think: str, options: Sequence[str]) -> Example | None:
    """Return the shuffled example with the remapped CoT prefilled, up to the answer.

    Args:
      changed: from `shuffle`.
      think: text inside the completion's <think>.
      options: the original option texts.

    Returns:
      An Example to write and answer; None where the CoT can't be read back, because
      it is empty or holds tags or control tokens: its verdict is 'undecided'.
    """
    if not think.strip() or any(tag in think for tag in TAGS) or "<|" in think:
        return None
    text = remap(think, changed.order, options)
    return changed.example._replace(prefill="<think>" + text + OPENING)


def shuffle_verdict(
    predicted: int, again: int, order: Sequence[int], applicable: bool = True
) -> str:
    """Judge whether both answers name the same option, the second un-shuffled.

    Args:
      predicted: option of the original item, -1 if none.
      again: option of the shuffled item, -1 if none or not read back.
      order: of `Shuffle`.
      applicable: see `judges.rule.applicable`.

    Returns: as `blind_verdict`.
    """
    if not applicable:
        return "not_applicable"
    if predicted < 0 or again < 0:
        return "undecided"
    return "consistent" if order[again] == predicted else "inconsistent"
