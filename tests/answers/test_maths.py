r"""Mathematical answers, on pairs written by someone who hadn't seen the code."""

import json
from pathlib import Path

import pytest

from vlmrl.answers.equality import equal

HERE = Path(__file__).parent
WRONG = json.loads((HERE / "maths_wrong.json").read_text())
RIGHT = json.loads((HERE / "maths_right.json").read_text())


def test_wrong_pairs_are_never_accepted():
    assert len(WRONG) >= 60
    assert [r for r in WRONG if equal(r["reply"], r["gold"], "maths")] == []


def test_right_pairs_are_accepted():
    assert len(RIGHT) >= 60
    refused = [r for r in RIGHT if not equal(r["reply"], r["gold"], "maths")]
    assert len(refused) <= 0.03 * len(RIGHT), refused


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("2", r"2\sqrt{3}", False),
        (r"x \le 3", r"x \ge 3", False),
        ("(3, 5)", "(4, 5)", False),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
        ("2\\pi", "$2\\pi$", True),
        ("3 <= x", r"x \ge 3", True),
        (r"[3, \infty)", r"x \ge 3", True),
        (r"$x \in [1, 2]$", "$[1, 2]$", True),
        ("x = 5", "5", True),
        ("y = 5", "x = 5", False),
        ("perimeter = 12", "area = 12", False),
        ("The area of the triangle is 12", "area = 12", True),
        ("v = 5", "speed = 5", True),
        ("2 + 2 = 5", "5", False),
        ("2x = 10", "x = 5", True),
        ("-2x <= -6", r"x \ge 3", True),
        ("-2x >= -6", r"x \ge 3", False),
        ("{2, 1}", r"\{1, 2\}", True),
        ("(2, 1)", "(1, 2)", False),
        ("(1, 2]", "[1, 2]", False),
        ("x = 2 or x = 3", "2, 3", True),
        (r"\pm 2", "2", False),
        ("2, -2", r"\pm 2", True),
        (r"\sin 30°", "1/2", True),
        ("90", r"90^\circ", True),
        (r"\frac{\pi}{2}", r"90^\circ", True),
        ("(-8)^{1/3}", "-2", True),
        ("1/3", r"0.\overline{3}", True),
        ("0.3", r"0.\overline{3}", False),
        ("0.1(6)", "1/6", True),
        ("10", r"\binom{5}{2}", True),
        (r"{5 \choose 2}", "10", True),
        ("5/2", r"\binom{5}{2}", False),
        ("1", r"\tan 45^\circ", True),
        (r"\sin^2 x", r"\sin(x)^2", True),
        (r"\sin(x^2)", r"\sin(x)^2", False),
        (r"\sin(2x) y", r"y \sin 2x", True),
        (r"\lvert x \rvert", "|x|", True),
        (r"\{x \mid x < 3\}", "x < 3", True),
        (r"\vec{b} + \vec{a}", r"\vec{a} + \vec{b}", True),
        (r"\overline{CD}", r"\overline{AB}", False),
        ("2**10", "2^{10}", True),
        ("$5$ cm", "5 cm", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"\sqrt{}", "5", False),
        ("2003^{2002^{2001^{2000}}}", "1", False),
        ("9" * 400, "5", False),
        ("", "5", False),
    ],
)
def test_statements(answer, gold, same):
    assert equal(answer, gold, "maths") is same
