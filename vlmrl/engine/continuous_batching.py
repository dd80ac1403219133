"""Continuous batching: a finished branch leaves its decode slot, and the next one
starts there.

B decode slots run side by side. P prefix slots hold a group each: its prefix, read once
for all its branches. When a branch ends, the first waiting branch of the groups in the
prefix slots starts in its decode slot; when a group has neither waiting nor running
branches, the next group is loaded into its prefix slot. All of it is one jitted loop. A
decode slot is idle only when nothing waits: P = B prefix slots never make one wait,
fewer do when the longest branches of all their groups are still running.

Random keys belong to branches, so that a branch's tokens are those of
`generate.generate`, whatever slot it ran in and beside whom. Attention sums the same
keys, but in another order, since a slot's own tokens are written to a ring buffer: the
column of step s is s mod T for all slots.

Axis letters: N groups, G branches of each, c rows of a group's last segment, B decode
slots, P prefix slots, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine import decode
from vlmrl.engine.generate import Sampling, Stops, empty_rollout, sample_tokens
from vlmrl.engine.logprobs import entropy, logits
from vlmrl.engine.prefix_cache import PrefixCache, extend
from vlmrl.models.api import CacheSegment, Model
from vlmrl.types import Array, Group, Rollout


class PrefixSource(NamedTuple):
    """Where prefixes come from when their turn comes."""

    groups: int  # N
    load: Callable  # index int32[] → PrefixCache of that group alone


class SlotCounts(NamedTuple):
    decode: int  # B; cut to the number of branches
    prefix: int  # P; cut to the number of groups


class SlotUsage(NamedTuple):
    """What a loop did."""

    steps: Array  # int32[]: each decodes all B slots
    tokens: Array  # int32[]: sampled, at most steps * B
    loads: Array  # int32[]: groups loaded into prefix slots


class DecodeSlots(NamedTuple):
    """The branch in each decode slot."""

    prefix: Array  # int32[B]: its prefix slot, P where there is no branch
    branch: Array  # int32[B], of its group
    t: Array  # int32[B]: tokens sampled
    hidden: Array  # dtype[B, D]
    next: Array  # int32[B]: position of its next token
    automaton: Array  # int32[B]
    mask: Array  # bool[B, T]: columns of the ring buffer that are its own
    positions: Array  # int32[B, T]: of those
    k: Array  # dtype[L, B, K, T, H]: the ring buffer
    v: Array


class PrefixSlots(NamedTuple):
    """The groups being decoded."""

    cache: PrefixCache  # of P groups, in BKTH
    group: Array  # int32[P], N: none
    started: Array  # int32[P]: branches that have started, G at most


class LoopState(NamedTuple):
    step: Array  # int32[]
    loaded: Array  # int32[]: groups loaded so far
    slots: DecodeSlots
    prefixes: PrefixSlots
    rollout: Rollout  # N * G rows


def from_cache(cache: PrefixCache, groups: int) -> PrefixSource:
    """Take prefixes from a cache of N groups."""

    def load(index):
        return _map_rows(functools.partial(_group_rows, index, groups), cache)

    return PrefixSource(groups, load)


def from_group(group: Group, read: Callable) -> PrefixSource:
    """Compute prefixes one by one: only P of N ever exist.

    Args:
      read: a group of one → its PrefixCache, see `prefix_cache.prefill`.
    """
    groups = group.prefix.ids.shape[0]

    def load(index):
        rows = functools.partial(_group_rows, index, groups, 0)
        return read(jax.tree.map(rows, group))

    return PrefixSource(groups, load)


def _group_rows(index, groups: int, axis: int, x):
    size = x.shape[axis] // groups
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), index * size, size, axis)


def generate(
    model: Model,
    params,
    source: PrefixSource,
    keys,
    stops: Stops,
    *,
    slots: SlotCounts,
    max_tokens: int,
    sampling: Sampling,
    **options,
) -> tuple[Rollout, SlotUsage]:
    """Sample all branches of N groups, as `generate.generate` does, in B slots.

    Args:
      keys: uint32[N * G, 2].
      options: unroll (see the family's `layers`).
    Returns:
      the Rollout of all branches in order, and the loop's SlotUsage.
    """
    groups, total = source.groups, keys.shape[0]
    each = total // groups
    slots = SlotCounts(min(slots.decode, total), min(slots.prefix, groups))
    head = model.head(params)

    def step(s: LoopState) -> LoopState:
        s = _load_groups(s, source, each)
        s = _start_branches(s, each)
        w, p = s.slots, s.prefixes
        row = jnp.where(
            w.prefix < slots.prefix,
            p.group.at[w.prefix].get(mode="clip") * each + w.branch,
            total,
        )
        raw = logits(w.hidden, head)
        branch_keys = keys.at[row].get(mode="clip")
        ids, logp = sample_tokens(raw, branch_keys, w.t, stops, sampling)
        ended = stops.end[ids] | (stops.hits[ids, w.automaton] != 0)
        rollout = _write(s.rollout, row, w.t, ids, logp, entropy(raw), ended)
        attend = functools.partial(decode.attend, index=_row_index(s, each))
        own = CacheSegment(w.k, w.v, w.mask, w.positions)
        here = PrefixCache((*p.cache.segments, own), w.hidden, w.next)
        valid = jnp.ones((slots.decode, 1), bool)
        _, after = extend(
            model, params, here, ids[:, None], valid, attend=attend, **options
        )
        new = decode.to_bkth(after.segments[-1])
        column = s.step % max_tokens
        at = (0, 0, 0, column, 0)
        leaves = ended | (w.t + 1 == max_tokens)
        decoded = DecodeSlots(
            jnp.where(leaves, slots.prefix, w.prefix),
            w.branch,
            w.t + 1,
            after.hidden,
            after.next,
            stops.table[ids, w.automaton].astype(jnp.int32),
            w.mask.at[:, column].set(True),
            w.positions.at[:, column].set(w.next),
            jax.lax.dynamic_update_slice(w.k, new.k, at),
            jax.lax.dynamic_update_slice(w.v, new.v, at),
        )
        return LoopState(s.step + 1, s.loaded, decoded, p, rollout)

    def unfinished(s: LoopState):
        waiting = (s.loaded < groups) | jnp.any(s.prefixes.started < each)
        return waiting | jnp.any(s.slots.prefix < slots.prefix)

    first = _initial_state(source, slots, total, max_tokens)
    last = jax.lax.while_loop(unfinished, step, first)
    tokens = last.rollout.mask.sum(dtype=jnp.int32)
    return last.rollout, SlotUsage(last.step, tokens, last.loaded)


# -- stages of a step ------------------------------------------------------------------


def _initial_state(
    source: PrefixSource, slots: SlotCounts, total: int, max_tokens: int
) -> LoopState:
    """Return empty slots and an empty rollout of `total` rows."""
    one = jax.eval_shape(lambda: _to_bkth(source.load(jnp.int32(0))))
    like = one.segments[-1].k  # [L, c, K, S, H]
    own = (like.shape[0], slots.decode, like.shape[2], max_tokens, like.shape[4])
    room = jax.tree.map(lambda x: jnp.zeros((slots.prefix, *x.shape), x.dtype), one)

    def fill(x):
        return jnp.full(slots.decode, x, jnp.int32)

    decoded = DecodeSlots(
        fill(slots.prefix), fill(0), fill(0),
        jnp.zeros((slots.decode, one.hidden.shape[-1]), one.hidden.dtype),
        fill(0), fill(0),
        jnp.zeros((slots.decode, max_tokens), bool),
        jnp.zeros((slots.decode, max_tokens), jnp.int32),
        jnp.zeros(own, like.dtype), jnp.zeros(own, like.dtype),
    )  # fmt: skip
    prefixes = PrefixSlots(
        _merge_groups(room),
        jnp.full(slots.prefix, source.groups, jnp.int32),
        jnp.full(slots.prefix, total // source.groups, jnp.int32),
    )
    rollout = empty_rollout(total, max_tokens)
    return LoopState(jnp.int32(0), jnp.int32(0), decoded, prefixes, rollout)


def _load_groups(s: LoopState, source: PrefixSource, each: int) -> LoopState:
    """Load the next groups into prefix slots without waiting or running branches."""

    def vacant(s: LoopState):
        count = s.prefixes.group.shape[0]
        busy = jnp.zeros(count, bool).at[s.slots.prefix].set(True, mode="drop")
        return (s.prefixes.started == each) & ~busy

    def load(s: LoopState) -> LoopState:
        at = jnp.argmax(vacant(s))
        p = s.prefixes
        prefixes = PrefixSlots(
            _put_group(p.cache, source.load(s.loaded), at),
            p.group.at[at].set(s.loaded),
            p.started.at[at].set(0),
        )
        return s._replace(loaded=s.loaded + 1, prefixes=prefixes)

    return jax.lax.while_loop(
        lambda s: (s.loaded < source.groups) & jnp.any(vacant(s)), load, s
    )


def _start_branches(s: LoopState, each: int) -> LoopState:
    """Start waiting branches in free decode slots, the oldest group's first."""
    w, p = s.slots, s.prefixes
    count = p.group.shape[0]
    free = w.prefix == count
    rank = jnp.cumsum(free) - 1  # of each free slot among them
    order = jnp.argsort(p.group)
    left = each - p.started[order]
    upto = jnp.cumsum(left)
    which = jnp.searchsorted(upto, rank, side="right")
    start = free & (which < count)
    which = jnp.minimum(which, count - 1)
    prefix = order[which]
    branch = p.started[prefix] + rank - (upto - left)[which]
    started = jnp.zeros(count, jnp.int32).at[prefix].add(start.astype(jnp.int32))
    per = p.cache.next.shape[0] // count  # rows of the last segment
    parent = prefix * per + branch // (each // per)

    def new(x, old):
        return jnp.where(start.reshape(-1, *[1] * (old.ndim - 1)), x, old)

    slots = w._replace(
        prefix=new(prefix, w.prefix).astype(jnp.int32),
        branch=new(branch, w.branch).astype(jnp.int32),
        t=new(0, w.t),
        hidden=new(p.cache.hidden.at[parent].get(mode="clip"), w.hidden),
        next=new(p.cache.next.at[parent].get(mode="clip"), w.next),
        automaton=new(0, w.automaton),
        mask=new(False, w.mask),
    )
    return s._replace(slots=slots, prefixes=p._replace(started=p.started + started))


def _row_index(s: LoopState, each: int) -> decode.RowIndex:
    """Return which of the P * G branches of the prefix slots are being decoded."""
    slots, count = s.slots.prefix.shape[0], s.prefixes.group.shape[0]
    branch = s.slots.prefix * each + s.slots.branch
    row = jnp.full(count * each, slots, jnp.int32)
    row = row.at[branch].set(jnp.arange(slots), mode="drop")
    return decode.RowIndex(row, branch)


def _write(r: Rollout, row, t, ids, logp, spread, ended) -> Rollout:
    """Write a token of each slot to its branch's row; rows out of range write none."""

    def put(array, value):
        return array.at[row, t].set(value.astype(array.dtype), mode="drop")

    return Rollout(
        put(r.tokens, ids),
        put(r.logprobs, logp),
        put(r.entropy, spread),
        put(r.mask, jnp.ones_like(ended)),
        r.stopped.at[row].set(ended, mode="drop"),
    )


# -- caches of several groups ----------------------------------------------------------


def _to_bkth(cache: PrefixCache) -> PrefixCache:
    return cache._replace(segments=tuple(map(decode.to_bkth, cache.segments)))


def _map_rows(function, cache: PrefixCache, *others) -> PrefixCache:
    """Map function(axis of rows, array, ...) over the arrays of caches."""
    segments = tuple(CacheSegment(1, 1, 0, 0) for _ in cache.segments)
    return jax.tree.map(function, PrefixCache(segments, 0, 0), cache, *others)


def _merge_groups(cache: PrefixCache) -> PrefixCache:
    """Merge the leading axis of prefix slots into the axis of rows."""

    def merge(axis, x):
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return _map_rows(merge, cache)


def _put_group(cache: PrefixCache, group: PrefixCache, at) -> PrefixCache:
    """Write the cache of one group to prefix slot `at`."""

    def put(axis, x, new):
        start = at * new.shape[axis]
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis)

    return _map_rows(put, cache, _to_bkth(group))
