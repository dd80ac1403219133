import collections

import numpy as np
import pytest

from vlmrl.data import drawing, scenes, traces

SUITE = scenes.suite("train", 600)


def _draw(seed=0, **mix):
    rng = np.random.default_rng(seed)
    return [(e, *traces.supervised(e, rng, **mix)) for e in SUITE]


def _only(**share):
    none = dict(caption=0.0, started=0.0, direct=0.0, abstain=0.0)
    return _draw(**{**none, **share})


def test_a_plain_completion():
    for before, after, target in _only(brief=1.0):
        letter = "ABCDE"[before.answer]
        end = before.trace[before.trace.rindex("So ") :]
        assert after == before
        assert target == f"<think>{end}</think>\n<answer>{letter}</answer>"
    for before, after, target in _only(brief=0.0):
        letter = "ABCDE"[before.answer]
        assert after == before
        assert target == f"<think>{before.trace}</think>\n<answer>{letter}</answer>"


def test_a_caption_is_the_right_statement():
    for before, after, target in _only(caption=1.0):
        right = before.statements[before.answer]
        assert after.caption == right[0].upper() + right[1:] + "."
        assert after.condition == "correct_caption" and target.startswith("<think>")


@pytest.mark.parametrize("brief", [0.0, 1.0])
def test_a_started_think_and_its_target_are_the_whole(brief):
    given = collections.Counter()
    for before, after, target in _only(started=1.0, brief=brief):
        whole = before.thinks[before.answer] if brief else before.trace
        letter = "ABCDE"[before.answer]
        assert after.prefill.startswith("<think>")
        assert after.prefill.endswith((".", "</think>"))
        assert (
            after.prefill + target
            == f"<think>{whole}</think>\n<answer>{letter}</answer>"
        )
        (start,) = [t for t in (" ", "</think>", "\n<answer>") if target.startswith(t)]
        assert (start == "\n<answer>") == after.prefill.endswith("</think>")
        given[start] += 1
    assert len(given) == 3


def test_direct_and_abstain():
    for before, after, target in _only(direct=1.0):
        assert after.direct and after.prefill == "<answer"
        assert target == f">{'ABCDE'[before.answer]}</answer>"
    for before, after, target in _only(abstain=1.0):
        assert after.options == (*before.options, "I'm not sure")
        assert after.abstain == len(before.options) != after.answer
        assert target.endswith(f"<answer>{'ABCDE'[before.answer]}</answer>")


def test_the_mix_has_its_shares_and_never_misleads():
    conditions = collections.Counter()
    for seed in range(3):
        for before, after, target in _draw(seed):
            conditions[after.condition] += 1
            wrong = set(before.thinks) - {before.thinks[before.answer]}
            text = after.caption + after.prefill + target
            assert not any(think in text for think in wrong)
            assert after.answer == before.answer and after.images == before.images
    total = sum(conditions.values())
    expected = {
        "correct_caption": 0.12,
        "correct_think": 0.12,
        "no_cot": 0.08,
        "abstain+base": 0.05,
        "base": 0.63,
    }
    assert set(conditions) == set(expected)
    for condition, share in expected.items():
        spread = (share * (1 - share) / total) ** 0.5
        assert abs(conditions[condition] / total - share) < 4 * spread


def test_the_description_item():
    scene = drawing.make_scene("train", 0)
    example, target = traces.described(scene)
    assert example.options == () and example.answer == example.suggested == -1
    assert example.question == "Describe the picture." and example.task == "describe"
    assert target == traces.describe(scene)


def test_listed_letters_are_those_of_the_words():
    scene = drawing.make_scene("train", 0)
    sizes = set()
    for seed in range(40):
        example, text = traces.listed(scene, np.random.default_rng(seed))
        letters = dict(zip(example.options, "ABCDE", strict=False))
        sizes.add(len(letters))
        assert len(letters) == len(example.options)
        output = [part.split() for part in text.removeprefix("So ").split(", ")]
        assert len(output) == 6
        assert all(letters[word] == letter for word, letter in output)
    assert sizes == {3, 4, 5}


def test_every_drilled_line_ties_an_option_to_its_letter():
    forms = collections.Counter()
    for i, example in enumerate(SUITE[:60]):
        asked, text = traces.drilled(example, np.random.default_rng(i))
        assert asked.options == example.options
        pairs = dict(zip(example.options, "ABCDE", strict=False))
        ends = {
            f"So it is {option}.</think>\n<answer>{letter}</answer>": "text"
            for option, letter in pairs.items()
        } | {
            f"So it is {option}, answer {letter}.": "letter"
            for option, letter in pairs.items()
        }
        for _ in range(4):
            (end,) = [e for e in ends if text.startswith(e)]
            forms[ends[end]] += 1
            text = text.removeprefix(end).lstrip(" ")
        assert not text
    assert forms["text"] > 90 and forms["letter"] > 90


def test_where_everything_is_names_each_object_once():
    for index in range(40):
        scene = drawing.make_scene("train", index)
        example, text = traces.located(scene, np.random.default_rng(index))
        output = text.split(". ")
        assert len(output) == len(scene.objects) + bool(scene.overlap)
        for o in scene.objects:
            assert (
                sum(s.lower().startswith(f"{scenes.name(o)} is") for s in output) >= 1
            )
        assert not example.options
