"""DAPO (arXiv 2503.14476): clip-higher, token-level loss, dynamic sampling, soft
overlong penalty, no KL."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(arg, name="dapo")
    c.loss.clip_high = 0.28
    c.loss.aggregation = "token"
    c.sampling.resampling_rounds = 3  # until every group has a right and a wrong answer
    c.overlong.limit = c.sampling.max_tokens
    c.overlong.buffer = c.sampling.max_tokens // 5  # the paper's 4096 of 20480
    return c
