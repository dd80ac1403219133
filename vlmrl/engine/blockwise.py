"""Attention over one segment with XLA alone, block by block: scores of a block of
queries and a block of keys are all that ever exists of the score matrix.

The online softmax of https://arxiv.org/abs/2205.14135, and its backward pass from the
log-sum-exp (https://arxiv.org/abs/2307.08691, algorithm 2). Blocks of keys that no
query of a block may see (causally later, beyond a limit, padding) are not computed.
Letters as in `merge.py`; C blocks of q query tokens, s keys in a block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vlmrl.engine.merge import MASKED, Kernel, KeyMask

QUERIES, KEYS = 512, 512  # tokens in a block


class _Blocks:
    """One segment cut into blocks, heads before tokens."""

    def __init__(self, q, k, mask: KeyMask):
        self.b, self.length, self.heads, self.rep, self.width = q.shape
        self.size = k.shape[1]
        self.q = min(QUERIES, self.length)
        self.s = min(KEYS, self.size)
        self.count = -(-self.length // self.q)
        self.kind = jnp.promote_types(q.dtype, jnp.float32)
        every = jnp.full((self.b, self.length), self.size, jnp.int32)
        stop = every if mask.stop is None else mask.stop
        steps = jnp.arange(1, self.size + 1)
        last = jnp.max(jnp.where(mask.valid, steps, 0), axis=-1)  # after the last valid
        self.stop = self._split_queries(jnp.minimum(stop, last[:, None]))
        self.valid = _pad(mask.valid, 1, -self.size % self.s)
        self.near = mask.near
        if mask.near is not None:
            keys, queries, self.window = mask.near
            self.key_positions = _pad(keys, 1, -self.size % self.s)
            self.query_positions = self._split_queries(queries)
        else:
            self.query_positions = self.stop  # not read

    def _split_queries(self, x):
        """[b, Q] → [C, b, q]"""
        x = _pad(x, 1, self.count * self.q - self.length)
        return jnp.moveaxis(x.reshape(self.b, self.count, self.q), 1, 0)

    def split(self, x):
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
        """Return (scores of block `at` of keys, which are visible), [b, K, R q, s]."""
        begin = at * self.s
        k = jax.lax.dynamic_slice_in_dim(k, begin, self.s, 2)
        s = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=self.kind)
        steps = begin + jnp.arange(self.s)
        valid = jax.lax.dynamic_slice_in_dim(self.valid, begin, self.s, 1)
        visible = valid[:, None] & (steps < stop[..., None])  # [b, q, s]
        if self.near is not None:
            keys = jax.lax.dynamic_slice_in_dim(self.key_positions, begin, self.s, 1)
            visible = visible & (positions[..., None] - keys[:, None] < self.window)
        visible = jnp.tile(visible, (1, self.rep, 1))[:, None]
        return s * self.width**-0.5, visible

    def bound(self, stop):
        """Return how many blocks of keys hold one that a block of queries may see."""
        return (jnp.max(stop) + self.s - 1) // self.s


def _forward(q, k, v, mask: KeyMask, causal: bool):
    blocks = _Blocks(q, k, mask)
    k, v = blocks.to_bkth(k), blocks.to_bkth(v)
    product = functools.partial(jnp.einsum, preferred_element_type=blocks.kind)

    def attend_block(xs):
        q, stop, positions = xs

        def step(at, carry):
            m, l, o = carry
            s, visible = blocks.scores(q, k, at, stop, positions)
            top = jnp.maximum(m, jnp.max(jnp.where(visible, s, MASKED), axis=-1))
            p = jnp.where(visible, jnp.exp(s - top[..., None]), 0)
            values = jax.lax.dynamic_slice_in_dim(v, at * blocks.s, blocks.s, 2)
            more = product("bkqs,bksh->bkqh", p.astype(v.dtype), values)
            scale = jnp.exp(m - top)
            return top, scale * l + p.sum(-1), scale[..., None] * o + more

        shape = q.shape[:-1]
        start = (
            jnp.full(shape, MASKED, blocks.kind),
            jnp.zeros(shape, blocks.kind),
            jnp.zeros(q.shape, blocks.kind),
        )
        m, l, o = jax.lax.fori_loop(0, blocks.bound(stop), step, start)
        some = jnp.where(l > 0, l, 1)
        lse = jnp.where(l > 0, m + jnp.log(some), MASKED)
        return (o / some[..., None]).astype(q.dtype), lse

    xs = blocks.split(q), blocks.stop, blocks.query_positions
    out, lse = jax.lax.map(attend_block, xs)
    return blocks.join(out), blocks.join(lse)


def _backward(q, k, v, mask: KeyMask, causal: bool, out, lse, g):
    blocks = _Blocks(q, k, mask)
    k, v = blocks.to_bkth(k), blocks.to_bkth(v)
    kind = blocks.kind
    product = functools.partial(jnp.einsum, preferred_element_type=kind)
    delta = jnp.sum(g.astype(kind) * out.astype(kind), axis=-1)

    def add(x, at, more):
        begin = (0, 0, at * blocks.s, 0)
        old = jax.lax.dynamic_slice(x, begin, more.shape)
        return jax.lax.dynamic_update_slice(x, old + more, begin)

    def differentiate_block(carry, xs):
        q, g, lse, delta, stop, positions = xs

        def step(at, carry):
            dq, dk, dv = carry
            s, visible = blocks.scores(q, k, at, stop, positions)
            p = jnp.where(visible, jnp.exp(s - lse[..., None]), 0)
            begin = at * blocks.s
            values = jax.lax.dynamic_slice_in_dim(v, begin, blocks.s, 2)
            keys = jax.lax.dynamic_slice_in_dim(k, begin, blocks.s, 2)
            dp = product("bkqh,bksh->bkqs", g, values)
            ds = (p * (dp - delta[..., None]) * blocks.width**-0.5).astype(q.dtype)
            dv = add(dv, at, product("bkqs,bkqh->bksh", p.astype(g.dtype), g))
            dk = add(dk, at, product("bkqs,bkqh->bksh", ds, q))
            return dq + product("bkqs,bksh->bkqh", ds, keys), dk, dv

        dk, dv = carry
        start = (jnp.zeros(q.shape, kind), dk, dv)
        dq, dk, dv = jax.lax.fori_loop(0, blocks.bound(stop), step, start)
        return (dk, dv), dq

    rows = tuple(blocks.split(x) for x in (q, g, lse, delta))
    zeros = jnp.zeros(k.shape, kind), jnp.zeros(v.shape, kind)
    (dk, dv), dq = jax.lax.scan(
        differentiate_block, zeros, (*rows, blocks.stop, blocks.query_positions)
    )

    def to_btkh(x):
        return jnp.moveaxis(x[:, :, : blocks.size], 1, 2)

    return blocks.join(dq), to_btkh(dk), to_btkh(dv)


def _pad(x, axis: int, count: int):
    """Return x with `count` zeros after it along an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count)
    return jnp.pad(x, widths) if count else x


KERNEL = Kernel(_forward, _backward)
