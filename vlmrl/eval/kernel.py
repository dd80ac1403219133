"""One-pass evaluation: one jitted program that reads, generates and scores.

N items, each an image under V conditions, each with K samples. The prefix cache has
four segments: image and shared prompt → a condition's text → a sample → probes. Each
is computed once; the blind re-reading has a cache of its own, alike but without image.
A probe is an answer opening and, behind it, each option (`engine/options.py`).

Rows: c = N * V condition rows, B = N * V * K sample rows, in that order. C options, T
sampled tokens, R sighted probes, E probes of a sample, F tokens of an opening.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.engine import continuous_batching
from vlmrl.engine.generate import Sampling, generate
from vlmrl.engine.options import (
    ANSWERING,
    THINKING,
    THOUGHT,
    OptionProbs,
    OptionRows,
    option_probs,
)
from vlmrl.engine.prefix_cache import PrefixCache, extend, prefill
from vlmrl.eval.tags import TagTables, find
from vlmrl.models.api import Model
from vlmrl.types import Array, Group, Rollout, Scores


class ConditionRows(NamedTuple):
    """Facts of every condition row, from the host; c = N * V."""

    stage: Array  # int32[c]: what the turn begins with (`engine.options.stage_of`)
    options: OptionRows  # with ids: the options are texts, in all rows
    answer: Array  # int32[c]
    suggested: Array  # int32[c], -1 if none
    last: Array  # int32[c]: the prompt's last token id


class EvalBatch(NamedTuple):
    """What a pass reads."""

    group: Group  # prefix [N, S], branches [N * V, T'] (the conditions' texts), images
    blind: Group | None  # the same without images: what the prompts share, then their
    # texts; None: no row has options to measure, and nothing is probed
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
    """Where options are read behind a sample; E points of each of B rows."""

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


def openings(tables: TagTables, kind, replay) -> tuple[Array, Array]:
    """Return probe rows, which end with an answer opening.

    Args:
      kind: int32[n] (see `CotSpans.kind`); replay: int32[n], the token of kind 0.
    Returns:
      ids int32[n, F], their mask.
    """
    full, short = tables.closing, tables.opening
    width = full.shape[0]
    padded = jnp.pad(short, (0, width - short.shape[0]))
    texts = jnp.stack([jnp.zeros_like(full), padded, full])
    sizes = jnp.array([1, short.shape[0], width])
    ids = texts[kind]
    ids = ids.at[:, 0].set(jnp.where(kind == 0, replay, ids[:, 0]))
    return ids, jnp.arange(width) < sizes[kind][:, None]


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

    facts = dict(
        natural=text.natural,
        truncated=~text.closed & ~rollout.stopped,
        think_entropy=_mean(rollout.entropy, text.think),
        think_tokens=text.think.sum(-1, dtype=jnp.int32),
    )
    if batch.blind is None:
        return rollout, _unmeasured(rows, settings, **facts)

    def probe(cache, start, points) -> OptionProbs:
        cache = cache._replace(next=jnp.repeat(start, count))
        return _probe(model, params, tables, cache, rows, rollout, points, options)

    points, sighted_mask = _sighted(text, settings)
    seen = probe(own, cache.next, points)
    answer, normalised = seen.logp[:, 0], seen.normalised

    # Blind: the same CoT behind the same prompt, without the image.
    reader = prefill(model, params, batch.blind, **options)
    _, reread = extend(
        model, params, reader, rollout.tokens, rollout.mask, **_without(options)
    )
    cuts = jnp.stack([text.cut, text.stripped], 1)
    kinds = jnp.stack([text.kind, jnp.where(text.strip, 2, text.kind)], 1)
    blind = probe(reread, reader.next, ProbePoints(kinds, cuts))
    p = jnp.exp(answer)

    def of(index):
        picked = jnp.take_along_axis(p, jnp.maximum(index, 0)[:, None], 1)[:, 0]
        return jnp.where(index >= 0, picked, jnp.nan)

    return rollout, Scores(
        letters=answer,
        normalised=None if normalised is None else normalised[:, 0],
        entropy=-jnp.sum(jnp.where(p > 0, p * answer, 0), -1),
        p_correct=of(rows.answer),
        p_suggested=of(rows.suggested),
        option_mass=seen.mass[:, 0],
        sighted=seen.logp[:, 1:],
        sighted_mask=sighted_mask,
        blind=blind.logp,
        **facts,
    )


def _mean(values, mask):
    return jnp.where(mask, values, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def _unmeasured(rows: ConditionRows, settings: KernelSettings, **facts) -> Scores:
    """Return the scores of rows without options to measure: nan."""
    count, options = rows.options.valid.shape

    def absent(*shape):
        return jnp.full((count, *shape), jnp.nan, jnp.float32)

    return Scores(
        letters=absent(options),
        normalised=None,
        **{n: absent() for n in "entropy p_correct p_suggested option_mass".split()},
        sighted=absent(settings.probes, options),
        sighted_mask=jnp.zeros((count, settings.probes), bool),
        blind=absent(2, options),
        **facts,
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
) -> OptionProbs:  # fmt: skip
    """Return the options' probabilities at each point of each sample: [B, E, ...].

    `cache.next` int32[B] is the position of the samples' first token.
    """

    def at(points: ProbePoints) -> OptionProbs:
        each = points.cut.shape[1]
        kind, cut = points.kind.reshape(-1), points.cut.reshape(-1)
        stage, last = (jnp.repeat(x, each) for x in (rows.stage, rows.last))
        own = jnp.repeat(rollout.tokens, each, axis=0)
        replay = jnp.take_along_axis(
            own, jnp.minimum(cut, own.shape[1] - 1)[:, None], axis=1
        )[:, 0]
        # An answer opened in the prompt itself: replay the prompt's last token instead.
        behind = (stage == ANSWERING) & (kind == 0)
        ids, mask = openings(tables, kind, jnp.where(behind, last, replay))
        prompt = cache.segments[-2].mask.sum(-1)
        prompt = jnp.repeat(prompt, cut.shape[0] // prompt.shape[0])
        limits = (*[None] * (len(cache.segments) - 2), prompt - behind, cut)
        here = cache._replace(next=jnp.repeat(cache.next, each) + cut - behind)
        _, opened = extend(model, params, here, ids, mask, limits, **_without(options))
        texts = rows.options.ids is not None
        probs = option_probs(
            model, params, opened, rows.options, None if texts else tables.letters,
            (*limits, None), **_without(options),
        )  # fmt: skip
        return jax.tree.map(lambda x: x.reshape(-1, each, *x.shape[1:]), probs)

    if rows.options.ids is None:
        return at(points)
    # Texts are long: one point after the other holds the branches of one.
    one_by_one = ProbePoints(points.kind.T[..., None], points.cut.T[..., None])
    probs = jax.lax.map(at, one_by_one)
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), probs)


def _without(options, *names):
    return {k: v for k, v in options.items() if k not in ("dtype", *names)}
