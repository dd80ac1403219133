"""No text raises or stalls: arbitrary, deep, long."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrl.answers import equality, kinds, latex, maths, numbers, reading, tools
from vlmrl.prompts.styles import STYLES
from vlmrl.types import Example

OPTIONS = ("the cat", "a dog", "left of the cat", "I'm not sure")
ITEM = Example("0", (), "q?", OPTIONS, 1, 0, "t", "t", "0")
GOLD = {"number": "5", "maths": r"2\sqrt{3}", "box": "[1, 2, 3, 4]", "text": "left"}
ITEMS = [ITEM] + [
    ITEM._replace(options=(gold, "7"), answer=0, open=True, kind=kind)
    for kind, gold in GOLD.items()
]
PIECES = (
    "<think> </think> <answer> </answer> { } \\boxed{ \\text{ ( [ ) ] A B a 1 2.5"
    " , . : ; ? $ answer is not or and the cat dog final it's ** - + = < > \\frac"
    ' \\sqrt{ ^ _ \\le ± % ° cm two dozen "answer":" 答案 是 ： / \' | & \\\\ ½ √ π'
    " \\begin{matrix} 1e9 ! ✗ \x00"
).split(" ")
pieces = st.lists(st.sampled_from([*PIECES, " ", "\n", "\u2028"]), max_size=40).map(
    "".join
)
texts = pieces | st.text(max_size=60)


@settings(max_examples=300)
@given(texts, st.sampled_from(ITEMS), st.sampled_from(list(STYLES)))
def test_reading_never_raises(text, item, style):
    read = reading.read(text, item, style)
    assert -1 <= read.parsed.option < len(item.options)
    assert -1 <= read.lenient < len(item.options)
    if read.parsed.option >= 0:
        assert read.lenient == read.parsed.option
    assert read.lenient_correct >= read.correct


def test_open_items_without_candidates_are_read():
    item = ITEM._replace(options=(), answer=-1, open=True)
    assert not reading.read("<answer>A</answer>", item, "r1v").lenient_correct


@settings(max_examples=300)
@given(texts, texts, st.sampled_from(kinds.OPEN))
def test_equality_never_raises(answer, gold, kind):
    assert equality.equal(answer, gold, kind) in (True, False)
    assert kinds.infer(gold) in kinds.OPEN
    numbers.quantity(gold), equality.stated(answer), latex.cleaned(answer)
    assert maths.equal(answer, gold) in (True, False, None)


@given(st.text(max_size=30), st.sampled_from(kinds.OPEN))
def test_an_answer_equals_itself(text, kind):
    if len(text.strip()) and kind != "box":
        gold = text.strip()
        assert equality.equal(gold, gold, kind) or not any(c.isalnum() for c in gold)


@given(texts, st.sampled_from(list(tools.PARSERS)))
def test_other_tools_rules_never_raise(text, name):
    assert -1 <= tools.PARSERS[name].read(text, OPTIONS) < len(OPTIONS)


LONG = (
    "\n",
    "A",
    "a ",
    "A, ",
    "1 ",
    "(1,",
    "x=",
    "it is ",
    "{",
    "(",
    "\\boxed{",
    "<answer>",
)
LONG += (
    "**",
    "answer is ",
    "not A ",
    "the cat ",
    "\\frac",
    "答案",
    "two ",
    "</answer>B",
    "^-",
)


def seconds(text, item):
    start = time.process_time()
    reading.read(text, item, "r1v")
    return time.process_time() - start


@pytest.mark.parametrize("item", ITEMS, ids=lambda e: e.kind)
def test_time_grows_no_faster_than_the_text(item):
    """A quadratic rule takes sixteen times as long for four times the text."""
    for piece in LONG:
        for before in ("", "<answer>"):
            short, long = (before + (piece * n)[:n] for n in (4_500, 18_000))
            assert seconds(long, item) < 9 * seconds(short, item) + 0.3, piece
        reading.read((piece * 100_000)[:100_000], item, "r1v")
