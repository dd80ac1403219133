"""From hidden states to log-probs of tokens, without ever holding all the logits.

Axis letters: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# What the head multiplies at once: so many logits, which a CPU's cache holds, or so
# many tokens on a device, whichever is more. With fewer an accelerator would wait for
# the head: it is read while 240 tokens (TPU v5e) to 560 (v6e) are multiplied by it.
LOGITS = 2**22
TOKENS = 512


def logits(hidden, head) -> jax.Array:
    """Raw next-token logits, float32[..., V] (float64 for float64 input): never rounded
    to less, where a logit of 16 would be known to an eighth."""
    kind = jnp.promote_types(hidden.dtype, jnp.float32)
    head = head.astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=kind)


def policy(raw, temperature: float, banned) -> jax.Array:
    """The distribution that is sampled and scored: log softmax(raw / temperature) with
    banned ids at −∞. Greedy decoding (temperature 0) is scored at temperature 1.

    Args:
      raw: float32[..., V]; banned: bool[V] or None.
    """
    scaled = raw if temperature in (0.0, 1.0) else raw / temperature
    if banned is not None:
        scaled = jnp.where(banned, -jnp.inf, scaled)
    return jax.nn.log_softmax(scaled, axis=-1)


def entropy(raw) -> jax.Array:
    """−Σ p log p of softmax(raw) over the last axis, nats."""
    logp = jax.nn.log_softmax(raw, axis=-1)
    return -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def at_once(vocabulary: int, shards: int = 1) -> int:
    """Tokens whose logits are held at once, over all the devices that share them."""
    return max(LOGITS // vocabulary, TOKENS * shards)


def token_logprobs(hidden, head, targets, *, temperature=1.0, banned=None, shards=1):
    """Log-prob of every target and entropy of the raw distribution it was drawn from.

    The head multiplies chunks of tokens that are rematerialised under gradients, so
    float32[B, T, V] never exists; the head is gathered once, outside the loop.

    Args:
      hidden: dtype[B, T, D], the state before each target; head: dtype[V, D].
      targets: int32[B, T]; temperature: of the scored distribution (see `policy`).
      shards: into how many parts the rows are split over devices.
    Returns:
      (logprobs float32[B, T], entropy float32[B, T]).
    """
    rows, length = targets.shape
    size = min(length, max(1, at_once(head.shape[0], shards) // max(1, rows)))
    pad = -length % size
    chunks = (length + pad) // size

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(h, t):
        raw = logits(h, head)
        logp = policy(raw, temperature, banned)
        return jnp.take_along_axis(logp, t[..., None], -1)[..., 0], entropy(raw)

    if chunks == 1:
        return one(hidden, targets)
    parts = jax.lax.map(lambda x: one(*x), (cut(hidden), cut(targets)))
    return tuple(
        jnp.moveaxis(p, 0, 1).reshape(rows, length + pad)[:, :length] for p in parts
    )


def id_logprobs(hidden, head, ids):
    """log softmax(raw logits) at a few ids, chunked over rows.

    Args:
      hidden: dtype[B, D]; ids: int32[K].
    Returns:
      float32[B, K].
    """
    rows = hidden.shape[0]
    size = min(rows, at_once(head.shape[0]))
    padded = jnp.pad(hidden, [(0, -rows % size), (0, 0)]).reshape(
        -1, size, hidden.shape[1]
    )

    def one(h):
        return jax.nn.log_softmax(logits(h, head), axis=-1)[:, ids]

    out = one(padded[0])[None] if len(padded) == 1 else jax.lax.map(one, padded)
    return out.reshape(-1, ids.shape[0])[:rows]
