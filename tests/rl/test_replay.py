"""The buffer of past groups: what goes in, what comes out, and how often."""

import numpy as np

from vlmrl.rl import replay
from vlmrl.types import Rollout

LENGTH = 3


def rollout(groups: int, first: int) -> Rollout:
    """Two rows per group; every number of group i is first + i."""
    rows = np.repeat(first + np.arange(groups), 2)
    wide = np.repeat(rows[:, None], LENGTH, 1)
    return Rollout(
        wide.astype(np.int32),
        wide.astype(np.float32),
        wide.astype(np.float32),
        wide > 0,
        rows > 0,
    )


def test_groups_without_advantage_are_not_kept():
    buffer = replay.empty(4, 2, LENGTH)
    advantages = np.array([[1, -1], [0, 0], [0.5, -0.5]], np.float32)
    got = replay.add(buffer, [10, 11, 12], rollout(3, 1), advantages)
    assert got.positions.tolist() == [10, 12, -1, -1] and got.next == 2
    np.testing.assert_array_equal(got.rollout.tokens[:, 0, 0], [1, 3, 0, 0])
    np.testing.assert_array_equal(got.advantages[:2], advantages[[0, 2]])
    assert (buffer.positions == -1).all()  # the old one is as it was


def test_the_oldest_goes_first():
    buffer, ones = replay.empty(2, 2, LENGTH), np.array([[1, -1]], np.float32)
    for place in range(3):
        buffer = replay.add(buffer, [place], rollout(1, place + 1), ones)
    assert buffer.positions.tolist() == [2, 1] and buffer.next == 1
    assert buffer.rollout.logprobs[:, 0, 0].tolist() == [3, 2]


def test_rows_are_drawn_in_proportion_to_their_advantage():
    buffer = replay.empty(4, 2, LENGTH)
    advantages = np.array([[1, -1], [3, -3]], np.float32)
    buffer = replay.add(buffer, [5, 6], rollout(2, 1), advantages)
    rng = np.random.default_rng(0)
    drawn = [replay.choose(buffer, 1, power=1.0, rng=rng)[0] for _ in range(2000)]
    assert abs(np.mean(drawn) - 0.75) < 0.04  # 4 standard errors
    flat = [replay.choose(buffer, 1, power=0.0, rng=rng)[0] for _ in range(2000)]
    assert abs(np.mean(flat) - 0.5) < 0.045
    both = replay.choose(buffer, 9, power=1.0, rng=rng)
    assert sorted(both.tolist()) == [0, 1]  # no empty row, none twice


def test_an_empty_buffer_gives_nothing():
    rng = np.random.default_rng(0)
    assert not len(replay.choose(replay.empty(4, 2, 3), 2, power=1.0, rng=rng))
