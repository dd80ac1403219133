"""Augmentation: distribution, stability, bad mixes."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from tests import kit
from vlmrl import perturb
from vlmrl.data import distort
from vlmrl.perturb import ORDER
from vlmrl.rl.augment import MIX, apply, augmented, check, choose
from vlmrl.types import Example, UserError


def test_the_papers_mix():
    assert (
        dict.fromkeys(
            ["correct_think", "wrong_think", "correct_caption", "wrong_caption"], 0.1
        )
        == MIX
    )


def test_shares_are_those_of_the_mix():
    n = 20_000
    counts = Counter(choose(f"scenes/{i}", 0) for i in range(n))
    want = {**MIX, "base": 0.6}
    observed = [counts[name] for name in want]
    assert sum(observed) == n
    # A fixed draw: it is either a good hash or not; 1e-3 is no flake.
    test = stats.chisquare(observed, [share * n for share in want.values()])
    assert test.pvalue > 1e-3


def test_seeds_are_independent():
    n = 5_000
    pairs = Counter((choose(str(i), 0), choose(str(i), 1)) for i in range(n))
    both = pairs["base", "base"] / n
    assert abs(both - 0.36) < 4 * (0.36 * 0.64 / n) ** 0.5


def test_same_in_another_process_and_in_any_order_of_the_mix():
    ids = [f"id-{i} ü" for i in range(50)]
    here = [choose(i, 7) for i in ids]
    assert [choose(i, 7, dict(reversed(MIX.items()))) for i in ids] == here
    code = (
        "from vlmrl.rl.augment import choose\n"
        "print(*[choose(f'id-{i} ü', 7) for i in range(50)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == here


def test_whole_and_empty_mixes():
    ids = map(str, range(200))
    assert {choose(i, 0, {}) for i in ids} == {"base"}
    names = [name for name in ORDER if name != "base"]
    tenths = dict.fromkeys(names[:10], 0.1)  # sums to 0.9999999999999999
    thirds = dict.fromkeys(names[:3], 1 / 3)
    for mix in (tenths, thirds, {"no_cot": 1.0}, {"no_cot": 1}):
        check(mix)
        assert "base" not in {choose(str(i), 0, mix) for i in range(500)}


@pytest.mark.parametrize(
    ("mix", "named"),
    [
        ({"no_cot": 0.6, "wrong_think": 0.6}, "mix: shares sum to 1.2"),
        ({"base": 0.5, "no_cot": -0.1}, "mix.no_cot"),
        ({"no_cot": float("nan")}, "mix.no_cot"),
        ({"no_cot": "0.1"}, "mix.no_cot"),
        ({"no_cot": True}, "mix.no_cot"),
        ({"wrong_thnik": 0.1}, "mix: unknown condition 'wrong_thnik'"),
    ],
)
def test_bad_mixes_name_the_field(mix, named):
    with pytest.raises(UserError, match=named) as error:
        choose("x", 0, mix)
    assert "\n" not in str(error.value)


# -- text, image, both


def test_apply_is_a_condition_an_image_perturbation_or_both():
    item = Example(
        id="x/1",
        images=(distort.encode(np.full((8, 8, 3), 200, np.uint8)),),
        question="What is it?",
        options=("a dog", "a cat"),
        answer=0,
        suggested=1,
        source="x",
        task="t",
        cluster="c",
    )
    text = apply(item, "wrong_caption", 0)
    assert text == perturb.apply(item, "wrong_caption")
    image = apply(item, "blank", 0)
    assert (image.condition, image.caption) == ("blank+base", "")
    both = apply(item, "blank+wrong_caption", 0)
    assert both.images == image.images
    assert (both.condition, both.caption) == ("blank+wrong_caption", text.caption)
    assert apply(item, "base", 0) == item
    assert apply(item, "abstain+base", 0) == perturb.apply(item, "abstain+base")


def test_a_condition_that_does_not_apply_gives_way_to_base():
    item = kit.examples(1)[0]._replace(open=True)
    assert augmented(item, {"abstain+base": 1.0}, 0) == item
    image = augmented(item, {"blank+abstain+wrong_think": 1.0}, 0)
    assert image.condition == "blank+base" and image.images != item.images
    assert augmented(item, {"wrong_think": 1.0}, 0).condition == "wrong_think"


def test_a_mix_may_name_image_perturbations():
    mix = {"noisy": 0.25, "masked+wrong_think": 0.25, "wrong_caption": 0.5}
    check(mix)
    assert {choose(str(i), 0, mix) for i in range(100)} == set(mix)
    with pytest.raises(UserError, match="mix: unknown condition 'blur"):
        check({"blur": 0.1})
    with pytest.raises(UserError, match="mix: unknown condition 'wrong'"):
        check({"noisy+wrong": 0.1})
