"""Numbers as people write them: digits, words, fractions, percentages, units.

Everything is exact (rationals); nothing here evaluates expressions (`maths.py` does).
No function raises on any text or takes more than time linear in its length.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from typing import NamedTuple

LONGEST = 200  # characters; a longer text is no single quantity


class Quantity(NamedTuple):
    """An exact number and its unit: 50 cm is (1/2, 'm', 50), 25 % is (1/4, '%', 25)."""

    value: Fraction  # in base units
    unit: str  # in base units, 'm2', 'm/s'; a counted noun, 'apple'; '' for none
    written: Fraction  # as it stands

    def same(self, gold: Quantity) -> bool:
        """Return whether two quantities are equal.

        Units are compared where both sides have one (50 cm is 0.5 m, but 5 cm is not
        5 kg); one side without takes the other's as written: 5 is "5 cm" either way
        round. "25 %" is 25 % and 0.25. 0.33 is not 1/3.
        """
        if self.unit == gold.unit:
            return self.value == gold.value
        if self.unit and gold.unit:
            return False
        share = "%" in (self.unit, gold.unit) and self.value == gold.value
        return share or self.written == gold.written


# -- words -----------------------------------------------------------------------------

_ONES = {
    word: i
    for i, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen"
        " fourteen fifteen sixteen seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * i
    for i, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), 2
    )
}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
GROUPS = {"hundred": 100, **_SCALES, "dozen": 12}
_PARTS = {
    name + ending: n
    for n, name in enumerate(
        "third fourth fifth sixth seventh eighth ninth tenth".split(), 3
    )
    for ending in ("", "s")
} | {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_WORD = re.compile(r"[A-Za-z]+")
_JOIN = re.compile(r"[ \t]*-?[ \t]*")


def spelled(text: str) -> str:
    """Return a text with its number words as digits: "twenty-one cats" is "21 cats",
    "two and a half" "2 1/2", "half a dozen" "6", "three quarters" "3/4"."""
    words = list(_WORD.finditer(text))
    lower = [w[0].lower() for w in words]
    joined = [
        _JOIN.fullmatch(text, a.end(), b.start()) is not None
        for a, b in itertools.pairwise(words)
    ] + [False]
    out, at, i = [], 0, 0
    while i < len(words):
        number, n = _number_words(lower, joined, i)
        if n:
            out += [text[at : words[i].start()], number]
            at, i = words[i + n - 1].end(), i + n
        else:
            i += 1
    return "".join([*out, text[at:]]) if out else text


def _number_words(words: list[str], joined: list[bool], i: int) -> tuple[str, int]:
    """Return (digits, words used) of the number that begins at word i, 0 if none."""

    def ahead(k: int) -> str:
        return words[k] if k < len(words) and (k == i or joined[k - 1]) else ""

    if ahead(i) == "half" and ahead(i + 1) == "a" and ahead(i + 2) == "dozen":
        return "6", 3
    whole, n = _cardinal(ahead, i)
    if not n:
        one = ahead(i) in ("a", "an") and ahead(i + 1) in ("half", "third", "quarter")
        if one or (ahead(i) == "half" and ahead(i + 1) != "of"):
            return f"1/{_PARTS[ahead(i + one)]}", 1 + one
        return "", 0
    k = i + n
    if ahead(k) in _PARTS:
        return f"{whole}/{_PARTS[ahead(k)]}", n + 1
    if ahead(k) == "point" and ahead(k + 1) in _ONES:
        digits = ""
        while ahead(k + 1) in _ONES and _ONES[ahead(k + 1)] < 10:
            digits, k = digits + str(_ONES[ahead(k + 1)]), k + 1
        if digits:
            return f"{whole}.{digits}", k + 1 - i
    if ahead(k) == "and":
        top, m = _cardinal(ahead, k + 1)
        if ahead(k + 1) == "a":
            top, m = 1, 1
        if m and ahead(k + 1 + m) in _PARTS:
            return f"{whole} {top}/{_PARTS[ahead(k + 1 + m)]}", n + m + 2
    return str(whole), n


def _cardinal(ahead, i: int) -> tuple[int, int]:
    """Return (value, words used) of a whole number in words, (0, 0) if none."""
    total, current, last, k = 0, 0, "", i
    largest = 10**15
    if ahead(k) == "a" and ahead(k + 1) in GROUPS:
        current, last, k = 1, "one", k + 1
    while True:
        word = ahead(k)
        if word in _ONES and (
            last in ("", "hundred", "scale") or (last == "ten" and 0 < _ONES[word] < 10)
        ):
            current, last = current + _ONES[word], "one"
        elif word in _TENS and last in ("", "hundred", "scale"):
            current, last = current + _TENS[word], "ten"
        elif word == "hundred" and last in ("one", "ten") and current < 100:
            current, last = current * 100, "hundred"
        elif word == "dozen" and last in ("one", "ten"):
            return total + current * 12, k + 1 - i
        elif word in _SCALES and last and last != "scale" and _SCALES[word] < largest:
            largest = _SCALES[word]
            total, current, last = total + current * largest, 0, "scale"
        elif not (
            word == "and"
            and last in ("hundred", "scale")
            and (ahead(k + 1) in _ONES or ahead(k + 1) in _TENS)
        ):
            return total + current, k - i
        k += 1


# -- units -----------------------------------------------------------------------------

_NAMED_UNITS = """
m: m 1, meter 1, metre 1, mm 1/1000, millimeter 1/1000, millimetre 1/1000, cm 1/100,
 centimeter 1/100, centimetre 1/100, dm 1/10, decimeter 1/10, decimetre 1/10, km 1000,
 kilometer 1000, kilometre 1000, um 1/1000000, nm 1/1000000000, in 127/5000,
 inch 127/5000, inches 127/5000, ft 381/1250, foot 381/1250, feet 381/1250,
 yd 1143/1250, yard 1143/1250, mi 201168/125, mile 201168/125
g: g 1, gram 1, gramme 1, mg 1/1000, milligram 1/1000, kg 1000, kilogram 1000,
 kilo 1000, tonne 1000000, lb 45359237/100000, lbs 45359237/100000,
 pound 45359237/100000, oz 45359237/1600000, ounce 45359237/1600000
s: s 1, sec 1, second 1, ms 1/1000, millisecond 1/1000, min 60, minute 60, h 3600,
 hr 3600, hour 3600, day 86400, week 604800
year: year 1, yr 1, month 1/12
deg: ° 1, deg 1, degree 1
rad: rad 1, radian 1
%: % 1/100, percent 1/100, per cent 1/100
$: $ 1, dollar 1, usd 1, cent 1/100
€: € 1, euro 1, eur 1
£: £ 1, gbp 1
°C: °c 1, celsius 1
°F: °f 1, fahrenheit 1
N: n 1, newton 1, kn 1000
J: j 1, joule 1, kj 1000
W: w 1, watt 1, kw 1000, mw 1000000
V: v 1, volt 1, kv 1000
A: a 1, amp 1, ampere 1, ma 1/1000
ohm: ohm 1, Ω 1, kΩ 1000
Hz: hz 1, khz 1000, mhz 1000000
Pa: pa 1, kpa 1000
mol: mol 1, mole 1
: unit 1
"""
_VOLUMES = "ml 1/1000000, milliliter 1/1000000, millilitre 1/1000000, l 1/1000, liter"
_VOLUMES += " 1/1000, litre 1/1000, cl 1/100000, cc 1/1000000"


def _unit_table() -> dict[str, tuple[Fraction, tuple[tuple[str, int], ...]]]:
    rows = {}
    for line in _NAMED_UNITS.strip().replace(",\n ", ", ").splitlines():
        base, _, entries = line.partition(": ")
        dims = ((base, 1),) if base else ()
        for entry in entries.split(", "):
            name, _, scale = entry.rpartition(" ")
            rows[name] = Fraction(scale), dims
    for entry in _VOLUMES.split(", "):
        name, _, scale = entry.rpartition(" ")
        rows[name] = Fraction(scale), (("m", 3),)
    rows["mph"] = Fraction(201168, 125) / 3600, (("m", 1), ("s", -1))
    rows["kph"] = rows["kmh"] = Fraction(1000, 3600), (("m", 1), ("s", -1))
    return rows


UNITS = _unit_table()
_LETTERS = "mgslhLNJWVAΩ"  # units of one letter; any other letter is a variable
_POWERS = {"2": 2, "3": 3, "²": 2, "³": 3, "squared": 2, "cubed": 3}
_UNIT_TOKEN = re.compile(
    r"\s*(?:([A-Za-zµΩ]+)|(°)|([%$€£])|\^?\{?([23²³])\}?|(/)|([·*]))"
)
# Words that join numbers or say more than a unit does.
_NO_NOUNS = frozenset(
    "and or not no to of from than times plus minus over by at is are in out if but"
    " point half root squared cubed divided equals less more least most pi infinity"
    " degrees sin cos tan log ln sqrt frac x y z n between approximately about around"
    " the a an nor either maybe unless without".split()
)


def unit(text: str) -> tuple[Fraction, str] | None:
    """Return (scale to base units, base units) of what stands behind a number:
    'km/h', 'square metres', '%', 'red apples'; None if it is no unit or noun."""
    scale, powers, sign, square = Fraction(1), {}, 1, 1
    text, at, last = text.strip(), 0, ""
    while at < len(text):
        match = _UNIT_TOKEN.match(text, at)
        if match is None:
            return _noun(text)
        word = match[1] or match[2] or match[3]
        at = match.end()
        if match[2] and text[at : at + 1] in ("C", "F"):
            word, at = word + text[at], at + 1
        if word and word.lower() in ("square", "sq", "cubic", "cu"):
            square = 2 if word.lower().startswith("s") else 3
            continue
        if word == "per" and not text[at:].strip().lower().startswith("cent"):
            sign, last = -1, ""
            continue
        if word and word.lower() == "per":
            word, at = "percent", at + text[at:].lower().index("cent") + 4
        if match[5]:
            sign, last = -1, ""
            continue
        if match[6]:
            continue
        power = _POWERS.get(match[4] or (word or "").lower())
        if power:
            if not last:
                return _noun(text)
            size, dims, was = last
            scale *= size ** (was * (power - 1))
            for base, n in dims:
                powers[base] = powers.get(base, 0) + n * was * (power - 1)
            continue
        row = _lookup(word)
        if row is None:
            return _noun(text)
        size, dims = row
        exponent = sign * square
        scale *= size**exponent
        for base, n in dims:
            powers[base] = powers.get(base, 0) + n * exponent
        last, square, sign = (size, dims, sign), 1, 1
    names = sorted((b, n) for b, n in powers.items() if n)
    over = [b + (str(n) if n > 1 else "") for b, n in names if n > 0]
    under = [b + (str(-n) if n < -1 else "") for b, n in names if n < 0]
    return scale, "·".join(over) + "".join(f"/{b}" for b in under)


def _lookup(word: str):
    low = word.lower()
    if len(word) == 1 and word.isalpha() and word not in _LETTERS:
        return None
    for name in (low, low.removesuffix("s"), low.removesuffix("es")):
        if name in UNITS and (len(low) > 2 or name == low):
            return UNITS[name]
    return None


def _noun(text: str) -> tuple[Fraction, str] | None:
    """Read counted things: at most three lower-case words, the last of which counts."""
    words = text.split()
    if not 1 <= len(words) <= 3:
        return None
    if any(
        not re.fullmatch(r"[a-z]{3,20}(?:-[a-z]{2,20})?", w) or w in _NO_NOUNS
        for w in words
    ):
        return None
    return Fraction(1), singular(words[-1])


def singular(word: str) -> str:
    """Return an English noun without its plural ending, near enough to compare."""
    if word in ("people", "persons"):
        return "person"
    for ending, new in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x")):
        if word.endswith(ending):
            return word.removesuffix(ending) + new
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


# -- one quantity ----------------------------------------------------------------------

# ASCII digits only: int() would also read those of other scripts.
_GAP = r"(?:,|\{,\}|\\,|[   '])"
_WHOLE = rf"(?:[0-9]{{1,3}}(?:{_GAP}[0-9]{{3}})+(?![0-9])|[0-9]+)"
_QUANTITY = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<money>[$€£]?)\s*"
    rf"(?:(?:(?P<mixed>[0-9]+)\s+(?:and\s+)?)?(?P<top>{_WHOLE})\s*/\s*"
    rf"(?P<bottom>{_WHOLE})|(?P<decimal>(?:{_WHOLE})?\.[0-9]+|{_WHOLE})\.?)"
    r"\s*(?:-(?=[a-z]))?(?P<scale>(?:hundred|thousand|million|billion|trillion|dozen)\b)?"
    r"(?P<tail>(?:\s*[^0-9\s.].*)?)",
    re.DOTALL,
)
_CLEAN = (
    (
        re.compile(
            r"\\(?:left|right|displaystyle|quad|qquad)(?![a-z])|\\[;:! ]|~"
            r"|\\,(?![0-9]{3})"
        ),
        " ",
    ),
    (re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|º|˚"), "°"),
    (re.compile(r"\\[dtc]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}"), r" \1/\2"),
    (re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])(?![0-9])"), r" \1/\2"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"[−–‒﹣]"), "-"),
)
_VULGAR = {
    c: f" {n}/{d}"
    for c, n, d in (
        *(("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4)),
        *(("⅕", 1, 5), ("⅖", 2, 5), ("⅗", 3, 5), ("⅘", 4, 5), ("⅙", 1, 6)),
        *(("⅚", 5, 6), ("⅛", 1, 8), ("⅜", 3, 8), ("⅝", 5, 8), ("⅞", 7, 8)),
    )
}
_VULGARS = re.compile("[" + "".join(_VULGAR) + "]")


def vulgar(text: str) -> str:
    """Return a text with ½ and the like as 1/2."""
    return _VULGARS.sub(lambda m: _VULGAR[m[0]], text)


_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_WRAPS += (("`", "`"), ("*", "*"), ('"', '"'), ("“", "”"))
_BOXED = re.compile(r"\\(?:boxed|fbox|text|mathbf|textbf|bm|boldsymbol|mathrm)\s*\{")


def unwrapped(text: str) -> str:
    r"""Return a text without what stands around the whole of it: white space, $…$,
    \(…\), **…**, quotes, \boxed{…}, \text{…}, a final full stop."""
    for _ in range(6):
        before, text = text, text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for a, b in _WRAPS:
            inner = text[len(a) : len(text) - len(b)]
            if (
                len(text) > len(a) + len(b)
                and text.startswith(a)
                and text.endswith(b)
                and a not in inner
                and b not in inner
            ):
                text = inner
        if (match := _BOXED.match(text)) and text.endswith("}"):
            inner, depth = text[match.end() : -1], 0
            for c in inner:
                depth += (c == "{") - (c == "}")
                if depth < 0:
                    break
            if depth == 0:
                text = inner
        if text == before:
            break
    return text


def quantity(text: str) -> Quantity | None:
    """Return the one quantity that a text is, None where it is anything else.

    Read: signs, 1,234.5, 3/4, 1 3/4, ½, 25 %, LaTeX fractions, degrees, $5, number
    words, "2 million", what `unwrapped` takes away, and units or counted nouns
    (`unit`). Not read: two numbers, sentences, names ("x = 5"), roots and π, digits of
    other scripts.
    """
    if len(text) > LONGEST:
        return None
    text = unwrapped(text)
    if text.count("$") == 2:  # $5$ cm
        text = re.sub(r"(?<!\\)\$([^$]*)\$", r" \1 ", text).strip()
    for pattern, new in _CLEAN:
        text = pattern.sub(new, text)
    text = spelled(vulgar(text)).strip()
    match = _QUANTITY.fullmatch(re.sub(r"^(negative|minus)\s+", "-", text, flags=re.I))
    if match is None:
        return _compound(text)
    if match["top"]:
        bottom = integer(match["bottom"])
        if bottom == 0:
            return None
        value = int(match["mixed"] or 0) + Fraction(integer(match["top"]), bottom)
    else:
        value = Fraction(re.sub(_GAP, "", match["decimal"]))
    value *= GROUPS[match["scale"]] if match["scale"] else 1
    value = -value if match["sign"] == "-" else value
    tail = f"{match['money']} {match['tail']}".strip().rstrip(".")
    named = unit(tail)
    if named is None:
        return _compound(text)
    return Quantity(value * named[0], named[1], value)


_PART = re.compile(
    r"\s*(?:and\s+)?([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,12})\.?,?"
)


def _compound(text: str) -> Quantity | None:
    """Read "1 h 30 min", "5 feet 6 inches": falling units of one dimension, summed."""
    parts, at = [], 0
    while match := _PART.match(text, at):
        parts.append((Fraction(match[1]), _lookup(match[2])))
        at = match.end()
    if at < len(text) or len(parts) < 2 or any(row is None for _, row in parts):
        return None
    scales, dims = zip(*(row for _, row in parts), strict=True)
    if len(set(dims)) > 1 or not dims[0] or sorted(set(scales))[::-1] != list(scales):
        return None
    value = sum(n * row[0] for n, row in parts)
    return Quantity(value, dims[0][0][0], value / scales[0])


def integer(text: str) -> int:
    """Return the whole number that digits with thousands separators stand for."""
    return int(re.sub(_GAP, "", text))
