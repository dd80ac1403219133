r"""Expressions in LaTeX or plain text, and whether two are equal.

`parse` gives a tree. `equal` evaluates two trees at several points, in exact rationals
wherever that is possible, else in floating point: two different analytic expressions
agree at a random point with probability 0 (Schwartz, https://doi.org/10.1145/322217.
322225), so eight points tell them apart without any rewriting of the expressions. Time
and memory are bounded by the length of the text: powers that would be huge are
evaluated in floating point or are undefined.

Trees are tuples: ("num", Fraction), ("var", name), ("sum", nodes), ("prod", nodes),
("neg", a), ("inv", a), ("pow", a, b), ("root", n, a), ("call", name, a), ("deg", a),
("binom", n, k).
"""

from __future__ import annotations

import cmath
import functools
import math
import re
import zlib
from fractions import Fraction

LONGEST = 300  # characters of an expression
_DEEPEST = 40  # nested brackets and powers
_POINTS = 8


class NoExpression(Exception):
    """The text is no expression."""


_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa"
    " lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta"
    " Lambda Sigma Phi Psi Omega infty ell"
).split()
_TRIG = "sin cos tan cot sec csc".split()
_ARCS = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
_FUNCTIONS = [*_TRIG, *_ARCS, "sinh", "cosh", "tanh", "ln", "log", "lg", "exp", "abs"]
_NO_ARGUMENT = (*_FUNCTIONS, "(", "sqrt")  # what ends the argument of \sin 2x
_ACCENTS = ("vec", "overline", "bar", "hat", "overrightarrow", "tilde")
_TOKEN = re.compile(
    r"\s*(?:(?P<num>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\(?P<cmd>[A-Za-z]+)"
    r"|(?P<word>[A-Za-z]+'*)|(?P<op>\*\*|[-+*/^_(){}\[\]|!°%=]))"
)
_PRODUCTS = ("cdot", "times", "ast", "bullet")
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_IGNORED = ("left", "right", "displaystyle", "limits", "mathrm", "mathbf", "bm")


@functools.lru_cache(4096)
def parse(text: str) -> tuple:
    """Return the tree of an expression. Raises NoExpression."""
    if len(text) > LONGEST:
        raise NoExpression
    parser = _Parser(_tokens(text))
    tree = parser.sum()
    if parser.at < len(parser.tokens):
        raise NoExpression
    return tree


def _tokens(text: str) -> list[tuple[str, str]]:
    out, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NoExpression
        kind, at = match.lastgroup, match.end()
        if kind == "cmd" and match["cmd"] in _IGNORED:
            continue
        if kind == "word":
            out += _letters(match["word"], bool(out) and match.start("word") > 0)
        else:
            out.append((kind, match[kind]))
    return out


def _letters(word: str, attached: bool) -> list[tuple[str, str]]:
    """Return the tokens of a run of letters: a function, π, or single variables."""
    if word.lower() in ("pi", "infinity", "infty", "sqrt", *_FUNCTIONS):
        name = word.lower().replace("infinity", "infty")
        return [("cmd", name)]
    if word in _GREEK:
        return [("cmd", word)]
    for name in ("pi", "sqrt", *_FUNCTIONS):
        if word.startswith(name) and len(word) == len(name) + 1:  # sinx
            return [("cmd", name), ("word", word[-1])]
        if word.endswith(name) and len(word) == len(name) + 1 and name == "pi":
            return [("word", word[0]), ("cmd", name)]
    plain = word.rstrip("'")
    if len(plain) > 4 or (len(plain) > 2 and not attached):
        raise NoExpression
    primes = word[len(plain) :]
    return [("word", c) for c in plain[:-1]] + [("word", plain[-1:] + primes)]


class _Parser:
    """A recursive-descent parser over tokens; its depth is bounded."""

    def __init__(self, tokens):
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ("end", "")

    def take(self, *values: str) -> bool:
        if self.peek()[0] in ("op", "cmd") and self.peek()[1] in values:
            self.at += 1
            return True
        return False

    def need(self, value: str) -> None:
        if not self.take(value):
            raise NoExpression

    def sum(self) -> tuple:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NoExpression
        terms = [self.product()]
        while self.peek() in (("op", "+"), ("op", "-")):
            minus = self.take("-") or not self.take("+")
            term = self.product()
            terms.append(("neg", term) if minus else term)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("sum", tuple(terms))

    def product(self) -> tuple:
        factors = [self.signed()]
        while True:
            if self.take("*", *_PRODUCTS):
                factors.append(self.signed())
            elif self.take("/", "div"):
                factors.append(("inv", self.signed()))
            elif self.starts_atom():
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else ("prod", tuple(factors))

    def signed(self) -> tuple:
        minus = False
        while True:
            if self.take("-"):
                minus = not minus
            elif not self.take("+"):
                return ("neg", self.power()) if minus else self.power()

    def starts_atom(self) -> bool:
        kind, value = self.peek()
        if kind == "num":  # "2 3" is no product, ")2" is one
            return self.tokens[self.at - 1][1] in (")", "}", "]")
        if kind == "op":
            return value in ("(", "{", "[") or (value == "|" and not self.closing_bar)
        return kind in ("word", "cmd") and value not in (*_PRODUCTS, "div")

    closing_bar = False

    def power(self) -> tuple:
        base = self.atom()
        while True:
            if self.take("!"):
                base = ("call", "factorial", base)
            elif self.take("°"):
                base = ("deg", base)
            elif self.take("%"):
                base = ("prod", (base, ("num", Fraction(1, 100))))
            elif self.take("^", "**"):
                base = ("pow", base, self.script())
            else:
                return base

    def script(self) -> tuple:
        """Parse what stands behind ^ or \\frac: a group, a number, a letter."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NoExpression
        minus = self.take("-")
        out = self.atom()
        if self.take("^", "**"):
            out = ("pow", out, self.script())
        self.depth -= 1
        return ("neg", out) if minus else out

    def digit_or_atom(self) -> tuple:
        """Parse an argument of \\frac or \\sqrt: of bare digits one counts."""
        kind, value = self.peek()
        if kind == "num" and len(value) > 1 and value.isdigit():
            self.tokens[self.at] = (kind, value[1:])
            return ("num", Fraction(value[0]))
        return self.atom()

    def atom(self) -> tuple:
        kind, value = self.peek()
        self.at += 1
        if kind == "num":
            return self.mixed(("num", Fraction(value)))
        if kind == "op" and value in ("(", "{", "["):
            bar, self.closing_bar = self.closing_bar, False
            inner = self.sum()
            self.closing_bar = bar
            self.need({"(": ")", "{": "}", "[": "]"}[value])
            return inner
        if kind == "op" and value == "|":
            self.closing_bar = True
            inner = self.sum()
            self.need("|")
            self.closing_bar = False
            return ("call", "abs", inner)
        if kind == "word":
            return self.variable(value)
        if kind == "cmd":
            return self.command(value)
        raise NoExpression

    def mixed(self, whole: tuple) -> tuple:
        """Parse what follows a whole number: 2\\frac{1}{2} and 2 1/2 are sums."""
        if whole[1].denominator != 1:
            return whole
        at, tokens = self.at, list(self.tokens[self.at : self.at + 2])
        part = None
        if self.take(*_FRACTIONS):
            top, bottom = self.digit_or_atom(), self.digit_or_atom()
            part = top, bottom
        elif self.peek(1)[1] == "/" and self.peek()[0] == self.peek(2)[0] == "num":
            part = tuple(("num", Fraction(self.peek(k)[1])) for k in (0, 2))
            self.at += 3
        if part and all(p[0] == "num" for p in part) and 0 < part[0][1] < part[1][1]:
            return ("num", whole[1] + part[0][1] / part[1][1])
        self.at = at
        self.tokens[at : at + len(tokens)] = tokens
        return whole

    def variable(self, name: str) -> tuple:
        if self.take("_"):
            if self.take("{"):
                name += "_" + self.group()
            else:
                name += "_" + self.peek()[1]
                self.at += 1
        return ("var", name)

    def group(self) -> str:
        """Return the text of the tokens up to the closing brace."""
        parts = []
        while not self.take("}"):
            if self.peek()[0] == "end":
                raise NoExpression
            parts.append(self.peek()[1])
            self.at += 1
        return "".join(parts)

    def command(self, name: str) -> tuple:
        if name in _FRACTIONS:
            top, bottom = self.digit_or_atom(), self.digit_or_atom()
            return ("prod", (top, ("inv", bottom)))
        if name == "sqrt":
            degree = ("num", Fraction(2))
            if self.take("["):
                degree = self.sum()
                self.need("]")
            return ("root", degree, self.digit_or_atom())
        if name in ("pi", *_GREEK):
            return self.variable(name)
        if name in ("binom", "dbinom", "tbinom"):
            return ("binom", self.digit_or_atom(), self.digit_or_atom())
        if name in _ACCENTS and self.take("{"):
            return ("var", name + " " + self.group())
        if name in _FUNCTIONS:
            return self.function(_ARCS.get(name, name))
        if name == "circ" or name == "degree":
            return ("num", Fraction(1))
        raise NoExpression

    def function(self, name: str) -> tuple:
        base = power = None
        if name == "log" and self.take("_"):
            base = self.digit_or_atom()
        if self.take("^"):
            power = self.script()
            if power == ("neg", ("num", Fraction(1))) and name in _TRIG[:3]:
                name, power = "a" + name, None
        if self.peek() == ("op", "("):  # \sin(x)^2 is (\sin x)^2, \sin(x)y a product
            factors = [self.atom()]
            if self.take("°"):
                factors = [("deg", factors[0])]
            if power is None and self.take("^", "**"):
                power = self.script()
        else:
            factors = [self.power()]
            while self.starts_atom() and self.peek()[1] not in _NO_ARGUMENT:
                factors.append(self.power())
        inner = factors[0] if len(factors) == 1 else ("prod", tuple(factors))
        out = ("call", name, inner)
        if base is not None:
            out = ("prod", (("call", "ln", inner), ("inv", ("call", "ln", base))))
        return out if power is None else ("pow", out, power)


# -- values ----------------------------------------------------------------------------


class _Undefined(Exception):
    pass


def variables(tree: tuple) -> frozenset[str]:
    """Return the variables of a tree; π, e and i are constants."""
    return names(tree) - {"pi", "e", "i"}


def _nodes(tree: tuple) -> tuple:
    """Return the trees right below one."""
    if tree[0] in ("num", "var"):
        return ()
    if tree[0] in ("sum", "prod"):
        return tree[1]
    return tree[2:] if tree[0] == "call" else tree[1:]


@functools.lru_cache(4096)
def names(tree: tuple) -> frozenset[str]:
    """Return the names in a tree, those of constants included."""
    if tree[0] == "var":
        return frozenset({tree[1]})
    return frozenset().union(*map(names, _nodes(tree)))


def constant(tree: tuple) -> Fraction | float | None:
    """Return the real value of a tree without variables, None if it has none."""
    if variables(tree):
        return None
    try:
        value = _value(tree, {}, "i" in names(tree))
    except (_Undefined, ArithmeticError, ValueError):
        return None
    return None if isinstance(value, complex) else value


def equal(a: tuple, b: tuple) -> bool:
    """Return whether two trees are the same function of their variables."""
    return a == b or proportional(a, b, exact=True) is not None


def proportional(a: tuple, b: tuple, exact: bool = False) -> float | None:
    """Return c ≠ 0 with a = c·b wherever both are defined, None if there is none.

    Args:
      exact: c must be 1.
    """
    both = sorted(names(a) | names(b))
    imaginary = "i" in both
    ratios, agreed = [], 0
    for trial in range(_POINTS if set(both) - {"pi", "e", "i"} else 1):
        point = {n: _draw(n, trial) for n in both}
        try:
            x, y = _value(a, point, imaginary), _value(b, point, imaginary)
        except (_Undefined, ArithmeticError, ValueError):
            continue
        if exact:
            if not _close(x, y):
                return None
            agreed += 1
        elif x and y:
            ratios.append(x / y)
        elif x or y:
            return None
    if exact:
        return 1.0 if agreed else None
    if not ratios or isinstance(ratios[0], complex):
        return None
    return ratios[0] if all(_close(r, ratios[0]) for r in ratios) else None


def _close(x, y) -> bool:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    x, y = complex(x), complex(y)
    return abs(x - y) <= 1e-9 * max(abs(x), abs(y)) + 1e-13


def _draw(name: str, trial: int) -> Fraction:
    """Return a variable's value in a trial: at first positive, then of either sign."""
    bits = zlib.crc32(f"{name} {trial}".encode())
    size = Fraction(bits % 8191 + 700, 2039)
    return -size if trial >= _POINTS // 2 and bits >> 20 & 1 else size


def _value(tree: tuple, point: dict, imaginary: bool):
    """Return Fraction, float or complex. Raises _Undefined or ArithmeticError."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "var":
        if tree[1] in _CONSTANTS:
            return _CONSTANTS[tree[1]]
        return point[tree[1]]
    if kind == "call":
        return _call(tree[1], tree[2], point, imaginary)
    if kind in ("sum", "prod"):
        values = [_value(t, point, imaginary) for t in tree[1]]
        total = values[0]
        for v in values[1:]:
            total = total + v if kind == "sum" else total * v
        return _finite(total)
    if kind == "root":
        degree = _value(tree[1], point, imaginary)
        return _power(_value(tree[2], point, imaginary), 1 / degree, imaginary)
    first = _value(tree[1], point, imaginary)
    if kind == "neg":
        return -first
    if kind == "inv":
        return 1 / first
    if kind == "deg":
        return first
    if kind == "binom":
        n, k = first, _value(tree[2], point, imaginary)
        if not all(isinstance(v, Fraction) and v.denominator == 1 for v in (n, k)):
            raise _Undefined
        if not 0 <= k <= n <= 100:
            raise _Undefined
        return Fraction(math.comb(int(n), int(k)))
    return _power(first, _value(tree[2], point, imaginary), imaginary)


_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j}


def _finite(value):
    if not isinstance(value, Fraction) and not cmath.isfinite(value):
        raise _Undefined
    return value


def _power(base, exponent, imaginary: bool):
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        bits = base.numerator.bit_length() + base.denominator.bit_length()
        if exponent.denominator == 1:
            if abs(exponent) * bits <= 4000:
                return base**exponent.numerator
        elif root := _exact_root(base, exponent.denominator):
            return _power(root, Fraction(exponent.numerator), imaginary)
    if isinstance(base, complex) or isinstance(exponent, complex):
        return _finite(complex(base) ** complex(exponent))
    if base < 0 and isinstance(exponent, Fraction) and exponent.denominator % 2:
        sign = -1 if exponent.numerator % 2 else 1
        return sign * _finite(float(-base) ** float(exponent))
    if base < 0:
        if not imaginary:
            raise _Undefined
        return _finite(complex(base) ** complex(exponent))
    return _finite(float(base) ** float(exponent))


def _exact_root(base: Fraction, n: int) -> Fraction | None:
    """Return the rational n-th root of a rational, None if it has none."""
    if n > 64 or base == 0 or (base < 0 and n % 2 == 0):
        return None
    parts = []
    for value in (abs(base.numerator), base.denominator):
        if value.bit_length() > 900:
            return None
        guess = round(value ** (1 / n)) if n > 2 else math.isqrt(value)
        near = [g for g in (guess - 1, guess, guess + 1) if g > 0 and g**n == value]
        if not near:
            return None
        parts.append(near[0])
    return Fraction(-parts[0] if base < 0 else parts[0], parts[1])


def _call(name: str, inner: tuple, point: dict, imaginary: bool):
    value = _value(inner, point, imaginary)
    if name == "abs":
        return abs(value)
    if name == "factorial":
        if value != int(value.real) or not 0 <= value.real <= 100:
            raise _Undefined
        return Fraction(math.factorial(int(value)))
    if isinstance(value, complex):
        raise _Undefined
    if name in ("ln", "log", "lg") and value <= 0:
        raise _Undefined
    value = float(value)
    if name in _TRIG and _in_degrees(inner):
        value = math.radians(value)
    if name in ("cot", "sec", "csc"):
        below = {"cot": math.tan, "sec": math.cos, "csc": math.sin}[name](value)
        return 1 / below
    function = {"ln": math.log, "log": math.log10, "lg": math.log10}.get(name)
    return _finite((function or getattr(math, name))(value))


def _in_degrees(tree: tuple) -> bool:
    return tree[0] == "deg" or any(map(_in_degrees, _nodes(tree)))
