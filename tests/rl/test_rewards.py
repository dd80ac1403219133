"""Rewards: values by hand, verdicts, and adversaries through the real parser."""

import pytest

from vlmrl.answers.strict import parse
from vlmrl.rl.rewards import (
    JUDGED,
    REWARDS,
    VERDICTS,
    Reward,
    accuracy_reward,
    additive_reward,
    agreement_reward,
    confidence_reward,
    format_reward,
    gated_reward,
    grpo_reward,
    lagrangian_reward,
    length_reward,
    overlong_penalty,
    parts,
    repetition_penalty,
    shaped,
)
from vlmrl.types import Mean, Parsed, UserError

OPTIONS = ("two", "three", "four", "five")
RIGHT = Parsed("I count three.", "B", 1, True, True)
WRONG = RIGHT._replace(answer="A", option=0)
SLOPPY = RIGHT._replace(strict=False)  # right, but not in the format
NOTHING = Parsed(None, None, -1, False, False)


def test_grpo_reward_by_hand():
    assert grpo_reward(RIGHT, 1) == Reward(1.1, 1, 1, None)
    assert grpo_reward(WRONG, 1) == Reward(0.1, 1, 0, None)
    assert grpo_reward(SLOPPY, 1) == Reward(1.0, 0, 1, None)
    assert grpo_reward(NOTHING, 1) == Reward(0.0, 0, 0, None)


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
    assert gated_reward(RIGHT, 1, verdict) == Reward(1.1 * gate, 1, 1, part)
    assert gated_reward(WRONG, 1, verdict) == Reward(0.1 * gate, 1, 0, part)
    assert gated_reward(NOTHING, 1, verdict).total == 0


@pytest.mark.parametrize(
    ("verdict", "bonus"),
    [("consistent", 1), ("inconsistent", 0), ("undecided", 0), ("not_applicable", 0)],
)
def test_additive_by_hand(verdict, bonus):
    got = [additive_reward(p, 1, verdict).total for p in (RIGHT, WRONG)]
    assert got == [1.1 + 0.5 * bonus, 0.1 + 0.5 * bonus]
    assert additive_reward(WRONG, 1, verdict, weight=0.25).total == 0.1 + 0.25 * bonus


def test_order_of_the_rewards():
    """Being right is worth more than agreeing; the gate wants both."""
    faithful_wrong = additive_reward(WRONG, 1, "consistent").total
    unfaithful_right = additive_reward(RIGHT, 1, "inconsistent").total
    assert unfaithful_right > faithful_wrong
    assert gated_reward(WRONG, 1, "consistent").total > 0
    assert gated_reward(RIGHT, 1, "inconsistent").total == 0


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_the_dict_has_one_signature(name):
    for verdict in VERDICTS:
        got = REWARDS[name](RIGHT, 1, verdict)
        assert isinstance(got, Reward)
        assert (got.format, got.correct) == (1, 1)
    if name in JUDGED:
        with pytest.raises(UserError, match=f"'{name}' needs a judge"):
            REWARDS[name](RIGHT, 1, None)
    else:
        REWARDS[name](RIGHT, 1, None)
    with pytest.raises(UserError, match="verdict: expected .*, got 'Consistent'"):
        REWARDS[name](RIGHT, 1, "Consistent")


def test_no_answer_is_never_right():
    assert accuracy_reward(NOTHING, 0) == 0
    with pytest.raises(UserError, match="answer: expected .*, got -1"):
        accuracy_reward(NOTHING, -1)


def test_parts_are_means_and_skip_what_was_not_judged():
    rewards = [
        gated_reward(RIGHT, 1, "consistent"),
        gated_reward(WRONG, 1, "undecided"),
        gated_reward(RIGHT, 1, "not_applicable"),
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
    parsed = parse(text, OPTIONS)
    assert (format_reward(parsed), accuracy_reward(parsed, 1)) == (form, correct)
    for verdict in VERDICTS:
        top = 0.1 * form + 1.0 * correct
        assert grpo_reward(parsed, 1, verdict).total == top
        assert gated_reward(parsed, 1, verdict).total <= top


def test_an_example_of_the_format_before_the_answer_is_not_strict():
    """Echoing the prompt's example neither hides nor replaces the answer."""
    echo = "<think>reasoning process here</think><answer>answer here</answer>"
    real = "<think>I count three.</think><answer>B</answer>"
    assert grpo_reward(parse(echo + real, OPTIONS), 1).total == 0
    assert grpo_reward(parse(real + " " + real, OPTIONS), 1).format == 0


# -- constraint and agreement


@pytest.mark.parametrize(
    ("verdict", "consistent"),
    [("consistent", 1), ("inconsistent", 0), ("undecided", 0), ("not_applicable", 0)],
)
def test_lagrangian_by_hand(verdict, consistent):
    for parsed, base in ((RIGHT, 1.1), (WRONG, 0.1)):
        got = lagrangian_reward(parsed, 1, verdict, multiplier=3.0).total
        assert got == pytest.approx((base + 3 * consistent) / 4)


def test_lagrangian_without_a_price_is_the_task():
    for verdict in VERDICTS:
        for parsed in (RIGHT, WRONG, SLOPPY, NOTHING):
            got = lagrangian_reward(parsed, 1, verdict)
            assert got.total == grpo_reward(parsed, 1).total
    with pytest.raises(UserError, match="multiplier: expected .*, got -1"):
        lagrangian_reward(RIGHT, 1, "consistent", multiplier=-1)


def test_agreement_by_hand():
    total = [agreement_reward(RIGHT, 1, v).total for v in VERDICTS]
    assert total == pytest.approx([1.1, 0.6, 0.6, 1.1])
    total = [agreement_reward(WRONG, 1, v).total for v in VERDICTS]
    assert total == pytest.approx([0.1] * 4)


def test_agreement_between_the_task_and_the_gate():
    for verdict in VERDICTS:
        for parsed in (RIGHT, WRONG, SLOPPY, NOTHING):
            alone = agreement_reward(parsed, 1, verdict, alone=1.0)
            assert alone.total == pytest.approx(grpo_reward(parsed, 1).total)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="alone: expected .*, got"):
            agreement_reward(RIGHT, 1, "consistent", alone=bad)


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
    base = grpo_reward(RIGHT, 1)
    got = shaped(base, {"overlong": -0.5, "copied": 0.2}, {"overlong": 0.4})
    assert got == base._replace(total=pytest.approx(0.9))
    assert shaped(base, {}, {}) == base
    with pytest.raises(UserError, match="shaping.evidence: not measured; measured: x"):
        shaped(base, {"x": 1.0}, {"evidence": 1.0})
