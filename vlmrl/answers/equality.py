r"""Whether an answer to an open question equals the gold one, by the kind of the item.

  number  one quantity, in digits or words, with or without unit; in a sentence the one
          number that it states: "There are 3.", "three", `\boxed{3}`, "**3**"
  maths   expressions, relations, tuples, intervals, sets (`maths.py`)
  box     [x1, y1, x2, y2], equal from an intersection over union of 0.5 on, which is
          the threshold that grounding is scored with (Acc@0.5 of RefCOCO)
  text    words, but for case, punctuation, articles and the like (`phrase`)

An answer is what stands in the answer block, or what the lenient reading takes for the
answer; nothing is searched for outside of it. No function raises on any text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from vlmrl.answers import maths
from vlmrl.answers.kinds import kind_of
from vlmrl.answers.latex import cleaned
from vlmrl.answers.numbers import UNITS, Quantity, quantity, spelled, unwrapped
from vlmrl.answers.values import box_of, iou
from vlmrl.types import Example

OVERLAP = 0.5  # intersection over union from which two boxes are equal
_LONGEST = 2000  # characters of an answer; a longer one is no answer


def equal(answer: str, gold: str, kind: str) -> bool:
    """Return whether an answer equals the gold one by a kind of `kinds.OPEN`. An empty
    answer equals nothing."""
    if len(answer) > _LONGEST or not answer.strip():
        return False
    return _EQUAL[kind](answer, gold)


def candidates(answers: Sequence[tuple[str, Example]]) -> list[int]:
    """Return, for answers to open questions, the candidate that each equals by the
    item's kind: the gold one wherever it is equal, else another, -1 if none. Letters
    are no answers here: candidates are hidden."""
    out = []
    for answer, e in answers:
        kind = kind_of(e)
        order = sorted(range(len(e.options)), key=lambda i, e=e: i != e.answer)
        same = (i for i in order if equal(answer, e.options[i], kind))
        out.append(next(same, -1))
    return out


# -- numbers ---------------------------------------------------------------------------

_ONE = re.compile(
    r"(?i)\b(?:the|this|that|each|every|which|other|another|any|no|left|right|first|last"
    r"|only|red|blue|green|big|small)\s+one\b|\bone\s+(?:of|by|another|can|could|might)\b"
)
_ORDINAL = re.compile(r"(?<![0-9])[0-9]{1,9}(?:st|nd|rd|th)\b")
_COUNTED = re.compile(
    r"(?<![0-9A-Za-z.,/^_])(?:-(?=[0-9.]))?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}(?![0-9])|[0-9]{1,60})?"
    r"(?:(?<=[0-9])\s?/\s?[0-9]{1,30}|\.[0-9]{1,60})?(?<=[0-9])(?![0-9A-Za-z_])"
)
_UNIT = re.compile(r"\s{0,2}-?([A-Za-z]{1,12}(?:\^?[23²³])?(?:/[a-z]{1,3})?|[%°$€£])")
_NOT = re.compile(
    r"(?i)(?:\bnot|n['’]t|\bnever|\bcannot|\binstead of|\brather than|\bno)\b"
    r"[^.,;!?]*$"
)
_UNSURE = re.compile(
    r"(?i)(?:than|least|most|between|either|over|under|up to|below|above|unless|if)\s*$"
)
_NOTHING = re.compile(
    r"(?i)\b(?:none|nothing|nobody|no\s+(?!idea|clue|answer|way|doubt|info"
    r"|image|picture|photo|question|longer|matter|response|data|evidence|clear|sure|need"
    r"|further|specific)[a-z]{2,})\b"
)
_ONLY_ONE = re.compile(
    r"(?i)\b(is|was|see|count|be|has|have)\s+(?:only|just|exactly)\s+one\b"
    r"(?!\s+(?:of|that|who|which))"
)
_UNKNOWN = re.compile(
    r"(?i)\b(?:cannot|can['’]t|can not|unable to|impossible to|hard to)\s+(?:be\s+)?"
    r"(?:determin|tell|say|know|count|answer|help)|\bunclear\b|\bunknown\b|\bnot sure\b"
)
_PAIR = re.compile(r"(?i)\b(?:a\s+)?(couple|pair)\b(?:\s+of\b)?")


def stated(text: str) -> Quantity | None:
    """Return the one number that a sentence states, None if there is none or another:
    "There are 3 dogs.", "2 + 1 = 3", "no dogs" (0), "I see two, not three"."""
    text = unwrapped(re.sub(r"[*$`]|\\boxed|\\[()\[\]]", " ", text))
    plain = _ORDINAL.sub(
        " ", _ONE.sub(" ", _PAIR.sub("2 ", _ONLY_ONE.sub(r"\1 1", text)))
    )
    plain = spelled(re.sub(r"\ba single\b", "1 ", plain))
    if "=" in plain:
        plain = plain.rpartition("=")[2]
    numbers = []
    for match in _COUNTED.finditer(plain):
        before = plain[max(0, match.start() - 60) : match.start()]
        if _UNSURE.search(before):
            return None
        if _NOT.search(before):
            continue
        unit = _UNIT.match(plain, match.end())
        known = unit and (unit[1].lower().rstrip("s") in UNITS or "^" in unit[1])
        numbers.append(quantity(match[0] + (" " + unit[1] if known else "")))
    if None in numbers or len({(n.value, n.unit) for n in numbers}) > 1:
        return None
    if numbers:
        return numbers[0]
    if (
        not _COUNTED.search(plain)
        and _NOTHING.search(plain)
        and not _UNKNOWN.search(plain)
    ):
        return Quantity(Fraction(0), "", Fraction(0))
    return None


_AGAIN = re.compile(r"([0-9]{1,9}|[A-Za-z]{3,9})\s?\(([A-Za-z -]{3,40}|[0-9]{1,9})\)")


def _said_once(match: re.Match) -> str:
    """Return "5" of "5 (five)", else what was matched."""
    return match[1] if spelled(match[1]) == spelled(match[2]) else match[0]


def _number(answer: str, gold: str) -> bool:
    expected = quantity(gold)
    if expected is None:
        return _text(answer, gold)
    answer = _AGAIN.sub(_said_once, answer)
    got = quantity(answer)
    if got is None and isinstance(value := maths.number(answer), Fraction):
        got = Quantity(value, "", value)
    got = stated(answer) if got is None else got
    return got is not None and got.same(expected)


_SIGNS = re.compile(r"[\\^=<>+*{}|]|-\s?[0-9a-z]\b")  # what `phrase` would lose


def _maths(answer: str, gold: str) -> bool:
    pair = quantity(answer), quantity(gold)
    if None not in pair:  # plain numbers need no algebra
        return pair[0].same(pair[1])
    if clock(answer) and clock(gold):
        return _text(answer, gold)
    same = maths.equal(answer, gold)
    if same is not None:
        return same
    if _SIGNS.search(plain := cleaned(gold)):
        return "".join(plain.split()) == "".join(cleaned(answer).split())
    return _text(answer, gold)


# -- words -----------------------------------------------------------------------------

_SAME = {
    **dict.fromkeys(("leftmost", "left side", "left hand side"), "left"),
    **dict.fromkeys(("rightmost", "right side", "right hand side"), "right"),
    **dict.fromkeys(("yeah", "yep", "true"), "yes"),
    **dict.fromkeys(("nope", "false"), "no"),
    **dict.fromkeys(("over", "on top", "top"), "above"),
    **dict.fromkeys(("under", "underneath", "beneath", "bottom"), "below"),
    "grey": "gray",
}
_LEADING = frozenset("to on in at it is its are this that there they".split())
_VERDICT = re.compile(
    r"(yes|no|true|false|yeah|yep|nope)\b(?:\s*$|\s*[,.;:!—-]|\s+(?:it|there|they|he|she)\b)"
)
_ANSWER_IS = re.compile(
    r"(?:so |thus |therefore,? )?(?:the |my )?(?:final |correct )?answer(?: is|:)\s*"
)


def phrase(text: str) -> str:
    """Return a free answer to compare: lower case, no punctuation, articles or leading
    prepositions; yes, no and directions by one word each; number words as digits."""
    text = unicodedata.normalize("NFC", unwrapped(text))
    text = re.sub(r"\\(?:text|mathrm|textbf)\b|[{}]", " ", text).casefold()
    text = _ANSWER_IS.sub("", re.sub(r"\b([ap])\.m\b\.?", r"\1m", text), count=1)
    if match := _VERDICT.match(text.strip()):
        text = match[1]
    words = re.sub(r"[^\w\s.-]|(?<![0-9])\.|\.(?![0-9])", " ", text)
    words = [w for w in words.replace("-", " ").split() if w not in ("a", "an", "the")]
    while len(words) > 1 and words[0] in _LEADING:
        words.pop(0)
    joined = spelled(" ".join(words))
    return _SAME.get(joined, joined)


_CLOCK = re.compile(
    r"([0-9]{1,2}):([0-9]{2})\s?(?:([ap])m)?|(half|quarter|1/2) (past|to) ([0-9]{1,2})"
)
_MONTH = re.compile(
    r"\b(january|february|march|april|may|june|july|august|september|october|november"
    r"|december)\b"
)


def clock(text: str) -> tuple[int, bool] | None:
    """Return (minutes of the day, is the half of the day known) of "3:45 p.m.",
    "15:45", "half past three"."""
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", unwrapped(text).casefold())
    match = _CLOCK.fullmatch(spelled(re.sub(r"^(?:it is|at)\s|\s?o'clock$", "", text)))
    if match is None:
        return None
    if match[1]:
        hour, minute = int(match[1]), int(match[2])
        if match[3]:
            hour = hour % 12 + 12 * (match[3] == "p")
        return hour * 60 + minute, match[3] is not None or hour > 12
    minutes = 15 if match[4] == "quarter" else 30
    return int(match[6]) * 60 + (minutes if match[5] == "past" else -minutes), False


def _text(answer: str, gold: str) -> bool:
    times = clock(answer), clock(gold)
    if None not in times:
        (a, known), (b, also) = times
        return a == b if known and also else (a - b) % 720 == 0
    got, expected = phrase(answer), phrase(gold)
    if _MONTH.search(expected):  # March 5, 2021 and 5th of March 2021
        got, expected = (
            " ".join(
                sorted(re.sub(r"\bof\b|(?<=[0-9])(?:st|nd|rd|th)\b", "", t).split())
            )
            for t in (got, expected)
        )
    if not expected:  # signs only
        return answer.strip() == gold.strip()
    return got == expected or (
        len(expected) > 3 and got.replace(" ", "") == expected.replace(" ", "")
    )


def _box(answer: str, gold: str) -> bool:
    got, expected = box_of(answer), box_of(gold)
    if expected is None:
        return _text(answer, gold)
    return got is not None and iou(got, expected) >= OVERLAP


_EQUAL = {"number": _number, "maths": _maths, "box": _box, "text": _text}
