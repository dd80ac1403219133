"""Training curves of the recipes: accuracy, faithful accuracy, entropy and the drift of
faithfulness at every checkpoint.

  i     SAT2 + PixMo-Count          iii   ii + augmentation
  ii    i + Geometry3K              *-f   each with the faithfulness reward

Stated by the paper: GRPO with 8 completions, more than 1,000 steps, evaluated every
250, reward 0.1 format + 1.0 correct, augmentation 10 % of each kind, three seeds. The
rest is a choice, from upstream: learning rate 1e-6, KL 0.01 (low-variance), 128 prompts
per step, vision tower frozen, responses of 2,048 tokens, clip of the gradient 1.0
(ViGoRL on SAT-2); clip 0.2 (verl's geometry3k example).
"""

from configs.paper import common
from configs.paper.recipe import RECIPES


def get_config(arg=None):
    options, c = common.study(
        arg,
        title="Training curves",
        tables=("leaderboard", "drift", "conditions", "seeds"),
        seeds=0,  # 0: the paper's three, or one at toy size
    )
    small = options.runlocal
    c.kind = "train"
    c.recipe_file = "configs/paper/recipe.py"
    c.recipes = ("i", "ii-f") if small else tuple(RECIPES)
    c.seeds = options.seeds or (1 if small else 3)
    return c
