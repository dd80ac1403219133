"""What counts as the same answer, by its kind, and what never does."""

import pytest

from vlmrl.answers.equality import equal


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
        ("The answer is 5", "5", True),
        ("3 4 5 6", "5", False),
    ],
)
def test_numbers(answer, gold, want):
    assert equal(answer, gold, "number") is want


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("There are 3.", "3", True),
        ("3 (three)", "3", True),
        ("3 (maybe four)", "3", False),
        ("5 (five)", "25", False),
        ("There is only one.", "1", True),
        ("I have no idea.", "0", False),
        ("It can't be determined, there is nothing.", "0", False),
        ("three", "3", True),
        (r"\boxed{3}", "3", True),
        ("**3**", "3", True),
        ("I count 3 dogs in the image.", "3", True),
        ("2 + 1 = 3", "3", True),
        ("I see two dogs, not three.", "2", True),
        ("I see two dogs, not three.", "3", False),
        ("There are no dogs.", "0", True),
        ("a dozen", "12", True),
        ("1,200", "1200", True),
        ("3 or 4", "3", False),
        ("2-3", "3", False),
        ("at least 3", "3", False),
        ("more than 3", "3", False),
        ("3 dogs and 2 cats", "3", False),
        ("A", "3", False),
        ("A dozen of them.", "5", False),
        ("15", "5", False),
        ("the 3rd one", "3", False),
        ("", "3", False),
    ],
)
def test_counts(answer, gold, same):
    assert equal(answer, gold, "number") is same


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("[1, 2, 11, 12]", "[0, 2, 10, 12]", True),
        ("It is at (0, 2), (10, 12).", "[0, 2, 10, 12]", True),
        ("[100, 100, 110, 110]", "[0, 2, 10, 12]", False),
        ("[0, 2, 10, 12] [20, 2, 30, 12]", "[0, 2, 10, 12]", False),
        ("A", "[0, 2, 10, 12]", False),
        ("[0, 2, 1e999, 12]", "[0, 2, 10, 12]", False),
    ],
)
def test_boxes(answer, gold, same):
    assert equal(answer, gold, "box") is same


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("The left-hand side.", "left", True),
        ("two", "2", True),
        ("**Umbrella**", "umbrella", True),
        ("Yes, there is no dog.", "yes", True),
        ("yes and no", "yes", False),
        ("yes or no", "no", False),
        ("It is a backpack.", "backpack", True),
        ("no backpack", "backpack", False),
        ("blue cube", "blue", False),
        ("", "blue", False),
        ("A", "blue", False),
    ],
)
def test_texts(answer, gold, same):
    assert equal(answer, gold, "text") is same
