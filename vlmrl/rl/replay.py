"""Group replay: past groups with a gradient replace groups without one.

A group whose rewards are all equal has advantages of zero. Its place in the batch is
taken by a past group, with its advantages and its log-probs of that time, so that the
surrogate's ratio is against the policy that sampled it. Selective sample replay, here
by group: VL-Rethinker, https://arxiv.org/abs/2504.08837

The buffer is a ring of K groups in the run's `Carry`, so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vlmrl.policy import prefixes
from vlmrl.rl import augment
from vlmrl.rl.rollouts import Context, TrainingBatch
from vlmrl.types import Array, Example, Mean, Rollout


class ReplayBuffer(NamedTuple):
    """K groups of G rollouts; rows of `rollout` are [K, G, ...]."""

    positions: Array  # int64[K]: of the example in the data stream, -1 on empty rows
    rollout: Rollout
    advantages: Array  # float32[K, G]
    next: int  # row that is overwritten next


def zeros(rows: tuple[int, ...], length: int) -> Rollout:
    """Return a Rollout of zeros on the host, its arrays [*rows, T] and [*rows]."""
    return Rollout(
        tokens=np.zeros((*rows, length), np.int32),
        logprobs=np.zeros((*rows, length), np.float32),
        entropy=np.zeros((*rows, length), np.float32),
        mask=np.zeros((*rows, length), bool),
        stopped=np.zeros(rows, bool),
    )


def empty(capacity: int, group_size: int, max_tokens: int) -> ReplayBuffer:
    rows = (capacity, group_size)
    positions = np.full(capacity, -1, np.int64)
    zero = np.zeros(rows, np.float32)
    return ReplayBuffer(positions, zeros(rows, max_tokens), zero, 0)


def choose(buffer: ReplayBuffer, count: int, *, power: float, rng) -> np.ndarray:
    """Draw up to `count` different rows of the buffer with probability proportional to
    (mean |advantage|)^power; int64[≤ count]."""
    size = np.abs(buffer.advantages).mean(-1) ** power
    size = np.where(buffer.positions >= 0, size, 0)
    count = min(count, int((size > 0).sum()))
    if not count:
        return np.zeros(0, np.int64)
    return rng.choice(len(size), count, replace=False, p=size / size.sum())


def add(buffer: ReplayBuffer, positions, rollout: Rollout, advantages) -> ReplayBuffer:
    """Return the buffer with the groups whose advantages are not all zero added, oldest
    out first.

    Args:
      positions: N; rollout: rows [N * G, ...] on the host; advantages: float32[N, G].
    """
    advantages = np.asarray(advantages)
    groups = _in_groups(rollout, advantages.shape)
    out = ReplayBuffer(
        buffer.positions.copy(),
        Rollout(*(x.copy() for x in buffer.rollout)),
        buffer.advantages.copy(),
        buffer.next,
    )
    at = buffer.next
    for i in np.flatnonzero(np.abs(advantages).max(-1) > 0):
        out.positions[at], out.advantages[at] = positions[i], advantages[i]
        for mine, theirs in zip(out.rollout, groups, strict=True):
            mine[at] = theirs[i]
        at = (at + 1) % len(out.positions)
    return out._replace(next=at)


def replace_idle(
    context: Context,
    training: TrainingBatch,
    buffer: ReplayBuffer,
    example_at: Callable[[int], Example],
    *,
    step: int,
) -> tuple[TrainingBatch, ReplayBuffer]:
    """Replace groups without an advantage by groups of the buffer, and add the batch's
    own groups to it.

    Args:
      example_at: the example at a position of the data stream.
    """
    policy, recipe, batch = context.policy, context.recipe, training.batch
    advantages = np.array(training.advantages.values)
    loss_mask = np.array(training.advantages.loss_mask)
    idle = np.flatnonzero(np.abs(advantages).max(-1) == 0)
    rng = np.random.default_rng([context.seed, step])
    rows = choose(buffer, len(idle), power=recipe.replay.power, rng=rng)
    grown = add(buffer, batch.positions, batch.host, advantages)
    if len(rows):
        examples = [example_at(int(buffer.positions[r])) for r in rows]
        again = policy.write(
            [augment.augmented(e, recipe.mix, context.seed) for e in examples]
        )
        prompts, count = list(batch.prompts), advantages.size
        groups = _in_groups(batch.host, advantages.shape)
        groups = Rollout(*(x.copy() for x in groups))
        for i, r, prompt in zip(idle, rows, again, strict=False):
            prompts[i], loss_mask[i] = prompt, True
            advantages[i] = buffer.advantages[r]
            for mine, theirs in zip(groups, buffer.rollout, strict=True):
                mine[i] = theirs[r]
        host = Rollout(*(x.reshape(count, *x.shape[2:]) for x in groups))
        batch = batch._replace(
            prompts=prompts,
            group=policy.put(prefixes(policy, prompts)),
            rollout=policy.put(host),
            host=host,
        )
    share = {"replayed": Mean(float(len(rows)), len(advantages))}
    metrics = training.advantages.metrics | share
    replaced = training.advantages._replace(
        values=advantages, loss_mask=loss_mask, metrics=metrics
    )
    return TrainingBatch(batch, replaced), grown


def _in_groups(rollout: Rollout, shape: tuple[int, int]) -> Rollout:
    return Rollout(*(x.reshape(*shape, *x.shape[1:]) for x in rollout))
