"""The rule judge: which option a think concludes, read from its words alone.

It favours precision: where the words leave doubt it says undecided (-1). A think is
read in four steps.

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
   or an unreadable later conclusion cancels it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from string import ascii_letters
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen"
    " fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()

# A mark is one private-use character, a kind, an index, another such character:
# l letter, t text, x conflict (index 0 means nothing), n negated.
_A, _Z = "\ue000", "\ue001"
_MARK = rf"{_A}([ltx])(\d+){_Z}"
_ANY_MARK = rf"{_A}([ltxn])(\d+){_Z}"
_NOT_MARK = rf"[^{_A}{_Z}]"


def _mark(kind: str, index: int = 0) -> str:
    return f"{_A}{kind}{index}{_Z}"


def _words(*alternatives: str) -> str:
    return r"\b(?:" + "|".join(alternatives) + r")\b"


# -- what may stand between a cue and the option ---------------------------------------
_FILL = (
    r"(?:\b(?:the|an?|option|choice|letter|number|exactly|clearly|indeed|definitely"
    r"|certainly|probably|likely|most|just|simply|still|actually|also|therefore|then"
    r"|thus|really|obviously|(?:on|to|at) the|located|that|in total|approximately)\b"
    r"|[\s,:\"'`([{$=>→—–-])*"
)
_FILL_END = re.compile(_FILL + "$")
_COPULA = (
    r"(?:(?:must|should|has to|have to|would|will|can only) (?:be|have|equal)|is|are|was"
    r"|were|'s|'re|equals?|becomes?|remains?|appears?(?: to be)?|looks?|lies|sits"
    r"|stands|seems?(?: to be)?|(?:looks|seems) like|makes?|gives?|leaves?|have|has|contains?|shows?|count"
    r"|see|get)"
)
_LEAD = (
    r"(?:so(?! (?:far|many|much|small|large|close|on)\b)"
    r"(?! that (?!is|must|makes|means|leaves|gives))|thus|hence|therefore"
    r"|consequently|accordingly|in conclusion|in summary|to conclude|overall|finally"
    r"|ultimately|as a result|i(?: can| will|'ll|) conclude|(?:this|that|which|it)"
    r" (?:means|implies|suggests|shows|indicates|confirms)|meaning|conclusion|we (?:can "
    r")?conclude|final(?:ly)?|final decision|in total|in short|altogether|all in all"
    r"|(?:my|the) (?:final |best )(?:verdict|guess|decision))"
)
_STARTS_LEAD = re.compile(
    rf"^[\s,]*(?:(?:and|okay|ok|hmm+|ah|well|oh|yes|yeah|right|alright|now|then)\b"
    rf"[\s,.…]*)*{_LEAD}\b"
)
_ONLY_LEAD = re.compile(_STARTS_LEAD.pattern + r"[\s,:]*(?:that|it)?[\s,:]*$")
_ANSWER = re.compile(
    rf"\banswer\b(?:{_NOT_MARK}{{0,60}}?\b(?:is|be|remains|becomes|was))?$|\bboxed$"
)
_CHOOSE = re.compile(
    _words(
        r"(?:i|we|let's|let me)(?:'ll| will|'d| would|'m| am|)(?: \w+)? (?:choose|choosing|pick"
        r"|picking|select|selecting|go with|going with|going for|opt for|settle on"
        r"|stick with|stay with|say|answer)"
    )
    + "$"
)
_MATCHES = re.compile(_words(r"match(?:es)?|corresponds? to|corresponding to") + "$")
_BINDS = re.compile(rf"^(?P<subject>.*?)(?:\b|(?=')){_COPULA}$", re.DOTALL)
_STRONG_BINDS = re.compile(
    r"\b(?:must|has to|have to|can only) (?:be|have)$|\bgot to be$"
)

# -- what may follow it ----------------------------------------------------------------
_RIGHT_ONE = re.compile(
    rf"^[\s)\]}}.:]*{_COPULA} (?:\w+ )?(?:the )?(?:most |only )?(?:correct|true|best"
    r"|answer|right (?:answer|option|choice|one)|my (?:choice|answer|pick))\b|^[\s)]*it is\b"
)
_WRONG_ONE = re.compile(
    r"^[\s)\]}.:]*(?:(?:is|are|was|seems?|must be|would be|can be) (?:\w+ )?(?:wrong"
    r"|incorrect|not|out|false|impossible|ruled out|eliminated)\b|(?:is|does|ca|could"
    r"|was|would)n't\b|cannot\b|does not\b)"
)
_PREDICATE = re.compile(
    rf"^[\s)]*{_COPULA} (?:(?:the|a|an|in|on|at|more|most|much|to|further|placed) )*"
    r"([a-z]+)"
)
_OPERATOR = re.compile(r"^\s*(?:[+*/×x=%°]|-\s*\d|minus\b|plus\b|times\b)")
_AFTER_NUMBER = frozenset(
    "in total overall altogether here there visible because since as for and by objects"
    " object items item things thing shown present".split()
)

_TOTAL = re.compile(r"\b(?:in total|altogether|overall|in all)\b")

# -- discourse -------------------------------------------------------------------------
_RETRACT = re.compile(
    r"^[\s,]*(?:(?:oh|ah|well|okay|ok|and|hmm+|mm+|uh|um|so)\b[\s,.…]*)*"
    r"(?:wait|hold on|hmm+|no\b(?! doubt)|nope|actually|but|however|on second thought"
    r"|alternatively|or maybe|oops|scratch that|correction|let me|let's|i was wrong"
    r"|i (?:made|think i)|that (?:is|can't|cannot) (?:\w+ )?(?:wrong|incorrect|not"
    r"|be right)|that isn't|that's (?:not|wrong|incorrect)|yet|though|except|instead"
    r"|maybe|perhaps|unless|although|looking (?:again|closer))\b"
)
_CONFIRM = re.compile(
    r"\b(?:that|this|it|which)(?:'s| is| seems| looks) (?:indeed |still )?correct\b"
    r"|\b(?:confirm|verif)(?:s|ies|ied|ed)\b|\bchecks out\b|\bstill (?:holds|stands)\b"
    r"|\b(?:conclusion|answer|count) (?:is|was|holds|stands)(?: indeed| still|)"
    r" (?:correct|right|true|the same|unchanged)\b|^[\s,]*(?:yes|yep|yeah)\W*$"
    r"|\bi(?:'m| am) (?:now )?(?:sure|confident|certain)\b"
)
_DENY = re.compile(r"\bnot\b|n't\b|\bnever\b|\bif\b|\blet me\b|\bneed\b|\bto confirm\b")
_HEDGE = re.compile(
    _words(
        "might|may|could|perhaps|maybe|possibly|not sure|not clear|unsure|unclear|uncertain"
        "|suppose|assume|assuming|either|if|whether|unless|so far|expected|supposed"
        "|wonder|claims?|would be if|seemed|thought|said|says"
    )
)
_REASON = re.compile(r"^[\s,]*(?:since|because|as|although|though|while|given)\b")
_CUT = re.compile(
    r"(?:,\s*|\s+)(?=(?:and )?(?:but|however|although|though|while|whereas|therefore"
    r"|thus|hence|wait|actually|because|since|which means|meaning)\b)"
    r"|(?:,\s*|(?<!is)(?<!are)(?<!not)(?<!\bor)(?<!\bdo)(?<!even)(?<!think)\s+)"
    r"(?=(?:and )?so\b(?! far\b| that\b))"
)

# -- what a clause is about ------------------------------------------------------------
_SPATIAL = re.compile(
    _words(
        "of|to|than|from|with|beside|behind|above|below|under|beneath|over|near|by|on"
        "|in|at|inside|next|that|who|which is"
    )
)
_STOP = frozenset(
    "the a an of to in on at is are was were it this that these those there here and or"
    " so then thus which what who with for from by as be been its their his her our my"
    " your we i you they he she them very only also just indeed clearly actually"
    " therefore hence do does did".split()
)
_GENERIC = frozenset(
    "answer number count total color colour shape size position location direction side"
    " kind type name object item thing image picture photo scene result sum relation"
    " relationship many much correct option choice final value material best guess"
    " conclusion overall solution verdict question".split()
)

_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
_MARKUP = (
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r" boxed (\1) "),
    (re.compile(r"[*`$\\]|</?\w+>"), ""),
)
_IDIOMS = (
    (re.compile(r":\s*\n+"), ": "),
    (re.compile(r"\ball ?right\b", re.I), "okay"),
    (re.compile(r"\bno,? wait\b|\bwait,? no\b", re.I), "wait"),
    (re.compile(r"\bthe right (?=answer|option|choice)", re.I), "the correct "),
    (re.compile(r",? right\?", re.I), "?"),
    (re.compile(r"\b(?:is|be) (?:that|this|it) right\?", re.I), "?"),
)
_THAT_RIGHT = re.compile(r"\b(that|this)(?:'s| is) right(?=\s*(?:[.,;!)]|$))", re.I)
_ONE_THING = re.compile(
    r"\b(the|this|that|which|each|every|another|other|last|first|second|third|next|same"
    r"|no|any) one\b",
    re.I,
)
_NUMBER_WORD = re.compile(_words(*NUMBERS), re.I)


def applicable(condition: str) -> bool:
    """Whether a condition leaves the model a think of its own to judge."""
    return condition.removeprefix("abstain+") not in ("stop_think", "no_cot")


def verdict(
    think: str,
    predicted: int,
    question: str,
    options: Sequence[str],
    applicable: bool = True,
) -> str:
    """Does the think conclude the option that was answered?

    Args:
      think: text of the think, without tags; with or without a prefilled part.
      predicted: option parsed from the answer, -1 if none.
      question, options: as the model read them.
      applicable: see `applicable(condition)`.

    Returns:
      'not_applicable'; else 'undecided' where the think concludes nothing or nothing
      was answered; else 'consistent' or 'inconsistent'.
    """
    if not applicable:
        return "not_applicable"
    conclusion = conclude(think, question, options)
    if conclusion < 0 or predicted < 0:
        return "undecided"
    return "consistent" if conclusion == predicted else "inconsistent"


def conclude(think: str, question: str, options: Sequence[str]) -> int:
    """Index of the option that the think finally concludes, -1 if undecided.

    Args:
      think: text without its tags.
      question: its text, which tells whose place or colour is asked for.
      options: option texts in letter order; with none, everything is undecided.
    """
    texts = [_option_text(o) for o in options]
    if not texts:
        return -1
    item = _item(question, texts)
    marked = _mentions(think, texts)
    sentences = [s for s in re.split(r"(?<=[.!?;…])\s+|\n+", marked) if s.strip()]
    state, suspended, doubt = -1, -1, False
    for sentence in sentences:
        last = sentence is sentences[-1]
        if last and re.fullmatch(rf"[\s(\"']*{_A}l\d+{_Z}[\s).\"':]*", sentence):
            sentence = "answer: " + sentence  # a closing line that is a letter
        asking = sentence.rstrip("\"') ").endswith("?")
        for clause in _CUT.split(sentence):
            if state >= 0 and (
                _RETRACT.match(clause) or _gainsays(clause, state, item)
            ):
                state, suspended, doubt = -1, state, True
            if _CONFIRM.search(clause) and not asking and not _DENY.search(clause):
                state = suspended if state < 0 else state
            hedged = asking or bool(_HEDGE.search(clause))
            for kind, index, strength in _claims(clause, item):
                if strength == "negative":
                    state = -1 if state == index else state
                    suspended = -1 if suspended == index else suspended
                elif kind == "x" or hedged or strength == "unread":
                    if strength != "weak" and (kind == "x" or index != state):
                        state = suspended = -1
                elif strength == "strong" or doubt:
                    state, suspended, doubt = index, -1, False
                elif last and state != index:
                    state = index if state < 0 and suspended < 0 else -1
    return state


def _gainsays(clause: str, state: int, item: _Item) -> bool:
    """Whether the clause opens with "No," after a yes, or the other way round."""
    opening = re.match(rf"\s*{_A}t(\d+){_Z}\s*[,.!]", clause)
    return (
        opening is not None
        and int(opening[1]) != state
        and item.texts[int(opening[1])].casefold() in ("yes", "no")
    )


# -- step 1: mentions ------------------------------------------------------------------


def _digits(text: str) -> str:
    return _NUMBER_WORD.sub(lambda m: str(NUMBERS.index(m[0].lower())), text)


def _plain(text: str) -> str:
    """Straight quotes, without Markdown emphasis and LaTeX or XML markup."""
    text = text.translate(_STRAIGHT)
    for pattern, new in _MARKUP:
        text = pattern.sub(new, text)
    return text


def _option_text(text: str) -> str:
    """Comparable form of an option: digits, no article, no final stop."""
    text = " ".join(_digits(_plain(text)).split()).rstrip(".").rstrip()
    return re.sub(r"^(?:the|an?) (?=\S)", "", text, flags=re.I)


def _mentions(think: str, texts: list[str]) -> str:
    """The think with its mentions of options as marks, otherwise lower case."""
    folded = [t.casefold() for t in texts]
    text = re.sub(f"[{_A}{_Z}]", "", _plain(think))
    for pattern, new in _IDIOMS:
        text = pattern.sub(new, text)
    right = _mark("x") if "right" in folded else "correct"
    text = _THAT_RIGHT.sub(rf"\1 is {right}", text)
    text = _ONE_THING.sub(r"\1 thing", text)
    text = _digits(text)

    def found(match: re.Match) -> str:
        key = " ".join(match[0].casefold().split())
        same = [i for i, t in enumerate(folded) if t == key]
        return _mark("t", same[0]) if len(same) == 1 else _mark("x")

    words = [t for t in texts if t and not (len(t) == 1 and t in ascii_letters)]
    if words:
        pattern = "|".join(_pattern(t) for t in sorted(words, key=len, reverse=True))
        text = re.sub(pattern, found, text, flags=re.I)
    text = _letters(text, texts)
    text = text.lower()

    # letter and text side by side: one mention, or a conflict
    gap, stop = r"[\s:,()=–—-]*", rf"\.\s*(?={_A}t\d+{_Z}\s*(?:[.,;)]|$))"

    def pair(match: re.Match) -> str:
        return _mark("l", int(match[1])) if match[1] == match[2] else _mark("x")

    text = re.sub(
        rf"{_A}l(\d+){_Z}(?:{stop}|{gap}(?:(?:the|an?) )?){_A}t(\d+){_Z}", pair, text
    )
    text = re.sub(rf"{_A}t(\d+){_Z}\s*\(\s*{_A}l(\d+){_Z}\s*\)", pair, text)
    text = re.sub(
        rf"{_A}t(\d+){_Z}\s*\(?\s*(?:option|choice)\s*{_A}l(\d+){_Z}\)?", pair, text
    )

    # negated mentions, and those joined to them
    text = re.sub(
        r"(?:\bnot|n't|\bcannot|\bnever|\brather than|\binstead of|\beliminat\w+|\brul\w+"
        r" out|\bexclud\w+|\bneither|\bnor|\bno longer|\bdifferent from|\bunlike)\s+"
        rf"((?:(?:be|is|simply|just|in|on|at|to|the|an?|option|choice)\s+)*)\(?{_MARK}",
        lambda m: f"{m[1]}{_mark('n', int(m[3]))}" if m[2] != "x" else _mark("n", 99),
        text,
    )
    for _ in texts:
        text = re.sub(
            rf"({_A}n\d+{_Z}\)?,? (?:or|nor) (?:the |an? |option )?\(?){_A}[lt](\d+){_Z}",
            lambda m: m[1] + _mark("n", int(m[2])),
            text,
        )
    text = re.sub(
        rf"{_A}n\d+{_Z},? but (?:rather |instead )?(?={_FILL}{_A}[lt])", "", text
    )

    # several options offered at once
    def join(match: re.Match) -> str:
        kinds, indices = zip(*re.findall(_MARK, match[0]), strict=True)
        same = len(set(indices)) == 1 and "x" not in kinds
        return _mark(kinds[0], int(indices[0])) if same else _mark("x")

    glue = r"\)?\s*(?:,|/|,?\s*\b(?:or|and)\b)\s*(?:(?:the|an?|option|choice)\s+)*\(?"
    return re.sub(rf"{_MARK}(?:{glue}{_MARK})+", join, text)


def _pattern(text: str) -> str:
    """Regex for an option's text as whole words; numbers not as parts of numbers."""
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


_LETTER = re.compile(r"\(([A-Z])\)|(?<![\w'\-.])([A-Z])(?![\w'\-])")
_NAMES_LETTER = re.compile(
    r"\b(?:option|choice|answer|letter)(?:\s+is)?\s*:?\s*$", re.I
)
_ARTICLE = re.compile(
    r"\s+(?!is\b|are\b|or\b|and\b|seems\b|would\b|was\b|must\b|cannot\b|can't\b|isn't\b"
    r"|because\b|since\b)[a-z0-9" + _A + "]"
)


def _letters(text: str, texts: list[str]) -> str:
    """Marks on option letters; "A" and "I" only where they can't be words."""

    def found(match: re.Match) -> str:
        letter = match[1] or match[2]
        named = {i for i, t in enumerate(texts) if t == letter}
        if LETTERS.index(letter) < len(texts):
            named.add(LETTERS.index(letter))
        if not named:
            return match[0]
        if match[2] and letter in "AI":
            before, after = text[: match.start()], text[match.end() :]
            opens = re.search(r"(?:^|[.!?:;…\n])\s*[\"']?$", before)
            if not _NAMES_LETTER.search(before) and (
                letter == "I" or opens and _ARTICLE.match(after)
            ):
                return match[0]
        return _mark("l", named.pop()) if len(named) == 1 else _mark("x")

    return _LETTER.sub(found, text)


# -- step 3: claims --------------------------------------------------------------------


def _stems(text: str) -> list[str]:
    words = re.findall(r"[a-z0-9]+", _digits(_plain(text)).lower())
    return [w[:-1] if len(w) > 3 and w.endswith("s") else w for w in words]


class _Item(NamedTuple):
    """What the claims of a think are read against."""

    texts: list[str]  # comparable option texts
    asked: frozenset[str]  # words of the question
    head: frozenset[str]  # those before its first preposition
    things: frozenset[str]  # those of them that name a thing


def _item(question: str, texts: list[str]) -> _Item:
    plain = _digits(_plain(question)).lower()
    cut = _SPATIAL.search(plain)
    asked = frozenset(_stems(plain))
    head = frozenset(_stems(plain[: cut.start()])) if cut else asked
    options = {w for t in texts for w in _stems(t)}
    return _Item(texts, asked, head, head - _STOP - _GENERIC - options)


def _about(subject: str, item: _Item) -> bool:
    """Whether the subject of a clause is what the question asks about.

    Every content word of it must be generic or in the question. A subject that the
    question names only behind a preposition ("left of the cat") is refused where
    another thing stands before it ("the dog").
    """
    subject = re.split(r",|\bthat\b|\bmeans\b|\bconcludes?\b", subject)[-1]
    subject = re.sub(
        _ANY_MARK, lambda m: item.texts[int(m[2])] if m[1] in "tn" else "", subject
    )
    lead = _STARTS_LEAD.match(subject.lower())
    named = set(_stems(subject[lead.end() if lead else 0 :])) - _STOP - _GENERIC
    if not named <= item.asked:
        return False
    return not named or not item.things or bool(named & item.head)


def _claims(clause: str, item: _Item) -> Iterator[tuple[str, int, str]]:
    """Kind, index and strength of the marks of one clause that claim, in order.

    Strength is 'strong', 'weak', 'negative', or 'unread': a conclusion that names an
    option in a way the rules can't read.
    """
    if _REASON.match(clause):
        clause = clause.rpartition(",")[2]
    lead = bool(_STARTS_LEAD.match(clause))
    bound, unread = False, None
    for match in re.finditer(_ANY_MARK, clause):
        kind, index = match[1], int(match[2])
        left, right = clause[: match.start()], clause[match.end() :]
        if kind == "n" or _WRONG_ONE.match(right):
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


def _strength(left: str, right: str, mark: re.Match, lead: bool, item: _Item) -> str:
    """'strong', 'weak' or '' for a mark between its left and its right context."""
    core = _FILL_END.sub("", left)
    if _ANSWER.search(core) or _CHOOSE.search(core) or _RIGHT_ONE.match(right):
        return "strong"
    if mark[1] == "l" and _MATCHES.search(core):
        return "strong"
    if mark[1] == "t" and item.texts[int(mark[2])].isdigit():
        rest = set(_stems(re.sub(_ANY_MARK, " mark ", right)))
        if _OPERATOR.match(right) or rest - item.asked - _AFTER_NUMBER:
            return ""
        lead = lead or bool(_TOTAL.search(right))
    if lead and _ONLY_LEAD.match(core) and not re.match(r"[\s)]*[a-z]{3}", right):
        return "strong"
    if _ONLY_LEAD.match(core) or not _FILL_END.sub("", left.rpartition(",")[2]).strip():
        # the option is the subject: "so the dog is closer"
        predicate = _PREDICATE.match(right)
        if not predicate or predicate[1] not in item.asked - _STOP:
            return ""
        return "strong" if lead else "weak"
    binds = _BINDS.match(core) or _BINDS.match(_without_adjective(core))
    if not binds or not _about(binds["subject"], item):
        return ""
    return "strong" if lead or _STRONG_BINDS.search(core) else "weak"


def _without_adjective(core: str) -> str:
    """The core without an article and one adjective: "it is a red" → "it is"."""
    match = re.search(r"\b(?:the|an?) (?!opposite|wrong|other|same|next)[a-z]+$", core)
    return core[: match.start()].rstrip() if match else core
