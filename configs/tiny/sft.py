"""Warm start of the tiny model: supervised traces on scenes, in four stages.

    sft=configs/tiny/sft.py
    vlmrl train --config $sft:stage=look --workdir A
    vlmrl train --config $sft:stage=reason --config.model=A/model --workdir B
    vlmrl train --config $sft:stage=letters --config.model=B/model --workdir C
    vlmrl train --config $sft:stage=answer --config.model=C/model --workdir D

It learns to see (dense descriptions of many pictures, from random weights), to reason,
to tie what it concluded to a letter, and to find what a question names. D/model is what
ships as vlmrl/models/tiny. Options after ':' — stage, runlocal (four steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

# seed: of the weights and of the data; horizon: steps that the decay is for; groups:
# pictures per step; locate: the one item that is no question names places of named
# objects instead of describing all; drill: one 'Name every letter.' per picture.
STAGES = {
    "look": dict(
        seed=0, look=True, locate=False, drill=False, groups=64, branches=1,
        steps=800, horizon=2600, peak=3e-3, warmup=200, aggregation="token",
    ),
    "reason": dict(
        seed=1, look=False, locate=False, drill=False, groups=16, branches=6,
        steps=800, horizon=1700, peak=3e-3, warmup=100, aggregation="sequence",
    ),
    "letters": dict(
        seed=2, look=False, locate=False, drill=True, groups=16, branches=6,
        steps=800, horizon=1400, peak=3e-3, warmup=50, aggregation="sequence",
    ),
    "answer": dict(
        seed=3, look=False, locate=True, drill=False, groups=48, branches=2,
        steps=850, horizon=850, peak=2e-3, warmup=50, aggregation="sequence",
    ),
}  # fmt: skip


def get_config(arg=None):
    options = parse_arg(arg, stage="look")
    stage, small = STAGES[options.stage], options.runlocal
    c = ConfigDict()
    c.algorithm = "sft"
    c.model = ""  # directory to start from; '' makes the tiny model's, without weights
    c.style = "tiny"  # prompt style
    c.seed = stage["seed"]
    c.look = stage["look"]  # dense descriptions only
    c.locate = stage["locate"]
    c.drill = stage["drill"]
    c.steps = 4 if small else stage["steps"]
    c.groups = 4 if small else stage["groups"]
    c.branches = stage["branches"]  # items per picture: the rest are questions

    c.mix = ConfigDict()  # data/traces.py: supervised
    c.mix.brief = 0.55  # share of thinks that are the conclusion alone
    c.mix.caption = 0.12  # context: a true caption
    c.mix.started = 0.12  # context: a started true think
    c.mix.direct = 0.08  # asked to answer at once
    c.mix.abstain = 0.05  # offered "I'm not sure"

    c.buckets = ConfigDict()  # static lengths, tokens
    c.buckets.prefix = (36, 56)
    c.buckets.branch = (72, 88, 104)
    c.buckets.windows = (4,)

    c.optimizer = ConfigDict()
    c.optimizer.peak = stage["peak"]
    c.optimizer.warmup = 2 if small else stage["warmup"]
    c.optimizer.decay = "cosine"
    c.optimizer.horizon = stage["horizon"]
    c.optimizer.weight_decay = 0.05
    c.optimizer.b2 = 0.98

    # 'sequence' weighs every completion the same, so that the one letter that answers
    # is not lost among the words of a description.
    c.aggregation = stage["aggregation"]
    c.unroll = True  # layers in a Python loop: 25 % faster on CPU than a scan, measured
    c.log_every = 2 if small else 25
    c.save_every = 4 if small else 200
    return c
