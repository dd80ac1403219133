"""The model judge on the tiny model, whose text part reads without an image."""

import jax
import numpy as np
import pytest

from vlmrl import policy as policies
from vlmrl.engine.prefix_cache import prefill
from vlmrl.judges import model, prompt, rule
from vlmrl.judges.judge import JudgeItem, ask, cascade
from vlmrl.models import registry, weights
from vlmrl.prompts import tokens
from vlmrl.tiny import make
from vlmrl.types import UserError


@pytest.fixture(scope="module")
def policy():
    return policies.load("tiny")


def items(count):
    options = ("left", "right")
    thinks = ["So it is left.", "The dog is in row two. So the answer is B.", "Hm."]
    return [
        JudgeItem(f"i{k}", f"Where is dog {k}?", options, thinks[k % 3], k % 2)
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def judge(policy):
    return model.make(policy, brief=True, mass=0.0, longest=256, batch=8)


def test_it_reads_the_two_words_off_the_logits(policy, judge):
    """The verdict is that of the next-token distribution of the prompt read alone."""
    todo = items(11)
    actual = ask(judge, todo)
    assert [v.judge for v in actual] == [judge.name] * 11
    words = model.verdict_spellings(policy.processor)
    yes, no = (ids[ids >= 0] for ids in words.direct)
    write = model.writer(policy.processor.tokenizer, prompt.load(), True)
    for item, verdict in list(zip(todo, actual, strict=True))[:4]:
        row = tokens.encode(policy.processor, (write(item), ()))
        group = tokens.group(
            [[row]], policy.processor.geometry, tokens.Buckets(prefix=(256,))
        )
        cache = prefill(policy.model, policy.params, group)
        p = jax.nn.softmax(cache.hidden[0] @ policy.model.head(policy.params).T)
        a, b = float(p[yes].sum()), float(p[no].sum())
        sure = max(a, b) / (a + b)
        assert verdict.confidence == pytest.approx(sure, abs=1e-4)
        assert verdict.label == ("consistent" if a >= b else "inconsistent")


def test_batch_and_order_change_nothing(policy, judge):
    todo = items(11)
    first = ask(judge, todo)
    again = ask(judge, todo[::-1])[::-1]
    assert [v.label for v in first] == [v.label for v in again]
    np.testing.assert_allclose(
        [v.confidence for v in first], [v.confidence for v in again], atol=1e-5
    )


def test_doubt_and_length_are_undecided_with_their_reason(policy):
    unsure = model.make(
        policy, brief=True, sure=0.9999999, mass=0, longest=256, batch=8
    )
    long = items(1)[0]._replace(think="left " * 400)
    actual = ask(unsure, [*items(2), long])
    assert {v.label for v in actual} == {"undecided"}
    assert actual[0].reason.startswith("no more than 0.")
    assert actual[2].reason.startswith("too long: ") and "reads 256" in actual[2].reason
    other = model.make(policy, brief=True, mass=1.0, longest=256, batch=8)
    (verdict,) = ask(other, items(1))
    assert verdict.reason == "Yes and No hold less than 1 of the probability"


def test_verdicts_follow_the_probabilities():
    item = items(1)[0]

    def output(yes, no, **given):
        settings = {"sure": 0.5, "mass": 0.05, **given}
        return model._verdict(item, np.log([yes, no]), **settings, name="j")

    assert output(0.6, 0.2) == ("consistent", 0, pytest.approx(0.75), "", "j")
    assert output(0.1, 0.3) == ("inconsistent", 1, pytest.approx(0.75), "", "j")
    assert output(0.02, 0.02).label == "undecided"
    assert output(0.3, 0.2, sure=0.7).label == "undecided"
    more = item._replace(options=("left", "right", "above"))
    pair = np.log([0.1, 0.3])
    assert model._verdict(more, pair, 0.5, 0.05, "j").conclusion == -1


def test_names_prompts_and_cascades(policy, judge):
    assert judge.name.startswith("model tiny judge-3:")
    assert "judge prompt" in judge.about
    actual = ask(cascade(rule.JUDGE, judge), items(3))
    assert [v.judge for v in actual] == ["rule", "rule", judge.name]
    assert [v.label for v in actual[:2]] == ["consistent", "consistent"]
    bare = prompt.load()
    bare = bare._replace(parts={k: v for k, v in bare.parts.items() if k != "short"})
    with pytest.raises(UserError, match="no part '== short =='"):
        model.make(policy, bare, brief=True)


def test_the_shipped_judge_began_as_the_tiny_model():
    """But for the words that the tiny model lacks."""
    processor = tokens.load_processor(registry.SHIPPED["tiny_judge"])
    family = registry.read_model("tiny_judge")
    drawn = make.start(family, jax.random.key(0))
    actual = make.begin_judge(drawn, processor)
    known, ours = weights.load("tiny")[1], processor.tokenizer.get_vocab()
    theirs = tokens.load_processor(registry.TINY).tokenizer.get_vocab()
    assert set(actual) == set(family.table)
    for name in set(actual) - {"text.embed"}:
        np.testing.assert_array_equal(actual[name], known[name])
    for word, source in (("Ġcircle", known), ("<|im_end|>", known), ("Ġlaptop", drawn)):
        row = (theirs if source is known else ours)[word]
        np.testing.assert_array_equal(
            actual["text.embed"][ours[word]], source["text.embed"][row]
        )
    assert "Ġlaptop" not in theirs
