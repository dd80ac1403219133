"""Sampling in slots: a finished branch leaves, and the next one takes its place.

B slots decode side by side. P places hold a group each: its prefix, read once for all
the slots at work on its branches. When a slot's branch ends, the first waiting branch
of the groups in place starts in it; when a place has neither waiting nor working
branches, the next group is loaded into it. All of it is one jitted loop, and a slot
stands idle only when nothing waits: P = B places never hold a slot up, fewer do when
every one of them is kept by its longest branches.

Keys belong to branches, so that a branch's tokens are those of `generate`, whatever
slot it ran in and beside whom; and so is its sum over keys but for their order, since a
slot's own tokens are written in a ring: the column of step s is s mod T for all slots.

Axis letters: N groups, G branches of each, c rows of a group's last link, B slots, P
places, T tokens, V vocabulary, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine import decode
from vlmrl.engine.generate import Sampling, Stops, draw
from vlmrl.engine.logprobs import entropy, logits
from vlmrl.engine.prefix_cache import PrefixCache, extend
from vlmrl.models.api import CacheSegment, Model
from vlmrl.types import Array, Group, Rollout, Tokens


class Use(NamedTuple):
    """How the loop went."""

    steps: Array  # int32[]: each decodes all B slots
    kept: Array  # int32[]: tokens written, at most steps * B
    loads: Array  # int32[]: groups loaded into places


class Slots(NamedTuple):
    """What each slot is doing."""

    place: Array  # int32[B], P: nothing
    branch: Array  # int32[B], of its group
    t: Array  # int32[B], tokens it has
    hidden: Array  # dtype[B, D]
    next: Array  # int32[B]: position of its next token
    automaton: Array  # int32[B]
    mask: Array  # bool[B, T]: columns of the ring that are its own
    at: Array  # int32[B, T]: their positions
    k: Array  # dtype[L, B, K, T, H]: the ring
    v: Array


class Places(NamedTuple):
    """The groups at hand; heads first."""

    cache: PrefixCache  # P groups
    group: Array  # int32[P], N: none
    begun: Array  # int32[P]: branches that have started, G at most


class State(NamedTuple):
    step: Array
    loaded: Array  # int32[]: groups loaded so far
    slots: Slots
    places: Places
    rollout: Rollout  # N * G rows


def take(cache: PrefixCache, index, groups: int) -> PrefixCache:
    """One group of a cache of `groups`, its index traced."""
    cut = functools.partial(_cut, index=index, groups=groups)
    links = tuple(
        CacheSegment(cut(s.k, 1), cut(s.v, 1), cut(s.mask), cut(s.positions))
        for s in cache.segments
    )
    return PrefixCache(links, cut(cache.hidden), cut(cache.next))


def pick(group: Group, index) -> Group:
    """One group of N, its index traced: what `prefill` needs to load it."""
    cut = functools.partial(_cut, index=index, groups=group.prefix.ids.shape[0])

    def tokens(t):
        return t and Tokens(cut(t.ids), cut(t.positions, 1), cut(t.mask), cut(t.image))

    vision = jax.tree.map(cut, group.vision)
    return Group(tokens(group.prefix), vision, tokens(group.branches))


def _cut(x, axis=0, *, index, groups: int):
    size = x.shape[axis] // groups
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), index * size, size, axis)


def generate(
    model: Model,
    params,
    load: Callable,
    groups: int,
    keys,
    stops: Stops,
    *,
    slots: int,
    places: int,
    max_tokens: int,
    sampling: Sampling,
    **options,
) -> tuple[Rollout, Use]:
    """Sample all branches of N groups in B slots; as `generate.generate`, which reads
    every row to the end, in B slots of fewer.

    Args:
      load: group index int32[] -> PrefixCache of that group alone: `take` of a cache
        that exists, or a `prefill` of what `pick` gives: then only P prefixes ever
        exist.
      keys: uint32[N * G, 2].
      slots, places: B and P; both are cut to what there is.
    Returns:
      the Rollout of all branches in order, and the loop's Use.
    """
    total = keys.shape[0]
    each = total // groups
    slots, places = min(slots, total), min(places, groups)
    head = model.head(params)
    load_one = functools.partial(_load, load)
    cache = jax.eval_shape(lambda: _first(load(jnp.int32(0))))
    room = jax.tree.map(functools.partial(_room, places), cache)
    like = cache.segments[-1].k  # [L, c, K, S, H]
    own = (like.shape[0], slots, like.shape[2], max_tokens, like.shape[4])

    def fill(x):
        return jnp.full(slots, x, jnp.int32)

    first = State(
        jnp.int32(0),
        jnp.int32(0),
        Slots(
            fill(places), fill(0), fill(0),
            jnp.zeros((slots, cache.hidden.shape[-1]), cache.hidden.dtype),
            fill(0), fill(0),
            jnp.zeros((slots, max_tokens), bool),
            jnp.zeros((slots, max_tokens), jnp.int32),
            jnp.zeros(own, like.dtype), jnp.zeros(own, like.dtype),
        ),
        Places(
            _pack(room),
            jnp.full(places, groups, jnp.int32),
            jnp.full(places, each, jnp.int32),
        ),
        _nothing(total, max_tokens),
    )  # fmt: skip

    def vacant(s: State):
        """bool[P]: neither waiting nor working branches."""
        busy = jnp.zeros(places, bool).at[s.slots.place].set(True, mode="drop")
        return (s.places.begun == each) & ~busy

    def enter(s: State) -> State:
        """Load the next group into the first vacant place."""
        at = jnp.argmax(vacant(s))
        p = s.places
        return s._replace(
            loaded=s.loaded + 1,
            places=Places(
                load_one(p.cache, s.loaded, at),
                p.group.at[at].set(s.loaded),
                p.begun.at[at].set(0),
            ),
        )

    def step(s: State) -> State:
        s = jax.lax.while_loop(
            lambda s: (s.loaded < groups) & jnp.any(vacant(s)), enter, s
        )
        s = _refill(s, each)
        w, p = s.slots, s.places
        live = w.place < places
        row = jnp.where(live, p.group.at[w.place].get(mode="clip") * each + w.branch,
                        total)  # fmt: skip
        raw = logits(w.hidden, head)
        ids, logp = draw(raw, keys.at[row].get(mode="clip"), w.t, stops, sampling)
        ended = stops.end[ids] | (stops.hits[ids, w.automaton] != 0)
        rollout = _write(s.rollout, row, w.t, ids, logp, entropy(raw), ended)

        lane = w.place * each + w.branch
        of_lane = jnp.full(places * each, slots, jnp.int32)
        of_lane = of_lane.at[lane].set(jnp.arange(slots), mode="drop")
        attend = functools.partial(decode.attend, lanes=decode.Lanes(of_lane, lane))
        mine = CacheSegment(w.k, w.v, w.mask, w.at)
        here = PrefixCache((*p.cache.segments, mine), w.hidden, w.next)
        one = jnp.ones((slots, 1), bool)
        _, after = extend(
            model, params, here, ids[:, None], one, attend=attend, **options
        )
        new = decode.to_bkth(after.segments[-1])
        column = s.step % max_tokens
        at = (0, 0, 0, column, 0)
        gone = ended | (w.t + 1 == max_tokens)
        return State(
            s.step + 1,
            s.loaded,
            Slots(
                jnp.where(gone, places, w.place),
                w.branch,
                w.t + 1,
                after.hidden,
                after.next,
                stops.table[ids, w.automaton].astype(jnp.int32),
                w.mask.at[:, column].set(True),
                w.at.at[:, column].set(w.next),
                jax.lax.dynamic_update_slice(w.k, new.k, at),
                jax.lax.dynamic_update_slice(w.v, new.v, at),
            ),
            p,
            rollout,
        )

    def going(s: State):
        waits = (s.loaded < groups) | jnp.any(s.places.begun < each)
        return waits | jnp.any(s.slots.place < places)

    last = jax.lax.while_loop(going, step, first)
    kept = last.rollout.mask.sum(dtype=jnp.int32)
    return last.rollout, Use(last.step, kept, last.loaded)


# -- pieces ----------------------------------------------------------------------------


def _first(cache: PrefixCache) -> PrefixCache:
    return cache._replace(links=tuple(map(decode.to_bkth, cache.segments)))


def _room(places: int, x):
    """Shape of `places` times an array of one group (see `_pack`)."""
    return jnp.zeros((places, *x.shape), x.dtype)


def _pack(cache: PrefixCache) -> PrefixCache:
    """The leading axis of places moved beside the rows and joined with them."""

    def join(x, axis=0):
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    links = tuple(
        CacheSegment(join(s.k, 1), join(s.v, 1), join(s.mask), join(s.positions))
        for s in cache.segments
    )
    return PrefixCache(links, join(cache.hidden), join(cache.next))


def _load(load, cache: PrefixCache, group, at) -> PrefixCache:
    """The cache of all places with a group put into place `at`."""
    one = _first(load(group))

    def put(x, new, axis=0):
        start = at * new.shape[axis]
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis)

    links = tuple(
        CacheSegment(put(s.k, o.k, 1), put(s.v, o.v, 1), put(s.mask, o.mask),
                put(s.positions, o.positions))
        for s, o in zip(cache.segments, one.segments, strict=True)
    )  # fmt: skip
    return PrefixCache(links, put(cache.hidden, one.hidden), put(cache.next, one.next))


def _refill(s: State, each: int) -> State:
    """Waiting branches start in free slots: the oldest group's first."""
    w, p = s.slots, s.places
    places = p.group.shape[0]
    free = w.place == places
    rank = jnp.cumsum(free) - 1  # of each free slot among them
    order = jnp.argsort(p.group)
    left = each - p.begun[order]
    upto = jnp.cumsum(left)
    which = jnp.searchsorted(upto, rank, side="right")
    start = free & (which < places)
    which = jnp.minimum(which, places - 1)
    place = order[which]
    branch = p.begun[place] + rank - (upto - left)[which]
    counts = jnp.zeros(places, jnp.int32).at[place].add(start.astype(jnp.int32))
    per = p.cache.next.shape[0] // places  # rows of the last link
    parent = place * per + branch // (each // per)

    def new(x, old):
        kept = start.reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(kept, x, old)

    slots = w._replace(
        place=new(place, w.place).astype(jnp.int32),
        branch=new(branch, w.branch).astype(jnp.int32),
        t=new(0, w.t),
        hidden=new(p.cache.hidden.at[parent].get(mode="clip"), w.hidden),
        next=new(p.cache.next.at[parent].get(mode="clip"), w.next),
        automaton=new(0, w.automaton),
        mask=new(False, w.mask),
    )
    return s._replace(slots=slots, places=p._replace(begun=p.begun + counts))


def _nothing(rows: int, length: int) -> Rollout:
    def empty(kind):
        return jnp.zeros((rows, length), kind)

    return Rollout(
        empty(jnp.int32),
        empty(jnp.float32),
        empty(jnp.float32),
        empty(bool),
        jnp.zeros(rows, bool),
    )


def _write(r: Rollout, row, t, ids, logp, spread, ended) -> Rollout:
    """One token of each slot into its branch's row; rows out of range write nothing."""

    def put(array, value):
        return array.at[row, t].set(value.astype(array.dtype), mode="drop")

    return Rollout(
        put(r.tokens, ids),
        put(r.logprobs, logp),
        put(r.entropy, spread),
        put(r.mask, jnp.ones_like(ended)),
        r.stopped.at[row].set(ended, mode="drop"),
    )
