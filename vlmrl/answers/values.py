"""Whether two answers say the same: numbers, LaTeX, phrases, boxes."""

from __future__ import annotations

import ast
import math
import operator
import re


def number(text: str, whole: bool = True) -> float | None:
    """Return the first number of a text, thousands commas dropped; None if there is
    none. Written-out numbers up to twelve count."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    match = re.search(r"-?\d+" if whole else r"-?\d+(?:\.\d+)?|-?\.\d+", text)
    if match:
        return int(match[0]) if whole else float(match[0])
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _WORDS:
            return _WORDS.index(word)
    return None


_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SAME = {
    **dict.fromkeys(("leftmost", "left side", "left hand side"), "left"),
    **dict.fromkeys(("rightmost", "right side", "right hand side"), "right"),
    **dict.fromkeys(("yeah", "yep", "true"), "yes"),
    **dict.fromkeys(("nope", "false"), "no"),
    **dict.fromkeys(("over", "on top", "top"), "above"),
    **dict.fromkeys(("under", "underneath", "beneath", "bottom"), "below"),
    "grey": "gray",
}


def phrase(text: str) -> str:
    """Return a free answer to compare: lower case, no punctuation, articles or leading
    prepositions; yes, no and directions by one word each; number words as digits."""
    words = re.sub(r"[^\w\s-]", " ", text.casefold()).replace("-", " ").split()
    words = [w for w in words if w not in ("a", "an", "the")]
    while len(words) > 1 and words[0] in ("to", "on", "in", "at", "it", "is", "its"):
        words.pop(0)
    joined = " ".join(str(_WORDS.index(w)) if w in _WORDS else w for w in words)
    return _SAME.get(joined, joined)


def equal(right: str, given: str, tolerance: float = 1e-2) -> bool:
    """Same text but for blanks and case, or values within a relative tolerance."""
    if not given.strip():
        return False
    boxed = re.search(r"\\boxed\s*\{(.*)\}", given, re.DOTALL)
    given = boxed[1] if boxed else given
    a, b = _plain(right), _plain(given)
    if a == b:
        return True
    x, y = value(right), value(given)
    if x is None or y is None:
        return False
    return math.isclose(x, y, rel_tol=tolerance, abs_tol=1e-9)


def _plain(text: str) -> str:
    text = re.sub(r"\s|\$|\\left|\\right|\\,|\\!|\\;", "", text.casefold())
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\text\{([^{}]*)\}|\\mathrm\{([^{}]*)\}", r"\1\2", text)
    text = re.sub(r"\^?\{?\\circ\}?|°|degrees?", "", text)
    text = re.sub(r"^[a-z]\w{0,2}=", "", text)
    return text.rstrip(".")


def value(text: str) -> float | None:
    r"""Return the number that `2 \sqrt { 221 }`, `\frac { 5 } { 2 }`, `3/4`, `1,200` or
    `25 \pi` stands for; None for anything else."""
    code = re.sub(r"(?<=\d),(?=\d{3}\b)", "", _plain(text))
    code = code.rstrip("%").replace("\\%", "")
    code = code.replace("\\pi", "(pi)").replace("π", "(pi)")
    code = code.replace("\\cdot", "*").replace("\\times", "*").replace("^", "**")
    code = re.sub(r"√(\d+(?:\.\d+)?)", r"\\sqrt{\1}", code)
    for _ in range(8):  # from the inside out
        before = code
        code = re.sub(r"\\sqrt\{([^{}]*)\}", r"(sqrt(\1))", code)
        code = re.sub(r"\\sqrt(\d)", r"(sqrt(\1))", code)
        code = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", code)
        code = re.sub(r"\*\*\{([^{}]*)\}", r"**(\1)", code)
        if code == before:
            break
    code = re.sub(r"(?<=[\d)])(?=\()|(?<=\))(?=\d)", "*", code)
    if len(code) > 200 or not re.fullmatch(r"[\d.()+\-*/a-z]+", code):
        return None
    try:
        result = _evaluated(ast.parse(code, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return result if isinstance(result, float) and math.isfinite(result) else None


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _evaluated(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id == "pi":
        return math.pi
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "sqrt":
        return math.sqrt(_evaluated(node.args[0]))
    if isinstance(node, ast.BinOp):
        left, right = _evaluated(node.left), _evaluated(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) <= 8:
            return float(left**right)
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError("no arithmetic")


def distance(a: str, b: str) -> int:
    """Return the edit distance (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


Box = tuple[float, float, float, float]
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")


def box(text: str) -> Box:
    """Return the first `[x1, y1, x2, y2]` of a text, (0, 0, 0, 0) without one."""
    match = _BOX.search(text)
    return tuple(map(float, match.groups())) if match else (0.0, 0.0, 0.0, 0.0)


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = sum(max(0.0, r[2] - r[0]) * max(0.0, r[3] - r[1]) for r in (a, b))
    return shared / (area - shared) if area > shared else 0.0
