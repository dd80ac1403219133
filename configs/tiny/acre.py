"""ACRE (arXiv 2510.10104): full reward only if the same CoT, read back under shuffled
options, gives the same answer, on augmented prompts. No judge."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(
        arg, name="acre-faithful-augmented", reward="agreement", mix=grpo.MIX
    )
    c.judge.name = "shuffle"
    return c
