"""Group replay: groups that taught something stand in for groups that can't.

A group whose rewards are all equal has advantages of zero and wastes its place. Its
place is taken by a past group, with its advantages and its log-probs of that time, so
that the surrogate's ratio is against the policy that sampled it. Selective sample
replay, here by group: VL-Rethinker, https://arxiv.org/abs/2504.08837

The buffer is a ring of K groups in the run's `Carry`, so a resumed run draws the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlmrl.types import Array, Rollout


class Buffer(NamedTuple):
    """K groups of G rollouts; rows of `rollout` are [K, G, ...]."""

    places: Array  # int64[K]: of the example in the data stream, -1 on empty rows
    rollout: Rollout
    advantages: Array  # float32[K, G]
    next: int  # row that is overwritten next


def zeros(rows: tuple[int, ...], length: int) -> Rollout:
    """A Rollout of nothing, its arrays [*rows, T] and [*rows], on the host."""
    return Rollout(
        tokens=np.zeros((*rows, length), np.int32),
        logprobs=np.zeros((*rows, length), np.float32),
        entropy=np.zeros((*rows, length), np.float32),
        mask=np.zeros((*rows, length), bool),
        stopped=np.zeros(rows, bool),
    )


def empty(capacity: int, group_size: int, max_tokens: int) -> Buffer:
    rows = (capacity, group_size)
    places = np.full(capacity, -1, np.int64)
    return Buffer(places, zeros(rows, max_tokens), np.zeros(rows, np.float32), 0)


def chosen(buffer: Buffer, count: int, *, power: float, rng) -> np.ndarray:
    """Up to `count` different rows of the buffer, drawn with probability proportional
    to (mean |advantage|)^power; int64[≤ count]."""
    size = np.abs(buffer.advantages).mean(-1) ** power
    size = np.where(buffer.places >= 0, size, 0)
    count = min(count, int((size > 0).sum()))
    if not count:
        return np.zeros(0, np.int64)
    return rng.choice(len(size), count, replace=False, p=size / size.sum())


def added(buffer: Buffer, places, rollout: Rollout, advantages) -> Buffer:
    """The buffer with the groups whose advantages are not all zero, oldest out first.

    Args:
      places: N; rollout: rows [N * G, ...] on the host; advantages: float32[N, G].
    """
    advantages = np.asarray(advantages)
    rows = rollout._replace(
        **{
            name: x.reshape(*advantages.shape, *x.shape[1:])
            for name, x in rollout._asdict().items()
        }
    )
    kept = Buffer(
        buffer.places.copy(),
        Rollout(*(x.copy() for x in buffer.rollout)),
        buffer.advantages.copy(),
        buffer.next,
    )
    at = buffer.next
    for i in np.flatnonzero(np.abs(advantages).max(-1) > 0):
        kept.places[at], kept.advantages[at] = places[i], advantages[i]
        for mine, theirs in zip(kept.rollout, rows, strict=True):
            mine[at] = theirs[i]
        at = (at + 1) % len(kept.places)
    return kept._replace(next=at)
