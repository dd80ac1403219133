"""Word classes and phrases that the rules of `sentences` match by."""

from __future__ import annotations

import re

DET = (
    r"(?:the|a|an|this|that|these|those|it|he|she|they|we|you|i|his|her|their|its|my"
    r"|your|each|both|all|some|any|one|someone|point|line|angle|person|[A-Z][\w'’-]*)"
)
BE = r"(?:is|are|was|were)"
AUX = r"(?:is|are|was|were|has|have|had|can|could|will|would|may|might|should|must)"
# Words that begin what is said of a subject.
PREDICATE = (
    r"(?:on|in|at|under|underneath|above|below|behind|beneath|beside|besides|near|next"
    r"|directly|far|together|to|left|right|inside|outside|between|among|from|of|with|against|toward|towards"
    r"|around|across|along|over|by|for|like|not|more|less|most|least|visible|present"
    r"|located|placed|positioned|able|closer|nearer|farther|further|higher|lower|larger"
    r"|smaller|bigger|taller|shorter|longer|wider|thinner|older|younger|brighter|darker"
    r"|parallel|perpendicular|open|closed|empty|full|equal|the same|true|correct|red"
    r"|blue|green|yellow|black|white|brown|orange|purple|pink|gray|grey|\d[\w.,%]*"
    r"|an?|the|also|still|currently|mainly|taken|made|shown|seen|drawn|similar|different"
    r"|identical|as|straight|curved|round|square|healthy|happy|sad|sitting|standing"
    r"|\w+ing|\w+ed)"
)
# Nouns in -ing, which begin nothing.
NOUNS = {
    *"building ceiling painting drawing string ring king thing wing morning".split(),
    *"evening clothing railing meaning ending beginning heading spring sibling".split(),
    *"something anything nothing everything swing wedding lightning crossing".split(),
    *"parking shopping swimming dining living earring awning bed red hundred".split(),
}
VERBS = (
    r"(?:say|show|mean|represent|depict|indicate|contain|have|look|hold|wear|use|want"
    r"|need|point|belong|refer|describe|suggest|express|convey|feel|eat|live|appear"
    r"|face|move|turn|see|know|expect|do|go|come|cost|exceed|increase|decrease|cross"
    r"|touch|reach|match|intersect|follow|lead|equal|include|play|ride|carry|exist"
    r"|stand|sit|lie|overlap|support|win|get|share|correspond|localize|enclose|produce"
    r"|receive|score|happen|occur|grow|rise|fall)"
)
COLOURS = re.compile(
    r"(?:red|blue|green|yellow|black|white|brown|orange|purple|pink|gr[ae]y)"
    r"(?! (?:or|and|in|on|at|from|than|to|with|like)\b)(?= \w)",
    re.I,
)  # before a noun, which they say nothing of
ATTRIBUTES = {
    *"color colour shape material size type kind brand number name direction".split(),
    *"position location orientation texture pattern age gender height weight".split(),
    *"length width style season weather time year day month date title".split(),
    *"term statement phrase sentence claim description option caption".split(),
    *"value letter word text relationship relation mood emotion state".split(),
}
_X = ("left", "right")
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
    "center": "in the center",
    "centre": "in the centre",
    "front": "in front",
    "back": "at the back",
    **{f"{y} {x}": f"at the {y} {x}" for y in ("top", "bottom") for x in _X},
}
RELATIONS = {
    "left": "to the left of",
    "right": "to the right of",
    "front": "in front of",
    "in front": "in front of",
    "top": "on top of",
    "bottom": "at the bottom of",
    "next": "next to",
    "back": "behind",
    "middle": "in the middle of",
    "center": "in the center of",
    "to the left": "to the left of",
    "to the right": "to the right of",
    "on the left": "on the left of",
    "on the right": "on the right of",
    "up": "above",
    "down": "below",
    "ahead": "ahead of",
    **{f"{y} {x}": f"at the {y} {x} of" for y in ("top", "bottom") for x in _X},
    **{f"{x} {y}": f"at the {y} {x} of" for y in ("top", "bottom") for x in _X},
    **{w: w for w in "on under above below behind beside near inside in".split()},
    **{w: w for w in "over beneath underneath between outside facing touching".split()},
}
PREPOSITION = re.compile(
    r"(?:on|in|at|under|above|below|behind|beside|near|next|to|inside|outside|between"
    r"|among|from|over|beneath|underneath|along|against|across|around|by|off|within)\b",
    re.I,
)
SENTENCE = re.compile(
    r"(?:The|A|An|It|They|There|He|She|This|These|That|Both|Some|All|No|One|People|I|We"
    r"|You|[A-Z][\w'-]+) .*\b(?:is|are|was|were|has|have|had|can|will|does|do|did"
    r"|cannot|isn't|aren't|moved|rotated|contains|shows)\b.*"
)
LOWER = {
    *"The A An To On In At Under Above Below Behind Near Next Left Right Top".split(),
    *"Bottom Front Yes No None Both From Between It They There This That These".split(),
    *"Open Closed Above Inside Outside Red Blue Green Yellow Black White".split(),
}
