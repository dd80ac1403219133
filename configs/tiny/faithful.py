"""Faithfulness reward: the accuracy reward, given only where the CoT concludes the
answer that was given."""

from configs.tiny import grpo


def get_config(arg=None):
    return grpo.recipe(arg, name="faithful", reward="gated")
