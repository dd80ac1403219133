"""Probe the policy with a completion's own chain of thought (CoT): which option next?

One prefix cache serves all of it: what the prompts of a group share is computed once
(its image, too), the G CoTs are branches of it, the options are branches of those
(`engine/options.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import sharding
from vlmrl.engine import options as engine_options
from vlmrl.engine.prefix_cache import prefill
from vlmrl.perturb import TAGS
from vlmrl.policy import Policy
from vlmrl.prompts import tokens
from vlmrl.rl import consistency
from vlmrl.run import hosts
from vlmrl.types import Example, Prompt

STEP = 32  # branch lengths are multiples of it


class ProbePrompt(NamedTuple):
    """A prompt with a chain of thought, up to the opening of the answer."""

    text: str
    images: tuple[bytes, ...]
    whole: bool  # False: the CoT can't stand in a prompt, and "-" replaces it
    example: Example  # whose options are measured
    ids: tuple[int, ...] = ()  # tokens behind the text


def sighted(prompt: Prompt, ids: Sequence[int], processor) -> ProbePrompt:
    """Return the prompt with a completion up to the opening of its answer, as the
    evaluation reads it (`eval/kernel.py: read`).

    Args:
      ids: the sampled tokens.
    """
    example = prompt.example
    own = opened(processor, prompt.turn, ids)
    return ProbePrompt(prompt.text, example.images, True, example, tuple(own))


def opened(processor: tokens.Processor, turn: str, ids: Sequence[int]) -> list[int]:
    """Return the tokens of a completion up to `<answer`. It is forced where the model
    did not open its answer behind the CoT: right behind a closed CoT, else behind the
    whole completion and a closing tag. Empty if the turn began with it."""
    stage = engine_options.stage_of(turn)
    if stage == engine_options.ANSWERING:
        return []
    own = [int(i) for i in ids if i not in processor.end_ids]
    ends = np.cumsum([len(processor.token_bytes[i]) for i in own])
    text = b"".join(processor.token_bytes[i] for i in own)

    def count(byte: int) -> int:  # tokens up to the one that holds the byte before
        return int(np.searchsorted(ends, byte)) + 1

    closed, past = stage == engine_options.THOUGHT, 0
    if not closed and (at := text.find(b"</think>")) >= 0:
        closed, past = True, count(at + len(b"</think>"))
    if not closed:
        return own + processor.encode_plain(
            engine_options.CLOSING + engine_options.OPENING
        )
    for match in re.finditer(engine_options.OPENING.encode(), text):
        if count(match.end()) > past:
            if match.end() in ends:
                return own[: count(match.end())]
            break
    return own[:past] + processor.encode_plain(engine_options.OPENING)


def blind(prompt: Prompt, think: str) -> ProbePrompt:
    """Return the prompt without the image, with a CoT without its literal conclusion,
    closed, and the answer opened."""
    think = consistency.stripped(think)
    whole = readable(think)
    text = prompt.blind.removesuffix(prompt.turn) + "<think>"
    text += (think if whole else "-") + consistency.OPENING
    return ProbePrompt(text, (), whole, prompt.example)


def readable(think: str) -> bool:
    """Return whether a CoT can stand in a prompt: some text, no tags or control."""
    tagged = any(tag in think for tag in TAGS) or "<|" in think
    return bool(think.strip()) and not tagged


def reader(policy: Policy, max_tokens: int, options: int = 0) -> Callable:
    """Return read(params, readings: N lists of G) -> float32[N, G, C], the
    probabilities of each item's options behind each reading (`engine/options.py`), 0
    beyond its options; zeros where a CoT can't stand in a prompt or is too long, and
    where nothing is measured of an item.

    Args:
      options: C at least; by default what the items read at a time need.
    """
    processor = policy.processor
    letters = engine_options.letter_spellings(processor)
    room = -(-(max_tokens + STEP) // STEP) * STEP
    longer = policy._replace(
        shapes=tuple(
            shape._replace(
                prefix=(*shape.prefix, max(shape.prefix) + room),
                branch=tuple(range(STEP, room + STEP, STEP)),
            )
            for shape in policy.shapes
        )
    )

    @functools.partial(jax.jit, static_argnames="lettered")
    def run(params, group, rows, lettered: bool):
        params, attend = policy.cast(params), policy.attend
        cache = prefill(policy.model, params, group, attend=attend)
        probs = engine_options.option_probs(
            policy.model, params, cache, rows, letters if lettered else None,
            attend=attend,
        ).logp  # fmt: skip
        return jnp.where(jnp.isnan(probs), 0, jnp.exp(probs))

    def read(params, readings: Sequence[Sequence[ProbePrompt]]):
        measured = [_measured(policy, group) for group in readings]
        flat = [m for group in measured for m in group]
        sizes = engine_options.sizes_of(flat)
        sizes = sizes._replace(options=max(options, sizes.options))
        shape = (len(readings), len(readings[0]), sizes.options)
        lettered = any(m.kind == "letters" for m in flat)
        if not sizes.measured:
            return np.zeros(shape, np.float32)
        encoded, good = [], []
        for group in longer.own(readings):
            probes = [_encoded(processor, r) for r in group]
            shared = tokens.shared_length(probes, leave=1)
            fits = [len(e.ids) - shared <= room for e in probes]
            short = min(probes, key=lambda e: len(e.ids))
            encoded.append(
                [e if f else short for e, f in zip(probes, fits, strict=True)]
            )
            good.append([r.whole and f for r, f in zip(group, fits, strict=True)])
        own = [m for group in longer.own(measured) for m in group]
        mine = (longer.group(encoded), engine_options.option_rows(own, sizes))
        placed = sharding.join_batch(policy.mesh, mine)
        probs = sharding.fetch(run(params, *placed, lettered=lettered))
        index, _ = sharding.part(policy.mesh)
        good = np.concatenate(hosts.whole(index, np.array(good)))
        return probs.reshape(shape) * good[..., None]

    return read


def _measured(policy: Policy, group: Sequence[ProbePrompt]) -> list:
    """Return how each reading's options are measured, the same item once."""
    known = {}
    for r in group:
        key = (r.example.options, r.example.open)
        if key not in known:
            known[key] = engine_options.measure(
                policy.processor, r.example, policy.style
            )
    return [known[r.example.options, r.example.open] for r in group]


def _encoded(processor: tokens.Processor, r: ProbePrompt) -> tokens.Encoded:
    return tokens.behind(tokens.encode(processor, (r.text, r.images)), r.ids)


def implied(letters, options: int) -> np.ndarray:
    """Return the probabilities of an item's own options, renormalised; zeros stay."""
    own = np.asarray(letters[:options], np.float64)
    return own / own.sum() if own.sum() > 0 else own


def in_groups(rows: list, each: int) -> list[list]:
    """Cut rows in branch order into groups of `each`."""
    return [rows[i : i + each] for i in range(0, len(rows), each)]
