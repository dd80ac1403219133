"""Uncertainty-aware ranking (after arXiv 2604.18892): right completions of a group are
ranked by the probability that their own CoT leaves for the right option, a zero-sum
bonus on top of the gated reward, on augmented prompts."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(arg, name="ranked-faithful-augmented", reward="gated", mix=grpo.MIX)
    c.ranking.by = "p_correct"
    c.ranking.weight = 0.3
    return c
