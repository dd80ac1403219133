"""One-pass evaluation: one jitted program that reads, generates and scores.

N items, each an image under V conditions, each with K samples. The prefix cache has
four segments: image and shared prompt → a condition's text → a sample → probes. Each
is computed once; the blind re-reading has a cache of its own, alike but without image.

Rows: c = N * V condition rows, B = N * V * K sample rows, in that order. C options, T
sampled tokens, R sighted probes, J bridges (`tags.Letters`), F tokens of an opening.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine import continuous_batching
from vlmrl.engine.generate import Sampling, generate
from vlmrl.engine.logprobs import id_logprobs
from vlmrl.engine.prefix_cache import PrefixCache, extend, prefill
from vlmrl.eval.tags import TagTables, find
from vlmrl.models.api import Model
from vlmrl.types import Array, Group, Rollout, Scores

# What the assistant turn already holds where sampling starts.
NOTHING, THINKING, THOUGHT, ANSWERING = range(4)


class ConditionRows(NamedTuple):
    """Facts of every condition row, from the host; c = N * V."""

    stage: Array  # int32[c]: NOTHING, THINKING, THOUGHT or ANSWERING
    options: Array  # bool[c, C]: the options this row has
    answer: Array  # int32[c]
    suggested: Array  # int32[c], -1 if none
    last: Array  # int32[c]: the prompt's last token id


class EvalBatch(NamedTuple):
    """What a pass reads."""

    group: Group  # prefix [N, S], branches [N * V, T'] (the conditions' texts), images
    blind: Group  # the same without images: what the prompts share, then their texts
    rows: ConditionRows
    keys: Array  # uint32[B, 2]: B / (N * V) samples of each condition row


class KernelSettings(NamedTuple):
    max_tokens: int  # T, of a sample
    sampling: Sampling
    probe_every: int  # a sighted probe after every k tokens of the CoT
    probes: int  # R, sighted probes at most
    slots: int = 0  # samples decoded side by side; when one ends, the next takes its
    # place (`engine/continuous_batching.py`), and all are read again; 0: all at once


class ProbePoints(NamedTuple):
    """Where letters are read behind a sample; E points of each of B rows."""

    kind: Array  # int32[B, E], see `CotSpans.kind`
    cut: Array  # int32[B, E]: own tokens before the probe


class CotSpans(NamedTuple):
    """Where a sample's CoT and answer are, in its own tokens; B rows."""

    think: Array  # bool[B, T]: sampled tokens of the think
    natural: Array  # bool[B]
    closed: Array  # bool[B]: the think is closed (by the sample or in the prompt)
    kind: Array  # int32[B]: 0 replay the last token, 1 open, 2 close and open
    cut: Array  # int32[B]: own tokens before the answer probe
    strip: Array  # bool[B]: there is a think whose last sentence can go
    stripped: Array  # int32[B]: own tokens before that sentence; else `cut`
    start: Array  # int32[B]: first think token


def read(tables: TagTables, rollout: Rollout, stage) -> CotSpans:
    """Find the think and the answer opening of every sample; `stage` int32[B]."""
    tokens, mask = rollout.tokens, rollout.mask
    length = tokens.shape[1]
    steps = jnp.arange(length)
    opened = find(tables.think, tables.size, tokens, mask)
    close = find(tables.close, tables.size, tokens, mask)
    closes = close.matched & (stage < THOUGHT)
    closed = closes | (stage >= THOUGHT)
    after = jnp.where(closes, close.index, jnp.where(stage >= THOUGHT, -1, length))
    answer = find(tables.answer, tables.size, tokens, mask, after)
    natural = (closed & answer.exact) | (stage == ANSWERING)

    written = mask & ~tables.end[tokens]
    total = written.sum(-1)
    sizes = jnp.where(mask, tables.size[tokens], 0)
    begins = jnp.cumsum(sizes, -1) - sizes
    start = jnp.where(stage == THINKING, 0, opened.index + 1)
    start = jnp.where(stage >= THOUGHT, length, start)
    stop = jnp.where(closes, close.byte, sizes.sum(-1))
    think = written & (steps >= start[:, None]) & (begins < stop[:, None])

    # Replaying the token before the cut gives the distribution after it again.
    kind = jnp.where(natural, 0, jnp.where(closed, 1, 2))
    cut = jnp.where(closes, close.index + 1, jnp.where(closed, 0, total))
    cut = jnp.where(natural & (stage != ANSWERING), answer.index, cut)

    # The think's last sentence: after the last sentence end that a word still follows.
    last_word = jnp.max(jnp.where(think & tables.word[tokens], steps, -1), -1)
    ends = think & tables.sentence[tokens] & (steps < last_word[:, None])
    first = jnp.minimum(start, total)
    stripped = jnp.max(jnp.where(ends, steps + 1, first[:, None]), -1)
    strip = (start < length) & (start <= close.index)
    stripped = jnp.where(strip, stripped, cut)
    return CotSpans(think, natural, closed, kind, cut, strip, stripped, start)


def openings(tables: TagTables, kind, replay) -> tuple[Array, Array, Array]:
    """Return probe rows: an answer opening followed by each bridge.

    Args:
      kind: int32[n] (see `CotSpans.kind`); replay: int32[n], the token of kind 0.
    Returns:
      ids int32[n * J, F + 1], their mask, length of the opening int32[n * J].
    """
    full, short, bridges = tables.closing, tables.opening, tables.letters.bridges
    width = full.shape[0] + 1

    def padded(ids):
        return jnp.pad(ids, (0, width - ids.shape[0]))

    texts = jnp.stack([jnp.zeros_like(padded(full)), padded(short), padded(full)])
    sizes = jnp.array([1, short.shape[0], full.shape[0]])
    ids, size = texts[kind], sizes[kind]
    ids = ids.at[:, 0].set(jnp.where(kind == 0, replay, ids[:, 0]))
    count = bridges.shape[0]
    ids, size = jnp.repeat(ids, count, 0), jnp.repeat(size, count, 0)
    steps = jnp.arange(width)
    at = steps == size[:, None]
    ids = jnp.where(at, jnp.tile(bridges, kind.shape[0])[:, None], ids)
    return ids, steps <= size[:, None], size


def letter_mass(model: Model, params, tables: TagTables, hidden, size) -> Array:
    """Return log P(the answer's letter is c), float32[n, C]: what one token writes plus
    what goes through each bridge; not renormalised.

    Args:
      hidden: dtype[n * J, F + 1, D] over the rows of `openings`; size: int32[n * J].
    """
    letters = tables.letters
    count, options = letters.bridges.shape[0], letters.direct.shape[0]
    head = model.head(params)

    def at(index):
        return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]

    def summed(logp, ids):
        logp = jnp.where(ids.reshape(-1) < 0, -jnp.inf, logp)
        return jax.nn.logsumexp(logp.reshape(-1, *ids.shape), axis=-1)

    wanted = jnp.concatenate([letters.bridges, letters.direct.reshape(-1)])
    first = id_logprobs(at(size - 1)[::count], head, jnp.maximum(wanted, 0))
    bridge = first[:, :count]
    direct = summed(first[:, count:], letters.direct)
    second = id_logprobs(at(size), head, jnp.maximum(letters.second.reshape(-1), 0))
    second = summed(second, letters.second).reshape(-1, count, options)
    through = bridge[..., None] + second
    return jax.nn.logsumexp(jnp.concatenate([direct[:, None], through], 1), axis=1)


def evaluate(
    model: Model,
    params,
    batch: EvalBatch,
    tables: TagTables,
    settings: KernelSettings,
    **options,
) -> tuple[Rollout, Scores]:
    """Generate under every condition and score the samples.

    Args:
      options: dtype, unroll (see the family's `layers`); attend, the back end that
        reads (`attention.choose`).
    """
    cache = prefill(model, params, batch.group, **options)
    rollout, own = _sample(model, params, cache, batch, tables, settings, options)
    count = batch.keys.shape[0] // batch.rows.stage.shape[0]
    rows = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), batch.rows)
    text = read(tables, rollout, rows.stage)

    def probe(cache, start, points):
        cache = cache._replace(next=jnp.repeat(start, count))
        return _probe(model, params, tables, cache, rows, rollout, points, options)

    points, sighted_mask = _sighted(text, settings)
    mass = probe(own, cache.next, points)
    answer, option_mass = _renormalise(mass[:, 0], rows.options)
    sighted, _ = _renormalise(mass[:, 1:], rows.options[:, None])

    # Blind: the same CoT behind the same prompt, without the image.
    reader = prefill(model, params, batch.blind, **options)
    _, reread = extend(
        model, params, reader, rollout.tokens, rollout.mask, **_without(options)
    )
    cuts = jnp.stack([text.cut, text.stripped], 1)
    kinds = jnp.stack([text.kind, jnp.where(text.strip, 2, text.kind)], 1)
    mass = probe(reread, reader.next, ProbePoints(kinds, cuts))
    blind, _ = _renormalise(mass, rows.options[:, None])

    p = jnp.exp(answer)

    def of(index):
        picked = jnp.take_along_axis(p, jnp.maximum(index, 0)[:, None], 1)[:, 0]
        return jnp.where(index >= 0, picked, 0)

    length = text.think.sum(-1)
    spread = jnp.where(text.think, rollout.entropy, 0).sum(-1)
    return rollout, Scores(
        letters=answer,
        entropy=-jnp.sum(jnp.where(p > 0, p * answer, 0), -1),
        p_correct=of(rows.answer),
        p_suggested=of(rows.suggested),
        option_mass=option_mass,
        natural=text.natural,
        truncated=~text.closed & ~rollout.stopped,
        think_entropy=spread / jnp.maximum(length, 1),
        think_tokens=length.astype(jnp.int32),
        sighted=sighted,
        sighted_mask=sighted_mask,
        blind=blind,
    )


def _sample(model, params, cache: PrefixCache, batch, tables, settings, options):
    """Return the Rollout and the cache with the samples as its last segment."""
    decoding = dict(max_tokens=settings.max_tokens, sampling=settings.sampling)
    decoding |= _without(options, "attend")
    slots = settings.slots
    if not slots:
        return generate(model, params, cache, batch.keys, tables.stops, **decoding)
    source = continuous_batching.from_cache(cache, batch.group.prefix.ids.shape[0])
    rollout, _ = continuous_batching.generate(
        model, params, source, batch.keys, tables.stops,
        slots=continuous_batching.SlotCounts(slots, slots), **decoding,
    )  # fmt: skip
    _, own = extend(
        model, params, cache, rollout.tokens, rollout.mask, **_without(options)
    )
    return rollout, own


def _sighted(text: CotSpans, settings: KernelSettings) -> tuple[ProbePoints, Array]:
    """Return the answer probe and behind it the sighted ones (E = 1 + R), and the mask
    bool[B, R] of those that lie within the CoT."""
    length, every, count = settings.max_tokens, settings.probe_every, settings.probes
    marks = text.start[:, None] + every * (1 + jnp.arange(count))
    think_end = jnp.where(text.think, jnp.arange(length) + 1, 0).max(-1)
    cuts = jnp.concatenate([text.cut[:, None], jnp.minimum(marks, length)], 1)
    kinds = jnp.concatenate([text.kind[:, None], jnp.full_like(marks, 2)], 1)
    return ProbePoints(kinds, cuts), marks < think_end[:, None]


def _probe(
    model, params, tables, cache: PrefixCache, rows: ConditionRows, rollout,
    points: ProbePoints, options,
) -> Array:  # fmt: skip
    """Return the letter masses at each point of each sample, float32[B, E, C].

    `cache.next` int32[B] is the position of the samples' first token.
    """
    count, each = tables.letters.bridges.shape[0], points.cut.shape[1]
    kind, cut = points.kind.reshape(-1), points.cut.reshape(-1)
    wide = jax.tree.map(lambda x: jnp.repeat(x, each, axis=0), rows)
    own = jnp.repeat(rollout.tokens, each, axis=0)
    replay = jnp.take_along_axis(
        own, jnp.minimum(cut, own.shape[1] - 1)[:, None], axis=1
    )[:, 0]
    # An answer opened in the prompt itself: replay the prompt's last token instead.
    behind = (wide.stage == ANSWERING) & (kind == 0)
    replay = jnp.where(behind, wide.last, replay)
    ids, mask, size = openings(tables, kind, replay)
    prompt = cache.segments[-2].mask.sum(-1)
    prompt = jnp.repeat(prompt, cut.shape[0] // prompt.shape[0])
    limits = [None] * (len(cache.segments) - 2)
    limits += [prompt - behind, cut]
    limits = tuple(x if x is None else jnp.repeat(x, count) for x in limits)
    begin = jnp.repeat(cache.next, each) + cut - behind
    here = cache._replace(next=jnp.repeat(begin, count))
    hidden, _ = extend(model, params, here, ids, mask, limits, **_without(options))
    mass = letter_mass(model, params, tables, hidden, size)
    return mass.reshape(-1, each, rows.options.shape[1])


def _renormalise(mass, valid):
    """Return (log-probs over the valid options, their mass before renormalising)."""
    mass = jnp.where(valid, mass, -jnp.inf)
    total = jax.nn.logsumexp(mass, axis=-1)
    return mass - total[..., None], jnp.exp(total)


def _without(options, *names):
    return {k: v for k, v in options.items() if k not in ("dtype", *names)}
