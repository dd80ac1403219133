"""Tags are found on bytes, wherever the tokenizer cuts them."""

import copy
from string import ascii_uppercase

import jax
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from tests import kit
from vlmrl.engine.automata import automaton
from vlmrl.eval import tags

run = jax.jit(tags.find)
LENGTH = 16


def table(words, text):
    return tags.Tag(*automaton(words, (text,)))


def by_bytes(pieces, text, after=-1):
    """(index, exact, byte) of the first completion at a token > `after`, or None."""
    ends = np.cumsum([len(p) for p in pieces])
    whole, start = b"".join(pieces), 0
    while (byte := whole.find(text, start)) >= 0:
        index = int(np.searchsorted(ends, byte + len(text)))
        if index > after:
            return index, bool(ends[index] == byte + len(text)), byte
        start = byte + 1
    return None


def check(words, rows, text, after=None):
    size = np.array([len(w) for w in words], np.int32)
    ids = np.zeros((len(rows), LENGTH), np.int32)
    mask = np.zeros((len(rows), LENGTH), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    found = jax.device_get(run(table(words, text), size, ids, mask, after))
    for i, row in enumerate(rows):
        pieces = [words[j] for j in row]
        wanted = by_bytes(pieces, text, -1 if after is None else after[i])
        said = (pieces, jax.tree.map(lambda x, i=i: x[i].item(), found))
        assert found.matched[i] == (wanted is not None), said
        if wanted is None:
            assert found.index[i] == LENGTH and not found.exact[i], said
        else:
            assert (found.index[i], found.exact[i], found.byte[i]) == wanted, said


@pytest.mark.parametrize("text", [b"<think>", b"</think>", b"<answer"])
def test_tags_of_the_shipped_tokenizer(text):
    """Random token rows made mostly of what tags are made of."""
    words = kit.processor().token_bytes
    made_of = [b"<", b"</", b".</", b"><", b"></", b">", b">\n", b"think", b"answer"]
    made_of += [b">A", b"a", b".", b"/"]
    pool = np.array([words.index(w) for w in made_of])
    rng = np.random.default_rng(0)
    rows = [pool[rng.integers(0, len(pool), rng.integers(0, 17))] for _ in range(400)]
    check(words, rows, text)
    check(words, rows, text, rng.integers(-1, 10, 400).astype(np.int32))


def test_tags_that_are_tokens_themselves():
    """Tokenizers that were taught `</think>` as one token, behind bytes that only seem
    to begin a tag."""
    words = [b"<", b"</", b"</think>", b"think>", b"x", b"", b"</thi", b"nk>\n", b"nk>"]
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, len(words), rng.integers(1, 17)) for _ in range(400)]
    check(words, rows, b"</think>")


def test_padding_is_not_read():
    """What lies under False of the mask completes nothing."""
    processor = kit.processor()
    ids = np.array([processor.tokenizer.encode("a</think>")], np.int32)
    size = np.array([len(w) for w in processor.token_bytes], np.int32)
    tag = table(processor.token_bytes, b"</think>")
    mask = np.ones_like(ids, bool)
    assert run(tag, size, ids, mask).matched.all()
    mask[:, -1] = False
    assert not run(tag, size, ids, mask).matched.any()


def test_tables_of_the_shipped_tokenizer():
    processor = kit.processor()
    made = jax.device_get(tags.make_tables(processor))
    words = processor.token_bytes

    def said(ids):
        return [words[i] for i in ids if i >= 0]

    assert b"".join(said(made.closing)) == b"</think>\n<answer"
    assert b"".join(said(made.opening)) == b"<answer"
    assert said(made.letters.bridges) == [b">", b">\n"]
    for i, letter in enumerate(ascii_uppercase):
        one, two = (said(ids[i]) for ids in (made.letters.direct, made.letters.second))
        assert set(one) == {w for w in words if w == b">" + letter.encode()}
        plain = {letter.encode(), b" " + letter.encode()}
        assert set(two) == plain & set(words) and two
    assert made.end.nonzero()[0].tolist() == sorted(processor.end_ids)
    sentences = {w for w, yes in zip(words, made.sentence, strict=True) if yes}
    assert {b".", b"!", b"?", b"\n", b">\n"} <= sentences and b".</" not in sentences
    word = {w for w, yes in zip(words, made.word, strict=True) if yes}
    assert b"think" in word and not {b".", b"<", b" "} & word


def test_a_tokenizer_that_adds_bos_adds_none_to_an_opening():
    """As Llama 3.1's does: the forced opening is read in the middle of a turn."""
    plain = kit.processor()
    adding = copy.deepcopy(plain.tokenizer)
    adding._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[
            ("<|endoftext|>", adding.convert_tokens_to_ids("<|endoftext|>"))
        ],
    )
    assert len(adding.encode("a")) == 2
    found, known = (
        jax.device_get(tags.make_tables(p))
        for p in (plain._replace(tokenizer=adding), plain)
    )
    for name in ("closing", "opening"):
        np.testing.assert_array_equal(getattr(found, name), getattr(known, name))
