"""Sampling: a `while_loop` over a prefix cache whose last segment grows in place.

Axis letters: N groups, G branches, B = N * G rows, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.engine import decode
from vlmrl.engine.automata import automaton
from vlmrl.engine.logprobs import entropy, logits, policy
from vlmrl.engine.prefix_cache import PrefixCache, extend
from vlmrl.models.api import CacheSegment, Model
from vlmrl.prompts.tokens import Processor
from vlmrl.types import Array, Rollout


class Sampling(NamedTuple):
    """Temperature (0: greedy) and truncation (top_k 0, top_p 1: none)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Stops(NamedTuple):
    """When a row ends, and which tokens are never sampled; one per tokenizer."""

    table: Array  # int16[V, A]: automaton over decoded bytes, stepped by whole tokens
    hits: Array  # uint8[V, A]: bit set where a stop string ends inside the token
    end: Array  # bool[V]: end tokens
    banned: Array  # bool[V]: vision and pad tokens


def make_stops(processor: Processor, end: str = "</answer>") -> Stops:
    """Return the Stops of a tokenizer: rows end where the string `end` is complete, or
    at an end token."""
    tables = automaton(processor.token_bytes, (end.encode(),))
    ends = np.zeros(processor.vocab_size, bool)
    ends[list(processor.end_ids)] = True
    return Stops(*map(jnp.asarray, (tables.table, tables.hits, ends, processor.banned)))


def stable_hash(text: str) -> int:
    """Return 31 bits of sha256: the same in every process and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def branch_keys(seed: int, use: str, step: int, ids: list[str], samples: int):
    """Return one key per branch, uint32[N * samples, 2], folded from (seed, use, step,
    stable hash of the id, sample): results do not depend on batch order, batch size or
    hosts. The id of an evaluation row names its example and its condition.
    """
    base = jax.random.fold_in(jax.random.key(seed), stable_hash(use))
    base = jax.random.fold_in(base, step)
    hashes = np.array([stable_hash(i) for i in ids], np.uint32)
    return _fold(base, hashes, samples)


@functools.partial(jax.jit, static_argnums=2)
def _fold(base, hashes, samples: int):
    rows = jax.vmap(lambda h: jax.random.fold_in(base, h))(hashes)
    fold_sample = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold_sample, (0, None))(rows, jnp.arange(samples))
    return jax.random.key_data(keys).reshape(-1, 2)


def truncate(logp, sampling: Sampling):
    """Keep the top_k likeliest ids and the smallest set of mass ≥ top_p, renormalised.

    Args:
      logp: float32[B, V], normalised.
    Returns:
      float32[B, V] with −∞ outside that set.
    """
    size = logp.shape[-1]
    if sampling.top_k and sampling.top_k < size:
        lowest = jax.lax.top_k(logp, sampling.top_k)[0][:, -1:]
        logp = jax.nn.log_softmax(jnp.where(logp < lowest, -jnp.inf, logp), axis=-1)
    if sampling.top_p < 1:
        order = jnp.sort(logp, axis=-1, descending=True)
        mass = jnp.cumsum(jnp.exp(order), axis=-1)
        # The first id that reaches the mass stays, too.
        last = jnp.sum(mass < sampling.top_p, axis=-1, keepdims=True)
        lowest = jnp.take_along_axis(order, jnp.minimum(last, size - 1), axis=-1)
        logp = jax.nn.log_softmax(jnp.where(logp < lowest, -jnp.inf, logp), axis=-1)
    return logp


def sample_tokens(raw, keys, t, stops: Stops, sampling: Sampling):
    """Sample a token for each row.

    Args:
      raw: float32[B, V], logits; keys: uint32[B, 2], one per branch; t: int32[B], how
        many tokens the branch has: token keys are folded from both.
    Returns:
      (ids int32[B], their log-probs float32[B] under the distribution sampled from).
    """
    logp = policy(raw, sampling.temperature, stops.banned)
    if sampling.temperature == 0:
        ids = jnp.argmax(logp, axis=-1)
    else:
        logp = truncate(logp, sampling)
        token_keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(keys), t)
        ids = jax.vmap(jax.random.categorical)(token_keys, logp)
    chosen = jnp.take_along_axis(logp, ids[:, None], axis=-1)[:, 0]
    return ids.astype(jnp.int32), chosen


class DecodeState(NamedTuple):
    """The loop's carry; T = max_tokens."""

    t: Array  # int32[]: tokens sampled so far
    rollout: Rollout
    k: Array  # dtype[L, B, K, T, H], written in place
    v: Array
    hidden: Array  # dtype[B, D]
    automaton: Array  # int32[B]
    done: Array  # bool[B]


def empty_rollout(rows: int, length: int) -> Rollout:
    """Return a Rollout of `rows` rows in which nothing is sampled yet."""
    kinds = jnp.int32, jnp.float32, jnp.float32, bool
    tokens = (jnp.zeros((rows, length), kind) for kind in kinds)
    return Rollout(*tokens, jnp.zeros(rows, bool))


def generate(
    model: Model,
    params,
    cache: PrefixCache,
    keys,
    stops: Stops,
    *,
    max_tokens: int,
    sampling: Sampling,
    **options,
) -> tuple[Rollout, PrefixCache]:
    """Sample B = keys.shape[0] rows behind a cache of b rows, B / b branches of each.

    A row ends when a stop string is complete in its decoded bytes or at an end token;
    the loop ends when every row has, or at max_tokens. Recorded log-probs are those of
    the distribution sampled from (temperature, bans and truncation included).

    Args:
      options: unroll (see the family's `layers`).
    Returns:
      the Rollout, and the cache with the rows' own segment (all their tokens read).
    """
    rows = keys.shape[0]
    branches = rows // cache.next.shape[0]
    head = model.head(params)
    dtype = cache.hidden.dtype
    like = cache.segments[-1].k
    own_shape = (like.shape[0], rows, like.shape[3], max_tokens, like.shape[4])
    shared = tuple(map(decode.to_bkth, cache.segments))
    start = jnp.repeat(cache.next, branches)
    positions = start[:, None] + jnp.arange(max_tokens, dtype=jnp.int32)

    def read(s: DecodeState, ids) -> PrefixCache:
        """Run the model over one new token of every row."""
        mask = jnp.broadcast_to(jnp.arange(max_tokens) < s.t, (rows, max_tokens))
        segments = (*shared, CacheSegment(s.k, s.v, mask, positions))
        here = PrefixCache(segments, s.hidden, start + s.t)
        valid = jnp.ones((rows, 1), bool)
        _, after = extend(
            model, params, here, ids[:, None], valid, attend=decode.attend, **options
        )
        return after

    def step(s: DecodeState) -> DecodeState:
        raw = logits(s.hidden, head)
        ids, logp = sample_tokens(raw, keys, jnp.full(rows, s.t), stops, sampling)
        live = ~s.done
        ended = stops.end[ids] | (stops.hits[ids, s.automaton] != 0)
        after = read(s, ids)
        new, at = decode.to_bkth(after.segments[-1]), (0, 0, 0, s.t, 0)
        return DecodeState(
            s.t + 1,
            _write_column(s.rollout, s.t, live, ids, logp, entropy(raw), ended),
            jax.lax.dynamic_update_slice(s.k, new.k, at),
            jax.lax.dynamic_update_slice(s.v, new.v, at),
            jnp.where(live[:, None], after.hidden, s.hidden),
            stops.table[ids, s.automaton].astype(jnp.int32),
            s.done | ended,
        )

    first = DecodeState(
        jnp.int32(0),
        empty_rollout(rows, max_tokens),
        jnp.zeros(own_shape, dtype),
        jnp.zeros(own_shape, dtype),
        jnp.repeat(cache.hidden, branches, axis=0),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool),
    )
    last = jax.lax.while_loop(
        lambda s: (s.t < max_tokens) & ~jnp.all(s.done), step, first
    )
    own = CacheSegment(last.k, last.v, last.rollout.mask, positions)
    segments = (*cache.segments, decode.to_btkh(own))
    after = start + last.rollout.mask.sum(-1, dtype=jnp.int32)
    return last.rollout, PrefixCache(segments, last.hidden, after)


def _write_column(r: Rollout, t, live, ids, logp, spread, ended) -> Rollout:
    """Write token t of every live row."""

    def put(array, value):
        column = jnp.where(live, value, jnp.zeros_like(value)).astype(array.dtype)
        return jax.lax.dynamic_update_slice(array, column[:, None], (0, t))

    return Rollout(
        put(r.tokens, ids),
        put(r.logprobs, logp),
        put(r.entropy, spread),
        put(r.mask, live),
        r.stopped | (live & ended),
    )
