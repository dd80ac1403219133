"""Numbers as people write them, exactly, and what is none."""

from fractions import Fraction

import pytest

from vlmrl.answers.numbers import quantity


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
        ("Three.", "3", ""),
        ("25 %", "1/4", "%"),
        ("50 cm", "1/2", "m"),
        (r"3 \text{ cm}^2", "3/10000", "m2"),
        (r"30^{\circ}", "30", "deg"),
        ("2 feet", "381/625", "m"),
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
        "5 out of 7",
        "√3",
        "2π",
        "7x",
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
