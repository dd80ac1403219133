"""One function of every kind that a config may name, and some that it may not; tests
copy this file to mine/code.py."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vlmrl.prompts.styles import Style
from vlmrl.types import Example, Mean

NUMBER = 5


def words(completion, *, weight=0.1):
    return weight * len(completion.text.split())


def needy(completion, *, weight):
    return weight


def old(parsed, answer, verdict):
    return 0.0


def bad(completion):
    return {}[completion.example.id]


def none(completion):
    print("forgot to return")


def nan(completion):
    return float("nan")


def half(rewards, mask):
    return rewards / 2


def flat(rewards, mask):
    return rewards.sum(-1)


class Loss(NamedTuple):
    loss: Mean


def plain(logprobs, old_logprobs, advantages, mask, *, tau=1.0, **options):
    values = jnp.where(mask, -logprobs * advantages[:, None] * tau, 0)
    return Loss(Mean(values.sum(), mask.sum()))


def no_loss(logprobs, old_logprobs, advantages, mask, **options):
    return logprobs.sum()


def shout(example):
    return example._replace(question=example.question.upper())


def other(example):
    return example._replace(id="x")


def base(example):
    return example


def invert(pixels, rng):
    return 255 - pixels


def floats(pixels, rng):
    return pixels / 255


STYLE = Style("Think.", "", "", parser="mine/code.py:last")


def style():
    return STYLE._replace(parser="strict-1")


def last(reply, options):
    return len(options) - 1


def likeliest(reply, options):
    return np.argmax([0, 1])


def wild(reply, options):
    return "B"


def source(split, n):
    for i in range(n or 5):
        yield Example(
            f"{split}/{i}", (), "Which?", ("a", "b"), i % 2, -1, "mine", "t", str(i)
        )


def short(split, n):
    return list(source(split, 2))[:n]


def broken(split, n):
    yield from source(split, 1)
    raise OSError("the disk is gone")


def judge(items):
    return ["consistent" if i.predicted == 0 else "inconsistent" for i in items]


def one_verdict(items):
    return ["consistent"]
