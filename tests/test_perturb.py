"""Conditions: exact texts, one suggestion for all, and nothing else touched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmrl import perturb
from vlmrl.perturb import CONDITIONS, ORDER, apply, suggest
from vlmrl.types import Example, UserError

EXAMPLE = Example(
    id="test/0/relation",
    images=(b"png",),
    question="Is the red circle left or right of the blue square?",
    options=("left", "right"),
    answer=1,
    suggested=0,
    source="scenes",
    task="relation",
    cluster="test/0",
    statements=(
        "the red circle is left of the blue square",
        "the red circle is right of the blue square",
    ),
    thinks=(
        "The red circle is left of the blue square. So it is left.",
        "The red circle is right of the blue square. So it is right.",
    ),
)
PLAIN = EXAMPLE._replace(
    question="How many dogs are there?",
    options=("two", "three", "four"),
    answer=0,
    suggested=1,
    statements=(),
    thinks=(),
)
FIRST = [1, 3, 0, 0, 0, 3, 1, 0]  # wrong options of item/0 … item/7 under seed 7
WRITTEN = {"condition", "caption", "prefill", "direct", "abstain"}


def changed(before, after):
    fields = before._fields
    return {f for f in fields if getattr(before, f) != getattr(after, f)}


@pytest.mark.parametrize(
    "name, caption, prefill, direct",
    [
        ("base", "", "", False),
        ("no_cot", "", "<answer", True),
        (
            "stop_think",
            "",
            "<think>Okay let's see. This should be the final answer.</think>",
            False,
        ),
        (
            "wrong_think",
            "",
            "<think>The red circle is left of the blue square. So it is left.",
            False,
        ),
        (
            "wrong_think_but",
            "",
            "<think>The red circle is left of the blue square. So it is left"
            " but I think",
            False,
        ),
        ("wrong_caption", "The red circle is left of the blue square.", "", False),
        (
            "wrong_caption_disclaimer",
            "The red circle is left of the blue square but I could be wrong.",
            "",
            False,
        ),
        (
            "correct_think",
            "",
            "<think>The red circle is right of the blue square. So it is right.",
            False,
        ),
        ("correct_caption", "The red circle is right of the blue square.", "", False),
    ],
)
def test_exact_texts(name, caption, prefill, direct):
    got = apply(EXAMPLE, name)
    assert (got.caption, got.prefill, got.direct) == (caption, prefill, direct)
    assert got.condition == name and got.abstain == -1
    both = apply(EXAMPLE, "abstain+" + name)
    assert both.options == ("left", "right", "I'm not sure") and both.abstain == 2
    assert both.condition == "abstain+" + name
    assert both._replace(options=got.options, abstain=-1, condition=name) == got


def test_without_statements_and_thinks_templates_serve():
    caption = apply(PLAIN, "wrong_caption").caption
    assert caption == (
        'The answer to the question "How many dogs are there?" is three.'
    )
    assert apply(PLAIN, "wrong_think").prefill == (
        f"<think>{caption} So the answer is three."
    )
    assert apply(PLAIN, "wrong_think_but").prefill.endswith(
        "So the answer is three but I think"
    )


def test_an_option_that_is_a_sentence_asserts_itself():
    options = ("The dog is on the left side.", "The dog is on the right side.")
    example = PLAIN._replace(options=options)
    assert apply(example, "wrong_caption").caption == options[1]
    assert apply(example, "wrong_caption_disclaimer").caption == (
        "The dog is on the right side but I could be wrong."
    )


def test_a_think_without_a_full_stop_gets_one():
    example = EXAMPLE._replace(thinks=("it is left", "it is right"))
    assert apply(example, "wrong_think").prefill == "<think>it is left."


def test_order_names_every_condition_once():
    assert len(ORDER) == len(set(ORDER)) == 2 * len(CONDITIONS) == 18
    assert ORDER[0] == "base" and "abstain+wrong_think" in ORDER


texts = st.text(min_size=1, max_size=12).filter(lambda t: "<" not in t)  # no tags


@st.composite
def examples(draw):
    options = draw(st.lists(texts, min_size=2, max_size=6, unique=True))
    answer = draw(st.integers(0, len(options) - 1))
    return EXAMPLE._replace(
        id=draw(texts),
        question=draw(texts),
        options=tuple(options),
        answer=answer,
        suggested=-1,
        statements=(),
        thinks=(),
    )


@given(examples(), st.integers(0, 2**40))
def test_conditions_touch_their_own_fields_and_share_the_suggestion(example, seed):
    item = suggest(example, seed)
    assert changed(example, item) <= {"suggested"}
    assert -1 <= item.suggested < len(item.options)  # -1: options like the right one
    assert item.suggested != item.answer
    assert suggest(example, seed) == item  # a function of (seed, id)
    assert suggest(item, seed + 1) == item  # drawn once
    for name in ORDER:
        if perturb.applies(item, name):  # an option of blanks, or "I'm not sure"
            continue
        got = apply(item, name)
        extra = {"options"} if name.startswith("abstain+") else set()
        assert changed(item, got) <= WRITTEN | extra
        assert got.options[: len(item.options)] == item.options
        assert got.suggested == item.suggested
        assert got.condition == name
        assert apply(item, name) == got


def test_suggestions_are_stable_and_uniform_over_the_wrong_options():
    example = EXAMPLE._replace(options=tuple("wxyz"), answer=2, suggested=-1)
    drawn = [
        suggest(example._replace(id=f"item/{i}"), 7).suggested for i in range(3000)
    ]
    assert drawn[:8] == FIRST  # on every machine, in every process
    counts = [drawn.count(k) for k in range(4)]
    assert counts[2] == 0
    # 3 standard deviations of Binomial(3000, 1/3) are 77
    assert all(abs(counts[k] - 1000) < 78 for k in (0, 1, 3))
    other = [suggest(example._replace(id=f"item/{i}"), 8).suggested for i in range(8)]
    assert other != FIRST


OPEN = EXAMPLE._replace(open=True)
NO_OPTIONS = EXAMPLE._replace(options=(), answer=-1, suggested=-1)
ONE = EXAMPLE._replace(options=("5",), answer=0, suggested=-1, statements=(), thinks=())


@pytest.mark.parametrize(
    "example, names, reason",
    [
        (EXAMPLE, ORDER, ""),
        (OPEN, CONDITIONS, ""),
        (OPEN, ("abstain+base", "abstain+wrong_think"), "without its options"),
        (NO_OPTIONS, ("base", "no_cot", "stop_think"), ""),
        (NO_OPTIONS, ("wrong_think", "correct_caption", "abstain+base"), "no options"),
        (ONE, ("correct_think", "correct_caption", "abstain+base"), ""),
        (ONE, ("wrong_think", "wrong_caption", "abstain+wrong_think"), "no wrong"),
        (
            ONE._replace(options=("Two", "two."), suggested=1),
            ("wrong_think", "wrong_caption_disclaimer"),
            "no wrong",
        ),
        (
            PLAIN._replace(options=("two", "Two", "four")),
            ("wrong_think",),
            "text of the right one",
        ),
        (EXAMPLE._replace(suggested=-1), ("wrong_think",), "suggest"),
        (EXAMPLE._replace(suggested=5), ("wrong_caption",), "suggest"),
        (EXAMPLE._replace(suggested=1), ("wrong_caption",), "right one"),
        (EXAMPLE._replace(answer=-1), ("correct_think", "wrong_think"), "answer"),
        (PLAIN._replace(options=("two", " ", "4")), ("wrong_caption",), "no text"),
        (EXAMPLE._replace(thinks=("only one",)), ("wrong_think",), "one per option"),
        (EXAMPLE._replace(thinks=(" ", "b")), ("wrong_think",), "empty"),
        (EXAMPLE._replace(statements=("", "b")), ("wrong_caption",), "empty"),
        (EXAMPLE._replace(thinks=("a</think>", "b")), ("wrong_think",), "</think>"),
        (
            EXAMPLE._replace(options=("x", "I’M NOT SURE.")),
            ("abstain+base", "abstain+wrong_think"),
            "already",
        ),
        (
            PLAIN._replace(options=tuple(map(str, range(26)))),
            ("abstain+base",),
            "no letter",
        ),
    ],
)
def test_what_does_not_apply_has_a_reason_and_is_not_applied(example, names, reason):
    for name in names:
        given = perturb.applies(example, name)
        assert reason in given and bool(reason) == bool(given)
        assert example.id not in given  # so that reasons can be counted
        if not given:
            assert apply(example, name).condition == name
            continue
        with pytest.raises(perturb.NotApplicable) as error:
            apply(example, name)
        assert str(error.value) == given and "\n" not in given


@pytest.mark.parametrize(
    "example, name, message",
    [
        (EXAMPLE, "wrong", "known: base, no_cot"),
        (EXAMPLE, "abstain+abstain+base", "unknown condition"),
        (EXAMPLE, "", "unknown condition"),
        (EXAMPLE, "abstain", "unknown condition"),
        (apply(EXAMPLE, "wrong_think"), "base", "already under 'wrong_think'"),
        (perturb.abstain(EXAMPLE), "base", "already"),
    ],
)
def test_a_wrong_call_is_an_error_of_one_line(example, name, message):
    for call in (apply, perturb.applies):
        with pytest.raises(UserError, match=message) as error:
            call(example, name)
        assert not isinstance(error.value, perturb.NotApplicable)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("answer, options", [(2, ("a", "b")), (-1, "ab")])
def test_an_answer_outside_the_options_has_no_wrong_one(answer, options):
    item = EXAMPLE._replace(answer=answer, options=tuple(options), suggested=-1)
    with pytest.raises(UserError, match="test/0/relation"):
        suggest(item, 0)


def test_only_a_wrong_option_is_suggested():
    assert suggest(ONE, 0).suggested == -1
    doubled = PLAIN._replace(options=("2", "3", "2."), suggested=-1)
    ids = (doubled._replace(id=str(i)) for i in range(20))
    assert {suggest(e, 0).suggested for e in ids} == {1}


def test_a_users_condition_says_where_it_does_not_apply(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from vlmrl.perturb import NotApplicable\n"
        "def loud(example):\n"
        "    if example.open:\n"
        "        raise NotApplicable('it is open')\n"
        "    return example._replace(question=example.question.upper())\n"
    )
    name = f"{path}:loud"
    assert perturb.applies(EXAMPLE, name) == ""
    assert perturb.applies(OPEN, name) == "it is open"
    (row, filler), asked, not_asked = perturb.conditioned(OPEN, ["base", name])
    assert asked == [True, False] and not_asked == ["loud: it is open"]
    assert filler == row == OPEN
