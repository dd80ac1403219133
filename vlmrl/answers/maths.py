r"""Mathematical answers: what a text states, and whether two texts state the same.

A text is cleaned to sound LaTeX, then read as what it is: a value with its unit, a
relation, a tuple, interval, set or list, a named quantity ("x = 5"), or words. Only
like is compared with like, expressions by `algebra.equal`. So `2` is not `2\sqrt{3}`,
`x \le 3` not `x \ge 3`, `(3, 5)` not `(4, 5)`, and 5 cm not 5 kg, but 5 is 5 cm, where
one side leaves the unit out.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from vlmrl.answers import algebra, numbers
from vlmrl.answers.algebra import NoExpression
from vlmrl.answers.latex import THOUSANDS, cleaned

LONGEST = 600  # characters; longer texts are compared as text


class Value(NamedTuple):
    """An expression and its unit: `12\\pi cm^2` is (tree, 1/10000, 'm2')."""

    tree: tuple
    scale: Fraction = Fraction(1)
    unit: str = ""


class Relation(NamedTuple):
    """left < right or left <= right, '=' or '!='; > and >= are turned round."""

    operator: str
    left: tuple
    right: tuple


class Items(NamedTuple):
    """Several: brackets '()' of a tuple or an interval, '[)', '{}' of a set, '' of a
    bare list, 'U' of a union of intervals, '&' of relations that hold together."""

    brackets: str
    items: tuple


class NamedValue(NamedTuple):
    """What has a name: 'x' and the value of `x = 5`; the whole as relations too."""

    name: str
    value: object
    relation: Relation | None


# -- reading ---------------------------------------------------------------------------

_RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv|in)(?![A-Za-z])|[<>=]")
_LEAD = re.compile(
    r"(?i)^(?:(?:so|thus|hence|therefore|then|finally|we (?:get|have|find)|which (?:is"
    r"|gives)|that is|namely|answer|ans|result|final answer|solution)\b[\s,:]*)+"
)
_IS = re.compile(
    r"(?i)^(?P<name>[^=<>,;]{0,100}?)\b(?:is|are|equals?|was|be|becomes|gives)\s+"
    r"(?:then\s+|exactly\s+|about\s+|approximately\s+|equal to\s+|given by\s+)*"
    r"(?!not\b|n't)(?P<rest>\S.*)$",
    re.DOTALL,
)
_NAME = re.compile(
    r"^\s*(?:(?:the|a|its|measure|length|value|area|angle|of|m|size|line|segment|side)\b"
    r"[\s]*|\\angle\s*|\\overline|\\triangle\s*|\\vec|\\mid|[{}|]|\\,)*"
    r"(?P<name>\\?[A-Za-z]{1,12}[A-Za-z ]{0,30}'*(?:_\{?[A-Za-z0-9]+\}?)?"
    r"(?:\([A-Za-z, ]{1,9}\))?|)\s*[{}|]*\s*$"
)
_OPEN, _CLOSE = "([{", ")]}"


def _split(text: str, separators: re.Pattern) -> list[str]:
    """Cut a text at the separators outside of all brackets. An interval's brackets
    match any others: depth counts openers and closers alike."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        c = text[at]
        if c == "\\" and text[at + 1 : at + 2] in ("{", "}"):
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth == 0 and (match := separators.match(text, at)) and match.end() > at:
            parts.append(text[start:at])
            start = at = match.end()
            continue
        at += 1
    return [*parts, text[start:]]


_COMMAS = re.compile(
    r"[,;]|(?<=\s)(?:and|or|&)(?=\s)|\\(?:lor|vee|wedge|land)(?![a-z])"
)
_CUP = re.compile(r"\\cup(?![a-z])")


@functools.lru_cache(8192)
def read(text: str, thousands: bool = True):
    """Return what a text states: Value, Relation, Items or NamedValue, None where it
    is words. Never raises.

    Args:
      thousands: `1,234` is one number; False: two.
    """
    if len(text) > LONGEST:
        return None
    text = cleaned(text).replace(THOUSANDS, "" if thousands else ",")
    text = re.sub(r"^\s*=", "", _LEAD.sub("", text))
    if len(text.strip()) > 1 and not re.search(
        r"[0-9\\=<>+*/^(|-]", numbers.spelled(text)
    ):
        return None  # words, or letters that are compared as text
    try:
        return _statement(text)
    except NoExpression:
        pass
    match = _IS.match(text)
    if match and not re.search(r"(?i)\bnot\b|n't|never|cannot", match["name"]):
        try:
            value = _statement(match["rest"])
        except NoExpression:
            return None
        name = _name(match["name"].split()[-1]) if match["name"].split() else ""
        return NamedValue(name or "", value, None) if name else value
    return None


def _statement(text: str):
    parts = _split(text, _COMMAS)
    if len(parts) > 1:
        if not parts[0].strip() or not parts[-1].strip():
            raise NoExpression
        items = [_single(p) for p in parts if p.strip()]
        return _list(items)
    return _single(text)


def _list(items: list):
    """Return a bare list; "x = 2, 3" and "x = 2 or x = 3" are a named one."""
    first = items[0]
    if isinstance(first, NamedValue) and all(
        isinstance(i, Value) or (isinstance(i, NamedValue) and i.name == first.name)
        for i in items
    ):
        values = tuple(i.value if isinstance(i, NamedValue) else i for i in items)
        return NamedValue(first.name, Items("", values), None)
    flat = []
    for item in items:
        flat += item.items if isinstance(item, Items) and not item.brackets else [item]
    return Items("", tuple(flat))


def _single(text: str):
    """Read one statement: no comma outside brackets."""
    text = text.strip()
    sides = _split(text, _RELATION)
    if len(sides) > 1:
        return _relation(sides, _operators(text))
    if r"\pm" in text or r"\mp" in text:
        both = [
            text.replace(r"\pm", a).replace(r"\mp", b)
            for a, b in (("+", "-"), ("-", "+"))
        ]
        return Items("", tuple(_single(t) for t in both))
    unions = _split(text, _CUP)
    if len(unions) > 1:
        return Items("U", tuple(_bracketed(p.strip()) for p in unions))
    if (many := _bracketed(text)) is not None:
        return many
    return _value(text)


def _operators(text: str) -> list[str]:
    """Return the relation signs outside of brackets, in order."""
    out, depth, at = [], 0, 0
    while at < len(text):
        c = text[at]
        if c == "\\" and text[at + 1 : at + 2] in ("{", "}"):
            depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth == 0 and (match := _RELATION.match(text, at)):
            out.append(match[0])
            at = match.end()
            continue
        at += 1
    return out


def _relation(sides: list[str], operators: list[str]):
    signs = [
        {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\equiv": "="}.get(o, o)
        for o in operators
    ]
    if signs == ["\\in"]:
        name = _name(sides[0])
        value = _single(sides[1])
        return NamedValue(name, value, None) if name else value
    if all(s in ("=", "\\approx") for s in signs):
        return _equation(sides, signs)
    if "\\in" in signs or "\\approx" in signs:
        raise NoExpression
    pairs = []
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        a, b = _value(left).tree, _value(right).tree
        if sign[0] == ">":
            a, b, sign = b, a, sign.replace(">", "<")
        pairs.append(Relation(sign, a, b))
    return pairs[0] if len(pairs) == 1 else Items("&", tuple(pairs))


def _equation(sides: list[str], signs: list[str]):
    name = _name(sides[0])
    if name is not None:
        values = [_statement(s) for s in sides[1:]]
        signs = signs[1:]
    else:
        values = [_single(s) for s in sides]
    for a, sign, b in zip(values, signs, values[1:], strict=False):
        if sign == "=" and not same(a, b):
            if name is None and len(values) == 2:
                return _plain_equation(a, b)
            raise NoExpression
        if sign != "=" and not _near(a, b):
            raise NoExpression
    # The exact value of a chain: what stands before the first ≈.
    exact = signs.index("\\approx") if "\\approx" in signs else len(values) - 1
    value = values[exact]
    if name is None:
        return value
    relation = None
    if isinstance(value, Value):
        try:
            relation = Relation("=", algebra.parse(sides[0].strip()), value.tree)
        except NoExpression:
            pass
    return NamedValue(name, value, relation)


def _plain_equation(a, b) -> Relation:
    if not (isinstance(a, Value) and isinstance(b, Value)):
        raise NoExpression
    if not algebra.variables(a.tree) | algebra.variables(b.tree):
        raise NoExpression  # 2 + 2 = 5
    return Relation("=", a.tree, b.tree)


def _near(a, b) -> bool:
    """Return whether b is a rounded a: within 1 %."""
    if not (isinstance(a, Value) and isinstance(b, Value)):
        return False
    x, y = algebra.constant(a.tree), algebra.constant(b.tree)
    return x is not None and y is not None and abs(x - y) <= abs(x) / 100


def _name(text: str) -> str | None:
    """Return the name that the left side of an equation is, None if it is more."""
    text = text.strip()
    if not text:
        return None
    match = _NAME.match(text)
    if match is None:
        return None
    name = re.sub(r"[\s{}\\]", "", match["name"])
    if name in ("pi", "e", "frac", "sqrt"):
        return None
    return "".join(sorted(name)) if re.fullmatch("[A-Z]{2}", name) else name


_BUILT = re.compile(  # {x | x < 3}
    r"\s*[a-z]\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*)?R\s*\}?\s*)?(?:\||\\mid|:)"
)


def _bracketed(text: str) -> Items | None:
    """Read (a, b), [a, b), {a, b}, \\{a, b\\}; None if it is no such thing."""
    text = re.sub(r"^[A-Z]\s*(?=\()", "", text)  # a named point: A(3, 4)
    text = text.replace(r"\{", "{").replace(r"\}", "}")
    if text in (r"\emptyset", r"\varnothing", "{}", "∅"):
        return Items("{}", ())
    if len(text) < 2 or text[0] not in _OPEN or text[-1] not in _CLOSE:
        return None
    depth = 0
    for i, c in enumerate(text):
        depth += (c in _OPEN) - (c in _CLOSE)
        if depth == 0 and i < len(text) - 1:
            return None
    parts = _split(text[1:-1], re.compile("[,;]"))
    brackets = text[0] + text[-1]
    if len(parts) == 1:
        if brackets == "{}" and (built := _BUILT.match(parts[0])):
            return _single(parts[0][built.end() :])
        if brackets in ("{}", "[]"):
            return Items(brackets, (_statement(parts[0]),))
        if brackets == "()" and (inner := _bracketed(parts[0].strip())) is not None:
            return inner
        return None
    return Items(brackets, tuple(_single(p) for p in parts))


_TAIL = re.compile(r"(?<=[0-9})\]iA-Za-z])\s*(?=[A-Za-z°%$€£])|(?<=\s)(?=[A-Za-z])")


def _value(text: str) -> Value:
    """Read an expression and the unit behind it. Raises NoExpression."""
    text = re.sub(r"^\s*(?:negative|minus)\s+", "-", numbers.spelled(text), flags=re.I)
    text = re.sub(r"^\s*\\?([$€£])\s*(?=[0-9.])(.*)$", r"\2 \1", text.strip())
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9]{3}(?:\s[0-9]{3})*(?![0-9/]))", "", text)
    text = text.rstrip(". ")
    scaled = re.fullmatch(
        r"([0-9.]+)\s+(hundred|thousand|million|billion|trillion|dozen)\b(.*)", text
    )
    if scaled:
        factor = numbers.GROUPS[scaled[2]]
        text = (
            f"{Fraction(scaled[1]) * factor if _plain(scaled[1]) else 'x?'}{scaled[3]}"
        )
    for match in [*_TAIL.finditer(text)][:12]:
        head, tail = text[: match.start()], text[match.end() :]
        named = numbers.unit(re.sub(r"\\cdot|\\times|\{|\}", " ", tail))
        if named is None or not head.strip():
            continue
        if named[1] == "deg" and re.search(r"(?:sin|cos|tan|cot|sec|csc)", head):
            continue  # the degrees of its argument
        try:
            tree = algebra.parse(head.strip())
        except NoExpression:
            continue
        if not algebra.variables(tree):
            return Value(tree, *named)
    if ":" in text:
        ratio = text.split(":")
        if len(ratio) == 2:
            text = f"({ratio[0]})/({ratio[1]})"
    return Value(algebra.parse(text.strip()))


def _plain(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) is not None


# -- comparing -------------------------------------------------------------------------


def same(a, b) -> bool:
    """Return whether two statements are the same; the order doesn't matter."""
    if isinstance(a, NamedValue) and isinstance(b, NamedValue):
        if a.name == b.name or len(a.name) > 2 or len(b.name) > 2:
            return same(a.value, b.value)
        pair = a.relation, b.relation
        return None not in pair and _same_relation(*pair)
    if isinstance(b, NamedValue):
        a, b = b, a
    if isinstance(a, NamedValue):
        if isinstance(b, Relation):
            return a.relation is not None and _same_relation(a.relation, b)
        return same(a.value, b)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return _same_relation(a, b)
    if isinstance(a, Value) and isinstance(b, Value):
        return _same_value(a, b)
    if isinstance(a, Items) and isinstance(b, Items):
        return _same_items(a, b)
    if isinstance(a, Items):
        a, b = b, a
    if isinstance(b, Items) and len(b.items) == 1 and b.brackets in ("{}", "[]"):
        return same(a, b.items[0])
    if isinstance(b, Items) and isinstance(a, Relation):
        return _interval_of(a) is not None and same(_interval_of(a), b)
    return False


def _same_value(a: Value, b: Value) -> bool:
    def scaled(v: Value) -> tuple:
        return v.tree if v.scale == 1 else ("prod", (("num", v.scale), v.tree))

    if a.unit == b.unit:
        return algebra.equal(scaled(a), scaled(b))
    if "deg" in (a.unit, b.unit):
        degrees, other = (a, b) if a.unit == "deg" else (b, a)
        turned = ("prod", (scaled(degrees), ("var", "pi"), ("num", Fraction(1, 180))))
        if other.unit == "rad" or (
            not other.unit and "pi" in algebra.names(other.tree)
        ):
            return algebra.equal(turned, other.tree)
    if a.unit and b.unit:
        return False
    if "%" in (a.unit, b.unit) and algebra.equal(scaled(a), scaled(b)):
        return True
    return algebra.equal(a.tree, b.tree)


def _same_relation(a: Relation, b: Relation) -> bool:
    if a.operator != b.operator:
        return False
    if algebra.equal(a.left, b.left) and algebra.equal(a.right, b.right):
        return True
    first, second = (("sum", (r.left, ("neg", r.right))) for r in (a, b))
    if not algebra.variables(first) or algebra.variables(first) != algebra.variables(
        second
    ):
        return False
    factor = algebra.proportional(first, second)
    return factor is not None and (factor > 0 or a.operator in ("=", "!="))


def _same_items(a: Items, b: Items) -> bool:
    kinds = {a.brackets, b.brackets}
    for x, y in ((a, b), (b, a)):
        interval = _interval(x)
        if interval is not None and (y.brackets == "U" or y.brackets[:1] in ("(", "[")):
            return _same_items(interval, y)
    if kinds <= {"{}"} or kinds == {"{}", ""}:
        return _subset(a.items, b.items) and _subset(b.items, a.items)
    if len(a.items) != len(b.items):
        return False
    if kinds in ({""}, {"U"}, {"&"}):
        return _subset(a.items, b.items) and _subset(b.items, a.items)
    if "" in kinds and kinds & {"()", "[]"}:
        bare = a if a.brackets == "" else b
        if all(isinstance(i, NamedValue) for i in bare.items):  # x = 3, y = 5
            ordered = sorted(bare.items, key=lambda i: i.name)
            bare = Items("", tuple(i.value for i in ordered))
        other = b if a.brackets == "" else a
        return all(map(same, bare.items, other.items))
    return len(kinds) == 1 and all(map(same, a.items, b.items))


def _subset(a: tuple, b: tuple) -> bool:
    return all(any(same(x, y) for y in b) for x in a)


_INFINITY = ("var", "infty")


def _interval_of(r: Relation) -> Items | None:
    """Return the interval of x that x < 3 is, None of any other relation."""
    inf = Value(_INFINITY), Value(("neg", _INFINITY))
    if r.operator not in ("<", "<="):
        return None
    closed = r.operator == "<="
    if r.left[0] == "var" and not algebra.variables(r.right):
        return Items("(" + ("]" if closed else ")"), (inf[1], Value(r.right)))
    if r.right[0] == "var" and not algebra.variables(r.left):
        return Items(("[" if closed else "(") + ")", (Value(r.left), inf[0]))
    return None


def _interval(x: Items) -> Items | None:
    """Return the interval or union that relations are: 1 < x <= 3; x < 1 or x > 3."""
    if not x.items or not all(isinstance(i, Relation) for i in x.items):
        return None
    if x.brackets == "&" and len(x.items) == 2:
        low, high = x.items
        if low.left[0] == "var":
            low, high = high, low
        ends = low.right == high.left and low.right[0] == "var"
        if ends and low.operator in ("<", "<=") and high.operator in ("<", "<="):
            brackets = "(["[low.operator == "<="] + ")]"[high.operator == "<="]
            return Items(brackets, (Value(low.left), Value(high.right)))
    if x.brackets == "":
        parts = tuple(_interval_of(r) for r in x.items)
        return Items("U", parts) if None not in parts else None
    return None


def number(text: str) -> Fraction | float | None:
    """Return the real number that a text states, as written if it has a unit; None if
    it states none."""
    value = read(text)
    value = value.value if isinstance(value, NamedValue) else value
    return algebra.constant(value.tree) if isinstance(value, Value) else None


_MEASURES = re.compile(
    r"(?i)\b(area|perimeter|length|width|height|depth|radius|diameter|volume|slope|median"
    r"|circumference|mean|mode|range|minimum|maximum|mass|speed|time|distance|cost|profit"
    r"|revenue|price|age|weight|sum|difference|product|quotient)\b"
)


def _measured(text: str) -> set[str]:
    """Return the measures that a statement names before its value: {'area'}."""
    name, sign, _ = re.split(r"(=|\bis\b|$)", text, maxsplit=1)
    return {m.lower() for m in _MEASURES.findall(name)} if sign else set()


def equal(answer: str, gold: str) -> bool | None:
    """Return whether an answer states what the gold one does; None where the gold
    answer is words, which are to be compared as such."""
    expected = read(gold)
    if expected is None:
        return None
    if (a := _measured(answer)) and (b := _measured(gold)) and not a & b:
        return False
    got = read(answer)
    if got is None:
        return False
    if same(got, expected):
        return True
    # "(3,500)" may be a point or a number in brackets.
    if not (re.search(r"[(\[{].*[0-9],[0-9]{3}", answer + gold, re.DOTALL)):
        return False
    pairs = (
        (read(answer, a), read(gold, g)) for a in (True, False) for g in (True, False)
    )
    return any(x is not None and y is not None and same(x, y) for x, y in pairs)
