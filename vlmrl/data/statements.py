"""Map a question and an option to a declarative sentence, for captions and CoTs.

The form of the question decides where the option goes. A rule applies only to the form
it was written for, so that its result is a sentence; where no rule applies, `FALLBACK`
quotes question and option.

>>> state("Which side of the dog is facing the camera?", ("left", "right"), 1)
('The right side of the dog is facing the camera', 'side')
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmrl.data.lexicon import AUX, LOWER, SENTENCE
from vlmrl.data.sentences import ORDER, RULES

FALLBACK = 'The answer to the question "{}" is {}'


def state(question: str, options: Sequence[str], option: int) -> tuple[str, str]:
    """Return (sentence, rule) asserting an option: capital first letter, no full stop.

    The rule is 'fallback' where no template fits.
    """
    words = " ".join(options[option].split()).rstrip(".").rstrip()
    if len(words) > 1 and _is_sentence(options[option]):
        return _capital(words), "sentence"
    if words.endswith("?"):
        words = f'"{words}"'
    asides: list[str] = []
    asked, *rest = (_hidden(t, asides) for t in (question, *options))
    before, core = _core(asked, rest)
    phrase = _inside(_hidden(words, asides), asked)
    for name, rule in RULES.items():
        if text := rule(core, phrase, rest):
            text = before + (_small(text) if before else text)
            return _capital(_shown(" ".join(text.split()), asides)), name
    quoted = " ".join(question.split())
    return FALLBACK.format(quoted, words), "fallback"


def states(question: str, options: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return a sentence per option, and the rule ('fallback' if any fell back)."""
    pairs = [state(question, options, i) for i in range(len(options))]
    rules = {rule for _, rule in pairs}
    rule = "fallback" if "fallback" in rules else pairs[0][1] if pairs else ""
    return tuple(text for text, _ in pairs), rule


def leaks(sentence: str, question: str, right: str, wrong: str) -> bool:
    """Return whether a sentence for the wrong option names the right one where neither
    the question nor the wrong option's own text does."""

    def has(text: str) -> bool:
        pattern = re.escape(" ".join(right.casefold().split()).rstrip("."))
        return bool(re.search(rf"(?<!\w){pattern}(?!\w)", text.casefold()))

    return has(sentence) and not has(question) and not has(wrong)


# -- asides ----------------------------------------------------------------------------

_ASIDE = re.compile(r" (\([^()]*\w\w[^()]*\))")
_FIRST = 0xE000  # private characters, one per aside


def _hidden(text: str, asides: list[str]) -> str:
    """Replace `(marked A)` and the like by one character each, attached to the word
    before, so that no rule matches inside."""

    def hide(match: re.Match) -> str:
        if match[1] not in asides:
            asides.append(match[1])
        return chr(_FIRST + asides.index(match[1]))

    return _ASIDE.sub(hide, text)


def _shown(text: str, asides: Sequence[str]) -> str:
    for i, aside in enumerate(asides):
        text = text.replace(chr(_FIRST + i), f" {aside}")
    return text


# -- the question's core ---------------------------------------------------------------

_CLAUSE = re.compile(
    r"((?:In|From|Based on|According to|Looking at|As shown in|Judging from|On|At|For"
    r"|If|When|With|Given|After|Before|Assuming|Relative to|By|During|Among) [^,?]*),"
    r"\s+(?=\w)"
)
_DROPPED = re.compile(r"(?:Consider|Considering|Note|Hint)\b[^,.?]*[,.]\s+(?=\w)")


def _core(question: str, options: Sequence[str]) -> tuple[str, str]:
    """Return (leading clause to keep, the question proper without its mark)."""
    text = " ".join(question.split())
    text = re.sub(r"(?i)\b(what|where|who|which|how)['’]s\b", r"\1 is", text)
    while match := _DROPPED.match(text):
        text = text[match.end() :]
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    asked = [s for s in sentences if s.endswith("?")]
    orders = [s for s in sentences if ORDER.match(s)]
    if len(asked) > 1:  # one answer to several questions is no sentence's
        return "", ""
    text = (asked or orders or sentences)[-1]
    before = ""
    while match := _CLAUSE.match(text):
        before += _small(match[1]) + ", " if before else match[1] + ", "
        text = text[match.end() :]
    text = text.rstrip("?:. ").strip()
    text = re.sub(r"\s*\((?:A|a)\).*$", "", text)
    text = re.sub(r"(?i)^(?:so|and|then|please tell me|can you tell)[,]? ", "", text)
    text = re.sub(r"(?i)^(?:.*\b(?:tell|determine)(?: me)?) (?=which )", "", text)
    text = re.sub(r"(?i)^use .+? to (?=find|solve|determine|calculate)", "", text)
    return before, _without_choices(text, options)


def _without_choices(text: str, options: Sequence[str]) -> str:
    """Drop a closing `, the A (…) or the B (…)` that lists the options."""
    at = text.rfind(" or ")
    if at < 0 or len(options) < 2:
        return text
    low = text.casefold()
    places = [low.rfind(o.casefold().strip(" .")) for o in options]
    comma = text.rfind(",", 0, max(0, min(places) + 1)) if min(places) >= 0 else -1
    if comma > 0 and all(p > comma for p in places):
        return text[:comma].strip()
    return text


def _is_sentence(option: str) -> bool:
    words = option.split()
    if re.match(rf"(?:{AUX}|Do|Does|Did)\b", option, re.I):
        return False
    if re.match(r"[A-Z] (?:is|are|has) \w", option):
        return True
    if len(words) >= 3 and option.rstrip().endswith(".") and option[:1].isupper():
        return True
    return len(words) >= 4 and bool(SENTENCE.fullmatch(option.strip()))


_NAMED = re.compile(r"[A-Z] (?:is|are|was|were|has|and|or)\b")  # A, a point or a bar


def _inside(option: str, question: str) -> str:
    """Return the option as it is written within a sentence."""
    first = option.split(" ", 1)[0]
    if len(option) == 1 or _NAMED.match(option):
        return option
    plain = first[:1].isupper() and first[1:].islower()
    if first in LOWER or (plain and re.search(rf"\b{first.lower()}\b", question)):
        return option[:1].lower() + option[1:]
    return option


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _small(text: str) -> str:
    first = text.split(" ", 1)[0]
    if _NAMED.match(text):
        return text
    return text[:1].lower() + text[1:] if first in LOWER or first == "If" else text
