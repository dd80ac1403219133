"""Which options a clause names: by letter, by text, and not where it rules them out.

A clause names an option by a letter that can't be read otherwise (not the article "A",
the pronoun "I" or "point B") or by its text as whole words, the longest option first
where one contains another. What a negation governs is not named.
"""

from __future__ import annotations

import functools
import re
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.answers import numbers

NONE, SEVERAL = -1, -2


class Mention(NamedTuple):
    start: int
    end: int
    option: int  # may lie beyond the options
    letter: bool  # by its letter, else by its text


# -- texts -----------------------------------------------------------------------------

_WORD = re.compile(
    r"[぀-ヿ㐀-鿿가-힣]|(?<![\w.])[-−]?[0-9]+(?:[.,:/][0-9]+)*%?|[^\W_]+(?:['’][a-z]+)?"
)
_ARTICLES = frozenset("a an the".split())
_DIGITS = {
    w: str(i)
    for i, w in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen"
        " fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {"grey": "gray", "colour": "color", "centre": "center"}
# What may follow the letter A, but not the article.
_VERBS = re.compile(
    r"(?:is|was|are|seems|looks|appears|matches|fits|describes|shows|corresponds|because"
    r"|since|as|and|or|but|nor|would|could|can|should|must|has|does|makes|for|if|with|in"
    r"|may|might|will|do|did|cannot|wins|holds|remains|works|also|alone|only|too"
    r"|on|best|here|instead|over|rather|not|vs|versus|to|at|from|being|refers|indicates"
    r"|represents|says|states|o|ou|oder|y|et|e|und|oppure|perhaps|maybe|possibly)\b"
)
_ONE = frozenset(
    "the this that each every which other another any left right first last correct"
    " only no some".split()
)


def _words(text: str) -> list[tuple[str, int, int]]:
    """Return (word to compare, start, end), articles left out, number words as
    digits."""
    out, before = [], ""
    for match in _WORD.finditer(text):
        word = match[0].casefold().replace("’", "'").replace("−", "-")
        article = word in _ARTICLES
        if match[0] == "A":  # "A cat", but "Vitamin A" and "A is closer"
            opens = not text[: match.start()].rstrip(" (\"'*").strip()[-1:].isalnum()
            article = opens and not _VERBS.match(text[match.end() :].lstrip())
        if not article and not (word == "one" and before in _ONE):
            out.append((_DIGITS.get(word, word), match.start(), match.end()))
        before = word
    return out


@functools.lru_cache(4096)
def _index(options: tuple[str, ...]) -> dict[str, list[tuple[tuple[str, ...], int]]]:
    """Return, by first word, the options' words, longest first. Texts that several
    options have, and letters, name nothing."""
    texts = [tuple(w for w, _, _ in _words(o)) for o in options]
    index: dict[str, list] = {}
    for i, words in enumerate(texts):
        single = re.fullmatch(r"[A-Za-z]", options[i].strip()) is not None
        if words and texts.count(words) == 1 and not single:
            index.setdefault(words[0], []).append((words, i))
    for entries in index.values():
        entries.sort(key=lambda e: -len(e[0]))
    return index


def texts(clause: str, options: tuple[str, ...]) -> list[Mention]:
    """Return the options that are named by their texts."""
    index, words, out, i = _index(options), _words(clause), [], 0
    plain = [w for w, _, _ in words]
    while i < len(words):
        for option, k in index.get(plain[i], ()):
            if tuple(plain[i : i + len(option)]) == option:
                last = i + len(option) - 1
                out.append(Mention(words[i][1], words[last][2], k, False))
                i = last
                break
        i += 1
    return out


# -- letters ---------------------------------------------------------------------------

_L = "A-Za-z0-9_À-ɏЀ-ӿ"  # letters that make a letter part of a word
_LETTER = re.compile(
    rf"[(\[（【]\s?([A-Za-z])\s?[)\]）】]|(?<![{_L}&@#$+\\.^=-])(?<![{_L}]['’])([A-Z])"
    rf"(?![{_L}+^=@#]|['’](?!d[iıuü]r|t[iıuü]r)[{_L}]|\.[{_L}]|-[{_L}]|\s?[+=<>^]\s?[{_L}(])"
)
_LABELS = re.compile(
    r"(?i)\b(?:point|line|vitamin|plan|group|type|sample|section|grade|team|box|figure"
    r"|fig\.?|panel|image|node|vertex|vertices|angle|segment|player|person|object|car"
    r"|room|building|station|city|row|column|cell|part|level|class|block|hepatitis"
    r"|size|side|table|chart|camera|view|frame|region|appendix|circle|mr|ms|dr)\.?\s+$"
)


def letters(clause: str, options: tuple[str, ...]) -> list[Mention]:
    """Return the options that are named by their letters, beyond the last one too."""
    out = []
    for match in _LETTER.finditer(clause):
        letter, bracketed = match[1] or match[2], match[1] is not None
        after = clause[match.end() : match.end() + 60]
        if not bracketed:
            if letter == "A" and _article(after):
                continue
            if letter == "I" and re.match(r"\s+\w|['’]", after):
                continue
            quoted = clause[match.start() - 1 : match.start()] in ('"', "“", "‘", "'")
            if quoted and any(re.fullmatch("[A-Z]", o.strip()) for o in options):
                continue
            if _LABELS.search(clause[max(0, match.start() - 20) : match.start()]):
                continue
        elif letter in "ai" and not re.match(r"\W*$", after):
            continue  # "(a)" may be a list's
        elif letter.upper() not in LETTERS[: len(options)]:
            continue  # "(x)", "(s)"
        out.append(Mention(*match.span(), LETTERS.index(letter.upper()), True))
    return out


def _article(after: str) -> bool:
    """Return whether "A" is the article, given what follows it."""
    if not re.match(r"\s+[^\W\d]", after) or _VERBS.match(after.lstrip()):
        return False
    if re.match(r"\s+\w+\s+\(?[A-Z](?![A-Za-z])", after):  # "A veya B"
        return False
    return re.match(r"\s+[A-Z](?!\w)", after) is None


# -- negation --------------------------------------------------------------------------

_BREAK = re.compile(
    r",(?!\s(?:dass|что|że|že|hogy)\b)|[.;:!?\n，。；：！？]"
    r"|(?<!thing )(?<!\ball )(?<!\bany )\bbut\b"
    r"|\b(?:so|and therefore|while|whereas|mais|sondern|sino|pero|però|но)\b"
)
_NOT = re.compile(
    r"(?i)\b(?:not|never|neither|nor|cannot|without|except|excluding|unlike|rather than"
    r"|instead of|rules? out|ruled out|ruling out|eliminat\w+|exclud\w+|discard\w*"
    r"|reject\w*|at least|at most|up to|incorrect|wrong|than|nicht|kein\w*"
    r"|weder|noch|pas|jamais|nunca|non|não|nem|ni|niet|geen|inte|ikke|nie|bukan|không|не|ни|ليس|ليست)\b|n['’]t\b"
    r"|\b(?:everything|anything|all|any)\s+but\b|不是|并非|不选|不能选|排除|而非|不为"
)
_NO = re.compile(r"(?i)\b(?:no|none of)\b")
_WRONG = re.compile(
    r"(?i)^[)\]）】\"”’*.]*(?:\s*\([^()]{0,40}\))?[^,.;!?\n，。；！？]{0,25}?(?:"
    r"\b(?:is|are|was|were|be|does|do|did|can|could|would|should|seems?|looks?|appears?"
    r"|has|must)\s+(?:clearly\s+|definitely\s+|also\s+|both\s+|therefore\s+|obviously\s+"
    r"|simply\s+)?(?:not|incorrect|wrong|false|out|ruled out|eliminated|excluded"
    r"|impossible|unlikely|invalid|inaccurate|never)\b|\b\w{2,7}n['’]t\b|\bcannot\b"
    r"|\b(?:incorrect[ao]?|fals[ao]|falsch|faux|fausse|sbagliat[ao]|errad[ao]|неверн\w*"
    r"|неправильн\w*|yanlış|değil|salah|नहीं|गलत)(?!\w)"
    r"|不对|不正确|错误|不是(?!\s?[A-Z])|不符|被排除)"
    r"|^\s?(?:[はが은는이가]|では|じゃ)?\s?(?:では)?(?:ありません|な[いく]|아니|아닙|아닌|틀)"
)


_MARKED = re.compile(
    r"(?i)\s*(?:[:.)-]\s*(?:no|false|incorrect|wrong)(?!\w)|[:.)-]?\s*[✗❌✘×])"
)


def _ruled_out(m: Mention, clause: str, options: tuple[str, ...]) -> bool:
    start = max(0, m.start - 60)
    before = _BREAK.split(clause[start : m.start])[-1]
    if _NOT.search(before):
        return True
    if _NO.search(before) and not any(o.strip().casefold() == "no" for o in options):
        return True
    after = clause[m.end : m.end + 90]
    if m.letter and _MARKED.match(after):
        own = options[m.option] if m.option < len(options) else ""
        return own.strip().casefold() not in ("no", "false", "wrong", "incorrect")
    return _WRONG.match(after) is not None


# What stands between the members of a list that is ruled out as a whole.
_ALSO = re.compile(
    r"(?i)\s*(?:,\s*(?:or|nor|and)?|/|or|nor|and)\s*(?:(?:the|an?|option|on|in|to)\s+)*"
)


# -- decisions -------------------------------------------------------------------------


def named(clause: str, options: tuple[str, ...]) -> list[Mention]:
    """Return all options that a clause names and doesn't rule out, in order."""
    by_text = texts(clause, options)
    inside = [(m.start, m.end) for m in by_text]
    mentions = by_text + [
        m
        for m in letters(clause, options)
        if not any(a <= m.start and m.end <= b for a, b in inside)
    ]
    out, negated = [], None  # the mention before, if ruled out
    for m in sorted(mentions):
        listed = negated and _ALSO.fullmatch(clause[negated.end : m.start])
        if listed or _ruled_out(m, clause, options):
            negated = m
        else:
            negated = None
            out.append(m)
    return out


def only(mentions: list[Mention], options: tuple[str, ...]) -> int:
    """Return the option of all mentions, NONE or SEVERAL."""
    distinct = {m.option for m in mentions}
    if len(distinct) > 1 or (distinct and max(distinct) >= len(options)):
        return SEVERAL
    return distinct.pop() if distinct else NONE


_LEAD = re.compile(
    r"\W{0,9}(?i:(?:option|choice|letter|answer|选项)\s*[:：]?\s*)?(?:[(\[（【]\s?"
    rf"([A-Za-z])\s?[)\]）】]|([A-Za-z])(?![{_L}'’]))[\s.):：、,，;*_\])\"'”’-]*"
)
_SCORES = re.compile(r"[^.\n]{0,20}[,;|]\s*\(?[A-Z]\)?\s*[:=]\s*[0-9]")  # A: 1, B: 2
# What may follow a letter that opens a clause, without a sign between, to decide it.
_BECAUSE = re.compile(
    r"(?i)\s*(?:because|since|as|for|given|due|indeed|(?:is|would be) (?:the )?(?:my )?"
    r"(?:correct|right|best|answer|most)|correct)\b"
)
# "Or" and "and" in the languages that models answer in.
_OR = (
    "und|oder|ou|et|o|ó|u|y|e|и|или|або|чи|lub|albo|nebo|alebo|ili|vagy|és|tai|eller|och"
    "|og|veya|ya da|ve|atau|hoặc|và|sau|și|ή|και|או|أو|و|या|और|หรือ|และ"
)
_OR_JOINED = (
    "または|又は|もしくは|か|と|또는|이나|혹은|와|과"
    "|和|或者?|还是|還是|与|與|跟|及|、|,|，"
)
_SPACED = re.compile(r"^\s+(?=\w)")
_AGAIN = re.compile(
    rf"^(?:or|and|and/or|/|&|of|{_OR}|{_OR_JOINED})?\s*[(\[（]?([A-Z])"
    rf"(?![{_L}'’])"
)
_SENTENCE = re.compile(
    r"(?<=[\w)\]\"'’”*%°]{2})[.!?](?=\s|$)|(?<=[a-z] [A-Z])[.!?](?=\s[A-Z])|[。！？\n]"
)


def lead(clause: str, options: tuple[str, ...]) -> int:
    """Return the option that opens a clause: `B`, `(B) right side`, `B: dog, since …`,
    `dog.`; NONE where it opens otherwise, SEVERAL for `B or C` and for a letter with
    another option's text."""
    if (exact := _exact(clause, options)) >= 0:
        return exact
    match = _LEAD.match(clause)
    if match:
        letter = match[1] or match[2]
        rest, between = clause[match.end() :], clause[match.end(match.lastindex) :]
        capital = letter.isupper() or match[1] is not None
        spaced = _SPACED.match(between) is not None and match[1] is None
        named_so = re.match(r"(?i)\W*(?:option|choice|letter|选项)", clause) is not None
        no_letter = (
            (letter in "Aa" and spaced and not named_so and _article(between))
            or (letter == "I" and spaced)
            or (not capital and rest.strip() and (spaced or letter in "ai"))
            or (spaced and re.match(r"\s*[+=<>^*/-]\s*\w", between))
        )
        if spaced and re.match(r"\s*[+<>&]\s*[A-Z](?!\w)", between):
            return SEVERAL
        if between.lstrip().startswith("?"):
            return NONE
        match = None if no_letter else match
    if match:
        index = LETTERS.index(letter.upper())
        other = _AGAIN.match(rest)
        if _SCORES.match(rest):
            return SEVERAL
        own_letter = (
            index < len(options) and other and options[index].strip() == other[1]
        )
        again = other and not _article_like(other, rest) and other[1] != letter.upper()
        if again and not own_letter:
            return SEVERAL
        if index >= len(options):
            return SEVERAL
        if _ruled_out(
            Mention(0, match.end(match.lastindex), index, True), clause, options
        ):
            return NONE
        sentence = _SENTENCE.split(rest, maxsplit=1)[0]
        own = texts(sentence, options)
        if (
            own
            and own[0].option != index
            and not sentence[: own[0].start].strip(" (*\"'")
        ):
            remainder = sentence[own[0].end :]
            if not re.search(r"\w", remainder) or only(own, options) != SEVERAL:
                return SEVERAL
        own_first = own and own[0].option == index
        if spaced and not own_first and not _BECAUSE.match(between):
            return NONE  # "A is farther away": a decision, or a remark
        others = [m for m in named(rest, options) if m.option != index]
        if others and not own_letter and _OR_ELSE.fullmatch(rest[: others[0].start]):
            return SEVERAL
        return SEVERAL if _enumerated(rest, index, options) else index
    opening = texts(clause, options)
    if opening and _IT_IS.fullmatch(clause[: opening[0].start]):
        first = opening[0]
        after = clause[first.end :]
        closed = re.match(r"\s*(?:$|[.,;:!。，\n)\]\"'”’*—–-])", after) is not None
        joined = re.match(r"[\s,.;:]*(?:or|and|/|not)\b", after) is not None
        if closed and not joined and not _ruled_out(first, clause, options):
            others = [m for m in texts(after, options) if m.option != first.option]
            gap = after[: others[0].start] if others else ""
            if others and (_ALSO.fullmatch(gap) or _OR_ELSE.fullmatch(gap)):
                return SEVERAL
            if not (others and gap.lstrip().startswith(":")):
                return first.option
    return NONE


# What may stand before an option's text that opens a clause, and what between two of
# which neither is decided for.
_IT_IS = re.compile(
    r"(?i)\W*(?:(?:its?|s|is|are|the|an?|to|on|in|at|by|from|just|only|likely|probably"
    r"|definitely|clearly)\W+)*"
)
_OR_ELSE = re.compile(
    r"(?i)\W*(?:(?:maybe|perhaps|possibly|or|and|also|even|oppure|an?|the|option|could|be"
    rf"|it|{_OR})\W+|(?:{_OR_JOINED})\W*)*"
)


def _exact(clause: str, options: tuple[str, ...]) -> int:
    """Return the only option that a whole clause is the text or the value of."""

    def normal(text: str) -> str:
        return re.sub(r"[\s'\"“”‘’`«».]", "", text).casefold()

    whole = normal(clause)
    same = [i for i, o in enumerate(options) if normal(o) == whole]
    if not same and (value := numbers.quantity(clause)) is not None:
        values = [numbers.quantity(o) for o in options]
        same = [i for i, v in enumerate(values) if v is not None and value.same(v)]
    return same[0] if len(same) == 1 and len(whole) > 1 else NONE


def _enumerated(text: str, index: int, options: tuple[str, ...]) -> bool:
    """Return whether another letter follows with its own option's text."""
    for m in letters(text, options):
        if m.option != index:
            own = texts(text[m.end : m.end + 200], options)
            gap = text[m.end : m.end + own[0].start] if own else "x"
            if own and own[0].option == m.option and not gap.strip(" .):-*"):
                return True
    return False


def _article_like(match: re.Match, rest: str) -> bool:
    return match[1] in "AI" and re.match(r"\s+[a-z]", rest[match.end() :]) is not None


def decide(clause: str, options: tuple[str, ...]) -> int:
    """Return the one option that a clause decides for, NONE, or SEVERAL."""
    clause = clause.strip(" \t'\"“”‘’`«»")
    opening = lead(clause, options)
    if opening != NONE:
        return opening
    sentence = next((s for s in _SENTENCE.split(clause) if s.strip()), "")
    return only(named(sentence, options), options)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, empty ones left out."""
    return [s.strip() for s in _SENTENCE.split(text) if s.strip()]
