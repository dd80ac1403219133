"""Patterns of the rule judge: cues, fillers, retractions, hedges.

They match text in which `rule` has replaced mentions of options by marks, and which is
otherwise lower case with straight quotes.
"""

from __future__ import annotations

import re

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen"
    " fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()

# A mark is one private-use character, a kind, an index, another such character:
# l letter, t text, x conflict (its index means nothing), n negated.
OPEN, CLOSE = "\ue000", "\ue001"
MARK = rf"{OPEN}([ltx])(\d+){CLOSE}"
ANY_MARK = rf"{OPEN}([ltxn])(\d+){CLOSE}"
LETTER_MARK = rf"{OPEN}l(\d+){CLOSE}"
TEXT_MARK = rf"{OPEN}t(\d+){CLOSE}"
NAMED_MARK = rf"{OPEN}[lt](\d+){CLOSE}"
NEGATED_MARK = rf"{OPEN}n\d+{CLOSE}"
NOT_MARK = rf"[^{OPEN}{CLOSE}]"


def words(text: str) -> str:
    """Return a pattern of any of several phrases, separated by "|", as whole words."""
    return rf"\b(?:{text})\b"


# -- what may stand between a cue and the option ---------------------------------------
FILL = (
    r"(?:\b(?:the|an?|option|choice|letter|number|point|exactly|clearly|indeed"
    r"|definitely|certainly|probably|likely|most|just|simply|still|actually|also"
    r"|therefore|then|thus|really|obviously|(?:on|to|at) the|located|that|total of"
    r"|in total|approximately)\b|[\s,:\"'`([{$=>→—–-])*"
)
FILL_END = re.compile(FILL + "$")
COPULA = (
    r"(?:(?:must|should|has to|have to|would|will|can only) (?:be|have|equal)|is|are"
    r"|was|were|'s|'re|equals?|becomes?|remains?|appears?(?: to be)?|looks?|lies|sits"
    r"|stands|seems?(?: to be)?|(?:looks|seems) like|mak(?:es?|ing)|giv(?:es?|ing)"
    r"|leaves?|have|has|contains?|shows?|count|see|get|made (?:out )?of|painted"
    r"|colou?red|called|named|identified as|considered)"
)
LEAD = (
    r"(?:so(?! (?:far|many|much|small|large|close|on)\b)"
    r"(?! that (?!is|must|makes|means|leaves|gives))|thus|hence|therefore"
    r"|consequently|accordingly|in conclusion|in summary|to conclude|overall|finally"
    r"|ultimately|as a result|i(?: can| will|'ll|) conclude|(?:this|that|which|it)"
    r" (?:means|implies|suggests|shows|indicates|confirms)|meaning|conclusion"
    r"|we (?:can )?conclude|final|final decision|in total|in short|altogether"
    r"|all in all|(?:my|the) (?:final |best )(?:verdict|guess|decision))"
)
STARTS_LEAD = re.compile(
    rf"^[\s,]*(?:(?:and|okay|ok|hmm+|ah|well|oh|yes|yeah|right|now|then)\b"
    rf"[\s,.…]*)*{LEAD}\b"
)
ONLY_LEAD = re.compile(STARTS_LEAD.pattern + r"[\s,:]*(?:that|it)?[\s,:]*$")
ANSWER = re.compile(
    rf"\b(?:answer|best (?:match|fit))\b"
    rf"(?:{NOT_MARK}{{0,60}}?\b(?:is|be|remains|becomes|was))?$|\bboxed$"
)
LABEL = re.compile(
    words("answer|choice|option|result|conclusion|total|count|sum") + r"\s*[:=]\s*\(?$"
)
CHOOSE = re.compile(
    r"\b(?:i|we|let's|let me)(?:'ll| will|'d| would|'m| am|)(?: \w+)? (?:choos(?:e|ing)"
    r"|pick(?:ing)?|select(?:ing)?|go(?:ing)? with|going for|opt for|settle on"
    r"|stick with|stay with|say|answer)$"
)
APPOSED = re.compile(rf",\s*(?:answer|option)\s*:?\s*\(?{LETTER_MARK}\)?[\s.!;]*$")
MATCHES = re.compile(words("match(?:es)?|corresponds? to|corresponding to") + "$")
BINDS = re.compile(rf"^(?P<subject>.*?)(?:\b|(?=')){COPULA}$", re.DOTALL)
STRONG_BINDS = re.compile(r"\b(?:must|has to|have to|can only) (?:be|have)$")

# -- what may follow it ----------------------------------------------------------------
RIGHT_ONE = re.compile(
    rf"^[\s)\]}}.:]*{COPULA} (?:\w+ )?(?:the )?(?:most |only )?(?:correct|true|best"
    r"|answer|right (?:answer|option|choice|one)|my (?:choice|answer|pick))\b"
    r"|^[\s)\]}.:]*as (?:my|the) (?:final )?(?:answer|choice|pick)\b"
    r"|^[\s)]*it is\b"
)
WRONG_ONE = re.compile(
    r"^[\s)\]}.:]*(?:(?:is|are|was|seems?|must be|would be|can be) (?:\w+ )?(?:wrong"
    r"|incorrect|not|out|false|impossible|ruled out|eliminated)\b|(?:is|does|ca|could"
    r"|was|would)n't\b|cannot\b|does not\b)"
)
PREDICATE = re.compile(
    rf"^[\s)]*{COPULA} (?:(?:the|a|an|in|on|at|more|most|much|to|further|placed) )*"
    r"([a-z]+)"
)
OPERATOR = re.compile(r"^\s*(?:[+*/×x=%°]|-\s*\d|minus\b|plus\b|times\b)")
AFTER_NUMBER_WORDS = (
    "in total overall altogether here there visible because since as for and by objects"
    " object items item things thing shown present"
)
TOTAL = re.compile(words("in total|altogether|overall|in all"))

# -- discourse -------------------------------------------------------------------------
RETRACT = re.compile(
    r"^[\s,]*(?:(?:oh|ah|well|okay|ok|and|hmm+|mm+|uh|um|so)\b[\s,.…]*)*(?:wait|hold on"
    r"|hmm+|no(?=[,.!;—-]|\s+(?:that|it|this|i|wait)\b)|nope|actually|but|however"
    r"|on second thought|alternatively|or maybe|oops|scratch that|correction|let me"
    r"|let's|i was wrong|i (?:made|think i)|that (?:is|can't|cannot) (?:\w+ )?(?:wrong"
    r"|incorrect|not|be right)|that isn't|that's (?:not|wrong|incorrect)|yet|though"
    r"|except|instead|maybe|perhaps|unless|although|looking (?:again|closer))\b"
)
CONFIRM = re.compile(
    r"\b(?:that|this|it|which)(?:'s| is| seems| looks) (?:indeed |still )?correct\b"
    r"|\b(?:confirm|verif)(?:s|ies|ied|ed)\b|\bchecks out\b|\bstill (?:holds|stands)\b"
    r"|\b(?:conclusion|answer|count) (?:is|was|holds|stands)(?: indeed| still|)"
    r" (?:correct|right|true|the same|unchanged)\b|^[\s,]*(?:yes|yep|yeah)\W*$"
    r"|\bi(?:'m| am) (?:now )?(?:sure|confident|certain)\b"
)
DENY = re.compile(r"\bnot\b|n't\b|\bnever\b|\bif\b|\blet me\b|\bneed\b|\bto confirm\b")
HEDGE = re.compile(
    words(
        "might|may|could|perhaps|maybe|possibly|not sure|not clear|unsure|unclear"
        "|uncertain|suppose|assume|assuming|either|if|whether|unless|so far|expected"
        "|supposed|told to|asked to|wonder|claims?|seemed|(?<!second )thought|said|says"
    )
)
REASON = re.compile(r"^[\s,]*(?:since|because|as|although|though|while|given)\b")
CUT = re.compile(
    r"(?:,\s*|\s+)(?=(?:and )?(?:but|however|although|though|while|whereas"
    r"|(?:therefore|thus|hence)(?! be\b)|wait|actually|because|since|which means"
    r"|meaning)\b)"
    r"|(?:,\s*|(?<!is)(?<!are)(?<!not)(?<!\bor)(?<!\bdo)(?<!even)(?<!think)\s+)"
    r"(?=(?:and )?so\b(?! far\b| that\b))"
)

# -- mentions --------------------------------------------------------------------------
STRAIGHT = str.maketrans("‘’“”", "''\"\"")
MARKUP = (
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r" boxed (\1) "),
    (re.compile(r"[*`$\\]|</?\w+>"), ""),
    (re.compile(r"([^\w\s])\1{3,}"), r"\1\1\1"),
    (re.compile(r"[^\S\n]+"), " "),
    (re.compile(r"\n\s*"), "\n"),
)
IDIOMS = (
    (re.compile(r":\s*\n+"), ": "),
    (re.compile(r"\ball ?right\b", re.I), "okay"),
    (re.compile(r"\bno,? wait\b|\bwait,? no\b", re.I), "wait"),
    (re.compile(r"\bthe right (?=answer|option|choice)", re.I), "the correct "),
    (
        re.compile(r"\b((?:option|choice) \(?[A-Z]\)? is) the right one\b"),
        r"\1 correct",
    ),
    (re.compile(r",? right\?", re.I), "?"),
    (re.compile(r"\b(?:is|be) (?:that|this|it) right\?", re.I), "?"),
)
THAT_RIGHT = re.compile(r"\b(that|this)(?:'s| is) right(?=\s*(?:[.,;!)]|$))", re.I)
ONE_THING = re.compile(
    r"\b(the|this|that|which|each|every|another|other|last|first|second|third|next|same"
    r"|no|any) one\b",
    re.I,
)
NUMBER_WORD = re.compile(words("|".join(NUMBERS)), re.I)
BARE_LETTER = re.compile(r"\(([A-Z])\)|(?<![\w'\-.])([A-Z])(?![\w'\-])")
NAMES_LETTER = re.compile(r"\b(?:option|choice|answer|letter)(?:\s+is)?\s*:?\s*$", re.I)
AFTER_ARTICLE = re.compile(
    r"\s+(?!(?:is|are|or|and|seems|would|was|must|cannot|can't|isn't|because|since)\b)"
    rf"[a-z0-9{OPEN}]"
)
NEGATION = (
    r"(?:\bnot|n't|\bcannot|\bnever|\brather than|\binstead of|\beliminat\w+"
    r"|\brul\w+ out|\bexclud\w+|\bneither|\bnor|\bno longer|\bdifferent from|\bunlike)"
)

# -- what a clause is about ------------------------------------------------------------
ASKS = re.compile(r"(?:what|where|which|who|how|is|are|do|does|did|can|find)\b")
SPATIAL = re.compile(
    words(
        "of|to|than|from|with|beside|behind|above|below|under|beneath|over|near|by|on"
        "|in|at|inside|next|that|who|which is"
    )
)
STOP_WORDS = (
    "the a an of to in on at is are was were it this that these those there here and or"
    " so then thus which what who with for from by as be been its their his her our my"
    " your we i you they he she them very only also just indeed clearly actually"
    " therefore hence do does did but think believe see say can could should would must"
    " let me now yes no well okay oh"
)
GENERIC_WORDS = (
    "answer number count total color colour shape size position location direction side"
    " kind type name object item thing image picture photo scene result sum relation"
    " relationship many much correct option choice final value material best guess"
    " conclusion overall solution verdict question find determine calculate compute"
    " estimate consider identify choose select tell look please following"
)
