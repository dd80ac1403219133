"""Verifiers of answers that are no option: is this text the same answer as that?

  exact   numbers, fractions, percentages and units, compared as exact rationals; no
          dependency, never guesses
  math    expressions, sets, intervals, roots, by math-verify (extra `math`), in
          processes that can be killed

Both map (answer, gold) to a bool. An answer is the text inside <answer>; nothing is
searched for outside it. Options are read by `answers.strict.read_option`.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from vlmrl.types import Example, UserError

VERIFIERS = ("exact", "math")


class Quantity(NamedTuple):
    """An exact number and its unit: 50 cm is (1/2, 'm', 50), 25 % is (1/4, '%', 25)."""

    value: Fraction  # in base units
    unit: str  # base unit, '' if none was written
    written: Fraction  # as it stands


_UNITS: dict[str, tuple[Fraction, str]] = {
    name: (Fraction(scale), base)
    for base, names in {
        "m": {"mm": "1/1000", "cm": "1/100", "m": "1", "km": "1000"},
        "in": {"in": "1", "inch": "1", "inches": "1", "ft": "12", "feet": "12"},
        "m2": {"mm2": "1/1000000", "cm2": "1/10000", "m2": "1", "km2": "1000000"},
        "m3": {"mm3": "1/1000000000", "cm3": "1/1000000", "m3": "1"},
        "l": {"ml": "1/1000", "l": "1"},
        "g": {"mg": "1/1000", "g": "1", "kg": "1000"},
        "s": {"ms": "1/1000", "s": "1", "sec": "1", "min": "60", "h": "3600"},
        "deg": {"°": "1", "deg": "1", "degree": "1", "degrees": "1"},
        "%": {"%": "1/100"},
        "": {"": "1", "unit": "1", "units": "1"},
    }.items()
    for name, scale in names.items()
}
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen"
    " fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()
_LONGEST = 200  # characters; longer texts are no quantity, and cost time to match

# ASCII digits only: int() would also read those of other scripts.
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?:(?P<mixed>[0-9]+)\s+)?(?P<top>{_WHOLE})\s*/\s*"
    rf"(?P<bottom>{_WHOLE})|(?P<decimal>{_WHOLE}?\.[0-9]+|{_WHOLE})\.?)"
    r"(?P<tail>(?:\s*[%a-zA-Z°][a-zA-Z0-9°]*)?)"
)
_CLEAN = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|!| )"), " "),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b"), "°"),
    (re.compile(r"(?<=m)\s*\^\s*\{?\s*([23])\s*\}?"), r"\1"),
    (re.compile(r"(?<=m)²"), "2"),
    (re.compile(r"(?<=m)³"), "3"),
    (re.compile(r"([0-9]?)\s*\\[dt]?frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}"), r"\1 \2/\3"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"−"), "-"),
)
_WRAPPED = re.compile(r"\$\$?(.*?)\$?\$|\\boxed\s*\{(.*)\}|\\\((.*)\\\)", re.DOTALL)
_NAMED = re.compile(r"[a-zA-Z∠][a-zA-Z ∠]{0,20}=\s*(.*)", re.DOTALL)


def quantity(text: str) -> Quantity | None:
    """The one number that a text is, None where it is anything else.

    Read: signs, 1,234.5, 3/4, 1 3/4, 25 %, LaTeX fractions, degrees, $…$ and boxed
    around them, a name before ("x = 5"), number words to twenty, a final full stop, and
    the units of lengths, areas, volumes, masses and times. Not read: two numbers, a
    sentence, roots and π, scientific notation, digits of other scripts.
    """
    if len(text) > _LONGEST:
        return None
    text = text.strip()
    for _ in range(3):
        if match := _WRAPPED.fullmatch(text):
            text = next(g for g in match.groups() if g is not None).strip()
    if match := _NAMED.fullmatch(text):
        text = match[1]
    for pattern, new in _CLEAN:
        text = pattern.sub(new, text)
    head, _, rest = text.strip().partition(" ")
    if head.casefold().rstrip(".") in _WORDS:
        head = str(_WORDS.index(head.casefold().rstrip(".")))
        text = f"{head} {rest}"
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    if match["top"]:
        bottom = _integer(match["bottom"])
        if bottom == 0:
            return None
        value = int(match["mixed"] or 0) + Fraction(_integer(match["top"]), bottom)
    else:
        value = Fraction(match["decimal"].replace(",", ""))
    if match["sign"] == "-":
        value = -value
    tail = match["tail"].strip()
    if tail not in _UNITS:
        return None
    scale, base = _UNITS[tail]
    return Quantity(value * scale, base, value)


def exact(answer: str, gold: str) -> bool:
    """Equal as exact numbers, or as plain text where the gold answer is no number.

    Units are compared where both sides have one (50 cm is 0.5 m, but 5 cm is not 5 kg);
    one side without takes the other's as written: gold 5 accepts "5 cm", gold "5 cm"
    accepts 5; "25 %" is 25 % and 0.25. A decimal equals a fraction only if it does:
    0.33 is not 1/3. Text is compared case-folded, white space collapsed.

    Raises:
      UserError: the gold answer is empty: every empty answer would be right.
    """
    if not gold.strip():
        raise UserError("answer: the gold answer is empty, expected a number or a text")
    expected, got = quantity(gold), quantity(answer)
    if expected is None:
        return _plain(answer) == _plain(gold)
    if got is None:
        return False
    if expected.unit == got.unit:
        return expected.value == got.value
    if expected.unit and got.unit:
        return False
    share = "%" in (expected.unit, got.unit) and expected.value == got.value
    return share or expected.written == got.written


def _integer(text: str) -> int:
    return int(text.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


class Math:
    """math-verify in a pool of processes: `with Math() as check: check(pairs)`.

    math-verify raises in threads and hangs on hostile input ("2003^{2002^{2001}}"), so
    it runs in spawned processes with its own time-outs off; where an answer takes
    longer than `seconds` it counts as wrong, and the pool is killed and started afresh.

    Args:
      workers: processes.
      seconds: limit for one answer, the start of the pool excluded.

    Raises:
      UserError: math-verify is not installed.
    """

    def __init__(self, workers: int = 1, seconds: float = 5.0):
        if importlib.util.find_spec("math_verify") is None:
            raise UserError(
                "reward 'math' needs the package math-verify: pip install -e '.[math]',"
                " or choose the verifier 'exact'"
            )
        self._workers, self._seconds, self._pool = workers, seconds, None

    def __enter__(self) -> Math:
        return self

    def __exit__(self, *_):
        self._stop()

    def __call__(self, pairs: Iterable[tuple[str, str]]) -> list[bool]:
        """Whether each (answer, gold) agrees, in order."""
        pairs, out = list(pairs), []
        while len(out) < len(pairs):
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = context.Pool(self._workers, _quiet)
                self._pool.apply(agree, ("1", "1"))  # imports are not on the clock
            waiting = self._pool.imap(_pair, pairs[len(out) :])
            try:
                while len(out) < len(pairs):
                    out.append(waiting.next(self._seconds))
            except multiprocessing.TimeoutError:
                out.append(False)
                self._stop()
        return out

    def _stop(self):
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
        self._pool = None


def checker(name: str) -> Callable[[Sequence[tuple[str, str]]], list[bool]]:
    """Whether each (answer, gold) agrees, by the verifier of that name. Processes that
    it needs end with it."""
    if name == "math":
        pool = Math()

        def by_pool(pairs):
            return pool(pairs)

        weakref.finalize(by_pool, pool._stop)
        return by_pool
    return lambda pairs: [exact(answer, gold) for answer, gold in pairs]


def agree(answer: str, gold: str) -> bool:
    """math-verify's opinion of one answer, with no limit on time; for one process.

    Text without $ or \\boxed is also tried as LaTeX; strict comparison.
    """
    from math_verify import parse, verify

    def read(text):
        marked = "$" in text or "\\boxed" in text
        parsed = parse(text, parsing_timeout=None)
        return (
            parsed if marked else [*parsed, *parse(f"${text}$", parsing_timeout=None)]
        )

    if len(answer) > _LONGEST or not answer.strip():
        return False
    return bool(verify(read(gold), read(answer), timeout_seconds=None))


def _pair(pair: tuple[str, str]) -> bool:
    return agree(*pair)


def _quiet():
    """Said once per process that time-outs are off; they are, on purpose."""
    import math_verify.grader
    import math_verify.parser

    math_verify.parser.TIMEOUT_WARNING_SHOWN = True
    math_verify.grader.TIMEOUT_WARNING_SHOWN = True


KINDS = ("option", "number", "maths", "box", "text")


def candidates(answers: Sequence[tuple[str, Example]]) -> list[int]:
    """Return, for answers to open questions, the candidate that each equals by the
    item's kind: the gold one wherever it is equal, else another, -1 if none. Letters
    are no answers here: candidates are hidden."""
    out = []
    for answer, e in answers:
        same = [i for i, o in enumerate(e.options) if exact(answer, o)]
        out.append(e.answer if e.answer in same else same[0] if same else -1)
    return out
