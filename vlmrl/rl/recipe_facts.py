"""What records say of the recipe that trained a model."""

from __future__ import annotations

from vlmrl.rl.advantages import DECOUPLED
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.rewards import JUDGED, REWARDS


def recipe_facts(recipe: Recipe) -> dict:
    """Return `stage`, `augmented` and `faithful` of `types.Record` for a recipe.

    A recipe is augmented if its mix perturbs any share of its prompts, and faithful if
    its reward needs a verdict or its advantage weighs consistency apart from the task.
    Of a user's own reward that is not known: the stage is 'unknown'.
    """
    reward, advantage = recipe.reward.name, recipe.advantage.name
    return {
        "stage": "trained" if reward in REWARDS else "unknown",
        "augmented": any(s > 0 for name, s in recipe.mix.items() if name != "base"),
        "faithful": reward in JUDGED or advantage in DECOUPLED,
    }
