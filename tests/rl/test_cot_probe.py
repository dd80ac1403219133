"""A think read back: letters after it, as a plain forward of the whole text says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from tests.rl.test_loop import policy
from vlmrl.prompts import styles, tokens
from vlmrl.rl import consistency, cot_probe

THINKS = ("the disc is red. So B.", "two of them are on the left. So A.", "", "a<|b")


def readings(kind):
    written = [styles.build(e, "tiny") for e in kit.examples(2)]
    return [[kind(p, t) for t in THINKS] for p in written]


def test_what_is_read():
    prompt = styles.build(kit.examples(1)[0]._replace(prefill="<think>No"), "tiny")
    seen = cot_probe.sighted(prompt, "No, x. So B.")
    start = prompt.text.removesuffix("<think>No")
    assert seen.text == start + "<think>No, x. So B." + consistency.OPENING
    assert seen.images == prompt.example.images and seen.whole
    blind = cot_probe.blind(prompt, "No, x. So B.")
    assert blind.text.endswith("<think>No, x." + consistency.OPENING)
    assert blind.images == ()
    for think in ("", " ", "a</think>", "<|x|>"):
        assert not cot_probe.sighted(prompt, think).whole


def test_an_image_is_cut_once_for_all_thinks_of_its_group():
    for group in readings(cot_probe.sighted):
        made = [tokens.encode(kit.processor(), (r.text, r.images)) for r in group]
        assert len({id(e.pictures[0].patches) for e in made}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [cot_probe.sighted, cot_probe.blind])
def test_letters_are_those_of_the_whole_text(kind):
    read = cot_probe.reader(policy(), max_tokens=40)
    rows = readings(kind)
    got = read(policy().params, rows)
    assert got.shape == (2, 4, cot_probe.OPTIONS)
    assert not got[:, 2:].any()  # what can't be read has no letters
    encode = kit.processor().tokenizer.encode
    ends = [len(encode(">" + c)) for c in "ABCDEFGH"] * 2
    texts = [(r.text + ">" + c, r.images) for r in rows[1][:2] for c in "ABCDEFGH"]
    made = [tokens.encode(kit.processor(), t) for t in texts]
    width = -(-max(len(e.ids) for e in made) // 32) * 32
    buckets = kit.BUCKETS._replace(prefix=(width,))
    group = tokens.group([[e] for e in made], kit.processor().geometry, buckets)

    @jax.jit
    def plain(params, group):
        logp = jax.nn.log_softmax(kit.row_logits(kit.model(), params, group))
        ids = group.prefix.ids[:, 1:, None]
        return jnp.take_along_axis(logp[:, :-1], ids, -1)[..., 0]

    logp = np.asarray(plain(policy().params, group))
    length = np.array([len(e.ids) for e in made])
    parts = zip(logp, length, ends, strict=True)
    total = np.array([row[n - 1 - k : n - 1].sum() for row, n, k in parts])
    total = total.reshape(2, -1)
    want = np.exp(total) / np.exp(total).sum(-1, keepdims=True)
    np.testing.assert_allclose(got[1, :2], want, atol=1e-5)


def test_options_of_an_item_are_renormalised():
    got = cot_probe.implied(np.array([0.1, 0.3, 0.6]), 2)
    np.testing.assert_allclose(got, [0.25, 0.75])
    assert cot_probe.implied(np.zeros(3), 2).tolist() == [0, 0]
