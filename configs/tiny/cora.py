"""CORA (arXiv 2606.14691): task and consistency rewards normalised apart in the group,
A = α · A_task + β · A_cons, β growing from 0, on augmented prompts."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(arg, name="cora-faithful-augmented", mix=grpo.MIX)
    c.advantage.name = "decoupled"
    c.advantage.weights = (1.0, 0.5)  # α, β
    c.advantage.warmup = max(1, c.steps // 4)
    return c
