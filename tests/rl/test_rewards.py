"""Rewards: values by hand, verdicts, and adversaries through the real parser."""

import numpy as np
import pytest

from tests import kit
from vlmrl.answers import reading
from vlmrl.rl.rewards import (
    JUDGED,
    REWARDS,
    VERDICTS,
    Reward,
    additive_reward,
    agreement_reward,
    as_reward,
    confidence_reward,
    gated_reward,
    grpo_reward,
    lagrangian_reward,
    length_reward,
    overlong_penalty,
    parts,
    repetition_penalty,
    shaped,
)
from vlmrl.types import Completion, Mean, UserError
from vlmrl.user_code import UserCodeError

ITEM = kit.examples(1)[0]._replace(options=("two", "three", "four", "five"), answer=1)


def completion(text: str, verdict: str | None = None, item=ITEM) -> Completion:
    read = reading.read(text, item, "tiny")
    return Completion(item, "Q", text, read.parsed, read.correct, verdict)


def judged(completion: Completion, verdict: str | None) -> Completion:
    return completion._replace(verdict=verdict)


RIGHT = completion("<think>I count three.</think><answer>B</answer>")
WRONG = completion("<think>I count three.</think><answer>A</answer>")
SLOPPY = completion("I count three.<answer>B</answer>")  # right, not in the format
NOTHING = completion("")


def test_grpo_reward_by_hand():
    assert grpo_reward(RIGHT) == Reward(1.1, 1, 1, None)
    assert grpo_reward(WRONG) == Reward(0.1, 1, 0, None)
    assert grpo_reward(SLOPPY) == Reward(1.0, 0, 1, None)
    assert grpo_reward(NOTHING) == Reward(0.0, 0, 0, None)


@pytest.mark.parametrize(
    ("verdict", "gate", "part"),
    [
        ("consistent", 1, 1.0),
        ("inconsistent", 0, 0.0),
        ("undecided", 0, 0.0),
        ("not_applicable", 1, None),
    ],
)
def test_gate_by_hand(verdict, gate, part):
    assert gated_reward(judged(RIGHT, verdict)) == Reward(1.1 * gate, 1, 1, part)
    assert gated_reward(judged(WRONG, verdict)) == Reward(0.1 * gate, 1, 0, part)
    assert gated_reward(judged(NOTHING, verdict)).total == 0


@pytest.mark.parametrize(
    ("verdict", "bonus"),
    [("consistent", 1), ("inconsistent", 0), ("undecided", 0), ("not_applicable", 0)],
)
def test_additive_by_hand(verdict, bonus):
    got = [additive_reward(judged(p, verdict)).total for p in (RIGHT, WRONG)]
    assert got == [1.1 + 0.5 * bonus, 0.1 + 0.5 * bonus]
    assert (
        additive_reward(judged(WRONG, verdict), weight=0.25).total == 0.1 + 0.25 * bonus
    )


def test_order_of_the_rewards():
    """Being right is worth more than agreeing; the gate wants both."""
    faithful_wrong = additive_reward(judged(WRONG, "consistent")).total
    unfaithful_right = additive_reward(judged(RIGHT, "inconsistent")).total
    assert unfaithful_right > faithful_wrong
    assert gated_reward(judged(WRONG, "consistent")).total > 0
    assert gated_reward(judged(RIGHT, "inconsistent")).total == 0


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_the_dict_has_one_signature(name):
    for verdict in VERDICTS:
        got = REWARDS[name](judged(RIGHT, verdict))
        assert isinstance(got, Reward)
        assert (got.format, got.correct) == (1, 1)
    if name in JUDGED:
        with pytest.raises(UserError, match=f"'{name}' needs a judge"):
            REWARDS[name](judged(RIGHT, None))
    else:
        REWARDS[name](judged(RIGHT, None))
    with pytest.raises(UserError, match="verdict: expected .*, got 'Consistent'"):
        REWARDS[name](judged(RIGHT, "Consistent"))


def test_no_answer_is_never_right():
    """Not even where the item has no right option."""
    for item in (ITEM, ITEM._replace(answer=-1)):
        assert grpo_reward(completion("<think>x</think>", item=item)).correct == 0


def test_an_open_item_is_paid_by_equality():
    item = ITEM._replace(options=("3",), answer=0, open=True, kind="number")
    for text, correct in (("3", 1), ("A", 0), ("4", 0)):
        turn = f"<think>x</think><answer>{text}</answer>"
        assert grpo_reward(completion(turn, item=item)).correct == correct


def test_a_number_gets_the_usual_parts_and_nothing_else_is_a_reward():
    def own(completion):
        return 0.5

    assert as_reward(0.5, RIGHT, own) == Reward(0.5, 1, 1, None)
    assert as_reward(True, judged(WRONG, "consistent"), own) == Reward(1, 1, 0, 1)
    assert as_reward(np.float32(2), RIGHT, own).total == 2
    given = Reward(2.0, 0.0, 1.0, None)
    assert as_reward(given, WRONG, own) == given
    bad = (None, "1", float("nan"), np.inf, [1.0], 1j, given._replace(total=np.nan))
    for value in (*bad, given._replace(format=None), given._replace(consistent="yes")):
        with pytest.raises(UserCodeError) as error:
            as_reward(value, RIGHT, own)
        assert "test_rewards.py:own: example " in str(error.value)
        assert repr(ITEM.id) in str(error.value)


def test_parts_are_means_and_skip_what_was_not_judged():
    rewards = [
        gated_reward(judged(RIGHT, "consistent")),
        gated_reward(judged(WRONG, "undecided")),
        gated_reward(judged(RIGHT, "not_applicable")),
    ]
    got = parts(rewards)
    assert got["format"] == Mean(3.0, 3)
    assert got["correct"] == Mean(2.0, 3)
    assert got["consistent"] == Mean(1.0, 2)
    assert got["total"].sum == pytest.approx(2.2)
    assert parts([]) == dict.fromkeys(Reward._fields, Mean(0.0, 0))


# -- adversaries: what a policy may write to be paid without answering. The right answer
# is B everywhere; `format` and `correct` are what must be paid.

PAID = [
    ("<think>I count three.</think><answer>B</answer>", 1, 1),
    (" <think>I count three.</think>\n<answer> B. three </answer>\n", 1, 1),
    ("<think>I count three.</think><answer>three</answer>", 1, 1),
    ("<think></think><answer>B</answer>", 1, 1),  # short thinking is no format error
]
UNPAID = [
    "",
    " \n",
    "<think>",
    "B",
    "three",
    "The answer is B.",
    "<answer>B",
    "<think>B</think>",
    "<think><answer>B</answer></think>",  # answer only in the think
    "<think>So the answer is B.",
    "<think>So it is B.</think>B",
    "<answer><answer>B</answer></answer>",
    "<think>x</think></answer>B<answer>",
    "<Think>x</Think><Answer>B</Answer>",
    "＜think＞x＜/think＞＜answer＞B＜/answer＞",
    "<answer>A</answer><answer>B</answer><answer>C</answer><answer>D</answer>",
    "<think>x</think><answer>A</answer> or <answer>B</answer>",
]
FORMAT_ONLY = [
    "<think>x</think><answer></answer>",
    "<think>x</think><answer>ABCD</answer>",
    "<think>x</think><answer>A B C D</answer>",
    "<think>x</think><answer>A, B, C, D</answer>",
    "<think>x</think><answer>A or B</answer>",
    "<think>x</think><answer>B B</answer>",
    "<think>x</think><answer>b</answer>",
    "<think>x</think><answer>В</answer>",  # Cyrillic Ve
    "<think>x</think><answer>Β</answer>",  # Greek Beta
    "<think>x</think><answer>Ｂ</answer>",  # full width
    "<think>x</think><answer>𝐁</answer>",  # mathematical bold
    "<think>x</think><answer>B\u200b</answer>",  # zero-width space
    "<think>x</think><answer>B. two</answer>",
    "<think>x</think><answer>2</answer>",
    "<think>B B B B</think><answer>E</answer>",
    "<think>three</think><answer>not three</answer>",
    "<think>reasoning process here</think><answer>answer here</answer>",  # the prompt's
    "<think>x</think><answer>A. two\nB. three\nC. four\nD. five</answer>",  # options
]


@pytest.mark.parametrize(
    ("text", "form", "correct"),
    [
        *PAID,
        *((text, 0, 0) for text in UNPAID),
        *((text, 1, 0) for text in FORMAT_ONLY),
    ],
)
def test_adversaries(text, form, correct):
    paid = grpo_reward(completion(text))
    assert (paid.format, paid.correct) == (form, correct)
    for verdict in VERDICTS:
        top = 0.1 * form + 1.0 * correct
        assert grpo_reward(completion(text, verdict)).total == top
        assert gated_reward(completion(text, verdict)).total <= top


def test_an_example_of_the_format_before_the_answer_is_not_strict():
    """Echoing the prompt's example neither hides nor replaces the answer."""
    echo = "<think>reasoning process here</think><answer>answer here</answer>"
    real = "<think>I count three.</think><answer>B</answer>"
    assert grpo_reward(completion(echo + real)).total == 0
    assert grpo_reward(completion(real + " " + real)).format == 0


# -- constraint and agreement


@pytest.mark.parametrize(
    ("verdict", "consistent"),
    [("consistent", 1), ("inconsistent", 0), ("undecided", 0), ("not_applicable", 0)],
)
def test_lagrangian_by_hand(verdict, consistent):
    for turn, base in ((RIGHT, 1.1), (WRONG, 0.1)):
        got = lagrangian_reward(judged(turn, verdict), multiplier=3.0).total
        assert got == pytest.approx((base + 3 * consistent) / 4)


def test_lagrangian_without_a_price_is_the_task():
    for verdict in VERDICTS:
        for turn in (RIGHT, WRONG, SLOPPY, NOTHING):
            got = lagrangian_reward(judged(turn, verdict))
            assert got.total == grpo_reward(turn).total
    with pytest.raises(UserError, match="multiplier: expected .*, got -1"):
        lagrangian_reward(judged(RIGHT, "consistent"), multiplier=-1)


def test_agreement_by_hand():
    total = [agreement_reward(judged(RIGHT, v)).total for v in VERDICTS]
    assert total == pytest.approx([1.1, 0.6, 0.6, 1.1])
    total = [agreement_reward(judged(WRONG, v)).total for v in VERDICTS]
    assert total == pytest.approx([0.1] * 4)


def test_agreement_between_the_task_and_the_gate():
    for verdict in VERDICTS:
        for turn in (RIGHT, WRONG, SLOPPY, NOTHING):
            alone = agreement_reward(judged(turn, verdict), alone=1.0)
            assert alone.total == pytest.approx(grpo_reward(turn).total)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="alone: expected .*, got"):
            agreement_reward(judged(RIGHT, "consistent"), alone=bad)


# -- shaping


@pytest.mark.parametrize(
    ("tokens", "want"),
    [(0, 0), (60, 0), (70, -0.25), (90, -0.75), (100, -1), (999, -1)],
)
def test_overlong_by_hand(tokens, want):
    assert overlong_penalty(tokens, 100, 40) == pytest.approx(want)


@pytest.mark.parametrize(("limit", "buffer"), [(100, 0), (100, 101), (0, 0)])
def test_a_bad_overlong_names_both_fields(limit, buffer):
    with pytest.raises(UserError, match=f"buffer={buffer} and overlong.limit={limit}"):
        overlong_penalty(5, limit, buffer)


@pytest.mark.parametrize(
    ("tokens", "want"),
    [(0, 0), (5, 0.5), (10, 1), (20, 1), (30, 0.5), (40, 0), (9999, 0)],
)
def test_length_by_hand(tokens, want):
    assert length_reward(tokens, 10, 20) == pytest.approx(want)


def test_length_with_no_least_and_contradicting_bounds():
    assert length_reward(0, 0, 20) == 1
    with pytest.raises(UserError, match="min_length=30 and reward.max_length=20"):
        length_reward(5, 30, 20)


def test_repetition_by_hand():
    assert repetition_penalty(1.0) == 0
    assert repetition_penalty(0.25) == -0.75
    with pytest.raises(UserError, match="distinct: expected .*, got 1.5"):
        repetition_penalty(1.5)


def test_confidence_by_hand_and_proper():
    assert confidence_reward(1, 1) == 1
    assert confidence_reward(0, 1) == -1
    assert confidence_reward(0, 0) == 0
    assert confidence_reward(1, 0.5) == 0.75
    for chance in (0.1, 0.5, 0.8):

        def expected(p, chance=chance):
            right, wrong = confidence_reward(1, p), confidence_reward(0, p)
            return chance * right + (1 - chance) * wrong

        best = max((i / 100 for i in range(101)), key=expected)
        assert best == pytest.approx(chance)
    with pytest.raises(UserError, match="probability: expected .*, got nan"):
        confidence_reward(1, float("nan"))


def test_shaped_adds_weighted_terms():
    base = grpo_reward(RIGHT)
    got = shaped(base, {"overlong": -0.5, "copied": 0.2}, {"overlong": 0.4})
    assert got == base._replace(total=pytest.approx(0.9))
    assert shaped(base, {}, {}) == base
    with pytest.raises(UserError, match="shaping.evidence: not measured; measured: x"):
        shaped(base, {"x": 1.0}, {"evidence": 1.0})
