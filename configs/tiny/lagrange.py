"""Faithful GRPO (arXiv 2604.08476): consistency is a constraint with a price, on
augmented prompts. Task and consistency are normalised apart; the multiplier follows the
batch's consistent ratio."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(arg, name="lagrange-faithful-augmented", mix=grpo.MIX)
    c.advantage.name = "decoupled"
    c.constraint.threshold = 0.95
    c.constraint.rate = 0.2
    c.constraint.max = 4.0
    return c
