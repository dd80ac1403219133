"""What records say of a recipe follows from the recipe, not from its name."""

import pytest

from vlmrl.rl import recipe
from vlmrl.rl.augment import MIX
from vlmrl.rl.recipe_facts import recipe_facts


@pytest.mark.parametrize(
    "change, facts",
    [
        ({}, {}),
        ({"mix": {"base": 1.0, "noisy": 0.0}}, {}),
        ({"mix": MIX}, {"augmented": True}),
        ({"reward.name": "gated"}, {"faithful": True}),
        ({"advantage.name": "decoupled"}, {"faithful": True}),
        ({"reward.name": "rewards.py:mine"}, {"stage": "unknown"}),
        ({"reward.name": lambda *_: None}, {"stage": "unknown"}),
    ],
)
def test_facts_follow_mix_reward_and_advantage(change, facts):
    plain = {"stage": "trained", "augmented": False, "faithful": False}
    assert recipe_facts(recipe.make(**change)) == plain | facts
