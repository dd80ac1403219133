"""Attention over one link with XLA alone, block by block: scores of a block of queries
and a block of keys are all that ever exists of the score matrix.

The online softmax of https://arxiv.org/abs/2205.14135, and its backward pass from the
log-sum-exp (https://arxiv.org/abs/2307.08691, algorithm 2). Blocks of keys that no
query of a block may see (causally later, cut off, padding) are not computed. Letters as
in `merge.py`; C query blocks of q tokens, s keys in a block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vlmrl.engine.merge import NOTHING, Kernel, Seen

QUERIES, KEYS = 512, 512  # tokens in a block


class _Blocks:
    """One link cut into blocks, heads before tokens; `cut` and `join` are inverse."""

    def __init__(self, q, k, seen: Seen):
        self.b, self.length, self.heads, self.rep, self.width = q.shape
        self.size = k.shape[1]
        self.q = min(QUERIES, self.length)
        self.s = min(KEYS, self.size)
        self.count = -(-self.length // self.q)
        self.kind = jnp.promote_types(q.dtype, jnp.float32)
        every = jnp.full((self.b, self.length), self.size, jnp.int32)
        stop = every if seen.stop is None else seen.stop
        steps = jnp.arange(1, self.size + 1)
        last = jnp.max(jnp.where(seen.mask, steps, 0), axis=-1)  # behind the last valid
        self.stop = self._queries(jnp.minimum(stop, last[:, None]))  # [C, b, q]
        self.mask = _pad(seen.mask, 1, -self.size % self.s)
        self.near = seen.near
        if seen.near is not None:
            places, positions, self.window = seen.near
            self.places = _pad(places, 1, -self.size % self.s)
            self.positions = self._queries(positions)
        else:
            self.positions = self.stop  # not looked at

    def _queries(self, x):
        """[b, Q] → [C, b, q]"""
        x = _pad(x, 1, self.count * self.q - self.length)
        return jnp.moveaxis(x.reshape(self.b, self.count, self.q), 1, 0)

    def cut(self, x):
        """[b, Q, K, R, ...] → [C, b, K, R q, ...]"""
        x = _pad(x, 1, self.count * self.q - self.length)
        x = x.reshape(self.b, self.count, self.q, *x.shape[2:])
        x = jnp.moveaxis(x, (1, 3, 4), (0, 2, 3))  # [C, b, K, R, q, ...]
        return x.reshape(*x.shape[:3], self.rep * self.q, *x.shape[5:])

    def join(self, x):
        """[C, b, K, R q, ...] → [b, Q, K, R, ...]"""
        x = x.reshape(*x.shape[:3], self.rep, self.q, *x.shape[4:])
        x = jnp.moveaxis(x, (0, 2, 3), (1, 3, 4))
        return x.reshape(self.b, -1, *x.shape[3:])[:, : self.length]

    def to_bkth(self, x):
        """[b, S, K, H] → [b, K, S', H], S' a multiple of s"""
        return _pad(jnp.moveaxis(x, 2, 1), 2, -self.size % self.s)

    def scores(self, q, k, at, stop, positions):
        """(scores of block `at` of the keys, which are seen), kind[b, K, R q, s]."""
        begin = at * self.s
        k = jax.lax.dynamic_slice_in_dim(k, begin, self.s, 2)
        s = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=self.kind)
        steps = begin + jnp.arange(self.s)
        mask = jax.lax.dynamic_slice_in_dim(self.mask, begin, self.s, 1)
        seen = mask[:, None] & (steps < stop[..., None])  # [b, q, s]
        if self.near is not None:
            places = jax.lax.dynamic_slice_in_dim(self.places, begin, self.s, 1)
            seen = seen & (positions[..., None] - places[:, None] < self.window)
        seen = jnp.tile(seen, (1, self.rep, 1))[:, None]
        return s * self.width**-0.5, seen

    def bound(self, stop):
        """How many blocks of keys a block of queries sees something of."""
        return (jnp.max(stop) + self.s - 1) // self.s


def _forward(q, k, v, seen: Seen, own: bool):
    blocks = _Blocks(q, k, seen)
    k, v = blocks.to_bkth(k), blocks.to_bkth(v)

    def one(xs):
        q, stop, positions = xs

        def step(at, carry):
            m, l, o = carry
            s, ok = blocks.scores(q, k, at, stop, positions)
            top = jnp.maximum(m, jnp.max(jnp.where(ok, s, NOTHING), axis=-1))
            p = jnp.where(ok, jnp.exp(s - top[..., None]), 0)
            here = jax.lax.dynamic_slice_in_dim(v, at * blocks.s, blocks.s, 2)
            more = jnp.einsum(
                "bkqs,bksh->bkqh",
                p.astype(v.dtype),
                here,
                preferred_element_type=blocks.kind,
            )
            scale = jnp.exp(m - top)
            return top, scale * l + p.sum(-1), scale[..., None] * o + more

        shape = q.shape[:-1]
        start = (
            jnp.full(shape, NOTHING, blocks.kind),
            jnp.zeros(shape, blocks.kind),
            jnp.zeros(q.shape, blocks.kind),
        )
        m, l, o = jax.lax.fori_loop(0, blocks.bound(stop), step, start)
        some = jnp.where(l > 0, l, 1)
        lse = jnp.where(l > 0, m + jnp.log(some), NOTHING)
        return (o / some[..., None]).astype(q.dtype), lse

    out, lse = jax.lax.map(one, (blocks.cut(q), blocks.stop, blocks.positions))
    return blocks.join(out), blocks.join(lse)


def _backward(q, k, v, seen: Seen, own: bool, out, lse, g):
    blocks = _Blocks(q, k, seen)
    k, v = blocks.to_bkth(k), blocks.to_bkth(v)
    kind = blocks.kind
    delta = jnp.sum(g.astype(kind) * out.astype(kind), axis=-1)

    def add(x, at, more):
        begin = (0, 0, at * blocks.s, 0)
        old = jax.lax.dynamic_slice(x, begin, more.shape)
        return jax.lax.dynamic_update_slice(x, old + more, begin)

    def one(carry, xs):
        q, g, lse, delta, stop, positions = xs

        def product(pattern, a, b):
            return jnp.einsum(pattern, a, b, preferred_element_type=kind)

        def step(at, carry):
            dq, dk, dv = carry
            s, ok = blocks.scores(q, k, at, stop, positions)
            p = jnp.where(ok, jnp.exp(s - lse[..., None]), 0)
            begin = at * blocks.s
            here = jax.lax.dynamic_slice_in_dim(v, begin, blocks.s, 2)
            keys = jax.lax.dynamic_slice_in_dim(k, begin, blocks.s, 2)
            dp = product("bkqh,bksh->bkqs", g, here)
            ds = (p * (dp - delta[..., None]) * blocks.width**-0.5).astype(q.dtype)
            dv = add(dv, at, product("bkqs,bkqh->bksh", p.astype(g.dtype), g))
            dk = add(dk, at, product("bkqs,bkqh->bksh", ds, q))
            return dq + product("bkqs,bksh->bkqh", ds, keys), dk, dv

        dk, dv = carry
        start = (jnp.zeros(q.shape, kind), dk, dv)
        dq, dk, dv = jax.lax.fori_loop(0, blocks.bound(stop), step, start)
        return (dk, dv), dq

    rows = tuple(blocks.cut(x) for x in (q, g, lse, delta))
    none = jnp.zeros(k.shape, kind), jnp.zeros(v.shape, kind)
    (dk, dv), dq = jax.lax.scan(one, none, (*rows, blocks.stop, blocks.positions))

    def back(x):
        return jnp.moveaxis(x[:, :, : blocks.size], 1, 2)

    return blocks.join(dq), back(dk), back(dv)


def _pad(x, axis: int, count: int):
    """x with `count` zeros behind it along an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count)
    return jnp.pad(x, widths) if count else x


KERNEL = Kernel(_forward, _backward)
