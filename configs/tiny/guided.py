"""Guided by what it says undisturbed: in every group of a misled prompt half of the
completions are sampled without the caption or think that misleads, and learnt as if
written after it, with the faithfulness reward. No judge but the rule."""

from configs.tiny import grpo

MIX = {
    "correct_think": 0.1,
    "wrong_think": 0.25,
    "correct_caption": 0.1,
    "wrong_caption": 0.2,
}


def get_config(arg=None):
    c = grpo.recipe(arg, name="guided-faithful-augmented", reward="gated", mix=MIX)
    c.guide.share = 0.5
    return c
