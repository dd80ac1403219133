"""A completion read back to the policy: up to where, and whose options. The
probabilities themselves are tested in tests/engine/test_options.py."""

import jax
import numpy as np
import pytest

from tests import kit
from tests.eval.test_kernel import CASES, ids_of, read_cases
from tests.rl.test_loop import policy
from vlmrl.engine import options
from vlmrl.prompts import styles, tokens
from vlmrl.rl import consistency, cot_probe

TURNS = {
    options.NOTHING: "",
    options.THINKING: "<think>No",
    options.THOUGHT: "<think>No</think>",
    options.ANSWERING: "<answer",
}


@pytest.mark.parametrize("name", CASES)
def test_a_completion_is_read_up_to_where_evaluation_reads_it(name):
    """The same tokens, then the opening that the kernel forces."""
    case, i = CASES[name], list(CASES).index(name)
    spans = jax.tree.map(lambda x: x[i], read_cases())
    own, encode = ids_of(case.pieces), kit.processor().encode_plain
    forced = ["", "<answer", "</think>\n<answer"][spans.kind]
    stop = spans.cut + (forced == "")  # replayed: the token that completes the opening
    if case.stage == options.ANSWERING:
        stop = 0
    found = cot_probe.opened(kit.processor(), TURNS[case.stage], own)
    assert found == own[:stop] + (encode(forced) if forced else [])


def test_what_is_read():
    example = kit.examples(1)[0]._replace(prefill="<think>No")
    prompt, encode = styles.build(example, "tiny"), kit.processor().encode_plain
    seen = cot_probe.sighted(prompt, encode(", x. So B."), kit.processor())
    assert (seen.text, seen.images) == (prompt.text, prompt.example.images)
    assert list(seen.ids) == encode(", x. So B.") + encode(consistency.OPENING)
    assert seen.whole and seen.example == prompt.example
    blind = cot_probe.blind(prompt, "No, x. So B.")
    assert blind.text.endswith("<think>No, x." + consistency.OPENING)
    assert blind.images == () and blind.whole
    for think in ("", " ", "a</think> So B.", "x <|x|>. So B.", "So B."):
        assert not cot_probe.blind(prompt, think).whole


def test_an_image_is_cut_once_for_all_thinks_of_its_group():
    prompt = styles.build(kit.examples(1)[0], "tiny")
    group = [
        cot_probe.sighted(prompt, kit.processor().encode_plain(text), kit.processor())
        for text in ("a", "b", "")
    ]
    made = [tokens.encode(kit.processor(), (r.text, r.images)) for r in group]
    assert len({id(e.pictures[0].patches) for e in made}) == 1


@pytest.mark.slow
def test_each_item_has_its_own_options_and_what_is_not_measured_has_none():
    """Of two items: four options, two options; unreadable, too long."""
    first, second = kit.examples(2)
    second = second._replace(options=second.options[:2], answer=0)
    read = cot_probe.reader(policy(), max_tokens=40)
    thinks = ("a is red. Hm.", "a<|b. Hm.", "two " * 100 + "x. Hm.")
    rows = [
        [cot_probe.blind(styles.build(e, "tiny"), t) for t in thinks]
        for e in (first, second)
    ]
    found = read(policy().params, rows)
    assert found.shape[:2] == (2, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0].sum(-1), 1, atol=1e-6)
    for n, e in enumerate((first, second)):
        shown = np.arange(found.shape[2]) < len(e.options)
        np.testing.assert_array_equal(found[n, 0] > 0, shown)
    assert not found[:, 1:].any()
    lone = [[r._replace(example=r.example._replace(options=("a",))) for r in rows[0]]]
    assert not read(policy().params, lone).any()


def test_options_of_an_item_are_renormalised():
    got = cot_probe.implied(np.array([0.1, 0.3, 0.6]), 2)
    np.testing.assert_allclose(got, [0.25, 0.75])
    assert cot_probe.implied(np.zeros(3), 2).tolist() == [0, 0]
