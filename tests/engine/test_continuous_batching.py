"""Continuous batching: every branch as the plain loop samples it, few idle slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests import kit
from vlmrl.engine import continuous_batching, prefix_cache
from vlmrl.engine.automata import automaton
from vlmrl.engine.continuous_batching import SlotCounts
from vlmrl.engine.generate import Sampling, Stops, branch_keys, generate, make_stops

V, END = 8, 7


def stops() -> Stops:
    words = [bytes([65 + i]) for i in range(V)]
    found = automaton(words, (b"</answer>",))
    ids = np.arange(V)
    return Stops(
        *map(jnp.asarray, (found.table, found.hits, ids == END)),
        jnp.zeros(V, bool),
    )


def both(model, params, cache, groups, keys, stops, sizes, length, temperature=1.0):
    """(the plain loop's Rollout, that of the slots, their SlotUsage)."""
    sampling = Sampling(temperature)

    @jax.jit
    def run(params, cache, keys):
        plain, _ = generate(
            model, params, cache, keys, stops, max_tokens=length, sampling=sampling
        )
        source = continuous_batching.from_cache(cache, groups)
        return plain, *continuous_batching.generate(
            model, params, source, keys, stops,
            slots=sizes, max_tokens=length, sampling=sampling,
        )  # fmt: skip

    return jax.device_get(run(params, cache, keys))


def same(found, wanted):
    for name in ("tokens", "mask", "stopped"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-5)
    np.testing.assert_allclose(found.entropy, wanted.entropy, atol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        SlotCounts(5, 3),
        SlotCounts(1, 1),
        SlotCounts(3, 1),  # one group after the other
        SlotCounts(99, 99),  # more than there is
    ],
    ids=str,
)
def test_every_branch_is_that_of_the_plain_loop(sizes):
    groups, each, length = 4, 3, 9
    table = np.random.default_rng(0).normal(size=(groups, length + 1, V))
    model, params, cache = kit.scripted(table)
    keys = branch_keys(0, "rollout", 0, list("abcd"), each)
    plain, found, use = both(model, params, cache, groups, keys, stops(), sizes, length)
    assert len(set(plain.mask.sum(-1).tolist())) > 2  # they end at unlike lengths
    same(found, plain)
    assert use.tokens == plain.mask.sum() and use.loads == groups
    slotted = min(sizes.decode, groups * each)
    assert use.tokens <= use.steps * slotted


@pytest.mark.slow
def test_segments_behind_segments_and_attention():
    """The toy with its images, 2 groups of 2 conditions with 3 samples each. Groups are
    read when their turn comes; a slot attends to the segments of its branch and to its
    own tokens in the ring buffer: equal ids, log-probs to 1e-5."""
    group = kit.group(2, ("base", "wrong_caption"))
    made = make_stops(kit.processor())
    common = np.isin(np.arange(len(made.end)), np.arange(40, 100))
    made = made._replace(end=made.end | common)
    keys = branch_keys(0, "rollout", 0, list("abcd"), 3)
    settings = dict(max_tokens=10, sampling=Sampling(0.7))

    @jax.jit
    def run(params, group):
        read = functools.partial(prefix_cache.prefill, kit.model(), params)
        plain, _ = generate(kit.model(), params, read(group), keys, made, **settings)
        return plain, *continuous_batching.generate(
            kit.model(), params, continuous_batching.from_group(group, read),
            keys, made, slots=SlotCounts(3, 1), **settings,
        )  # fmt: skip

    plain, found, use = jax.device_get(run(kit.params(), group))
    assert len(set(plain.mask.sum(-1).tolist())) > 2
    same(found, plain)
    assert use.loads == 2


def long_tailed(groups, length):
    """A model whose branches' lengths are log-normal with median 20, and the spread of
    a factor e: at each step the end token has the hazard of that distribution."""
    steps = np.maximum(np.arange(length + 1), 1e-9)
    alive = scipy.stats.norm.sf(np.log(steps / 20))
    hazard = 1 - alive[1:] / alive[:-1]
    table = np.full((groups, length + 1, V), -30.0)
    table[:, :-1, END], table[:, :-1, 0] = np.log(hazard), np.log1p(-hazard)
    return kit.scripted(table)


def test_few_slots_stand_idle_under_a_long_tail():
    """768 branches in 16 slots, the longest ten times the median: at least 85 % of
    slot-steps write a token, where 16 rows at a time write in less than a third. (What
    is lost goes at the end, when nothing waits: 256 branches reach 75 to 83 %.)
    """
    groups, each, length, width = 96, 8, 256, 16
    model, params, cache = long_tailed(groups, length)
    keys = branch_keys(0, "rollout", 0, [str(i) for i in range(groups)], each)
    source = continuous_batching.from_cache(cache, groups)

    @jax.jit
    def run(params):
        return continuous_batching.generate(
            model, params, source, keys, stops(),
            slots=SlotCounts(width, 8), max_tokens=length, sampling=Sampling(1.0),
        )  # fmt: skip

    found, use = jax.device_get(run(params))
    lengths = found.mask.sum(-1)
    assert 15 < np.median(lengths) < 25 and lengths.max() > 150
    assert use.tokens == lengths.sum() and use.loads == groups
    share = use.tokens / (use.steps * width)
    assert share >= 0.85, share
    batches = lengths.reshape(-1, width).max(1).sum() * width
    assert lengths.sum() / batches < 1 / 3
