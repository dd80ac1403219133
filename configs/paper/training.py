"""Training curves of the recipes: accuracy, faithful accuracy, entropy and the drift of
faithfulness at every checkpoint.

  i     SAT2 + PixMo-Count          iii   ii + augmentation
  ii    i + Geometry3K              *-f   each with the faithfulness reward

What a value is from, the paper, an upstream file or a choice, stands beside it in
`recipe.py: FIELDS`.
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
    c.seeds = options.seeds or (1 if small or options.rehearse else 3)
    return c
