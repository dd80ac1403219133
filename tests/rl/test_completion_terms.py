"""What is measured of a completion, on hand-made ones."""

import numpy as np

from tests import kit
from vlmrl.answers import reading
from vlmrl.prompts import styles
from vlmrl.rl import completion_terms, recipe
from vlmrl.types import Completion

OPTIONS = recipe.RewardOptions()


def seen(text: str, options=None, tokens: int = 10) -> Completion:
    prompt = styles.build(kit.examples(1)[0], "tiny")
    read = reading.read(text, prompt.example, "tiny")
    return Completion(
        prompt.example,
        prompt.text,
        text,
        read.parsed,
        read.correct,
        tokens=tokens,
        options=options,
    )


def test_terms_of_letters():
    answer = kit.examples(1)[0].answer
    letters = np.full(len(kit.examples(1)[0].options), 0.1)
    letters[answer] = 0.7
    right = f"<think>x</think><answer>{'ABCDEF'[answer]}</answer>"
    wrong = f"<think>x</think><answer>{'ABCDEF'[1 - min(answer, 1)]}</answer>"
    got = completion_terms.terms(
        ("p_correct", "confidence"), seen(right, letters), OPTIONS
    )
    np.testing.assert_allclose(got["p_correct"], 0.7)
    np.testing.assert_allclose(got["confidence"], -(0.3**2))
    got = completion_terms.terms(
        ("p_correct", "confidence"), seen(wrong, letters), OPTIONS
    )
    np.testing.assert_allclose(got["p_correct"], 0.7)
    np.testing.assert_allclose(got["confidence"], -(0.1**2))
    silent = completion_terms.terms(("confidence",), seen("<think>x", letters), OPTIONS)
    assert silent == {"confidence": 0.0}


def test_terms_of_texts():
    names = ("evidence", "length", "repetition", "copied")
    bare = completion_terms.terms(
        names, seen("<think>So B.</think>", tokens=4), OPTIONS
    )
    assert bare["evidence"] == 0 and bare["length"] == 0.5
    said = "the red disc is left of the blue star and above one green square there"
    full = completion_terms.terms(names, seen(f"<think>{said}. So B.</think>"), OPTIONS)
    assert full["evidence"] == 1 and full["length"] == 1 and full["repetition"] == 0
    question = kit.examples(1)[0].question
    echo = completion_terms.terms(names, seen(f"<think>{question}</think>"), OPTIONS)
    assert echo["copied"] == -1 and full["copied"] > echo["copied"]


def test_think_and_answer_tokens_are_told_by_bytes():
    texts = ["<think>ab c</think><answer>A</answer>", "ab</think>B", "abc"]
    cuts = [
        ["<think", ">", "ab", " c", "</", "think>", "<answer", ">A", "</answer>"],
        ["a", "b<", "/think>B"],
        ["ab", "c"],
    ]
    assert ["".join(c) for c in cuts] == texts
    sizes = [[len(x) for x in c] for c in cuts]
    think, answer = completion_terms.parts_of(sizes, texts, 9)
    assert [np.flatnonzero(r).tolist() for r in think] == [[2, 3], [0, 1], [0, 1]]
    assert [np.flatnonzero(r).tolist() for r in answer] == [[6, 7, 8], [], []]


def test_guards_of_a_batch():
    written = [styles.build(e, "tiny") for e in kit.examples(2)]
    form = "it is the red one so it is the red one"
    got = completion_terms.statistics([form, form, form, ""], written)
    assert got["template"].value == 0.75  # both items have it; '' is alone
    assert got["no_think"].value == 0.25
    assert got["repeated_3"].value > 0 and 0 < got["distinct_2"].value < 1
