"""The forms of questions, and the sentence that each becomes with its answer.

A rule is (question without its mark, option, all options) → sentence, or '' where the
question does not have the form the rule was written for. `statements` asks them in the
order of `RULES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vlmrl.data.lexicon import (
    ATTRIBUTES,
    AUX,
    BE,
    COLOURS,
    DET,
    NOUNS,
    PLACES,
    PREDICATE,
    PREPOSITION,
    RELATIONS,
    VERBS,
)

# -- rules: (core, option, options) → sentence or '' -----------------------------------


def _m(pattern: str, text: str):
    return re.fullmatch(pattern, text, re.I)


_IN_VIEW = re.compile(r"in (?:the|this) (?:image|picture|photo)\b(?=.)", re.I)


def _subject(rest: str) -> tuple[str, str] | None:
    """Split what follows a form of `be` into (subject, predicate), None if
    undecidable."""
    if compared := _m(r"(.*?\S) ((?:\w+er|more|less) than .+)", rest):
        return compared[1], compared[2]
    for match in re.finditer(rf"(?<=\s){PREDICATE}\b", rest, re.I):
        subject = rest[: match.start()].strip()
        words = subject.split()
        if match[0].lower() in NOUNS or not words:
            continue
        articles = ("the", "a", "an", "this", "these", "those", "his", "her", "their")
        if words[-1] in (*articles, "of", "its", "and", "or", "than", "in"):
            continue
        named = words[0][:1].isdigit() or re.fullmatch(r"[A-Z]\w*", words[0])
        if (
            match[0].lower() in ("of", "the", "a", "an")
            and len(words) < 2
            and not named
        ):
            continue
        if COLOURS.match(rest, match.start()):
            continue
        if match[0].lower() == "of" or _IN_VIEW.match(rest, match.start()):
            continue
        return subject, rest[match.start() :]
    return None


def _claim(core: str, true: bool) -> str:
    """Return the claim that a yes-or-no question asks about, or its denial."""
    no = "" if true else " not"
    if m := _m(rf"({BE}) there (?:(any|an?|some) )?(.+)", core):
        if true:
            article = "" if m[2] in (None, "any") else f"{m[2]} "
            return f"There {m[1].lower()} {article}{m[3]}"
        return f"There {m[1].lower()} no {m[3]}"
    if m := _m(rf"({BE}) ((?:it|this|that|they|these|those|he|she)) (.+)", core):
        return f"{m[2]} {m[1].lower()}{no} {m[3]}"
    if (m := _m(rf"({BE}) (.+)", core)) and (parts := _subject(m[2])):
        return f"{parts[0]} {m[1].lower()}{no} {parts[1]}"
    modal = r"(does|do|did|can|could|will|would|should|has|have)"
    if m := _m(rf"{modal} (\S|\S.*?\S) ({VERBS}|be|been|\w+ed)\b(.*)", core):
        aux, verb = m[1].lower(), m[3]
        if true and aux in ("does", "do"):
            return f"{m[2]} {_third(verb) if aux == 'does' else verb}{m[4]}"
        denied = "cannot" if aux == "can" and not true else aux + no
        return f"{m[2]} {denied} {verb}{m[4]}"
    return ""


def _third(verb: str) -> str:
    known = {"have": "has", "do": "does", "go": "goes"}
    ending = "es" if verb.endswith(("s", "sh", "ch", "x")) else "s"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return known.get(verb, verb + ending)


def _yes_no(core, option, options):
    words = {"yes": True, "no": False, "true": True, "false": False}
    truth = words.get(option.casefold())
    core = re.sub(r"(?i)\btrue or false\b", "true", core)
    return "" if truth is None else _claim(core, truth)


def _or(core, option, options):
    """Map `Is it A or B?` to `it is A`. Both stand in the question, in either order."""
    if len(options) != 2 or not re.match(rf"(?i)(?:{AUX}|do|does|did) ", core):
        return ""
    low = [o.casefold().rstrip(".") for o in options]
    for first, second in (low, low[::-1]):
        for a, b in ((first, second), *_shared(first, second)):
            joined = rf"(?<!\w){re.escape(a)}\b(\W[^?]{{0,24}}?)??,? or (?:to )?"
            joined += rf"(?:the |a |an |on )?{re.escape(b)}\b"
            if not (m := re.search(joined, core, re.I)):
                continue
            between, after = m[1] or "", core[m.end() :]
            if between and after.startswith(between):
                between = ""
            chosen = core[: m.start()] + option + between + after
            chosen = re.sub(r"\b(the|a|an) (?:the|an?)\b", r"\1", chosen)
            return _claim(chosen, True)
    return ""


def _moved(core, option, options):
    """Map `Were any of them moved?` to `no objects moved`: the option is the
    sentence."""
    moved = r"\bmov(?:ed|ing)\b"
    asked = re.match(r"(?i)(?:were|was|did|have) ", core) and re.search(moved, core)
    return option if asked and re.search(rf"\w {moved}", option) else ""


def _shared(first: str, second: str):
    """Yield shortened forms: `on the left`, `on the right` may be asked as `on the left
    or right`; `towards the camera`, `away from the camera` as `towards or away from the
    camera`."""
    a, b = first.split(), second.split()
    for n in range(min(len(a), len(b)) - 1, 0, -1):
        if a[:n] == b[:n]:
            yield first, " ".join(b[n:])
        if a[-n:] == b[-n:]:
            yield " ".join(a[:-n]), second


def _number(core, option, options):
    m = _m(rf"how many (.+?) ({AUX})(?: there| visible)?(?: (.+))?", core)
    if m:
        noun, aux, rest = m[1], m[2].lower(), m[3] or ""
        if rest and re.match(rf"(?-i:{DET})\b", rest) and aux in ("has", "have"):
            return f"The number of {noun} that {rest} {aux} is {option}"
        if rest and re.match(r"(?:you|we|i|they|he|she|it)\b", rest, re.I):
            who, _, what = rest.partition(" ")
            return f"The number of {noun} that {who} {aux} {what} is {option}"
        if re.search(r"(?i)\bthere\b", core) or PREPOSITION.match(rest) or not rest:
            return f"The number of {noun} {rest} is {option}"
        if re.match(rf"(?-i:{DET})\b", rest) and aux not in ("is", "are"):
            return ""
        return f"The number of {noun} that {aux} {rest} is {option}"
    if m := _m(rf"how many (.+?) (?:do|does|did) (.+?) ({VERBS})\b(.*)", core):
        verb = _third(m[3]) if " does " in f" {core.lower()} " else m[3]
        return f"The number of {m[1]} that {m[2]} {verb}{m[4]} is {option}"
    m = _m(r"how many (.+?) ((?:in|on|at|under|behind|above|below) .+)", core)
    return f"The number of {m[1]} {m[2]} is {option}" if m else ""


def _side(core, option, options):
    m = _m(rf"(?:which|what) side of (.+?) ({AUX} .+|faces? .+)", core)
    if not m:
        return ""
    bare = re.sub(r"(?i)^the | side(?: of .*)?$", "", option)
    return f"The {bare} side of {m[1]} {m[2]}"


def _caption(core, option, options):
    if not re.search(
        r"(?i)caption|best describes|describes? the (?:image|picture)", core
    ):
        return ""
    small = option[:1].lower() + option[1:] if re.match(r"An? ", option) else option
    if re.match(r"a(?:n image| photo| picture)\b", small):
        return f"This is {small}"
    return f"The image shows {small}" if re.match(r"an? ", small) else ""


_ASIDE = re.compile(
    r"(.+?)((?: from| relative| as seen| when| if| in the (?:image|photo|picture)).*)"
)


def _where(core, option, options):
    against = (
        r"in relation to|with respect to|relative to|in reference to|compared to"
        r"|in comparison to"
    )
    placed = (
        r"(?:located|placed|positioned|situated|taken|sitting|standing|lying|parked"
        r"|hanging) "
    )
    m = _m(rf"where ({BE}) (.+?) ({placed})?(?:{against}) (.+)", core)
    if m:
        relation = RELATIONS.get(option.casefold())
        where = f"{relation} {m[4]}" if relation else option
        if not relation and not PREPOSITION.match(option):
            return ""
        return f"{m[2]} {m[1].lower()} {m[3] or ''}{where}"
    m = _m(rf"where ({BE}) (.+?)(?: ({placed.strip()}))?", core)
    tail = ""
    if m and not m[3] and (split := _ASIDE.fullmatch(m[2])):
        inner = _m(rf"(.+?) ({placed.strip()})", split[1])
        subject, verb = (inner[1], inner[2]) if inner else (split[1], "")
        tail = split[2]
    elif m:
        subject, verb = m[2], m[3] or ""
        deep = _m(rf"(.+?) ({placed.strip()}) (.+)", subject)
        if deep:
            subject, verb, tail = deep[1], deep[2], f" {deep[3]}"
    if not m:
        return ""
    place = PLACES.get(option.casefold(), option)
    if place == option and not PREPOSITION.match(option):
        if not re.match(r"(?:the|an?) ", option):
            named = f"{subject} {m[1].lower()} {verb}{tail}"
            return f"The place where {named} is {option}"
        place = f"in {option}"
    shown = r"\b(?:image|photo|picture)\b"
    if re.search(shown, tail) and re.search(shown, place):
        tail = ""
    return f"{subject} {m[1].lower()} {verb} {place}{tail}"


def _one_of(core, option, options):
    m = _m(
        rf"which (?:one )?of (?:the following|these)(?: (.+?))?,? ({AUX}) (.+)", core
    )
    if not m:
        return _one_that(core, option)
    noun = _singular(re.sub(r"(?i)^(?:two|three|four) ", "", m[1] or "option"))
    doing = _m(rf"((?!be\b).+?) ({VERBS})\b(.*)", m[3])
    if doing and re.match(r"(?i)(?:can|could|will|would|may|might|should)$", m[2]):
        done = f"{m[2].lower()} {doing[2]}{doing[3]}"
        return f"The {noun} that {doing[1]} {done} is {option}"
    aux = {"are": "is", "were": "was", "have": "has"}.get(m[2].lower(), m[2].lower())
    return f"The {noun} that {aux} {m[3]} is {option}"


def _one_that(core, option):
    """Handle `Which one of them is …`, `which of the following images shows …`."""
    some = r"(?:the following|these|them|the)"
    m = _m(rf"which (?:one )?of {some}(?: (.+?))? ({_third_any()}|is|was) (.+)", core)
    if not m:
        return ""
    noun, clause = m[1] or "", f"that {m[2]} {m[3]} is {_definite(option)}"
    if not noun or " or " in noun:
        return f"The one {clause}"
    if re.search(r"\b(?:two|three|four)\b", noun):
        return f"Of the {noun}, the one {clause}"
    return f"The {_singular(noun)} {clause}"


def _singular(noun: str) -> str:
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def _which(core, option, options):
    m = _m(rf"(?:which|what) (?!{AUX}\b|do\b|does\b|did\b)(.+?) ({AUX}) (.+)", core)
    if not m:
        return _which_does(core, option)
    noun, aux, rest = m[1], m[2].lower(), m[3]
    be = "are" if aux in ("are", "were", "have") and not noun.endswith("ss") else "is"
    head = noun.split()[-1].lower()
    plain = head in ATTRIBUTES or head in option.lower().split()
    named = option if plain else _definite(option)
    if rest.lower() in ("this", "it", "that", "these", "those"):
        return f"The {noun} in the image {be} {named}"
    if who := _m(r"(i|we|you|they|he|she|it|one) (\S.*)", rest):
        return f"The {noun} that {who[1]} {aux} {who[2]} {be} {option}"
    if aux in ("has", "have", "had"):
        return f"The {noun} that {aux} {rest} {be} {named}"
    if rest.startswith("there"):
        return f"The {noun}{rest[5:]} {be} {option}"
    if stranded := _m(r"(.+) (in|on|at|from|of|to|for|with|near)", rest):
        return f"The {noun} that {stranded[1]} {aux} {stranded[2]} {be} {option}"
    if not re.match(rf"(?-i:{DET}) ", rest) and not re.match(r"(?i)it\b", rest):
        return f"The {noun} that {aux} {rest} {be} {named}"
    if re.match(
        r"(?:the|a|an) (?:most|least|same|\w+est|only|best|first|last)\b", rest
    ):
        return f"The {noun} that {aux} {rest} {be} {named}"
    if parts := _acting(rest):
        return f"The {noun} that {parts[0]} {aux} {parts[1]} is {named}"
    if aux in ("is", "are", "was", "were") and (
        head in ATTRIBUTES or noun.split()[0].lower() in ATTRIBUTES
    ):
        return f"The {noun} of {rest} is {option}"
    if aux in ("is", "are", "was", "were") and not _subject(rest):
        return f"The {noun} that {aux} {rest} {be} {named}"
    return ""


def _which_does(core: str, option: str) -> str:
    aux = r"(does|do|did)"
    m = _m(rf"(?:which|what) (.+?) {aux} (.+?) ({VERBS})\b(.*)", core)
    if m:
        verb = {"does": _third(m[4]), "do": m[4]}.get(m[2].lower(), f"did {m[4]}")
        return f"The {m[1]} that {m[3]} {verb}{m[5]} is {option}"
    adverb = r"(?:(?:more|most|best) )?(?:\w+ly )?"
    verb = rf"({adverb}(?:{_third_any()}))"
    m = _m(rf"(?:which|what) (\w+(?: [\w'’-]+){{0,5}}?) {verb}\b(.*)", core)
    return f"The {m[1]} that {m[2]}{m[3]} is {_definite(option)}" if m else ""


def _third_any() -> str:
    verbs = VERBS.removeprefix("(?:").removesuffix(")").split("|")
    return "|".join(sorted({_third(v) for v in verbs}, key=len, reverse=True))


def _acting(rest: str) -> tuple[str, str] | None:
    """Return (subject, gerund …) of `the man holding`."""
    for match in re.finditer(r"(?<=\s)\w+ing\b.*", rest):
        subject = rest[: match.start()].strip()
        gerund = match[0].split()[0].lower()
        if gerund in NOUNS or re.fullmatch(r"(?i)the|an?|this|that|these", subject):
            continue
        if subject:
            return subject, match[0]
    return None


def _definite(option: str) -> str:
    words = option.split()
    if not words or len(words) > 4 or not re.fullmatch(r"[a-z][a-z '-]*", option):
        return option
    first = words[0]
    if PREPOSITION.match(option) or first.endswith(("ing", "ly")):
        return option
    if re.match(rf"{DET}\b|none|both|neither|yes|no|not|option|left|right", first):
        return option
    return f"the {option}"


def _what_is(core, option, options):
    m = _m(rf"what ({BE}) (.+)", core)
    if not m:
        return ""
    be, rest = m[1].lower(), m[2]
    if doing := _m(r"(.+?) doing(.*)", rest):
        if option.split()[0].endswith("ing"):
            return f"{doing[1]} {be} {option}{doing[2]}"
        return f"What {doing[1]} {be} doing{doing[2]} is {option}"
    if re.match(rf"(?-i:{DET}) ", rest):
        if parts := _acting(rest):
            between = re.search(r"\b(?:of|in|on|with|for|by)$", parts[0])
            if not between and not re.search(r" (?:of|in|for) ", parts[0]):
                return f"What {parts[0]} {be} {parts[1]} is {option}"
        if called := _m(r"(.+?) (called|made of|used for|about|for)", rest):
            return f"{called[1]} {be} {called[2]} {option}"
        return f"{rest} {be} {option}"
    return f"What {be} {rest} is {_definite(option)}"


def _what_does(core, option, options):
    if m := _m(rf"what (does|do|did) (.+?) ({VERBS})\b(.*)", core):
        verb = {"does": _third(m[3]), "do": m[3]}.get(m[1].lower(), f"did {m[3]}")
        if m[3] == "look" and m[4] == " like":
            return f"{m[2]} {verb} like {option}"
        return f"What {m[2]} {verb}{m[4]} is {option}"
    modal = r"(can|could|will|would|should|might|may|must)"
    clause = re.search(r"\w (?:is|are|was|were|will|would)\b", option)
    if clause and _m(r"what (?:will|would|may|might) happen(?: next)?", core):
        return f"Next, {option[:1].lower()}{option[1:]}"
    if (m := _m(r"what would happen (if .+)", core)) and clause:
        return f"{m[1]}, {option[:1].lower()}{option[1:]}"
    if m := _m(rf"what {modal} (we|you|i|they|he|she|it|one) (.+)", core):
        return f"What {m[2]} {m[1].lower()} {m[3]} is {option}"
    if m := _m(rf"what {modal} (be .+)", core):
        return f"What {m[1].lower()} {m[2]} is {option}"
    m = _m(r"what (happened|happens|causes|caused|makes|has) (.+)", core)
    return f"What {m[1].lower()} {m[2]} is {option}" if m else ""


def _who(core, option, options):
    m = _m(rf"who ({AUX}) (.+)", core)
    if not m:
        return ""
    if re.match(rf"(?-i:{DET}) ", m[2]) and m[1].lower() in ("is", "are", "was"):
        return f"{m[2]} {m[1].lower()} {option}"
    return f"The person who {m[1].lower()} {m[2]} is {_definite(option)}"


def _how_is(core, option, options):
    if m := _m(r"how did (.+?) (likely )?(?:move|rotate|change)\b(.*)", core):
        past = r"(?:moved|rotated|turned|stayed|did|went|was|shifted|panned|tilted)\b"
        if re.match(past, option):
            return f"{m[1]} {m[2] or ''}{option}{m[3]}"
        return ""
    if m := _m(rf"how ({BE}) (.+)", core):
        if parts := _acting(m[2]):
            return f"{parts[0]} {m[1].lower()} {parts[1]} {option}"
        return f"{m[2]} {m[1].lower()} {option}"
    if m := _m(rf"how (\w+) ({BE}) (.+)", core):
        aside = " (?:from|to|away) .+"
        if m[1] == "far" and (f := _m(rf"(.+?)({aside})", m[3])):
            return f"{f[1]} {m[2].lower()} {option}{f[2]}"
        measured = option[:1].isdigit() and m[1] in (
            "tall",
            "long",
            "wide",
            "old",
            "deep",
        )
        return f"{m[3]} {m[2].lower()} {option}{f' {m[1]}' if measured else ''}"
    return ""


def _which_is(core, option, options):
    m = _m(rf"which(?: one)? ({AUX}) (.+)", core)
    if not m:
        return ""
    if re.match(r"(?:the|an?) ", m[2], re.I) and m[1].lower() in ("is", "are"):
        return f"{m[2]} {m[1].lower()} {_definite(option)}"
    return f"The one that {m[1].lower()} {m[2]} is {_definite(option)}"


_PARTS = "side|direction|position|part|hand|arm|ear|foot|leg|shoulder"


def _on_which(core, option, options):
    m = _m(
        rf"(on|in|from|to|at) (?:which|what) ({_PARTS}) (of .+? )?({BE}) (.+)",
        core,
    )
    if not m:
        return ""
    parts = _subject(m[5]) if not m[5].startswith("the ") else _acting(m[5])
    subject, rest = parts or (m[5], "")
    bare = re.sub(rf"(?i)^the | {m[2]}$", "", option)
    where = f"{m[1].lower()} the {bare} {m[2]} {m[3] or ''}"
    return f"{subject} {m[4].lower()} {rest} {where}"


ORDER = re.compile(
    r"(?:Please )?(?:find|determine|calculate|compute|evaluate|solve for|identify"
    r"|select|choose|name|guess|point out|tell|give|estimate|what is|write"
    r"|express|state)\b",
    re.I,
)


def _order(core, option, options):
    match = ORDER.match(core)
    if not match or match[0].lower() == "what is":
        return ""
    what = core[match.end() :].strip()
    what, _, after = what.partition(" if ")
    after = f" if {after}" if after else ""
    what = re.split(r"(?i)[,.;] (?:round|write|to the nearest|leave)", what)[0]
    if not what:
        return ""
    if re.match(r"(?:the|an?|this|these|each) ", what):
        return f"{what} is {option}{after}"
    return f"The value of {what} is {option}{after}"


def _blank(core, option, options):
    gap = r"_{2,}|\(\s*_*\s*\)"
    if re.search(gap, core):
        return re.sub(gap, lambda m: option, core, count=1)
    if re.match(
        rf"(?i)(?:which|what|who|where|when|why|how|do|does|did|{AUX})\b", core
    ):
        return ""
    verb = re.match(rf"(?:{AUX})\b", option, re.I)
    if verb and re.match(r"(?:The|This|These) ", core):
        return f"{core} {option[:1].lower()}{option[1:]}"
    open_end = r"(.+ (?:is|are|was|were|an?|the|of|in|to|by|on|as|be|called))"
    if m := _m(open_end, core):
        return f"{m[1]} {option}"
    if re.match(r"The \w+ (?:shown|depicted|marked|seen|pictured) \w+ [\w ]+$", core):
        return f"{core} is {option}"
    return ""


RULES: dict[str, Callable[[str, str, Sequence[str]], str]] = {
    "blank": _blank,
    "caption": _caption,
    "yes_no": _yes_no,
    "moved": _moved,
    "or": _or,
    "number": _number,
    "side": _side,
    "where": _where,
    "on_which": _on_which,
    "one_of": _one_of,
    "which_is": _which_is,
    "what_is": _what_is,
    "what_does": _what_does,
    "which": _which,
    "who": _who,
    "how": _how_is,
    "order": _order,
}
