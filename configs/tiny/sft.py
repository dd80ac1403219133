"""Warm start of the tiny model: supervised traces on scenes, in stages.

    sft=configs/tiny/sft.py
    vlmrl sft --config $sft:stage=letters --workdir A
    vlmrl sft --config $sft:stage=ends --config.model=A/model --workdir B
    vlmrl sft --config $sft:stage=scenes --config.model=B/model --workdir C
    vlmrl sft --config $sft:stage=answers --config.model=C/model --workdir D
    vlmrl sft --config $sft:stage=look --config.model=D/model --workdir E
    vlmrl sft --config $sft:stage=careful --config.model=E/model --workdir F
    vlmrl sft --config $sft:stage=brief --config.model=F/model --workdir G

Without pictures it learns to look up letters in short lists, then at the ends of
CoTs; with pictures, to describe what it sees, to reason about it and to answer. The
last stage teaches the habit of a brief CoT, by its first word alone, while brief
CoTs are still the less often right: the room that RL has. By the seconds per step
seen on 2 cores beside other work (0.6, 0.8, 1.3, 1.3, 1.8, 1.6, 0.6), the stages take
about 6, 4, 17, 17, 15, 7 and 1 minutes.

What ships as vlmrl/tiny/model was trained like this, but for this: `ends` drew the
lines of `traces.drilled` in an earlier form; `scenes` began with the vision tower of a
run of revision fd1ac1a (its stages letters, ends, look, and 600 steps of scenes) and
was stopped at step 600; `answers` were two runs, of 300 and, with seed 5 and a peak of
1.2e-3, of 500 steps; up to `look`, CoTs about relations named the row or the column
alone; `careful` were two runs, of 250 steps and, with seed 11, mix.brief 0 and
mix.direct 0, of 170.

Options after ':' — stage, runlocal (four steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

# seed: of the weights and of the data; groups: pictures (or texts) per step; branches:
# items behind each by kind (vlmrl/tiny/sft_data.py: ITEMS).
STAGES = {
    "letters": dict(
        seed=0, groups=64, branches=dict(listed=1), steps=550, pictures=False,
        decay="constant",
    ),
    "ends": dict(
        seed=1, groups=16, branches=dict(listed=1, drilled=2), steps=300,
        pictures=False, decay="constant",
    ),
    "scenes": dict(
        seed=3, groups=16, steps=800, pictures=True, decay="linear",
        branches=dict(described=1, located=1, drilled=2, questions=2),
    ),
    "answers": dict(
        seed=5, groups=16, steps=800, pictures=True, decay="linear", peak=1.2e-3,
        branches=dict(located=1, questions=4),
    ),
    "look": dict(
        seed=7, groups=32, steps=500, pictures=True, decay="linear",
        branches=dict(described=1, located=1, questions=1),
    ),
    "careful": dict(
        seed=9, groups=16, steps=250, pictures=True, decay="linear", peak=1.5e-3,
        branches=dict(located=1, questions=4), brief=0.15,
    ),
    "brief": dict(
        seed=10, groups=16, steps=60, pictures=True, decay="linear", peak=8e-4,
        branches=dict(located=1, questions=4), brief=0.65, opening="<think>So",
    ),
}  # fmt: skip


def get_config(arg=None):
    options = parse_arg(arg, stage=tuple(STAGES))
    stage, small = STAGES[options.stage], options.runlocal
    c = ConfigDict()
    c.algorithm = "sft"  # run by `vlmrl sft`
    c.model = ""  # directory to start from; '' makes the tiny model's, without weights
    c.style = "tiny"  # prompt style
    c.tags = "auto"  # <think> and its like: 'added' tokens, 'plain' text, or 'auto'
    c.seed = stage["seed"]
    c.steps = 4 if small else stage["steps"]
    c.groups = 8 if small else stage["groups"]
    c.branches = ConfigDict(
        dict(described=0, located=0, listed=0, drilled=0, questions=0)
        | stage["branches"]
    )

    c.pictures = stage["pictures"]  # else items are asked as text alone
    c.opening = stage.get("opening", "")  # of texts that begin so, no more is learned

    c.mix = ConfigDict()  # data/traces.py: supervised
    c.mix.brief = stage.get("brief", 0.3)  # share of bare conclusions
    c.mix.caption = 0.12  # context: a true caption
    c.mix.started = 0.12  # context: a started true CoT
    c.mix.direct = 0.08  # asked to answer at once
    c.mix.abstain = 0.05  # offered "I'm not sure"

    c.buckets = ConfigDict()  # static lengths, tokens
    c.buckets.prefix = (24, 36, 64)
    c.buckets.branch = (40, 80, 104, 120, 144)
    c.buckets.windows = (4,)

    c.optimizer = ConfigDict()
    c.optimizer.peak = stage.get("peak", 2e-3)
    c.optimizer.warmup = 2 if small else 20
    c.optimizer.decay = stage["decay"]
    c.optimizer.horizon = 0  # steps that the decay is for; 0: those of the run
    c.optimizer.weight_decay = 0.0
    c.optimizer.b2 = 0.98
    c.optimizer.muon = 5.0  # rate of matrices by Muon, in peaks; 0: AdamW
    c.optimizer.embed = 3.0  # rate of the embedding, in peaks

    c.aggregation = "token"  # every token to learn weighs the same
    c.unroll = True  # layers in a Python loop: 25 % faster on CPU than a scan, measured
    c.log_every = 2 if small else 25
    c.save_every = 4 if small else 200
    return c
