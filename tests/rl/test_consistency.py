"""The blind probe and shuffled options: mappings, verdicts, adversaries."""

from collections import Counter

import pytest

from vlmrl.prompts.styles import build
from vlmrl.rl.consistency import (
    blind_verdict,
    remap,
    reread,
    shuffle,
    shuffle_verdict,
    stripped,
)
from vlmrl.types import Example, UserError

OPTIONS = ("left", "right", "above", "below")


def example(options=OPTIONS, abstain=-1):
    real = len(options) - (abstain >= 0)
    return Example(
        id="x/1",
        images=(b"png",),
        question="Where is the dog?",
        options=tuple(options),
        answer=1,
        suggested=0,
        source="x",
        task="t",
        cluster="c",
        statements=tuple(f"it is {o}" for o in options[:real]),
        thinks=tuple(f"so {o}" for o in options[:real]),
        abstain=abstain,
    )


# -- blind probe


@pytest.mark.parametrize(
    ("letters", "predicted", "applicable", "want"),
    [
        ([0.1, 0.7, 0.2], 1, True, "consistent"),
        ([0.1, 0.7, 0.2], 0, True, "inconsistent"),
        ([0.1, 0.7, 0.2], -1, True, "undecided"),
        ([0.4, 0.4, 0.2], 0, True, "undecided"),
        ([], 0, True, "undecided"),
        ([0.1, 0.7, 0.2], 0, False, "not_applicable"),
    ],
)
def test_blind_verdict(letters, predicted, applicable, want):
    assert blind_verdict(letters, predicted, applicable) == want


def test_a_think_that_implies_too_little_is_undecided():
    assert blind_verdict([0.2, 0.45, 0.35], 1, min_probability=0.5) == "undecided"
    assert blind_verdict([0.2, 0.55, 0.25], 1, min_probability=0.5) == "consistent"


@pytest.mark.parametrize(
    ("think", "want"),
    [
        ("The dog is at (1, 2). The cat is at (3, 2). So left.", None),
        ("It looks red. The answer is B. It is.", "It looks red."),
        ("It looks red. Option B it is. Done.", "It looks red."),
        ("It looks red. I pick B now. Done.", "It looks red."),
        ("It looks red. A. Done.", "It looks red."),
        ("A dog is there. Thus left. Done.", "A dog is there."),
        ("The answer is B.", ""),
        ("B", ""),
        ("", ""),
        ("   \n ", ""),
        ("One line\nand another\nso B", "One line and another"),
    ],
)
def test_stripped(think, want):
    if want is None:
        want = "The dog is at (1, 2). The cat is at (3, 2)."
    assert stripped(think) == want


# -- shuffling


@pytest.mark.parametrize("seed", range(8))
def test_a_shuffle_moves_everything_along(seed):
    old = example()
    new, order = shuffle(old, seed)
    assert sorted(order) == [0, 1, 2, 3]
    assert order != (0, 1, 2, 3)
    assert new.options == tuple(OPTIONS[i] for i in order)
    assert new.options[new.answer] == OPTIONS[old.answer]
    assert new.options[new.suggested] == OPTIONS[old.suggested]
    assert new.statements == tuple(f"it is {o}" for o in new.options)
    assert new.thinks == tuple(f"so {o}" for o in new.options)
    assert shuffle(old, seed) == (new, order)


def test_every_other_order_is_as_likely():
    options = ("a", "b", "c")
    counts = Counter(shuffle(example(options), seed).order for seed in range(2000))
    assert len(counts) == 5
    assert max(counts.values()) < 1.25 * min(counts.values())


def test_abstain_stays_last_and_one_option_can_not_be_shuffled():
    new, order = shuffle(example((*OPTIONS, "I'm not sure"), abstain=4), 0)
    assert (order[4], new.abstain, new.options[4]) == (4, 4, "I'm not sure")
    with pytest.raises(UserError, match="1 options to shuffle, expected at least 2"):
        shuffle(example(("left",)), 0)
    assert shuffle(example(("left", "right")), 3).order == (1, 0)


SWAP = (1, 0, 2, 3)  # A ↔ B


@pytest.mark.parametrize(
    ("think", "want"),
    [
        ("So the answer is A.", "So the answer is B."),
        ("A. left or B. right?", "B. left or A. right?"),
        ("(A) and (B), not C", "(B) and (A), not C"),
        ("A dog is left of a cat, so B.", "A dog is left of a cat, so A."),
        ("Option A is wrong", "Option B is wrong"),
        ("the first option, then the Second choice", None),
        ("I see B's tail; plan-B; vitamin B12", "I see B's tail; plan-B; vitamin B12"),
        ("Ａ Β 𝐁 В", "Ａ Β 𝐁 В"),  # full width, Greek, bold and Cyrillic look-alikes
        ("E and Z", "E and Z"),  # no options
        ("", ""),
        ("ABAB", "ABAB"),
    ],
)
def test_remap(think, want):
    if want is None:
        want = "the second option, then the First choice"
    assert remap(think, SWAP, OPTIONS) == want


def test_remap_twice_is_the_inverse():
    think = "Is it (A), B or C? Not D. So the answer is B."
    order = (2, 0, 3, 1)
    inverse = tuple(order.index(i) for i in range(4))
    assert remap(remap(think, order), inverse) == think


def test_letters_that_are_texts_stay():
    """Options 'A', 'B' shown as letters: the text names a thing, not a place."""
    assert remap("so B", (1, 0), ("B", "A")) == "so B"


def test_reread_is_a_prompt_that_can_be_written():
    changed = shuffle(example(), 0)
    again = reread(changed, "It is right of the cat, so B.", OPTIONS)
    letter = "ABCD"[changed.order.index(1)]
    assert again.prefill == (
        f"<think>It is right of the cat, so {letter}.</think>\n<answer"
    )
    prompt = build(again, "tiny")
    assert prompt.text.endswith("<answer")
    assert again.options in {again.options} and again.options != OPTIONS


@pytest.mark.parametrize(
    "think",
    ["", "  ", "a <think> b", "so <answer>B</answer>", "x</think>y", "<|im_end|>"],
)
def test_what_can_not_be_read_back_is_refused(think):
    assert reread(shuffle(example(), 0), think, OPTIONS) is None


@pytest.mark.parametrize(
    ("predicted", "again", "want"),
    [
        (1, 3, "consistent"),
        (1, 1, "inconsistent"),  # the same letter: it followed the place
        (1, -1, "undecided"),
        (-1, 3, "undecided"),
    ],
)
def test_shuffle_verdict(predicted, again, want):
    order = (2, 0, 3, 1)
    assert shuffle_verdict(predicted, again, order) == want
    assert shuffle_verdict(predicted, again, order, False) == "not_applicable"


@pytest.mark.parametrize("letter", "ABCD")
def test_always_the_same_letter_is_never_consistent_under_a_full_derangement(letter):
    index = "ABCD".index(letter)
    assert shuffle_verdict(index, index, (1, 2, 3, 0)) == "inconsistent"
