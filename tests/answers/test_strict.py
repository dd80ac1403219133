"""The strict parser: every adversary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrl.answers.strict import PARSER, answer_of, parse, read_option

OPTIONS = ("two", "three", "a red car")


def turn(answer, think="I see. So it is B."):
    return f"<think>{think}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    "answer, option",
    [
        ("A", 0), ("B", 1), ("C", 2),
        (" B ", 1), ("\nB\n", 1), ("(B)", 1), ("B.", 1), ("B:", 1), ("B)", 1),
        ("(B).", 1), ("( B )", -1), ("(B", -1), ("B)two", -1),
        ("B. three", 1), ("(B) three", 1), ("B: Three.", 1), ("B three", 1),
        ("B. two", -1), ("B. three or two", -1),
        ("three", 1), ("THREE", 1), (" a  red\ncar. ", 2), ("red car", -1),
        ("D", -1), ("Z", -1), ("D. two", -1),
        ("b", -1), ("a", -1),
        ("", -1), (" ", -1), (".", -1), ("()", -1),
        ("ABC", -1), ("A B C", -1), ("A, B", -1), ("A or B", -1), ("A/B", -1),
        ("A and two", -1), ("not B", -1), ("B?", -1), ("BB", -1), ("B B", -1),
        ("The answer is B", -1), ("option B", -1), ("\\boxed{B}", -1),
        ("А", -1), ("В", -1), ("С", -1),  # Cyrillic
        ("Α", -1), ("Ａ", -1), ("𝐀", -1), ("Ⓐ", -1), ("B\u200b", -1), ("B\u0301", -1),
        ("1", -1), ("3", -1),
    ],
)  # fmt: skip
def test_answers(answer, option):
    parsed = parse(turn(answer), OPTIONS)
    assert parsed.option == option
    assert parsed.answer == answer and parsed.strict and parsed.closed


@pytest.mark.parametrize(
    "text, option, strict, closed",
    [
        (turn("B"), 1, True, True),
        ("<think></think><answer>B</answer>", 1, True, True),
        (f" \n{turn('B')}\n", 1, True, True),
        ("<answer>B</answer>", 1, False, False),  # no_cot
        ("B</answer>", -1, False, False),
        ("B", -1, False, False),
        ("", -1, False, False),
        ("<think>So it is B.", -1, False, False),  # letter in the think only
        ("<think>So it is B.</think>", -1, False, True),
        ("<think>So it is B.</think>B", -1, False, True),
        ("<think>B</think><answer></answer>", -1, True, True),
        ("<think>B</think><answer>B", -1, False, True),  # cut off
        ("<think>hm<answer>B</answer>", 1, False, False),  # think never closed
        ("<think><answer>B</answer></think>", -1, False, True),  # inside the think
        ("<think><answer>A</answer></think><answer>B</answer>", -1, False, True),
        ("<think><answer>B</answer></think><answer>B</answer>", 1, False, True),
        ("<think><answer> </answer></think><answer>B</answer>", 1, False, True),
        (turn("A") + "<answer>B</answer>", -1, False, True),
        (turn("B") + "<answer>B</answer>", 1, False, True),
        (turn("B") + "<answer>(B) three</answer>", 1, False, True),
        (turn("B") + "<answer></answer>", -1, False, True),
        (turn("<answer>B</answer>"), -1, False, True),
        (turn("A<answer>B</answer>"), -1, False, True),
        (turn("B") + "</answer>", -1, False, True),
        (turn("B") + "<answer>", -1, False, True),
        ("</answer>" + turn("B"), -1, False, True),
        ("Sure! " + turn("B"), 1, False, True),
        (turn("B") + " Done.", 1, False, True),
        ("<think>a</think> so <answer>B</answer>", 1, False, True),
        ("<think>a</think><think>b</think><answer>B</answer>", 1, False, True),
        ("<think>a<think>b</think></think><answer>B</answer>", 1, False, True),
        ("<answer>B</answer><think>a</think>", 1, False, True),
        ("<Think>a</Think><Answer>B</Answer>", -1, False, False),
        ("<think>a</think><answer >B</answer>", -1, False, True),
        ("＜think＞a＜/think＞＜answer＞B＜/answer＞", -1, False, False),
    ],
)
def test_tags(text, option, strict, closed):
    parsed = parse(text, OPTIONS)
    assert (parsed.option, parsed.strict, parsed.closed) == (option, strict, closed)


def test_think_is_verbatim_with_its_prefill():
    text = "<think>So it is left but I think no.\n</think><answer>A</answer>"
    assert parse(text, OPTIONS).think == "So it is left but I think no.\n"
    assert parse("<think>cut off he", OPTIONS).think == "cut off he"
    assert parse("<think>a <answer>B</answer>", OPTIONS).think == "a "
    assert parse("<answer>B</answer>", OPTIONS).think is None


def test_form_decides_where_a_text_is_a_letter():
    options = ("B", "A")
    assert read_option("B", options) == 1
    assert read_option("B", options, form="text") == 0
    assert read_option("right", ("left", "right"), form="text") == 1
    assert read_option("B", ("left", "right"), form="text") == 1


def test_options_with_the_same_text_need_their_letter():
    options = ("left", "Left.")
    assert read_option("left", options) == -1
    assert read_option("B", options) == 1
    assert read_option("B. left", options) == 1


def test_without_options_there_is_an_answer_but_no_index():
    parsed = parse(turn("17"), ())
    assert (parsed.answer, parsed.option, parsed.strict) == ("17", -1, True)
    assert parse(turn("A"), ()).option == -1


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "</answer>", "A", "B", "(", ")", ".", " ", "\n",
     "two", "А", "<", ">", "</", "\x00"]
)  # fmt: skip


@given(st.lists(pieces, max_size=20).map("".join) | st.text(max_size=40))
def test_parse_never_raises_and_strict_means_the_format(text):
    parsed = parse(text, OPTIONS)
    assert -1 <= parsed.option < len(OPTIONS)
    assert (parsed.option == -1) or parsed.answer is not None
    assert not parsed.closed or parsed.think is not None
    if parsed.strict:
        assert parsed.closed
        rebuilt = f"<think>{parsed.think}</think><answer>{parsed.answer}</answer>"
        assert rebuilt == text.replace(f"</think>{gap(text)}<", "</think><").strip()


def gap(text):
    """White space between the think and the answer of a strict turn."""
    return text[text.index("</think>") + 8 : text.index("<answer>")]


@given(st.integers(0, 2), st.sampled_from(["{}", "({})", "{}.", "{}:", " {} "]))
def test_every_letter_form_round_trips(index, form):
    assert parse(turn(form.format("ABC"[index])), OPTIONS).option == index


def test_parser_has_a_version():
    assert PARSER


@pytest.mark.parametrize(
    "text, answer",
    [
        (turn("3"), "3"),
        (turn("3") + "<answer> 3</answer>", " 3"),
        (turn("3") + "<answer>5</answer>", None),  # every number, to be right with one
        ("<think><answer>3</answer></think><answer>5</answer>", "5"),
        ("<answer>3", None),
        ("3", None),
    ],
)
def test_the_answer_to_an_open_question(text, answer):
    assert answer_of(text, parse(text, ())) == answer
