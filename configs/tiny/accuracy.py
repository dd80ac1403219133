"""Accuracy-only reward: 0.1 · format + 1.0 · correct, clean prompts."""

from configs.tiny import grpo


def get_config(arg=None):
    return grpo.recipe(arg, name="accuracy")
