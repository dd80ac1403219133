"""The rule judge: the option that a chain of thought concludes, by patterns alone.

It favours precision: where the words leave doubt it is undecided (-1). It reads in
four steps.

1. Mentions. Option texts (longest first, case-folded, number words equal to digits) and
   option letters become marks. A letter next to another option's text, several options
   joined by "or", "and" or a comma, and a text that two options share become the mark
   of a conflict; "not B", "rather than left" become negative marks.
2. Clauses. Sentences are cut before but, so, therefore, wait, because, …
3. Claims. A mark is a claim where its own clause binds it to a cue:
     strong  "the answer is B", "so left", "it must be the dog", "\\boxed{3}", "option C
             is correct", "therefore the dog is left"
     weak    "it is left", "the dog is left": counts only in the last sentence, or right
             after a retraction
   A clause about another subject than the question's ("so the cat is left", asked for
   the dog) claims nothing; questions, conditions and "might" claim nothing.
4. State. The last strong claim stands. "Wait", "but", "no," … suspend it until the next
   claim, or until a confirmation ("that is correct") restores it; a conflict, a negated
   or an unreadable later conclusion cancels it. A clause that claims one option by its
   text and another by its letter ("so it is left, answer B") is a conflict.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from string import ascii_letters
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.judges import patterns as p
from vlmrl.judges.judge import Judge, JudgeItem, Verdict, applicable, concluded

__all__ = ["JUDGE", "applicable", "conclude", "verdict"]

# Bounds that limit the time on degenerate text; conclusions come at the end.
_TAIL = 4000  # last characters that are read
_NEAR = 240  # characters of context on each side of a mark
_MARKS = 8  # marks read in a clause


def verdict(
    think: str,
    predicted: int,
    question: str,
    options: Sequence[str],
    applicable: bool = True,
) -> str:
    """Return whether the chain of thought concludes the option that was answered.

    Args:
      think: the chain of thought without tags, with or without its prefilled part.
      predicted: option parsed from the answer, -1 if none.
      question, options: as the model read them.
      applicable: see `applicable(condition)`.

    Returns:
      'not_applicable'; else 'undecided' without a conclusion or an answer; else
      'consistent' or 'inconsistent'.
    """
    if not applicable:
        return "not_applicable"
    conclusion = conclude(think, question, options)
    if conclusion < 0 or predicted < 0:
        return "undecided"
    return "consistent" if conclusion == predicted else "inconsistent"


def conclude(think: str, question: str, options: Sequence[str]) -> int:
    """Return the option that the chain of thought finally concludes, -1 if undecided.

    Args:
      think: text without its tags.
      question: its text, which names the thing whose place or colour is asked for.
      options: option texts in letter order; with none, everything is undecided.
    """
    return _conclude(think, question, tuple(options))


def _judge(items: Sequence[JudgeItem]) -> list[Verdict]:
    return [
        concluded(item, conclude(item.think, item.question, item.options), JUDGE.name)
        for item in items
    ]


JUDGE = Judge("rule", _judge, {"rule": "patterns, letters and option texts"})


@functools.lru_cache(maxsize=4096)  # the same text is judged more than once
def _conclude(think: str, question: str, options: tuple[str, ...]) -> int:
    texts = [_option_text(o) for o in options]
    if not texts:
        return -1
    item = _item(question, texts)
    marked = _mentions(think[-_TAIL:], texts)
    sentences = [s for s in re.split(r"(?<=[.!?;…])\s+|\n+", marked) if s.strip()]
    # a closing line, or a whole text, that is nothing but the option
    mark = p.NAMED_MARK if len(sentences) == 1 else p.LETTER_MARK
    if sentences and re.fullmatch(rf"[\s(\"']*{mark}[\s).\"':]*", sentences[-1]):
        sentences[-1] = "answer: " + sentences[-1]
    state, suspended, doubt = -1, -1, False
    for number, sentence in enumerate(sentences):
        last = number == len(sentences) - 1
        asking = sentence.rstrip("\"') ").endswith("?")
        for clause in p.CUT.split(sentence):
            retracts = p.RETRACT.match(clause) or _gainsays(clause, state, item)
            if retracts and state >= 0:
                state, suspended, doubt = -1, state, True
            confirms = p.CONFIRM.search(clause) and not p.DENY.search(clause)
            if confirms and state < 0 and not asking:
                state = suspended
            hedged = asking or bool(p.HEDGE.search(clause))
            for kind, index, strength in _agreed(clause, item):
                if strength == "negative":
                    state = -1 if state == index else state
                    suspended = -1 if suspended == index else suspended
                elif kind == "x" or hedged or strength == "unread":
                    firm = strength != "weak" or (kind == "x" and last)
                    if firm and (kind == "x" or index != state):
                        state = suspended = -1
                elif strength == "strong" or doubt:
                    state, suspended, doubt = index, -1, False
                elif last and state != index:
                    state = index if state < 0 and suspended < 0 else -1
    return state


def _gainsays(clause: str, state: int, item: _Item) -> bool:
    """Return whether the clause opens with "No," after a yes, or the other way round,
    or with a "No," that goes on to take something back."""
    opening = re.match(rf"\s*{p.TEXT_MARK}\s*[,.!]", clause)
    if not opening or item.texts[int(opening[1])].casefold() not in ("yes", "no"):
        return False
    taken = p.RETRACT.match(clause[opening.end() :])
    return int(opening[1]) != state or taken is not None


# -- step 1: mentions ------------------------------------------------------------------


def _mark(kind: str, index: int = 0) -> str:
    return f"{p.OPEN}{kind}{index}{p.CLOSE}"


def _digits(text: str) -> str:
    return p.NUMBER_WORD.sub(lambda m: str(p.NUMBERS.index(m[0].lower())), text)


def _plain(text: str) -> str:
    """Straighten quotes; remove Markdown emphasis and LaTeX or XML markup."""
    text = text.translate(p.STRAIGHT)
    for pattern, new in p.MARKUP:
        text = pattern.sub(new, text)
    return text


def _option_text(text: str) -> str:
    """Return the comparable form of an option: digits, no article, no final stop."""
    text = " ".join(_digits(_plain(text)).split()).rstrip(".").rstrip()
    return re.sub(r"^(?:the|an?) (?=\S)", "", text, flags=re.I)


def _mentions(think: str, texts: list[str]) -> str:
    """Return the text in lower case, mentions of options replaced by marks."""
    text = re.sub(f"[{p.OPEN}{p.CLOSE}]", "", _plain(think))
    for pattern, new in p.IDIOMS:
        text = pattern.sub(new, text)
    # "that is right" says correct, unless the right is a side one can be on
    right = _mark("x") if "right" in map(str.casefold, texts) else "correct"
    text = p.THAT_RIGHT.sub(rf"\1 is {right}", text)
    text = _digits(p.ONE_THING.sub(r"\1 thing", text))
    text = _letters(_mark_texts(text, texts), texts).lower()
    return _joined(_negated(_paired(text), len(texts)))


def _mark_texts(text: str, texts: list[str]) -> str:
    """Mark option texts; single letters are left to `_letters`."""
    folded = [t.casefold() for t in texts]

    def mark(match: re.Match) -> str:
        key = " ".join(match[0].casefold().split())
        same = [i for i, t in enumerate(folded) if t == key]
        return _mark("t", same[0]) if len(same) == 1 else _mark("x")

    words = [t for t in texts if t and not (len(t) == 1 and t in ascii_letters)]
    if not words:
        return text
    pattern = "|".join(map(_pattern, sorted(words, key=len, reverse=True)))
    return re.sub(pattern, mark, text, flags=re.I)


def _pattern(text: str) -> str:
    """Return a regex for an option's text as whole words; numbers not inside
    numbers."""
    body = r"\s+".join(map(re.escape, text.split()))
    before = r"(?<!\w)" if text[0].isalnum() else ""
    after = r"(?!\w)" if text[-1].isalnum() else ""
    if text[0].isdigit():
        before += r"(?<!\d[.,])(?<![-−/])"
    if text[-1].isdigit():
        after += r"(?![.,/]\d|%)"
    if text.casefold() in ("yes", "no"):
        after += r"(?=\s*(?:[.,;:!?)\]}\"']|$|because\b|since\b|as\b))"
    return f"{before}{body}{after}"


def _letters(text: str, texts: list[str]) -> str:
    """Mark option letters; "A" and "I" only where they can't be words."""

    def mark(match: re.Match) -> str:
        letter = match[1] or match[2]
        named = {i for i, t in enumerate(texts) if t == letter}
        if LETTERS.index(letter) < len(texts):
            named.add(LETTERS.index(letter))
        if not named:
            return match[0]
        if match[2] and letter in "AI":
            before = text[max(0, match.start() - 24) : match.start()]
            after = text[match.end() : match.end() + 24]
            opens = re.search(r"(?:^|[.!?:;…\n])\s*[\"']?$", before)
            word = letter == "I" or (opens and p.AFTER_ARTICLE.match(after))
            if word and not p.NAMES_LETTER.search(before):
                return match[0]
        return _mark("l", named.pop()) if len(named) == 1 else _mark("x")

    return p.BARE_LETTER.sub(mark, text)


def _paired(text: str) -> str:
    """Merge a letter beside an option's text into one mention, or a conflict."""

    def pair(match: re.Match) -> str:
        return _mark("l", int(match[1])) if match[1] == match[2] else _mark("x")

    letter, option = p.LETTER_MARK, p.TEXT_MARK
    ahead = rf"(?={p.OPEN}t\d+{p.CLOSE}\s*(?:[.;)]|$))"
    stop = rf"\.\s*{ahead}"  # "A. two." but not "A. Two are red"
    gap = r"[\s:,()=–—-]*(?:(?:the|an?) )?"
    text = re.sub(rf"{letter}(?:{stop}|{gap}){option}", pair, text)
    beside = rf"\s*\(\s*(?:(?:option|choice)\s*)?{letter}\s*\)"
    return re.sub(option + beside, pair, text)


def _negated(text: str, count: int) -> str:
    """Mark negated options: "not B", "rather than left", "neither A nor B"."""

    def negate(match: re.Match) -> str:
        return match[1] + (_mark("n", int(match[3])) if match[2] != "x" else "")

    filler = r"((?:(?:be|is|simply|just|in|on|at|to|the|an?|option|choice)\s+)*)\(?"
    text = re.sub(rf"{p.NEGATION}\s+{filler}{p.MARK}", negate, text)
    link = rf"({p.NEGATED_MARK}\)?,? (?:or|nor) (?:the |an? |option )?\(?)"
    for _ in range(count):
        text = re.sub(link + p.NAMED_MARK, lambda m: m[1] + _mark("n", int(m[2])), text)
    # "not A but B" says B
    but = rf",? but (?:rather |instead )?(?={p.FILL}{p.NAMED_MARK})"
    return re.sub(p.NEGATED_MARK + but, "", text)


def _joined(text: str) -> str:
    """Mark several options offered at once as a conflict, unless they are the same."""

    def join(match: re.Match) -> str:
        kinds, indices = zip(*re.findall(p.MARK, match[0]), strict=True)
        same = len(set(indices)) == 1 and "x" not in kinds
        return _mark(kinds[0], int(indices[0])) if same else _mark("x")

    article = r"(?:(?:the|an?|option|choice)\s+)*\(?"
    comma = rf"(?:\)?\s*[,/]\s*{article}{p.MARK})"
    either = rf"(?:\)?\s*,?\s*\b(?:or|and)\b\s*{article}{p.MARK})"
    end = r"(?=\s*\)?\s*(?:[.;!?:]|$))"
    several = rf"(?:{comma}{{0,8}}{either}{{1,8}}|{comma}{{1,8}}{end})"
    return re.sub(p.MARK + several, join, text)


# -- step 3: claims --------------------------------------------------------------------


def _stems(text: str) -> list[str]:
    """Return words without the endings of plurals, comparatives and superlatives."""
    words = re.findall(r"[a-z0-9]+", _digits(_plain(text)).lower())
    return [re.sub(r"(?<=[a-z]{3})(?:s|er|est)$", "", w) for w in words]


_STOP = frozenset(_stems(p.STOP_WORDS))
_GENERIC = frozenset(_stems(p.GENERIC_WORDS))
_AFTER_NUMBER = frozenset(_stems(p.AFTER_NUMBER_WORDS))


class _Item(NamedTuple):
    """The question and options that claims are compared with."""

    texts: list[str]  # comparable option texts
    asked: frozenset[str]  # words of the question
    head: frozenset[str]  # those of its main clause before a preposition
    things: frozenset[str]  # those of them that name a thing


def _item(question: str, texts: list[str]) -> _Item:
    plain = _digits(_plain(question)).lower()
    asking = [part for part in re.split(r"[,.;:]\s+", plain) if p.ASKS.match(part)]
    main = asking[-1] if asking else plain
    cut = p.SPATIAL.search(main)
    asked = frozenset(_stems(plain))
    head = frozenset(_stems(main[: cut.start()] if cut else main))
    options = {w for t in texts for w in _stems(t)}
    return _Item(texts, asked, head, head - _STOP - _GENERIC - options)


def _about(subject: str, item: _Item) -> bool:
    """Return whether the subject of a clause is what the question asks about.

    Every content word of it must be generic or in the question. A subject that the
    question names only behind a preposition ("left of the cat") is refused where
    another thing stands before it ("the dog").
    """
    subject = re.split(r",|\bthat\b|\bmeans\b|\bconcludes?\b", subject)[-1]
    subject = re.sub(
        p.ANY_MARK,
        lambda m: item.texts[int(m[2])] if m[1] in "tn" else "",
        subject,
    ).lower()
    if re.search(r"\b(?:what|who|where|how)\b", subject):
        return False
    lead = p.STARTS_LEAD.match(subject)
    named = set(_stems(subject[lead.end() if lead else 0 :])) - _STOP - _GENERIC
    if not named <= item.asked:
        return False
    return not named or not item.things or bool(named & item.head)


def _claims(clause: str, item: _Item) -> Iterator[tuple[str, int, str]]:
    """Yield kind, index and strength of the marks of one clause that claim, in order.

    Strength is 'strong', 'weak', 'negative', or 'unread': a conclusion that names an
    option in a way the rules can't read.
    """
    if p.REASON.match(clause):
        clause = clause.rpartition(",")[2]
    lead = bool(p.STARTS_LEAD.match(clause))
    bound, unread = False, None
    for match in list(re.finditer(p.ANY_MARK, clause))[-_MARKS:]:
        kind, index = match[1], int(match[2])
        left = clause[max(0, match.start() - _NEAR) : match.start()]
        right = clause[match.end() : match.end() + _NEAR]
        if kind == "n" or p.WRONG_ONE.match(right):
            strength = "negative"
        else:
            strength = _strength(left, right, match, lead, item)
        if strength:
            bound = True
            yield kind, index, strength
        elif lead:
            unread = kind, index, "unread"
    if unread and not bound:
        yield unread


def _agreed(clause: str, item: _Item) -> list[tuple[str, int, str]]:
    """Return the claims of a clause; one conflict where it claims an option by its
    letter and only others by their texts. Beside a closing ", answer B" every text
    counts."""
    claims = list(_claims(clause, item))
    firm = [(k, i) for k, i, s in claims if s in ("strong", "weak")]
    letters = {i for k, i in firm if k == "l"}
    texts = {i for k, i in firm if k == "t"}
    if p.APPOSED.search(clause):
        texts |= {int(i) for i in re.findall(p.TEXT_MARK, clause)}
    if not (letters and texts) or letters & texts:
        return claims
    strong = any(s == "strong" for *_, s in claims)
    return [("x", 0, "strong" if strong else "weak")]


def _strength(left: str, right: str, mark: re.Match, lead: bool, item: _Item) -> str:
    """Return 'strong', 'weak' or '' for a mark between its left and right context."""
    core = p.FILL_END.sub("", left)
    if p.ANSWER.search(core) or p.LABEL.search(left) or p.CHOOSE.search(core):
        return "strong"
    if p.RIGHT_ONE.match(right) or (mark[1] == "l" and p.MATCHES.search(core)):
        return "strong"
    text = item.texts[int(mark[2])] if mark[1] == "t" else ""
    firm = "strong" if lead else "weak"
    ends = not right.strip(".! ")
    if text.isdigit():
        rest = set(_stems(re.sub(p.ANY_MARK, " mark ", right)))
        if p.OPERATOR.match(right) or rest - item.asked - _AFTER_NUMBER:
            return ""
        firm = "strong" if p.TOTAL.search(right) else firm
        ends = True
    opens = not core.strip() or p.ONLY_LEAD.match(core)
    free = ends or not re.match(r"[\s)]*(?!(?:of|as|at)\b)[a-z]", right)
    if opens and lead and free:
        return firm
    if opens and ends and len(text.split()) >= 3:
        return firm  # an option that is a sentence
    if opens or not p.FILL_END.sub("", left.rpartition(",")[2]).strip():
        # the option is the subject: "so the dog is closer"
        predicate = p.PREDICATE.match(right)
        named = predicate and _stems(predicate[1])[0] in item.asked - _STOP
        return firm if named else ""
    if re.search(r"=\s*$", left):  # "x = 15", "2 + 3 = 5"
        core = re.sub(rf"{p.ANY_MARK}|[\d.+*/×−-]", " ", left.rstrip()[:-1]) + " is"
    verb = re.search(r"\b(?:is|are|was|were)( \w+ing)$", core)
    if verb and _stems(verb[1])[0] in item.asked:
        core = core[: verb.start(1)]  # "is holding", asked what he is holding
    binds = p.BINDS.match(core) or p.BINDS.match(_without_adjective(core))
    subject = binds["subject"] if binds else core
    if not binds and not (ends and len(text.split()) >= 3):
        return ""  # but an option may be its own predicate: "the camera turned left"
    if mark[1] == "l" and item.texts[int(mark[2])] != LETTERS[int(mark[2])]:
        item = item._replace(asked=frozenset())  # "the dog is B" labels the dog
    if not _about(subject, item):
        return ""
    return "strong" if p.STRONG_BINDS.search(core) else firm


def _without_adjective(core: str) -> str:
    """Drop an article and one adjective from the core: "it is a red" → "it is"."""
    match = re.search(r"\b(?:the|an?) (?!opposite|wrong|other|same|next)[a-z]+$", core)
    return core[: match.start()].rstrip() if match else core
