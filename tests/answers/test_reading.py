"""One reading: strict by the style's rules, other tools' rules where they were made for
the question, open questions by the kind of their answer."""

import pytest

from vlmrl.answers import reading, tools
from vlmrl.prompts.styles import STYLES
from vlmrl.types import Example

ITEM = Example(
    id="test/0",
    images=(),
    question="Which animal is this?",
    options=("cat", "dog", "cow"),
    answer=1,
    suggested=0,
    source="t",
    task="t",
    cluster="test/0",
)
COUNT = ITEM._replace(
    question="How many dogs are there in the image?",
    options=("5", "4", "6", "7"),
    answer=0,
    open=True,
    kind="number",
)


def strict(text, example=COUNT, style="r1v"):
    return reading.read(text, example, style).correct


def test_every_style_names_a_parser_that_there_is():
    assert {how.parser for how in STYLES.values()} <= set(tools.PARSERS)


@pytest.mark.parametrize(
    "name, said, option",
    [
        ("vlmevalkit", "B", 1),
        ("vlmevalkit", "(B).", 1),
        ("vlmevalkit", "The answer is B", 1),
        ("vlmevalkit", "B is right as I look at it", -1),  # not among the last four
        ("vlmevalkit", "A or B", -1),
        ("vlmevalkit", "dog", 1),
        ("vlmevalkit", "I can't process this file. B", -1),
        ("vlmevalkit", "<think>A, A, A</think> It is B", 1),
        ("lmms_eval", "(c) cow", 2),
        ("lmms_eval", "because", 1),
        ("lmms_eval", "the dog", -1),
        ("lmms_eval", "", -1),
        ("lmms_vstar", "My choice is C", 2),
        ("lmms_vstar", "it was [b]", 1),
        ("lmms_vstar", "d", -1),
        ("lmms_3dsrbench", "B) dog", 1),
        ("lmms_3dsrbench", "I see A cat, so the answer is: C", 2),
        ("lmms_3dsrbench", "It is (B), not A", 1),
        ("lmms_3dsrbench", "D", -1),
        ("lmms_3dsrbench", "dog", -1),
        ("lmms_mmvp", "(b)", 1),
        ("lmms_mmvp", "The answer is B", 1),
        ("lmms_mmvp", "I choose option (b", 1),
        ("lmms_mmvp", "Because", 1),
        ("lmms_mmvp", "dog", -1),
        ("lmms_sat", "b. dog", 1),
        ("lmms_sat", "(C)", 2),
        ("lmms_sat", "The answer is B", -1),
        ("lmms_sat", "", -1),
        ("lmms_pope", "DOG ", 1),
        ("lmms_pope", "a dog", -1),
        ("tiny", "<think>x</think><answer>B</answer>", 1),
        ("tiny", "B", -1),
    ],
)
def test_answers_by_each_tools_rule(name, said, option):
    assert reading.read(said, ITEM, name).parsed.option == option


def test_yes_no_and_numbers_by_the_tools_rules():
    binary = ITEM._replace(options=("Yes", "No"))
    for said, option in (("Yes, it is", 0), ("no.", 1), ("yes and no", -1), ("ja", -1)):
        assert reading.read(said, binary, "vlmevalkit_yes_no").parsed.option == option
    count = ITEM._replace(options=("3", "4"), answer=0, open=True, kind="number")
    assert (
        reading.read(
            "There are 04 of them, not 3", count, "lmms_pixmo_count"
        ).parsed.option
        == 1
    )
    assert reading.read("7", count, "lmms_pixmo_count").parsed.option == -1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["option", "number", "maths", "text"])
def test_letters_of_hidden_candidates_are_no_answers(style, kind):
    """'option' is what data prepared before items had kinds say."""
    for text in ("<answer>A</answer>", "A", "(A)", "A. 5 dogs or so"):
        read = reading.read(text, COUNT._replace(kind=kind), style)
        if text != "A. 5 dogs or so":
            assert not read.correct and not read.lenient_correct


@pytest.mark.parametrize("style", [s for s in STYLES if s.startswith(("lmms", "vlm"))])
def test_other_tools_rules_stay_with_their_kind_of_question(style):
    wrong = ("A dozen of them.", "15", "About 50", "as many as a hand has")
    assert not any(strict(text, COUNT, style) for text in wrong)
    assert strict("5", COUNT, style)


@pytest.mark.parametrize("written", ["There are 3.", "three", r"\boxed{3}", "**3**"])
@pytest.mark.parametrize("style", ["tiny", "r1v", "vision_r1", "vigorl"])
def test_counts_as_people_write_them(written, style):
    item = COUNT._replace(options=("3", "2", "4"))
    read = reading.read(f"<think>x</think><answer>{written}</answer>", item, style)
    assert read.correct and read.lenient_correct and read.parsed.option == 0


def test_several_answers_to_an_open_question_are_none():
    assert not strict("<answer>4</answer><answer>5</answer>")
    assert not strict("<answer>4 or 5</answer>")
    assert strict("<answer>5</answer> <answer>5</answer>")


def test_all_at_once_reads_as_one_by_one():
    texts = ["<answer>B</answer>", "<answer>5</answer>", "<answer>A</answer>", ""]
    items = [ITEM, COUNT, COUNT, ITEM]
    assert reading.read_all(texts, items, "r1v") == [
        reading.read(t, e, "r1v") for t, e in zip(texts, items, strict=True)
    ]
    assert reading.read_all([], [], "r1v") == []
