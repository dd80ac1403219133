"""Probe the policy with a completion's own chain of thought (CoT): which letter next?

One prefix cache serves all of it: what the prompts of a group share is computed once
(its image, too), the G CoTs are branches of it, the C letters are branches of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import sharding
from vlmrl.engine.logprobs import token_logprobs
from vlmrl.engine.prefix_cache import extend, prefill
from vlmrl.perturb import TAGS
from vlmrl.policy import Policy
from vlmrl.prompts import tokens
from vlmrl.rl import consistency
from vlmrl.run import hosts
from vlmrl.types import Prompt

OPTIONS = 8  # of an item at most
STEP = 32  # branch lengths are multiples of it


class ProbePrompt(NamedTuple):
    """A prompt with a chain of thought, up to the answer's letter."""

    text: str
    images: tuple[bytes, ...]
    whole: bool  # False: the CoT can't stand in a prompt, and "-" replaces it


def sighted(prompt: Prompt, think: str) -> ProbePrompt:
    """Return the prompt with the CoT, closed, and the answer opened."""
    return _read(prompt.text, prompt.turn, think, prompt.example.images)


def blind(prompt: Prompt, think: str) -> ProbePrompt:
    """Return the same without the image and the CoT's literal conclusion."""
    return _read(prompt.blind, prompt.turn, consistency.stripped(think), ())


def _read(text: str, turn: str, think: str, images) -> ProbePrompt:
    start = text.removesuffix(turn)
    whole = readable(think)
    shown = think if whole else "-"
    return ProbePrompt(start + "<think>" + shown + consistency.OPENING, images, whole)


def readable(think: str) -> bool:
    """Return whether a CoT can stand in a prompt: some text, no tags or control."""
    tagged = any(tag in think for tag in TAGS) or "<|" in think
    return bool(think.strip()) and not tagged


def reader(policy: Policy, max_tokens: int) -> Callable:
    """Return letters(params, readings: N lists of G) -> float32[N, G, OPTIONS], the
    probabilities of the letters after each, from raw logits at temperature 1; zeros
    where a CoT can't stand in a prompt or is too long. A letter is what the tokenizer
    makes of '>A' after '<answer'.
    """
    rows = [policy.processor.encode_plain(">" + c) for c in LETTERS[:OPTIONS]]
    width = max(map(len, rows))
    ids = np.array([r + [0] * (width - len(r)) for r in rows], np.int32)
    mask = np.arange(width) < np.array([len(r) for r in rows])[:, None]
    room = -(-(max_tokens + STEP) // STEP) * STEP
    buckets = policy.buckets._replace(
        prefix=(*policy.buckets.prefix, max(policy.buckets.prefix) + room),
        branch=tuple(range(STEP, room + STEP, STEP)),
    )
    longer = policy._replace(buckets=buckets)

    @jax.jit
    def run(params, group):
        params = policy.cast(params)
        return letter_probs(policy.model, params, group, jnp.asarray(ids), mask)

    def letters(params, readings: Sequence[Sequence[ProbePrompt]]):
        encoded, good = [], []
        for group in longer.own(readings):
            probes = [
                tokens.encode(policy.processor, (r.text, r.images)) for r in group
            ]
            shared = tokens.shared_length(probes, leave=1)
            fits = [len(e.ids) - shared <= room for e in probes]
            short = min(probes, key=lambda e: len(e.ids))
            encoded.append(
                [e if f else short for e, f in zip(probes, fits, strict=True)]
            )
            good.append([r.whole and f for r, f in zip(group, fits, strict=True)])
        mine = longer.group(encoded)
        probs = sharding.fetch(run(params, sharding.join_batch(policy.mesh, mine)))
        index, _ = sharding.part(policy.mesh)
        good = np.concatenate(hosts.whole(index, np.array(good)))
        return probs.reshape(*good.shape, OPTIONS) * good[..., None]

    return letters


def letter_probs(model, params, group, ids, mask):
    """Return softmax over letters of log P(letter's tokens | row), float32[B, C].

    Args:
      group: B rows, as branches or as whole prefixes.
      ids, mask: [C, K], the tokens of every letter.
    """
    cache = prefill(model, params, group)
    rows, (count, width) = cache.next.shape[0], ids.shape
    tiled = jnp.tile(ids, (rows, 1))
    valid = jnp.tile(jnp.asarray(mask), (rows, 1))
    own, _ = extend(model, params, cache, tiled, valid)
    first = jnp.repeat(cache.hidden, count, axis=0)[:, None]
    hidden = jnp.concatenate([first, own[:, : width - 1]], axis=1)
    logp, _ = token_logprobs(hidden, model.head(params), tiled)
    total = jnp.where(valid, logp, 0).sum(-1).reshape(rows, count)
    return jax.nn.softmax(total, axis=-1)


def implied(letters, options: int) -> np.ndarray:
    """Return the probabilities of an item's own options, renormalised; zeros stay."""
    own = np.asarray(letters[:options], np.float64)
    return own / own.sum() if own.sum() > 0 else own


def in_groups(rows: list, each: int) -> list[list]:
    """Cut rows in branch order into groups of `each`."""
    return [rows[i : i + each] for i in range(0, len(rows), each)]
