"""The lenient reading: what a fair reader would say a turn answers.

It extends the strict reading, which holds where it names an option. A decision counts
by how plainly it is stated: the answer block, also unclosed; \\boxed; JSON; "the final
answer is"; "the answer is" in many languages; a line that is an option; bold; the
concluding sentence; the only option named at all. Where two are named and nothing
decides between them, and where a chain of thought was cut off, there is no answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vlmrl.answers import mentions, phrases
from vlmrl.answers.mentions import NONE, SEVERAL
from vlmrl.types import Parsed

VERSION = "lenient-1"  # stored with every record; change it with any rule below
_LONGEST = 20_000  # characters; of a longer reply its beginning and its end are read


class Lenient(NamedTuple):
    option: int  # -1: none, or more than one
    text: str  # the answer itself, of an open question; '' if none


def answer(text: str, options: tuple[str, ...], strict: Parsed) -> Lenient:
    """Read a whole assistant turn leniently. Never raises on any text.

    Args:
      options: those shown; () of an open question.
      strict: the strict reading, which holds where it named an option.
    """
    if strict.option >= 0 and options:
        return Lenient(strict.option, strict.answer or "")
    reply, thinking = _reply(text)
    blocks, rest = _blocks(reply)
    if not options:
        return Lenient(-1, _open(blocks, rest, thinking))
    if thinking:
        return Lenient(max(NONE, _agreed(_boxed(thinking), thinking, options)), "")
    option = NONE
    if blocks:
        votes = [(start, _choose(block, options)) for start, block in blocks]
        option = _settled(votes, reply)
        if option < 0:  # none or two in the block: a final word behind it
            behind = reply[blocks[-1][0] + len(blocks[-1][1]) :]
            final = _final(_plain(_TAG.sub(" ", behind), options), options)
            option = final if final >= 0 else option
    elif rest.strip():
        option = _choose(rest, options)
    return Lenient(max(NONE, option), "")


# -- parts of a turn -------------------------------------------------------------------

_THINK = re.compile(r"(?i)[<＜]\s?(/?)\s?(?:think|thinking|thought|reasoning)\s?[>＞]")
_TAG = re.compile(
    r"(?i)[<＜]\s?(/?)\s?(?:final[_ ]?)?(?:answer|conclusion)\s?[>＞]"
    r"|<\|(begin|end)_of_box\|>"
)
_TURN = re.compile(r"(?i)\n\s*(?:human|user|question)\s*:|<\|im_(?:end|start)\|>")
_PARTIAL = re.compile(r"<(?:/(?:[a-z]{0,9})?)?\s*$")
_BLANKS = re.compile(r"[^\S\n]{3,}|\n{3,}")  # long runs, over which patterns backtrack
_WIDE = {0xFF21 + i: 65 + i for i in range(26)} | {
    0x24B6 + i: 65 + i for i in range(26)
}


def _reply(text: str) -> tuple[str, str]:
    """Return (what stands behind the chain of thought, one that was never closed)."""
    text = _BLANKS.sub(lambda m: m[0][:2], text.translate(_WIDE))
    tags = list(_THINK.finditer(text))
    closing = [t for t in tags if t[1]]
    thinking = ""
    if closing:
        text = text[closing[-1].end() :]
    elif tags:
        inside = text[tags[-1].end() :]
        first = next(
            (t for t in _TAG.finditer(inside) if not (t[1] or t[2] == "end")), None
        )
        before = text[: tags[0].start()]
        text = inside[first.start() :] if first else before
        thinking = "" if first or before.strip() else inside
    if match := _TURN.search(text, len(text) - len(text.lstrip())):
        text = text[: match.start()]
    if len(text) > _LONGEST:
        text = text[:2000] + "\n" + text[2000 - _LONGEST :]
    return text, thinking[-_LONGEST:]


def _blocks(reply: str) -> tuple[list[tuple[int, str]], str]:
    """Return ((position, content) of the answer blocks, the text without their tags).
    An unclosed block runs to the next tag or the end, an unopened one begins with its
    line."""
    tags = list(_TAG.finditer(reply))
    out = []
    for i, tag in enumerate(tags):
        closes = bool(tag[1]) or tag[2] == "end"
        if not closes:
            end = tags[i + 1].start() if i + 1 < len(tags) else len(reply)
            content = _PARTIAL.sub("", reply[tag.end() : end])
            out.append((tag.end(), content))
        elif i == 0:
            line = reply[: tag.start()].rstrip().rpartition("\n")[2]
            out.append((max(0, tag.start() - len(line)), line))
    filled = [(at, content) for at, content in out if re.search(r"\w", content)]
    return filled, _TAG.sub("\n", reply)


def _settled(votes: list[tuple[int, int]], text: str) -> int:
    """Return the option that all decisions agree on; where they differ, the last one if
    a correction stands between it and the one before."""
    decided = [(at, option) for at, option in votes if option != NONE]
    if not decided:
        return NONE
    if len({option for _, option in decided}) == 1:
        return decided[-1][1]
    last = decided[-1][1]
    others = [at for at, option in decided if option != last]
    between = text[others[-1] : decided[-1][0]]
    return last if last >= 0 and phrases.CORRECTS.search(between) else SEVERAL


# -- plainly stated --------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*|__([^_\n]{1,200})__")
_JSON = re.compile(
    r"(?i)[\"'](?:final[_ ]?answer|correct[_ ]?(?:answer|option|choice)|answer|option"
    r"|choice|label|prediction|response|result)[\"']\s*:\s*"
    r"(?:\[([^\]\n]{0,400})\]|\"([^\"\n]{0,400})\"|'([^'\n]{0,400})'|([\w.-]{1,40}))"
)
_LATEX = re.compile(
    r"\\(?:text|textbf|textit|mathbf|mathrm|mathsf|bf|rm|displaystyle|left|right|quad)"
    r"(?![A-Za-z])|\\[()\[\],;! ]|[${}]"
)
_HTML = re.compile(r"</?(?:b|i|u|p|em|strong|span|code|br|h[1-6])\b[^<>]{0,60}>")
_MARKS = re.compile(r"\*+|`+|__|^[ \t]*(?:#{1,6}|>+|[-•](?=\s))[ \t]*", re.MULTILINE)
_SUM = re.compile(
    r"(?<![\w.])[0-9]{1,4}(?:\s?[-+×x*]\s?[0-9]{1,4}){1,20}\s?=\s?(?=[0-9])"
)
_RANGE = re.compile(r"(?<![\w.-])([0-9]{1,3})\s?[-–]\s?(?=[0-9]{1,3}(?![\w-]))")
_COORDINATES = re.compile(
    r"(?:\bat\s*)?[(\[]\s*-?[0-9.]+(?:\s*%?\s*[,;]\s*-?[0-9.]+%?){1,3}\s*[)\]]"
)


def _boxed(text: str) -> list[tuple[int, str]]:
    """Return (position, content) of every \\boxed{…}, braces inside balanced; an
    unclosed one runs to the end of its line."""
    out, end = [], 0
    for match in _BOX.finditer(text):
        if match.start() < end:
            continue  # inside of another
        depth, end = 1, match.end()
        limit = min(len(text), end + 600)
        while end < limit and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        content = text[match.end() : end - 1 if depth == 0 else end]
        content = content if depth == 0 else content.partition("\n")[0]
        out.append((match.start(), content))
    return out


def _plain(text: str, options: tuple[str, ...]) -> str:
    """Return a text without markup, and without coordinates where no option has any."""
    text = _SUM.sub(
        "", _MARKS.sub("", _LATEX.sub(" ", _BOX.sub(" ", _HTML.sub(" ", text))))
    )
    text = phrases.NO_DOUBT.sub("", text.replace("N/A", "none"))
    if not any(_RANGE.search(o) for o in options):
        text = _RANGE.sub(r"\1 or ", text)  # "3-4"
    if not any(_COORDINATES.search(o) for o in options):
        text = _COORDINATES.sub("", text)
    return text


def _agreed(parts: list[tuple[int, str]], text: str, options: tuple[str, ...]) -> int:
    votes = [
        (at, mentions.decide(_plain(p, options).strip(), options)) for at, p in parts
    ]
    return _settled(votes, text)


# -- phrases ---------------------------------------------------------------------------


def _final(text: str, options: tuple[str, ...]) -> int:
    """Return the option of "the final answer is …"."""
    return _settled([v for v, is_final in _cued(text, options) if is_final], text)


def _declared(text: str, options: tuple[str, ...]) -> int:
    """Return the option of "the answer is …", "B is correct" and the like; the word
    "final" outranks the others."""
    cued = _cued(text, options)
    final = _settled([v for v, is_final in cued if is_final], text)
    if final != NONE:
        return final
    votes = [v for v, _ in cued]
    for match in phrases.RIGHT.finditer(text):
        before = text[max(0, match.start() - 120) : match.start()]
        sentence = mentions.sentences(before + " ")[-1:] or [""]
        if re.match(r"(?i)would", match[0]) and re.search(r"(?i)\bif\b", sentence[0]):
            continue  # contrary to fact
        one = match[0][:3].casefold() != "are"
        clause = phrases.LISTED.sub("", sentence[0]) if one else sentence[0]
        near = mentions.named(clause, options)
        if near and len(clause) - near[-1].end < 40:
            if one and _apart(near, clause):
                near = near[-1:]
            votes.append((match.start(), mentions.only(near, options)))
    return _settled(sorted(votes), text)


def _apart(near: list[mentions.Mention], clause: str) -> bool:
    """Return whether the last option of "Could be A, but B is right" is no member of a
    list with the one before."""
    if len(near) < 2 or not near[-1].letter or near[-1].option == near[-2].option:
        return False
    between = clause[near[-2].end : near[-1].start]
    return re.search(
        r"(?i)\b(?:but|yet|however|though)\b|plausible|possible|likely", between
    ) is not None and not phrases.UNSURE.search(between)


def _cued(text: str, options: tuple[str, ...]) -> list[tuple[tuple[int, int], bool]]:
    """Return ((position, option), is it final) of every phrase that announces one."""
    votes, cues = [], list(phrases.CUE.finditer(text))
    for i, cue in enumerate(cues):
        before = text[max(0, cue.start() - 20) : cue.start()]
        if phrases.DENIED.match(text, cue.end()) or phrases.DENIED_BEFORE.search(
            before
        ):
            continue
        start = phrases.LINK.match(text, cue.end()).end()
        stop = cues[i + 1].start() if i + 1 < len(cues) else len(text)
        line = text[start : min(max(stop, start), start + 400)].strip()
        line = line.partition("\n")[0]
        option = mentions.decide(line, options) if line else NONE
        is_final = phrases.IS_FINAL.match(cue[0]) is not None
        votes.append(((cue.end(), option), is_final))
    return votes


def _choose(text: str, options: tuple[str, ...]) -> int:
    """Return the option that a reply without a chain of thought decides for."""
    if len(text) < 2000 and (parts := phrases.CORRECTION.split(text))[1:]:
        option = _choose(parts[-1], options)
        if option >= 0:
            return option
    if boxes := _boxed(text):
        return _agreed(boxes, text, options)
    fields = [
        (m.start(), next(filter(None, m.groups()), "")) for m in _JSON.finditer(text)
    ]
    if fields and (option := _agreed(fields, text, options)) != NONE:
        return option
    plain = phrases.ALL_BUT.sub(r"answer: \1", _plain(text, options))
    plain = phrases.ASKED_AND_DENIED.sub("", plain)
    if phrases.CONDITIONAL.search(plain) and _final(plain, options) < 0:
        every = [
            m for t in mentions.sentences(plain) for m in mentions.letters(t, options)
        ]
        if mentions.only(every, options) == SEVERAL:
            return SEVERAL
    if (option := _declared(plain, options)) != NONE:
        return option
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    listed = [mentions.lead(line, options) for line in lines]
    if (option := _ticked(lines, options)) != NONE:
        return option
    distinct = {option for option in listed if option >= 0}
    if len(distinct) == 1 and listed[0] in distinct | {NONE}:
        ends = {listed[0], listed[-1] if len(lines[-1]) < 200 else NONE} - {NONE}
        if len(ends) == 1:
            return ends.pop()
    if len(distinct) > 1:  # the options again, or two answers
        lines = [t for t, option in zip(lines, listed, strict=True) if option < 0]
    if lines and SEVERAL in listed[:1]:
        return SEVERAL
    bold = [m[1] or m[2] for m in _BOLD.finditer(text)]
    votes = {mentions.decide(_plain(b, options).strip(), options) for b in bold} - {
        NONE
    }
    if len(votes) == 1:
        return votes.pop()
    rest = "\n".join(lines)
    for sentence in reversed(mentions.sentences(rest)[-2:]):
        if match := phrases.SO.search(sentence):
            option = mentions.decide(sentence[match.end() :].lstrip(" ,:"), options)
            if option != NONE:
                return option
            if phrases.WRONG.search(sentence, match.end()):
                return NONE
    if len(distinct) > 1 and not rest:
        return SEVERAL
    option = mentions.only(_all(rest, options), options)
    return option if option != SEVERAL else _closing(rest, options)


_VERDICT = re.compile(
    r"\W{0,4}(?:[Oo]ption\s+)?\(?([A-Z])\)?\s*[.):-].*?(?:([✓✔✅]|(?i:\byes|\btrue"
    r"|\bcorrect))|[✗❌✘×]|(?i:\bno|\bfalse|\bincorrect|\bwrong))\W*"
)


def _ticked(lines: list[str], options: tuple[str, ...]) -> int:
    """Return the option of the only line that says yes, of at least two that say yes or
    no: "A: red - no", "B: blue - yes"."""
    if {o.strip().casefold() for o in options} & {"yes", "no", "true", "false"}:
        return NONE
    verdicts = [v for t in lines if len(t) < 300 and (v := _VERDICT.fullmatch(t))]
    right = [v[1] for v in verdicts if v[2]]
    if len(verdicts) < 2 or len(right) != 1 or len({v[1] for v in verdicts}) < 2:
        return NONE
    index = mentions.LETTERS.index(right[0])
    return index if index < len(options) else SEVERAL


def _closing(text: str, options: tuple[str, ...]) -> int:
    """Return the option whose text ends the last sentence, if that says which one of
    many ("the nearest is the dog") and names no other, and if no sentence before it
    ends with another."""
    sentences = mentions.sentences(text)
    ends = []
    for sentence in sentences:
        near = mentions.named(sentence, options)
        if near and not re.search(r"\w", sentence[near[-1].end :]):
            ends.append((near[-1].option, sentence))
    if not ends or ends[-1][1] != sentences[-1]:
        return SEVERAL
    last = re.split(r"\bbut\b", sentences[-1])[-1]
    alone = mentions.only(mentions.named(last, options), options) == ends[-1][0]
    sure = phrases.WHICH.search(last) and not phrases.UNSURE.search(last)
    same = len({option for option, _ in ends}) == 1
    by_text = not mentions.letters(last, options)
    return ends[-1][0] if alone and sure and same and by_text else SEVERAL


def _all(text: str, options: tuple[str, ...]) -> list[mentions.Mention]:
    """Return the letters that a text names, or the option texts if there are none."""
    everything = [
        m for s in mentions.sentences(text) for m in mentions.named(s, options)
    ]
    letters = [m for m in everything if m.letter]
    return letters or everything


# -- open questions --------------------------------------------------------------------


def _open(blocks: list[tuple[int, str]], rest: str, thinking: str) -> str:
    """Return the answer to an open question as it was written, '' if there is none."""
    if blocks:
        rest = blocks[-1][1]
        if len({" ".join(b.casefold().split()) for _, b in blocks}) > 1:
            return ""
    boxes = _boxed(thinking or rest)
    if boxes:
        same = len({"".join(b.split()) for _, b in boxes}) == 1
        return boxes[-1][1].strip() if same else ""
    if thinking or blocks:
        return "" if thinking else rest.strip()
    if fields := [next(filter(None, m.groups()), "") for m in _JSON.finditer(rest)]:
        return fields[-1].strip()
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    cues = list(phrases.CUE.finditer(rest))
    if cues and len(rest) > 1:
        last = cues[-1].end()
        clause = rest[phrases.LINK.match(rest, last).end() :].strip()
        if clause:
            return _MARKS.sub("", clause.partition("\n")[0]).strip()
    bold = {(m[1] or m[2]).strip() for m in _BOLD.finditer(rest)}
    if len(bold) == 1:
        return bold.pop()
    return _MARKS.sub("", lines[-1]).strip() if lines else ""
