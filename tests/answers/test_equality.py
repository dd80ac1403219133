"""Verifiers: what counts as the same answer, exactly, and what never does."""

from fractions import Fraction

import pytest

from vlmrl.answers import equality as verify
from vlmrl.answers.equality import Math, exact, quantity
from vlmrl.types import UserError


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("3", "3", ""),
        (" -3.50 ", "-7/2", ""),
        ("−2", "-2", ""),
        ("1,234,567", "1234567", ""),
        (".5", "1/2", ""),
        ("3/4", "3/4", ""),
        ("1 3/4", "7/4", ""),
        (r"\frac{3}{4}", "3/4", ""),
        (r"2\frac{1}{2}", "5/2", ""),
        (r"$\dfrac{1}{2}$", "1/2", ""),
        (r"\boxed{7}", "7", ""),
        ("x = 5", "5", ""),
        ("Three.", "3", ""),
        ("25 %", "1/4", "%"),
        ("50 cm", "1/2", "m"),
        (r"3 \text{ cm}^2", "3/10000", "m2"),
        (r"30^{\circ}", "30", "deg"),
        ("2 feet", "24", "in"),
        ("5 units", "5", ""),
    ],
)
def test_quantities(text, value, unit):
    got = quantity(text)
    assert (got.value, got.unit) == (Fraction(value), unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "B",
        "two or three",
        "3 4",
        "3, 4",
        "12,34",
        "5 or 6",
        "1/0",
        "1e3",
        "3-4",
        "√3",
        "2π",
        "5 bananas",
        "３",  # full width
        "٣",  # Arabic-Indic
        "<answer>3</answer>",
        "3" * 300,
        "A B C D 3",
        "--3",
        "nan",
        "inf",
    ],
)
def test_what_is_no_quantity(text):
    assert quantity(text) is None


@pytest.mark.parametrize(
    ("answer", "gold", "want"),
    [
        ("5", "5.0", True),
        ("1/3", "0.33", False),
        ("2/6", "1/3", True),
        ("5 cm", "5", True),
        ("5", "5 cm", True),
        ("50 cm", "0.5 m", True),
        ("5 cm", "5 kg", False),
        ("0.05", "5 cm", False),  # a bare number is in the units of the question
        ("25%", "0.25", True),
        ("25", "25%", True),
        ("2500%", "25", True),  # equal as a value
        ("seven", "7", True),
        ("Blue.", " blue", True),
        ("blue cube", "blue", False),
        ("5", "blue", False),
        ("", "5", False),
        ("５", "5", False),
        ("The answer is 5", "5", False),
        ("3 4 5 6", "5", False),
    ],
)
def test_exact(answer, gold, want):
    assert exact(answer, gold) is want


def test_an_empty_gold_answer_is_refused():
    with pytest.raises(UserError, match="the gold answer is empty"):
        exact("", " ")


def test_without_math_verify_the_error_is_one_line(monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        Math()
    assert "needs the package math-verify" in str(error.value)
    assert "\n" not in str(error.value)


PEER = """
import time
def parse(text, parsing_timeout): return [text.strip("$")]
def verify(gold, target, timeout_seconds):
    if "hang" in target: time.sleep(60)
    return bool(set(gold) & set(target))
"""


def test_the_pool_keeps_order_and_outlives_an_answer_that_hangs(tmp_path, monkeypatch):
    """Against a stand-in with math-verify's signatures, which hangs when told to."""
    package = tmp_path / "math_verify"
    package.mkdir()
    (package / "__init__.py").write_text(PEER)
    for name in ("grader", "parser"):
        (package / f"{name}.py").write_text("TIMEOUT_WARNING_SHOWN = False")
    monkeypatch.syspath_prepend(tmp_path)
    pairs = [("2", "2"), ("hang", "1"), ("3", "4"), ("$5$", "5"), ("", ""), ("7", "7")]
    with Math(seconds=1.0) as check:
        assert check(pairs) == [True, False, False, True, False, True]
        assert check(pairs[:1]) == [True]
        assert check([]) == []


@pytest.mark.slow
def test_math():
    pytest.importorskip("math_verify", reason="extra 'math' is not installed")
    pairs = [
        (r"\frac{\sqrt{3}}{3}", r"$\frac{1}{\sqrt{3}}$"),
        ("2\\pi", "$2\\pi$"),
        ("5", "6"),
        ("", "5"),
        ("2003^{2002^{2001^{2000}}}", "1"),
        (r"$x \in [1, 2]$", "$[1, 2]$"),
    ]
    with Math(seconds=20) as check:
        got = check(pairs)
    assert got[:4] == [True, True, False, False]
    assert not got[4]
