"""DAPO (arXiv 2503.14476): clip-higher, token-level loss, dynamic sampling, soft
overlong penalty, no KL."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(arg, name="dapo")
    c.loss.clip_high = 0.28
    c.loss.aggregation = "token"
    c.rounds = 3  # draws at most until every group holds a right and a wrong answer
    c.overlong.limit = c.max_tokens
    c.overlong.buffer = c.max_tokens // 5  # the paper's 4096 of 20480
    return c
