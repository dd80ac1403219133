"""From rewards to advantages: who is compared with whom, and who takes part."""

import numpy as np

from vlmrl.rl import advantages, recipe
from vlmrl.rl.batch_advantages import Rewards, compute_advantages

PLAIN = {
    "sampling.group_size": 4,
    "sampling.max_tokens": 8,
    "reward.name": "grpo",
    "advantage.name": "dr_grpo",
    "mix": {},
    "loss": {},
}
TOTAL = np.array([[1.1, 0.1, 0.0, 1.1], [1.0, 1.0, 1.0, 1.0]], np.float32)
CORRECT = np.array([[1, 0, 0, 1], [1, 1, 1, 1]], np.float32)
AGREE = np.array([[1, 0, 1, 0], [1, 0, np.nan, np.nan]], np.float32)
STOPPED = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
REWARDS = Rewards(TOTAL, CORRECT, AGREE, STOPPED)


def found(moved=None, step=1, rewards=REWARDS, **settings):
    made = recipe.make(**(PLAIN | settings))
    return compute_advantages(rewards, made, moved or {}, step)


def test_plain_is_the_advantage_function():
    for name in ("grpo", "dr_grpo", "rloo", "reinforce_pp"):
        got = found(advantage={"name": name})
        want = advantages.ADVANTAGES[name](TOTAL, np.ones(TOTAL.shape, bool))
        np.testing.assert_array_equal(got.values, want)
        assert np.asarray(got.loss_mask).all()
        assert got.metrics["degenerate"].value == 0.5
        assert got.metrics["kept"].value == 1


def test_the_overlong_filter_takes_a_cut_completion_out_of_its_group():
    got = found(overlong={"filter": True})
    np.testing.assert_array_equal(got.loss_mask, STOPPED)
    np.testing.assert_allclose(got.values[0], [0.7, -0.3, -0.4, 0], atol=1e-6)


def test_dynamic_sampling_drops_groups_of_one_kind():
    got = found(sampling={"resampling_rounds": 2})
    np.testing.assert_array_equal(got.loss_mask, [[True] * 4, [False] * 4])
    assert got.metrics["kept"].value == 0.5
    # Format alone would have made them differ.
    mixed = REWARDS._replace(total=TOTAL + np.array([[0], [0.1]]) * [1, 0, 0, 0])
    assert not np.asarray(
        found(rewards=mixed, sampling={"resampling_rounds": 2}).values
    )[1].any()


def test_ranking_moves_reward_among_the_right_ones():
    scores = np.array([[0.2, 9, 9, 0.8], [0.1, 0.2, 0.3, 0.3]], np.float32)
    got = found(
        ranking={"by": "p_correct", "weight": 0.3},
        rewards=REWARDS._replace(scores=scores),
    )
    reward = TOTAL + 0.3 * np.array([[-1, 0, 0, 1], [-1, -1 / 3, 2 / 3, 2 / 3]])
    want = reward - reward.mean(-1, keepdims=True)
    np.testing.assert_allclose(got.values, want, atol=1e-6)
    assert got.metrics["degenerate"].value == 0


def test_decoupled_normalises_task_and_consistency_apart():
    got = found(advantage={"name": "decoupled", "weights": (1.0, 0.5)})
    on = np.ones(TOTAL.shape, bool)
    task = advantages.grpo(TOTAL, on)
    other = advantages.grpo(np.nan_to_num(AGREE), ~np.isnan(AGREE))
    np.testing.assert_allclose(got.values, task + 0.5 * other, atol=1e-6)
    assert not np.isnan(np.asarray(got.values)).any()


def test_a_multiplier_and_a_warmup_drive_its_weight():
    def weight(weights, warmup=0, **settings):
        """Of the consistent part, from an item where all are right."""
        alone = REWARDS._replace(total=np.ones_like(TOTAL))
        advantage = {"name": "decoupled", "weights": weights, "warmup": warmup}
        got = found(rewards=alone, advantage=advantage, **settings)
        one = found(
            rewards=alone, advantage={"name": "decoupled", "weights": (1.0, 1.0)}
        )
        return float((got.values / one.values)[0, 0])

    half = weight(weights=(1.0, 0.5))
    assert abs(half - 0.5) < 1e-6
    price = weight(weights=(1.0, 0.5), step=1, constraint={"threshold": 0.9})
    assert abs(price - 0.5) < 1e-6  # no multiplier has been given yet
    assert abs(weight(weights=(1.0, 1.0), warmup=4, step=1) - 0.25) < 1e-6
    assert abs(weight(weights=(1.0, 1.0), warmup=4, step=9) - 1) < 1e-6
    moved = found(
        {"multiplier": 2.0},
        rewards=REWARDS._replace(total=np.ones_like(TOTAL)),
        advantage={"name": "decoupled"},
    )
    one = found(
        rewards=REWARDS._replace(total=np.ones_like(TOTAL)),
        advantage={"name": "decoupled"},
    )
    np.testing.assert_allclose(moved.values, 2 * one.values, atol=1e-6)


def test_one_completion_per_prompt_is_compared_with_the_batch():
    earned = Rewards(*(x[:, :1] for x in REWARDS[:4]))
    got = found(
        rewards=earned, sampling={"group_size": 1}, advantage={"name": "reinforce_pp"}
    )
    np.testing.assert_allclose(
        got.values[:, 0], np.array([0.05, -0.05]) / np.sqrt(0.005), atol=1e-4
    )
