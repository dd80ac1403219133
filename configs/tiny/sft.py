"""Warm start of the tiny model: supervised traces on scenes, in stages.

    sft=configs/tiny/sft.py
    vlmrl train --config $sft:stage=look --workdir A
    vlmrl train --config $sft:stage=find --config.model=A/model --workdir B
    vlmrl train --config $sft:stage=settle --config.model=B/model --workdir C

It learns to see (dense descriptions of many pictures, from random weights), then to
find what a question names, to reason and to tie what it concluded to a letter; the last
stage goes on at a smaller rate. C/model is what ships as vlmrl/models/tiny. Options
after ':' — stage, runlocal (four steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

# seed: of the weights and of the data; horizon: steps that the decay is for; groups:
# pictures per step; items: branches of a picture by kind (vlmrl/main/sft.py: ITEMS).
# Muon learns to look up an option's letter in some 300 steps; AdamW did not in 1,000.
STAGES = {
    "look": dict(
        seed=0, groups=64, items=dict(described=1), steps=800,
        peak=3e-3, muon=0.0, warmup=200, decay="cosine", horizon=2600, brief=0.55,
    ),
    "find": dict(
        seed=11, groups=24, items=dict(located=1, drilled=1, questions=2), steps=600,
        peak=3e-3, muon=20 / 3, warmup=50, decay="constant", horizon=0, brief=0.3,
    ),
    "settle": dict(
        seed=12, groups=24, items=dict(located=1, drilled=1, questions=2), steps=2000,
        peak=1.6e-3, muon=5.0, warmup=10, decay="constant", horizon=0, brief=0.3,
    ),
}  # fmt: skip


def get_config(arg=None):
    options = parse_arg(arg, stage=tuple(STAGES))
    stage, small = STAGES[options.stage], options.runlocal
    c = ConfigDict()
    c.algorithm = "sft"
    c.model = ""  # directory to start from; '' makes the tiny model's, without weights
    c.style = "tiny"  # prompt style
    c.seed = stage["seed"]
    c.steps = 4 if small else stage["steps"]
    c.groups = 8 if small else stage["groups"]
    c.items = ConfigDict(
        dict(described=0, located=0, drilled=0, questions=0) | stage["items"]
    )

    c.mix = ConfigDict()  # data/traces.py: supervised
    c.mix.brief = stage["brief"]  # share of thinks that are the conclusion alone
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
    c.optimizer.decay = stage["decay"]
    c.optimizer.horizon = stage["horizon"]  # 0: the steps of the run
    c.optimizer.weight_decay = 0.05
    c.optimizer.b2 = 0.98
    c.optimizer.muon = stage["muon"]  # rate of matrices by Muon, in peaks; 0: AdamW

    c.aggregation = "token"  # every token to learn weighs the same
    c.unroll = True  # layers in a Python loop: 25 % faster on CPU than a scan, measured
    c.log_every = 2 if small else 25
    c.save_every = 4 if small else 200
    return c
