"""Guards: measured by hand, and on texts a policy would write to get around them."""

import pytest

from vlmrl.rl.cot_statistics import (
    copied,
    distinct,
    distinct_n,
    evidence,
    evidence_reward,
    skeleton,
    template_rate,
    words,
)
from vlmrl.types import Mean, UserError

COLOURS = ("red", "blue")


def test_words_are_compared_without_case_width_and_tags():
    assert words("<think>The DOG’s ２ 𝐭ails_x</think>") == [
        *["the", "dog", "s", "2", "tails", "x"]
    ]
    assert words("") == words("<answer></answer>") == []


def test_evidence_by_hand():
    assert evidence("The dog is red. The cat is blue. So B.") == 8
    assert evidence("So the answer is B.") == 0
    assert evidence("") == 0


@pytest.mark.parametrize(
    ("think", "want"),
    [
        ("The dog is red. So B.", 1.0),
        ("Dog red. So B.", 0.5),
        ("red red red red red red. So B.", 0.25),  # repeating is not evidence
        ("The answer is B. Option B. So B.", 0.0),
        ("B B B B B B B B.", 0.0),
        ("", 0.0),
    ],
)
def test_evidence_reward(think, want):
    assert evidence_reward(think, 4) == want


def test_skeletons_leave_out_what_the_item_fills_in():
    first = skeleton("I see 3 red dogs, so A.", COLOURS)
    second = skeleton("I see seven BLUE dogs, so (B).", COLOURS)
    assert first == second == ("_", "see", "_", "dogs", "so", "_")
    assert skeleton("", COLOURS) == ()


def test_template_rate_by_hand():
    thinks = ["It is red.", "It is blue.", "Look: a red one.", "It is red."]
    items = ["a", "b", "c", "a"]
    assert template_rate(thinks, [COLOURS] * 4, items) == Mean(3.0, 4)


def test_agreeing_with_ones_own_group_is_no_template():
    assert template_rate(["It is red."] * 4, [COLOURS] * 4, ["a"] * 4) == Mean(0.0, 4)
    assert template_rate([], [], []) == Mean(0.0, 0)


def test_one_form_letter_and_empty_thinks_are_templates():
    forms = [f"Therefore option {x} is right." for x in "ABCD"]
    assert template_rate(forms, [()] * 4, list("abcd")) == Mean(4.0, 4)
    assert template_rate(["", " "], [()] * 2, ["a", "b"]) == Mean(2.0, 2)


def test_distinct_by_hand():
    assert distinct("a b a b a b", 2) == 2 / 5
    assert distinct("one two three four", 3) == 1
    assert distinct("too short", 3) == distinct("", 3) == 1
    assert distinct("word " * 100, 3) == 1 / 98
    assert distinct_n(["a b c", "a b d"], 2) == Mean(3.0, 4)
    assert distinct_n([], 2) == Mean(0.0, 0)


def test_copied_by_hand():
    prompt = "How many red dogs are left of the cat? A. one B. two"
    assert copied("how many red dogs are left", prompt) == 1
    assert copied("how many red dogs are there in it", prompt) == 1 / 4
    assert copied("I count two by the wall, far behind", prompt) == 0
    assert copied("RED dogs", prompt) == 1  # shorter than n: compared whole
    assert copied("", prompt) == copied("x", "") == 0


def test_a_prompt_echo_and_a_copied_caption_are_seen():
    caption = "There are seven blue cubes in front of the sphere."
    assert copied(f"<think>{caption}</think>", f"{caption}\nHow many?") == 1
    assert copied("Ｔｈｅｒｅ are SEVEN blue cubes in", caption) == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: evidence_reward("x", 0), "min_words: expected at least 1 word, got 0"),
        (lambda: distinct("x", 0), "cot_statistics.n: expected"),
    ],
)
def test_bad_settings_are_named(call, named):
    with pytest.raises(UserError, match=named):
        call()
