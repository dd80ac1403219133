"""Guided by what it says undisturbed: in every group of a misled prompt half of the
completions are sampled without the caption or CoT that misleads, and learned as if
written after it, with the faithfulness reward. No judge but the rule."""

from configs.common import parse_arg
from configs.tiny import grpo

# Little is left clean: half of each misled group shows what is written undisturbed.
MIX = {
    "correct_think": 0.05,
    "wrong_think": 0.4,
    "correct_caption": 0.05,
    "wrong_caption": 0.4,
}


def get_config(arg=None):
    c = grpo.recipe(arg, name="guided-faithful-augmented", reward="gated", mix=MIX)
    c.distillation.share = 0.5
    # Both tuned on validation: what misleads is unlearned slowly.
    c.optimizer.peak = 4e-4
    if not parse_arg(arg, seeds=1).runlocal:
        c.steps = 100
    return c
