"""Warm start of the tiny model: supervised traces on scenes, in two stages.

    vlmrl train --config configs/tiny/sft.py:look --workdir A
    vlmrl train --config configs/tiny/sft.py --config.model=A/model --workdir B

The first learns to see: dense descriptions of many pictures, from random weights. The
second learns to reason and answer, and to use text that stands in its context. B/model
is what ships as vlmrl/models/tiny. Options after ':' — look, runlocal (four steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg=None):
    options = parse_arg(arg, look=False)
    look, small = options.look, options.runlocal
    c = ConfigDict()
    c.algorithm = "sft"
    c.model = ""  # directory to start from; '' makes the tiny model's, without weights
    c.style = "tiny"  # prompt style
    c.seed = 0 if look else 1  # of the weights and of the data
    c.look = look  # dense descriptions only
    c.steps = 4 if small else 800 if look else 1700
    c.groups = 4 if small else 64 if look else 16  # pictures per step
    c.branches = 6  # items per picture: one description, the rest questions

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
    c.optimizer.peak = 3e-3
    c.optimizer.warmup = 2 if small else 200 if look else 100
    c.optimizer.decay = "cosine"
    c.optimizer.horizon = 2600 if look else 0  # steps the decay is for; 0: all
    c.optimizer.weight_decay = 0.05
    c.optimizer.b2 = 0.98

    # 'sequence' weighs every completion the same, so that the one letter that answers
    # is not lost among the words of a description.
    c.aggregation = "token" if look else "sequence"
    c.unroll = True  # layers in a Python loop: 25 % faster on CPU than a scan, measured
    c.log_every = 2 if small else 25
    c.save_every = 4 if small else 200
    return c
