"""Sampling: what is drawn and recorded, when a row ends, and what it depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from vlmrl.engine import logprobs, prefix_cache
from vlmrl.engine.automata import automaton
from vlmrl.engine.generate import (
    Sampling,
    Stops,
    branch_keys,
    generate,
    make_stops,
    stable_hash,
    truncate,
)
from vlmrl.engine.score import completions, score
from vlmrl.types import Group, Tokens

GAP = 1e-4  # between the two best logits: closer ones may change places
LENGTH = 10
V = 32  # of scripted models


# -- the toy model: cached decode = full forward ---------------------------------------


def stops_of_toy(end=()) -> Stops:
    """The tokenizer's stops, with further end tokens."""
    stops = make_stops(kit.processor())
    return stops._replace(end=stops.end | np.isin(np.arange(len(stops.end)), end))


def test_a_token_after_a_prefix_has_the_next_position():
    """Qwen2-VL, section 2.1 (https://arxiv.org/abs/2409.12191): text goes on after the
    largest position of the three axes, whatever padding holds."""
    text, image, junk = [0, 0, 0], [[1, 1, 1], [1, 1, 2], [1, 1, 3]], [9, 9, 9]
    rows = [[text, *image, junk], [text, [1, 1, 1], junk, junk, junk], [junk] * 5]
    mask = np.arange(5) < np.array([[4], [2], [0]])
    ids = np.zeros((3, 5), np.int32)
    tokens = Tokens(ids, np.array(rows, np.int32).swapaxes(1, 2), mask, ids - 1)
    assert prefix_cache.next_position(tokens).tolist() == [4, 2, 0]
    prefix = kit.group(2).prefix  # ends with text, whose three positions are equal
    last = prefix.positions[np.arange(2), :, prefix.mask.sum(-1) - 1]
    assert (prefix_cache.next_position(prefix)[:, None] == last + 1).all()


@functools.partial(jax.jit, static_argnames="sampling")
def sample(params, group, keys, stops, sampling):
    """(Rollout, its PrefixCache, log-probs and entropies by `score`)."""
    cache = prefix_cache.prefill(kit.model(), params, group)
    rollout, after = generate(
        kit.model(), params, cache, keys, stops, max_tokens=LENGTH, sampling=sampling
    )
    found = score(
        kit.model(),
        params,
        completions(group, rollout),
        temperature=sampling.temperature,
        banned=stops.banned,
    )
    return rollout, after, found


@jax.jit
def plain(params, rows):
    return kit.row_logits(kit.model(), params, rows)


def group_of(kind: str) -> Group:
    made = kit.group(2)
    if kind == "images":
        return made
    # The same shapes and programs, without an image token.
    rows = [
        [kit.tokens.encode(kit.processor(), (e.question, ()))] for e in kit.examples()
    ]
    texts = kit.tokens.group(rows[:2], kit.processor().geometry, kit.BUCKETS)
    return texts._replace(vision=made.vision)


ENDS = tuple(range(40, 100))  # common ids, so that rows end at all lengths
KEYS = 3


@functools.cache
def sampled(kind, temperature):
    keys = branch_keys(0, "rollout", 0, ["a", "b"], KEYS)
    stops = stops_of_toy(ENDS)
    return jax.device_get(
        sample(kit.params(), group_of(kind), keys, stops, Sampling(temperature))
    )


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_recorded_logprobs_and_entropies_are_those_of_score(kind, temperature):
    rollout, _, (logp, entropy) = sampled(kind, temperature)
    mask = rollout.mask
    np.testing.assert_allclose(rollout.logprobs[mask], logp[mask], atol=1e-5, rtol=0)
    np.testing.assert_allclose(rollout.entropy[mask], entropy[mask], atol=1e-5, rtol=0)
    assert (rollout.logprobs[mask] <= 0).all() and (rollout.entropy[mask] > 0).all()
    if temperature:
        assert len({tuple(row) for row in rollout.tokens}) == len(rollout.tokens)


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_decoding_is_a_full_forward_at_every_step(kind, temperature):
    """Every step against one forward of the whole row with dense attention: recorded
    log-probs, and for greedy decoding the argmax that a naive loop would take."""
    rollout = sampled(kind, temperature)[0]
    made = jax.device_get(completions(group_of(kind), rollout))
    rows = kit.ordinary(made)
    raw = np.asarray(plain(kit.params(), rows))
    banned = np.asarray(stops_of_toy().banned)
    logp = kit.branch_logprobs(raw, made, temperature or 1.0, banned)
    # The naive forward is in float32 too, of logits tens apart: it adds its own error.
    np.testing.assert_allclose(rollout.logprobs, np.asarray(logp), atol=2e-5, rtol=0)
    if temperature:
        return
    raw = np.where(banned, -np.inf, raw)
    checked = 0
    for r, t in np.argwhere(rollout.mask):
        at = raw[r, made.prefix.mask[r // KEYS].sum() - 1 + t]
        second, first = np.sort(at)[-2:]
        if first - second > GAP:
            assert rollout.tokens[r, t] == at.argmax()
            checked += 1
    assert checked > 0.9 * rollout.mask.sum()


def test_rows_end_alone_and_write_nothing_more():
    rollout, after, _ = sampled("images", 0.7)
    lengths = rollout.mask.sum(-1)
    assert len(set(lengths.tolist())) > 2  # or the test says nothing
    np.testing.assert_array_equal(rollout.mask, np.arange(LENGTH) < lengths[:, None])
    for array in (rollout.tokens, rollout.logprobs, rollout.entropy):
        assert not array[~rollout.mask].any()
    end = np.isin(rollout.tokens, [*ENDS, *kit.processor().end_ids]) & rollout.mask
    last = np.arange(LENGTH) == lengths[:, None] - 1
    assert not (end & ~last).any()
    np.testing.assert_array_equal((end & last).any(-1), rollout.stopped)
    assert (lengths[~rollout.stopped] == LENGTH).all()
    np.testing.assert_array_equal(after.segments[-1].mask, rollout.mask)


def test_the_cache_continues_from_each_rows_own_end():
    """hidden, next and the keys and values are those of the row read as plain text."""
    rollout, after, _ = sampled("images", 0.7)
    made = completions(group_of("images"), rollout)
    cache = jax.jit(lambda p, g: prefix_cache.prefill(kit.model(), p, g))(
        kit.params(), made
    )
    np.testing.assert_allclose(after.hidden, cache.hidden, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(after.next, cache.next)
    keep = rollout.mask[None, ..., None, None]
    for name in ("k", "v"):
        found, wanted = (getattr(c.segments[-1], name) * keep for c in (after, cache))
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


def test_banned_ids_are_never_sampled_however_likely():
    """Vision tokens and ids beyond the tokenizer, their logits made the largest."""
    banned = np.flatnonzero(kit.processor().banned)
    params = dict(kit.params())
    keys = branch_keys(1, "rollout", 0, ["a", "b"], KEYS)
    # The head is the embedding: a banned id that looks the way the state does.
    group = group_of("images")
    cache = jax.jit(lambda p, g: prefix_cache.prefill(kit.model(), p, g))(params, group)
    loud = 5 * np.asarray(cache.hidden).mean(0)
    params["text.embed"] = params["text.embed"].at[banned].set(loud)
    raw = np.asarray(cache.hidden) @ np.asarray(params["text.embed"]).T
    assert np.isin(raw.argmax(-1), banned).all()
    for temperature in (0.0, 0.7):
        rollout, *_ = sample(
            params, group, keys, stops_of_toy(ENDS), Sampling(temperature)
        )
        assert not np.isin(rollout.tokens, banned)[np.asarray(rollout.mask)].any()
        assert np.isfinite(rollout.logprobs).all()


# -- scripted models: stops and truncation ---------------------------------------------


def toy_stops(vocabulary, end=(), banned=(), stop=b"</answer>") -> Stops:
    found = automaton(vocabulary, (stop,))
    ids = np.arange(len(vocabulary))
    return Stops(
        *map(jnp.asarray, (found.table, found.hits, np.isin(ids, end))),
        jnp.asarray(np.isin(ids, banned)),
    )


def write(script, stops, width=8, samples=1, **sampling):
    """The Rollout of a model that wants to write `script`, ids per prompt."""
    table = np.zeros((len(script), width + 1, len(stops.end)), np.float32)
    for r, ids in enumerate(script):
        table[r, np.arange(len(ids)), ids] = 30
    model, params, cache = kit.scripted(table)
    keys = branch_keys(0, "x", 0, [str(r) for r in range(len(script))], samples)
    sampling = Sampling(**{"temperature": 0.0, **sampling})
    run = jax.jit(
        lambda params, cache: generate(
            model, params, cache, keys, stops, max_tokens=width, sampling=sampling
        )[0]
    )
    return jax.device_get(run(params, cache))


def test_stop_strings_across_tokens_end_tokens_and_length():
    words = [b"a", b"<", b"/", b"answer", b">", b"</", b"answer>", b"</ans", b"wer>x"]
    words += [b"b</", b"</answer>", b"END", b""]
    stops = toy_stops(words, end=[11])
    script = [
        [0, 1, 2, 3, 4, 0, 0, 0],  # '<' '/' 'answer' '>'
        [0, 5, 6, 0, 0, 0, 0, 0],  # '</' 'answer>'
        [7, 8, 0, 0, 0, 0, 0, 0],  # '</ans' 'wer>x': ends inside a token
        [0, 9, 3, 4, 0, 0, 0, 0],  # 'b</' 'answer' '>': begins inside a token
        [1, 5, 3, 0, 5, 3, 4, 0],  # '<' '</' 'answer' 'a' breaks off, then again
        [10, 0, 0, 0, 0, 0, 0, 0],  # whole in one token
        [5, 12, 3, 12, 4, 0, 0, 0],  # empty tokens between
        [0, 0, 11, 0, 0, 0, 0, 0],  # an end token
        [5, 3, 11, 4, 0, 0, 0, 0],  # an end token inside a half-written stop
        [5, 3, 0, 4, 5, 3, 5, 3],  # never complete
    ]
    rollout = write(script, stops)
    lengths = [5, 3, 2, 4, 7, 1, 5, 3, 3, 8]
    np.testing.assert_array_equal(rollout.mask.sum(-1), lengths)
    np.testing.assert_array_equal(rollout.stopped, [True] * 9 + [False])
    for row, ids, n in zip(rollout.tokens, script, lengths, strict=True):
        np.testing.assert_array_equal(row, [*ids[:n], *[0] * (8 - n)])


def test_the_tokenizers_own_stop_string():
    """`</answer>` as the shipped tokenizer splits it."""
    encode = kit.processor().tokenizer.encode
    texts = ["<answer>A</answer> B", "x.</answer>\n", "</answer", "<|im_end|>"]
    script = [encode(t)[:8] for t in texts]
    stops = make_stops(kit.processor())
    rollout = write(script, stops)
    assert rollout.stopped.tolist() == [True, True, False, True]
    decoded = [
        kit.tokens.decode(kit.processor(), row[mask])
        for row, mask in zip(rollout.tokens, rollout.mask, strict=True)
    ]
    assert decoded[0].endswith("</answer>") and "B" not in decoded[0]
    assert decoded[1].startswith("x.</answer>")
    assert rollout.mask.sum(-1)[2] == 8 and decoded[3] == ""


def test_finished_rows_draw_no_one_else_on():
    """The loop ends with the last row: positions after it were never computed."""
    words = [b"a", b"<", b"END"]
    rollout = write([[0, 2, 0, 0], [2, 0, 0, 0]], toy_stops(words, end=[2]), width=4)
    np.testing.assert_array_equal(rollout.mask.sum(-1), [2, 1])
    assert not rollout.entropy[:, 2:].any()


def truncated(logp, top_k, top_p):
    """float64[V]: what `truncate` must give for one row, ids taken one by one."""
    order = np.argsort(-logp, kind="stable")
    keep = list(order[:top_k] if top_k else order)
    mass = np.exp(logp[keep]) / np.exp(logp[keep]).sum()
    if top_p < 1:
        count = next(
            (i + 1 for i in range(len(keep)) if mass[: i + 1].sum() >= top_p), len(keep)
        )
        keep = keep[:count]
    out = np.full(len(logp), -np.inf)
    out[keep] = logp[keep] - np.log(np.exp(logp[keep]).sum())
    return out


CUTS = [
    (0, 1.0),
    (1, 1.0),
    (5, 1.0),
    (0, 0.6),
    (6, 0.5),
    (0, 1e-6),
    (V, 0.9),
    (99, 1.0),
]


@pytest.mark.parametrize(("top_k", "top_p"), CUTS)
def test_truncation_against_a_plain_count(top_k, top_p):
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(7, V)) * np.array([0.1, 1, 1, 2, 3, 5, 9])[:, None]
    raw[2, :20] = -np.inf  # banned ids
    logp = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    found = truncate(jnp.float32(logp), Sampling(1.0, top_k, top_p))
    wanted = np.stack([truncated(row, top_k, top_p) for row in logp])
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_is_recorded_is_what_was_sampled_from():
    """Temperature, bans and truncation in the recorded log-probs; entropies raw. Over
    many rows every id that may come does, as often as it should, and no other."""
    rng = np.random.default_rng(1)
    table = rng.normal(size=(2, 5, V)).astype(np.float32) * 2
    words = [bytes([65 + i]) for i in range(V)]
    banned = [3, int(table[0, 0].argmax()), int(table[1, 2].argmax())]
    stops = toy_stops(words, banned=banned)
    model, params, cache = kit.scripted(table)
    sampling, samples = Sampling(0.7, 6, 0.8), 1500
    keys = branch_keys(0, "x", 0, ["a", "b"], samples)
    run = jax.jit(
        lambda p, c: generate(
            model, p, c, keys, stops, max_tokens=4, sampling=sampling
        )[0]
    )
    rollout = jax.device_get(run(params, cache))
    for r in range(2):
        rows = slice(r * samples, (r + 1) * samples)
        for t in range(4):
            raw = np.where(np.isin(np.arange(V), banned), -np.inf, table[r, t] / 0.7)
            logp = raw - np.log(np.exp(raw).sum())
            wanted = truncated(logp.astype(np.float64), 6, 0.8)
            ids = rollout.tokens[rows, t]
            recorded = rollout.logprobs[rows, t]
            np.testing.assert_allclose(recorded, wanted[ids], atol=1e-5)
            share = np.bincount(ids, minlength=V) / samples
            p = np.exp(wanted)
            # Five standard deviations of a share of 1500 draws.
            assert (
                np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / samples) + 1e-6
            ).all()
            full = np.exp(table[r, t] - table[r, t].max())
            full /= full.sum()
            entropy = -(full * np.log(full)).sum()
            np.testing.assert_allclose(rollout.entropy[rows, t], entropy, atol=1e-5)


# -- chunks of the head ----------------------------------------------------------------


@pytest.mark.parametrize("tokens_held", [1, 6, 7, 21, 1000])
def test_the_head_in_chunks_is_the_head(monkeypatch, tokens_held):
    """Log-probs, entropies and gradients, whatever number of tokens is held at once,
    also where it does not divide the length."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 7, 5)).astype(np.float32)
    head = rng.normal(size=(V, 5)).astype(np.float32)
    targets = rng.integers(0, V - 1, (3, 7))
    banned = np.arange(V) == V - 1
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", tokens_held * V)
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 1)

    def plain(hidden, head):
        raw = hidden @ head.T
        scaled = jnp.where(banned, -jnp.inf, raw / 0.7)
        logp = jax.nn.log_softmax(scaled, axis=-1)
        p = jax.nn.softmax(raw, axis=-1)
        picked = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
        return picked, -(p * jnp.log(p)).sum(-1)

    def chunked(hidden, head):
        return logprobs.token_logprobs(
            hidden, head, jnp.array(targets), temperature=0.7, banned=banned
        )

    def both(function):
        def loss(hidden, head):
            logp, entropy = function(hidden, head)
            return (logp * jnp.cos(jnp.arange(7.0)) + entropy).sum()

        return function(hidden, head), jax.grad(loss, argnums=(0, 1))(hidden, head)

    found, wanted = jax.jit(lambda: (both(chunked), both(plain)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted
    )

    ids = jnp.array([3, 0, 3, 31])
    rows = hidden.reshape(-1, 5)
    picked = jax.jit(logprobs.id_logprobs)(rows, head, ids)
    every = jax.nn.log_softmax(rows @ head.T, axis=-1)
    np.testing.assert_allclose(picked, every[:, ids], atol=1e-5)


# -- keys ------------------------------------------------------------------------------


def test_keys_depend_on_what_they_name_and_nothing_else():
    names = ["scenes/7", "scenes/8|wrong_think", "x"]
    keys = np.asarray(branch_keys(3, "rollout", 5, names, 4)).reshape(3, 4, 2)
    again = np.asarray(branch_keys(3, "rollout", 5, names[::-1], 4)).reshape(3, 4, 2)
    np.testing.assert_array_equal(keys, again[::-1])
    fewer = np.asarray(branch_keys(3, "rollout", 5, names[1:2], 2))
    np.testing.assert_array_equal(keys[1, :2], fewer)
    others = [
        branch_keys(*args, names, 4)
        for args in ((4, "rollout", 5), (3, "eval", 5), (3, "rollout", 6))
    ]
    every = np.concatenate([keys.reshape(-1, 2), *others])
    assert len({tuple(k) for k in every.tolist()}) == len(every)
    assert stable_hash("scenes/7") == 0x338C912  # sha256's first 31 bits


def test_samples_do_not_depend_on_their_batch():
    """Order, size of the batch and number of samples asked for change no token."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(4, 7, V)).astype(np.float32)
    stops = toy_stops([bytes([65 + i]) for i in range(V)], end=[5, 6])
    names = np.array(["p", "q", "r", "s"])

    def tokens(order, samples):
        model, params, cache = kit.scripted(table[order])
        keys = branch_keys(0, "rollout", 1, list(names[order]), samples)
        run = jax.jit(
            lambda p, c: generate(
                model, p, c, keys, stops, max_tokens=6, sampling=Sampling(1.0)
            )[0]
        )
        found = jax.device_get(run(params, cache))
        return found.tokens.reshape(len(order), samples, 6), found.mask.sum()

    every, count = tokens(np.arange(4), 3)
    assert count < 4 * 3 * 6  # some rows end early
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(tokens(order, 3)[0], every[order])
    np.testing.assert_array_equal(tokens(np.array([1, 2]), 3)[0], every[1:3])
    np.testing.assert_array_equal(tokens(np.array([3]), 5)[0][:, :3], every[3:])
    assert len({tuple(row) for row in every.reshape(-1, 6).tolist()}) == 12


def test_toy_samples_do_not_depend_on_their_order():
    """The same with attention and images in it, at equal shapes: equal ids."""
    made = group_of("images")
    swapped = jax.tree.map(lambda x: x[::-1], made)
    keys = branch_keys(0, "rollout", 0, ["b", "a"], KEYS)
    found = sample(kit.params(), swapped, keys, stops_of_toy(ENDS), Sampling(0.7))[0]
    first = sampled("images", 0.7)[0]
    flip = lambda x: np.asarray(x).reshape(2, KEYS, LENGTH)[::-1]  # noqa: E731
    np.testing.assert_array_equal(flip(found.tokens).reshape(-1, LENGTH), first.tokens)
    np.testing.assert_allclose(
        flip(found.logprobs).reshape(-1, LENGTH), first.logprobs, atol=1e-5
    )
