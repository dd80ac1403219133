"""Faithfulness reward on augmented prompts."""

from configs.tiny import grpo


def get_config(arg=None):
    return grpo.recipe(arg, name="both", reward="gated", mix=grpo.MIX)
