"""The main job at toy size: the warm start, then two recipes trained from it, each
measured under every condition on the held-out test split.

Options after ':' — runlocal (seconds instead of minutes), seeds=N.
"""

from configs.common import parse_arg
from configs.tiny import accuracy, dynamics, faithful

RECIPES = {"accuracy": accuracy, "faithful": faithful}


def get_config(arg=None):
    c = dynamics.study(
        arg,
        RECIPES,
        seeds=1,
        title="RL fine-tuning at toy size: what it does to robustness and reasoning",
        summary=(
            "A small vision-language model of the Qwen2.5-VL architecture, before and "
            "after GRPO on procedural scenes, measured under misleading captions and "
            "wrong chains of thought on held-out images."
        ),
        curves=(),
    )
    if not parse_arg(arg, seeds=1).runlocal:  # ten minutes on two cores
        c.perturbed_size = 168
        for recipe in c.recipes.values():
            recipe.eval.size = 48
    return c
