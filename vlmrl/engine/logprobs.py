"""From hidden states to log-probs of tokens, without ever holding all the logits.

Axis letters: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vlmrl import sharding

# Size of a chunk that the head multiplies: so many logits, which a CPU's cache holds,
# or so many tokens on a device, whichever is more. With fewer tokens an accelerator is
# bound by memory: reading the head takes as long as multiplying 240 tokens by it (TPU
# v5e) to 560 (v6e).
CHUNK_LOGITS = 2**22
CHUNK_TOKENS = 512


def logits(hidden, head) -> jax.Array:
    """Return raw next-token logits, float32[..., V] (float64 for float64 input). In
    bfloat16 a logit of 16 would be rounded to an eighth."""
    kind = jnp.promote_types(hidden.dtype, jnp.float32)
    head = head.astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=kind)


def policy(raw, temperature: float, banned) -> jax.Array:
    """Return the distribution that is sampled and scored: log softmax of raw /
    temperature with banned ids at −∞. Greedy decoding (0) is scored at temperature 1.

    Args:
      raw: float32[..., V]; banned: bool[V] or None.
    """
    scaled = raw if temperature in (0.0, 1.0) else raw / temperature
    if banned is not None:
        scaled = jnp.where(banned, -jnp.inf, scaled)
    return jax.nn.log_softmax(scaled, axis=-1)


def entropy(raw) -> jax.Array:
    """Return −Σ p log p of softmax(raw) over the last axis, nats."""
    logp = jax.nn.log_softmax(raw, axis=-1)
    return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def chunk_tokens(vocabulary: int) -> int:
    """Return the tokens of a chunk of one device."""
    return max(CHUNK_LOGITS // vocabulary, CHUNK_TOKENS)


def token_logprobs(hidden, head, targets, *, temperature=1.0, banned=None, mesh=None):
    """Compute the log-prob of every target and the entropy of the raw distribution.

    The head multiplies chunks of tokens that are rematerialised under gradients, so
    float32[B, T, V] never exists. On a mesh each device takes its own rows, and the
    head is gathered, and its gradient scattered, once for all chunks.

    Args:
      hidden: dtype[B, T, D], the state before each target; head: dtype[V, D].
      targets: int32[B, T]; temperature: of the scored distribution (see `policy`).
      mesh: over which the rows and the head are split.
    Returns:
      (logprobs float32[B, T], entropy float32[B, T], nats).
    """

    def of_rows(head, banned, hidden, targets):
        return _in_chunks(hidden, head, targets, temperature, banned)

    return sharding.per_row(mesh, of_rows)(head, banned, hidden, targets)


def _in_chunks(hidden, head, targets, temperature, banned):
    """Compute `token_logprobs` of the rows of one device."""
    rows, length = targets.shape
    size = min(length, max(1, chunk_tokens(head.shape[0]) // max(1, rows)))
    pad = -length % size
    chunks = (length + pad) // size

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def of_chunk(h, t):
        raw = logits(h, head)
        logp = policy(raw, temperature, banned)
        return jnp.take_along_axis(logp, t[..., None], -1)[..., 0], entropy(raw)

    if chunks == 1:
        return of_chunk(hidden, targets)
    parts = jax.lax.map(lambda x: of_chunk(*x), (split(hidden), split(targets)))
    return tuple(
        jnp.moveaxis(p, 0, 1).reshape(rows, length + pad)[:, :length] for p in parts
    )


def id_logprobs(hidden, head, ids):
    """Compute log softmax(raw logits) at a few ids, in chunks of rows.

    Args:
      hidden: dtype[B, D]; ids: int32[K].
    Returns:
      float32[B, K].
    """
    rows = hidden.shape[0]
    size = min(rows, chunk_tokens(head.shape[0]))
    padded = jnp.pad(hidden, [(0, -rows % size), (0, 0)]).reshape(
        -1, size, hidden.shape[1]
    )

    def of_chunk(h):
        return jax.nn.log_softmax(logits(h, head), axis=-1)[:, ids]

    if len(padded) == 1:
        out = of_chunk(padded[0])[None]
    else:
        out = jax.lax.map(of_chunk, padded)
    return out.reshape(-1, ids.shape[0])[:rows]
