"""What the tiny judge learns from says what it should be told."""

from collections import Counter

import numpy as np
import pytest

from tests import kit
from vlmrl.judges import agree, rule, synthetic
from vlmrl.judges.judge import LABELS, ask
from vlmrl.main import args
from vlmrl.prompts import tokens
from vlmrl.tiny import judge_data

BUCKETS = tokens.Buckets(prefix=(1024,), branch=(16,))


@pytest.mark.parametrize("stage", ["brief", "whole"])
def test_a_batch_holds_thinks_with_their_replies(stage):
    """The reply says whether the letter after it is the one that the prompt says was
    answered; a batch is a function of seed and step; steps share nothing."""
    c = args.load_config(f"configs/tiny/judge.py:stage={stage}").to_dict()
    assert c["seed"] != synthetic.HELD_OUT
    options = {k: c[k] for k in ("seed", "mix")} | {"groups": 12}
    processor, seen, output = kit.processor(), set(), Counter()
    for step in range(judge_data.BLOCK):
        group, mask = judge_data.batch(processor, BUCKETS, step=step, **options)
        judge_data._block.cache_clear()
        again, _ = judge_data.batch(processor, BUCKETS, step=step, **options)
        np.testing.assert_array_equal(group.prefix.ids, again.prefix.ids)
        for ids, keep, branch, learn in zip(
            group.prefix.ids, group.prefix.mask, group.branches.ids, mask, strict=True
        ):
            text = tokens.decode(processor, ids[keep])
            reply = tokens.decode(processor, branch[learn])
            word, _, letter = reply.removesuffix("<|im_end|>").partition(" ")
            answer = text.partition("\nAnswer: ")[2][0]
            expected = "None" if not letter else "Yes" if letter == answer else "No"
            assert word == expected, text
            seen.add(text)
            output[word] += 1
    assert sum(output.values()) == 12 * judge_data.BLOCK
    assert len(seen) > 0.7 * sum(output.values())  # short ones may be equal
    assert min(output[word] for word in ("Yes", "No", "None")) > 0


def test_examples_of_scenes_are_sound():
    """The rule judge, which knows nothing of how they are written, reads them so."""
    built = [
        judge_data.judge_example(3, number, {"scenes": 1.0}) for number in range(150)
    ]
    for t in built:
        assert 0 <= t.item.predicted < len(t.item.options) and t.item.think.strip()
    assert set(Counter(t.label for t in built)) == set(LABELS)
    output = ask(rule.JUDGE, [t.item for t in built])
    actual = agree.against([t.label for t in built], output, draws=20)
    assert actual.precision.value > 0.97 and actual.kappa.value > 0.9


def test_the_traces_that_judges_are_tested_on_teach_none():
    mix = {"plain": 1.0}
    taught = {judge_data.judge_example(12, n, mix).item.think for n in range(50)}
    tested = {t.item.think for t in synthetic.traces(50, synthetic.HELD_OUT, mix)}
    assert len(taught & tested) < 5  # short ones may be equal
