"""Warm start of the tiny model: supervised traces on scenes, from random weights.

`vlmrl tiny --workdir DIR` makes the directory without weights that `model` names; the
result is exported to WORKDIR/model. Options after ':' — runlocal (four steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg=None):
    small = parse_arg(arg).runlocal
    c = ConfigDict()
    c.algorithm = "sft"
    c.model = ""  # directory to start from; '' makes the tiny model's, without weights
    c.style = "tiny"  # prompt style
    c.seed = 0  # of the weights and of the data
    c.steps = 4 if small else 3000
    c.look = ConfigDict()  # first, dense descriptions only
    c.look.steps = 2 if small else 1400
    c.look.groups = 4 if small else 64  # pictures per step
    c.groups = 2 if small else 16  # scenes per step
    c.branches = 6  # items per scene: one dense description, the rest questions

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
    c.optimizer.warmup = 2 if small else 200
    c.optimizer.decay = "cosine"
    c.optimizer.weight_decay = 0.05
    c.optimizer.b2 = 0.98

    c.unroll = True  # layers in a Python loop: 25 % faster on CPU than a scan, measured
    c.log_every = 2 if small else 25
    c.save_every = 4 if small else 200
    return c
