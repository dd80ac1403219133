"""Mathematical text as plain LaTeX: one spelling of what is written in many."""

from __future__ import annotations

import re
from fractions import Fraction

from vlmrl.answers import numbers

_SYMBOLS = {
    "−": "-", "–": "-", "‒": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "÷": "/", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "⩽": r"\le ", "⩾": r"\ge ", "∈": r"\in ", "∪": r"\cup ", "±": r"\pm ",
    "º": "°", "˚": "°", "′": "'", "’": "'", "²": "^{2}", "³": "^{3}", "⁴": "^{4}",
    "（": "(", "）": ")", "，": ",", "＝": "=", "：": ":", "∠": r"\angle ",
    "⟨": "(", "⟩": ")", "\u202f": r"\,", "\u2009": r"\,", "\xa0": " ", "λ": r"\lambda ",
}  # fmt: skip
_SYMBOL = re.compile("[" + "".join(map(re.escape, _SYMBOLS)) + "]")
_WORDING = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\begin\{(?:[pbvB]?matrix|array)\}(?:\{[^{}]*\})?", "(("),
        (r"\\end\{(?:[pbvB]?matrix|array)\}", "))"),
        (r"\\\\", "),("),
        (r"&", ","),
        (r"(?<=[0-9A-Za-z)])\*\*(?=[0-9A-Za-z({-])", "^"),
        (r"(?<!\\)\$|\\\(|\\\)|\\\[|\\\]|\*\*", " "),
        (r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])\s*\.?", " "),
        (r"\\(?:displaystyle|textstyle|limits|quad|qquad)(?![A-Za-z])|\\[;:! ]|~", " "),
        (r"\\,(?![0-9]{3}(?![0-9]))", " "),
        (r"(?<=[0-9])(?:\{,\}|\\,|,|')(?=[0-9]{3}(?![0-9]))", "\x00"),
        (r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname|mathit)"
         r"\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:boxed|fbox)\s*(\{)", r"\1"),
        (r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\(?:degree|circ)(?![A-Za-z])", "°"),
        (r"\\%", "%"),
        (r"\\(?:lt|langle)(?![a-z])", lambda m: "(" if "ang" in m[0] else "<"),
        (r"\\(?:gt|rangle)(?![a-z])", lambda m: ")" if "ang" in m[0] else ">"),
        (r"\\(?:leq|leqslant)(?![a-z])|=<|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-z])|=>|>=", r"\\ge "),
        (r"\\neq(?![a-z])|!=", r"\\ne "),
        (r"\\(?:simeq|sim)(?![a-z])|~=", r"\\approx "),
        (r"\\colon", ":"),
        (r"\\[lr]?vert(?![A-Za-z])|\\mid(?=\s*[a-z0-9-]+\s*\\mid)", "|"),
        (r"\{([0-9]{1,3})\s*\\choose\s*([0-9]{1,3})\}", r"\\binom{\1}{\2}"),
        (r"\b([0-9]+\.[0-9]*)(?:\(([0-9]+)\)(?![0-9/*^])|\\(?:overline|bar|dot)"
         r"\s*\{?([0-9]+)\}?)", lambda m: _repeating(m[1], m[2] or m[3])),
        (r"√\s*([0-9.]+|[a-z])", r"\\sqrt{\1}"),
        (r"√\s*(?=[({])", r"\\sqrt "),
        (r"\b([0-9.]+)[eE]([+-]?[0-9]{1,2})\b", r"\1*10^{\2}"),
        (r"(?i)\bsquare root of\s+([0-9.]+|[a-z]\b)", r"\\sqrt{\1}"),
        (r"(?i)\b(?:to|out of)\b(?=\s*[0-9])(?<=[0-9] to)", ":"),
    )
)  # fmt: skip


def _repeating(digits: str, period: str) -> str:
    """Return 0.1 and 6, for 0.1666…, as the fraction 1/6."""
    whole, _, start = digits.partition(".")
    if len(digits) + len(period) > 40:
        return digits + period
    scale = 10 ** len(start)
    value = Fraction(int(whole + start), scale)
    value += Fraction(int(period), scale * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


THOUSANDS = "\x00"


def cleaned(text: str) -> str:
    """Return a text as plain LaTeX without delimiters; thousands separators become
    NUL, which `_split` can take either way."""
    text = numbers.unwrapped(text.replace("\x00", " "))
    if text.count("$") == 1:  # money
        text = re.sub(r"\\?\$", r"\\$", text)
    text = _SYMBOL.sub(lambda m: _SYMBOLS[m[0]], text)
    for pattern, new in _WORDING:
        text = pattern.sub(new, text)
    text = numbers.vulgar(text)
    return numbers.unwrapped(text)
