"""Warm start of the tiny model: supervised traces on scenes, in stages.

    sft=configs/tiny/sft.py
    vlmrl train --config $sft:stage=look --workdir A
    vlmrl train --config $sft:stage=copy --config.model=A/model --workdir B
    vlmrl train --config $sft:stage=find --config.model=B/model --workdir C

It learns to see (dense descriptions of many pictures, from random weights), to look up
words in its context (lists said again), then to find what a question names, to reason
and to tie what it concluded to a letter. An earlier form of stage `find` (other drills,
constant rate) was run for 450 steps: thinks came to name mostly the objects that are
asked about, but letters stayed at chance. What ships as vlmrl/models/tiny is older (see
README.md). Options after ':' — stage, runlocal (four
steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

# seed: of the weights and of the data; horizon: steps that the decay is for; groups:
# pictures per step; items: branches of a picture by kind (vlmrl/main/sft.py: ITEMS).
# Token loss of describing: 0.07 after `look`; of reciting: 0.02 after `copy`,
# 400 steps with Muon (it falls from 2.5 between steps 150 and 320).
STAGES = {
    "look": dict(
        seed=0, groups=64, items=dict(described=1), steps=800,
        peak=3e-3, muon=0.0, warmup=200, decay="cosine", horizon=2600,
    ),
    "copy": dict(
        seed=21, groups=24, items=dict(described=1, forwards=1, backwards=2), steps=400,
        peak=2e-3, muon=5.0, warmup=20, decay="constant", horizon=0,
    ),
    "find": dict(
        seed=22, groups=24, items=dict(located=1, drilled=1, questions=2), steps=4000,
        peak=2e-3, muon=5.0, warmup=20, decay="linear", horizon=0,
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
        dict(described=0, forwards=0, backwards=0, located=0, drilled=0, questions=0)
        | stage["items"]
    )

    c.mix = ConfigDict()  # data/traces.py: supervised
    c.mix.brief = 0.3  # share of thinks that are the conclusion alone
    c.mix.caption = 0.12  # context: a true caption
    c.mix.started = 0.12  # context: a started true think
    c.mix.direct = 0.08  # asked to answer at once
    c.mix.abstain = 0.05  # offered "I'm not sure"

    c.buckets = ConfigDict()  # static lengths, tokens
    c.buckets.prefix = (36, 56)
    c.buckets.branch = (72, 88, 104, 120)
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
