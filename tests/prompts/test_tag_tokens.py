"""Reasoning tags as token ids: added, plain, and what tells one from the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import vlmrl
from tests import kit
from tests.prompts import tagged
from vlmrl import sharding
from vlmrl.models import hf, registry
from vlmrl.prompts import tag_tokens, tokens
from vlmrl.prompts.tag_tokens import Choice, TagRows
from vlmrl.types import UserError

TEXT = "<|im_start|>user\nSay <think> x</think>\n<answer>A</answer><|im_end|>\n"
PLAIN = Choice("plain", "")


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "special"])
def processor(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tags") / "model"
    return tokens.load_processor(tagged.add_tags(directory, special=request.param))


def test_added_tags_are_one_token_and_plain_ones_are_text(processor):
    added = list(tag_tokens.added_ids(processor.tokenizer).values())
    assert [i for i in processor.encode_plain(TEXT) if i in added] == added
    plain = processor.with_tags(PLAIN)
    ids = plain.encode_plain(TEXT)
    bare = tokens.load_processor(registry.TINY)
    assert ids == bare.encode_plain(TEXT)  # as if the tokenizer had no such tokens
    assert not set(ids) & set(added)
    for each in (processor, plain):
        assert each.encode_many([TEXT, "<think>"])[0] == each.encode_plain(TEXT)
    known = processor.tokenizer.get_vocab()
    assert ids[0] == known["<|im_start|>"] and known["<|im_end|>"] in ids
    assert plain.banned[added].all() and not processor.banned[added].any()
    bans = plain.banned.copy()
    bans[added] = False
    np.testing.assert_array_equal(bans, processor.banned)


pieces = st.sampled_from(
    ["<think>", "</think>", "<answer>", "think>", "<", "/", ">", "A", " the", "\n", "é"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join))
def test_both_decode_to_the_text(processor, text):
    for each in (processor, processor.with_tags(PLAIN)):
        ids = each.encode_plain(text)
        assert b"".join(each.token_bytes[i] for i in ids) == text.encode()


def rows(kind: str, seed: int = 0, width: int = 64, tied: bool = True):
    """Synthetic tables [embedding, head], with two tags of a kind and what is known of
    untrained rows: decayed in an untied embedding, pushed together in a head."""
    rng = np.random.default_rng(seed)

    def table(shift, spread):
        ordinary = rng.normal(size=(400, width)) * rng.uniform(0.5, 1.5, (400, 1))
        idle = shift + spread * rng.normal(size=(42, width))
        tags = ordinary[:2] if kind == "trained" else idle[:2]
        return TagRows(tags, idle[2:], ordinary[2:])

    push = 0.5 * rng.normal(size=width)
    return [table(push, 0.02)] if tied else [table(0.0, 0.05), table(push, 0.2)]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("seed", range(3))
def test_auto_tells_untrained_rows_from_trained_ones(tied, seed):
    for kind, mode in (("trained", "added"), ("untrained", "plain")):
        choice = tag_tokens.choose(
            "auto",
            tagged.TAGS,
            opened=kind != "trained",  # the rows outweigh template and family
            family="qwen3_vl" if kind == "trained" else "qwen2",
            tables=rows(kind, seed, tied=tied),
        )
        assert choice.mode == mode and "<think> and </think>" in choice.why


@pytest.mark.parametrize("count", [0, 1, 300])
def test_auto_at_the_edges_of_tables(count):
    rng = np.random.default_rng(1)
    ordinary = rng.normal(size=(300, 32))
    same = np.full((count, 32), 0.01)  # unused rows without any spread
    small = TagRows(np.full((1, 32), 0.01), same, ordinary)
    assert tag_tokens.trained(small) == [False]
    usual = TagRows(ordinary[:1], same, ordinary)
    assert tag_tokens.trained(usual) == [True if count else None]
    fresh = TagRows(ordinary[:1], rng.normal(size=(count, 32)), ordinary)
    assert tag_tokens.trained(fresh) == [None] or count == 1
    zero = TagRows(np.zeros((1, 32)), np.zeros((count, 32)), ordinary)
    assert tag_tokens.trained(zero) == [False]


def test_a_token_that_is_only_read_or_only_written_is_trained():
    read, written = rows("untrained", tied=False)
    known, _ = rows("trained", tied=False)
    for tables in ([known, written], [read, known]):
        choice = tag_tokens.choose(
            "auto", tagged.TAGS, opened=False, family="qwen3_vl", tables=tables
        )
        assert choice.mode == "added"


def test_template_and_family_decide_where_rows_do_not():
    rng = np.random.default_rng(0)
    fresh = [TagRows(*(rng.normal(size=(n, 64)) for n in (2, 40, 400)))]

    def mode(**facts):
        facts = dict(opened=False, family="qwen2", tables=fresh) | facts
        return tag_tokens.choose("auto", tagged.TAGS, **facts).mode

    assert mode() == mode(opened=True, family="qwen3_vl") == "added"
    assert mode(family="qwen3_vl") == "plain"
    for set_to in ("added", "plain"):
        facts = dict(opened=True, family="qwen3_vl", tables=fresh)
        assert tag_tokens.choose(set_to, tagged.TAGS, **facts).mode == set_to
        assert tag_tokens.choose(set_to, (), **facts).mode == "plain"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("known", [True, False], ids=["trained", "untrained"])
def test_a_checkpoint_says_how_its_tags_are_tokenised(tmp_path, known, tied):
    path = tagged.save(tmp_path / "model", known=known, tied=tied)
    policy = vlmrl.load(str(path))
    assert policy.processor.tags.mode == ("added" if known else "plain")
    line = policy.processor.about_tags()
    assert line.startswith(f"reasoning tags: {policy.processor.tags.mode} (<think>")
    assert "\n" not in line
    with pytest.raises(UserError, match="tags: expected auto, added, plain, got 'no'"):
        vlmrl.load(str(path), tags="no")


@pytest.mark.slow
def test_a_model_reads_plain_tags_as_it_was_trained_to(tmp_path):
    """The tiny one, which never had these tokens: with them its prompts say something
    else. Of plain ones every record is its own."""
    path = tagged.save(tmp_path / "model", known=False)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    examples, conditions = kit.examples(6), ["base", "wrong_think", "stop_think"]

    def texts(name, tags):
        policy = vlmrl.load(name, mesh=mesh, style="tiny", tags=tags)
        options = dict(max_tokens=72, probes=1)
        rows = vlmrl.evaluate(policy, examples, conditions, **options)
        return [(r.prompt, r.completion, r.verdict, r.format) for r in rows], rows

    own, _ = texts("tiny", "auto")
    plain, rows = texts(str(path), "auto")
    assert plain == own and {r.tags for r in rows} == {"plain"}
    added, rows = texts(str(path), "added")
    assert added != own and {r.tags for r in rows} == {"added"}


def test_an_export_carries_the_choice_to_every_tool(tmp_path):
    path = tagged.save(tmp_path / "model", known=False)
    policy = vlmrl.load(str(path))
    ids = policy.processor.encode_plain(TEXT)
    params = {n: jnp.asarray(p) for n, p in policy.params.items()}
    out = hf.save(tmp_path / "out", policy.model, params, path, plain_tags=True)
    other = AutoTokenizer.from_pretrained(str(out))
    assert other.encode(TEXT, add_special_tokens=False) == ids
    assert len(other) == len(policy.processor.tokenizer)
    again = vlmrl.load(str(out), tags="added").processor
    assert again.encode_plain(TEXT) == ids
    np.testing.assert_array_equal(again.banned, policy.processor.banned)
    kept = hf.save(tmp_path / "same", policy.model, params, path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (kept / name).read_bytes() == (path / name).read_bytes()
