"""Accuracy-only reward on augmented prompts: 10 % each of right and wrong captions and
CoTs."""

from configs.tiny import grpo


def get_config(arg=None):
    return grpo.recipe(arg, name="augmented", mix=grpo.MIX)
