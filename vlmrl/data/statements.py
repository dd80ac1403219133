"""Map a question and an option to a declarative sentence, for captions and CoTs.

A template applies where it matches the whole question and its pattern of options
matches the option; both are closed enough that the sentence is English. Any other
question is quoted, which is always right.

>>> state("Which side of the dog is facing the camera?", "left")
('The left side of the dog is facing the camera', 'side')
>>> state("Why is the man smiling?", "he won")
('The answer to the question "Why is the man smiling?" is he won', 'quoted')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

QUOTED = 'The answer to the question "{}" is {}'

# -- the words that templates are made of ----------------------------------------------

COLOUR = (
    "(?:red|blue|green|yellow|black|white|brown|orange|purple|pink|gray|grey|beige)"
)
ADJECTIVE = f"(?:{COLOUR}|small|large|big|little|tall|old|young|wooden)"
# No noun phrase has a verb, a conjunction, a comparison or a negation in it; endings
# in -ing and -ed may be predicates ("the man sitting").
STOP = (
    r"(?:is|are|was|were|be|do|does|did|has|have|had|can|could|will|would|should|not"
    r"|and|or|but|nor|than|that|which|who|what|where|when|if|no|none|any|some|more|most"
    r"|less|least|fewer|much|many|other|same|only|of|in|on|at|to|by|for|with|from|the"
    r"|a|an|this|these|those|it|its|there|here|now|today|left|right|lot|few|bit|n't"
    r"|better|best|worse|worst|visible|open|closed|shown|seen|made|worn|drawn|kept"
    r"|\w+n't|\w{2,}ing|\w{2,}ed|\w{3,}est|as|so|like|just|also|still|ever|even"
    r"|neither|both|all|nothing|something)"
)
WORD = rf"(?!{STOP}\b)[a-z][a-z-]*"
ASIDE = r"(?: \([^()]+\))?"  # (highlighted by a red box)
NOUN = rf"the (?:{ADJECTIVE} )?(?!{ADJECTIVE}\b){WORD}{ASIDE}"
PHRASE = rf"the (?:{WORD} ){{0,3}}{WORD}{ASIDE}"  # between two fixed phrases only
PLURAL = rf"(?:{WORD} ){{0,2}}(?:people|men|women|children|(?!{STOP}\b)[a-z-]{{2,}}s)"
SINGULAR = rf"(?:{WORD} )?(?!{ADJECTIVE}\b){WORD}"
PICTURE = r"in (?:the|this) (?:image|picture|photo|scene)"
RELATION = (
    r"(?:directly )?(?:above|below|on|under|underneath|behind|beside|on top of|next to"
    r"|in front of|inside|far from|(?:to|on) the (?:left|right) of)"
)
NUMBER = r"\d+|zero|one|two|three|four|five|six|seven|eight|nine|ten"
STATE = (
    rf"{COLOUR}|open|closed|parallel|perpendicular"
    "|(?:next to|far away from) each other"
)
STAND = rf"if I stand at {PHRASE}'s position facing where it is facing"
YES_NO = "yes|no"
TWO = rf"(?P<a>{PHRASE}) or (?P<b>{PHRASE})"  # one of them is the option

# Sentences before the question that say how to look, not what is asked.
LOOK = re.compile(
    r"(?:Consider the real-world 3D (?:locations|orientations|locations and"
    r" orientations) of the objects\.|Estimate the real-world distances between objects"
    r" in this image\.) "
)


SENTENCE = re.compile(
    r"(?:The|There|This|These|It|They) (?:(?!that |which |who |where |when )[^.?!])*?"
    r"\b(?:is|are|was|were|has|have|does|do|did|cannot|will)\b [^.?!]+"
)


class Template(NamedTuple):
    """A form of question, the options it applies to, and the sentence.

    The question is matched without its mark and with a small first letter, the option
    in lower case. An option must be one of the groups `a` and `b` where there are any.
    """

    question: str  # regular expression
    option: str  # regular expression
    sentence: Callable[[re.Match, str], str]


def _not(option: str) -> str:
    return " not" if option == "no" else ""


TEMPLATES = {
    "there_is": Template(
        rf"is there (a(?! [aeiou])|an(?= [aeiou])) ({SINGULAR}) ({PICTURE})",
        YES_NO,
        lambda m, o: f"there is {'no' if o == 'no' else m[1]} {m[2]} {m[3]}",
    ),
    "there_are": Template(
        rf"are there any ({PLURAL}) ({PICTURE})",
        YES_NO,
        lambda m, o: f"there are {'no ' if o == 'no' else ''}{m[1]} {m[2]}",
    ),
    "number": Template(
        rf"how many ({PLURAL}) are(?= )(?: there)?( visible|)( {PICTURE}|)",
        NUMBER,
        lambda m, o: f"the number of {m[1]}{m[2]}{m[3]} is {o}",
    ),
    "color": Template(
        rf"what (?:colou?r is|is the colou?r of) ({NOUN}(?: of {NOUN})?)",
        COLOUR,
        lambda m, o: f"the color of {m[1]} is {o}",
    ),
    "relation": Template(
        rf"(is|are) ({NOUN}) ({RELATION}) ({NOUN})",
        YES_NO,
        lambda m, o: f"{m[2]} {m[1]}{_not(o)} {m[3]} {m[4]}",
    ),
    "directly": Template(
        rf"is ({PHRASE}) (directly (?:above|underneath)) ({PHRASE})",
        YES_NO,
        lambda m, o: f"{m[1]} is{_not(o)} {m[2]} {m[3]}",
    ),
    "which_relation": Template(
        rf"is ({PHRASE}) (?P<a>{RELATION}) or (?P<b>{RELATION}) ({PHRASE})",
        RELATION,
        lambda m, o: f"{m[1]} is {o} {m[4]}",
    ),
    "which_state": Template(
        rf"(is|are) ({NOUN}|{PHRASE} and {PHRASE}) (?P<a>{STATE}) or (?P<b>{STATE})"
        r"( to each other|)",
        STATE,
        lambda m, o: f"{m[2]} {m[1]} {o}{m[5]}",
    ),
    "relative": Template(
        rf"considering the relative positions of ({PHRASE}) and ({PHRASE}) in the image"
        r" provided, where is \1 located with respect to \2",
        "left|right|above|below",
        lambda m, o: (
            f"{m[1]} is {f'to the {o} of' if o in ('left', 'right') else o} {m[2]}"
        ),
    ),
    "closer": Template(
        rf"which (object )?is closer to (the camera taking this photo|{PHRASE}), {TWO}",
        ".+",
        lambda m, o: f"the {m[1] or 'one '}that is closer to {m[2]} is the {o}",
    ),
    "facing": Template(
        rf"which object is ({PHRASE}) facing towards, {TWO}",
        ".+",
        lambda m, o: f"the object that {m[1]} is facing towards is the {o}",
    ),
    "location": Template(
        r"which object has a (higher|lower) location",
        rf"(?:{WORD} ){{0,3}}{WORD}",
        lambda m, o: f"the object that has a {m[1]} location is the {o}",
    ),
    "side": Template(
        rf"which side of ({PHRASE}) is facing ({PHRASE})",
        "front|back|left|right|top|bottom",
        lambda m, o: f"the {o} side of {m[1]} is facing {m[2]}",
    ),
    "stand_side": Template(
        rf"({STAND}), is ({PHRASE}) on the left or right of me",
        "on the left|on the right",
        lambda m, o: f"{m[1]}, {m[2]} is {o} of me",
    ),
    "stand_front": Template(
        rf"({STAND}), is ({PHRASE}) in front of me or behind me",
        "in front of|behind",
        lambda m, o: f"{m[1]}, {m[2]} is {o} me",
    ),
    "photo": Template(
        "which caption best describes the image",
        r"a photo of .*(?<!\.)",
        lambda m, o: f"this is {o}",
    ),
    "caption": Template(
        "which caption best describes the image",
        rf"an? (?!(?:photo|picture|image)\b)(?:{WORD} ){{1,4}}{RELATION} .+(?<!\.)",
        lambda m, o: f"the image shows {o}",
    ),
    "unknown": Template(
        "find ([a-z])", ".+", lambda m, o: f"the value of {m[1]} is {o}"
    ),
}


def state(question: str, option: str) -> tuple[str, str]:
    """Return (sentence, template) asserting an option: capital first letter, no full
    stop.

    The template is 'sentence' where the option is a sentence by itself, and 'quoted'
    where none applies.
    """
    question, text = " ".join(question.split()), " ".join(option.split())
    bare = text.removesuffix(".").rstrip()
    if text.endswith(".") and SENTENCE.fullmatch(bare):
        return bare, "sentence"
    asked = LOOK.sub("", question, count=1).rstrip("?. ")
    asked = asked[:1].lower() + asked[1:]
    for name, template in TEMPLATES.items():
        match = re.fullmatch(template.question, asked)
        small = bare if name == "unknown" else bare.lower()
        if not (match and re.fullmatch(template.option, small)):
            continue
        choices = [re.sub(f"^the |{ASIDE}$", "", c) for c in match.groupdict().values()]
        if choices and small not in choices:
            continue
        sentence = template.sentence(match, small)
        return sentence[:1].upper() + sentence[1:], name
    if text.endswith((".", "?", "!")) or (text[:1].isupper() and text.count(" ") > 2):
        bare = f'"{bare}"'
    return QUOTED.format(question, bare), "quoted"


def states(question: str, options: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return a sentence per option, and the template ('quoted' if any is)."""
    pairs = [state(question, option) for option in options]
    names = {name for _, name in pairs}
    name = "quoted" if "quoted" in names else pairs[0][1] if pairs else ""
    return tuple(text for text, _ in pairs), name


def leaks(sentence: str, question: str, right: str, wrong: str) -> bool:
    """Return whether a sentence for the wrong option names the right one where neither
    the question nor the wrong option's own text does."""

    def has(text: str) -> bool:
        pattern = re.escape(" ".join(right.casefold().split()).rstrip("."))
        return bool(re.search(rf"(?<!\w){pattern}(?!\w)", text.casefold()))

    return has(sentence) and not has(question) and not has(wrong)
