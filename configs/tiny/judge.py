"""The tiny judge: a text model of 0.5 M parameters that says whether a CoT concludes
the answer that was given.

    judge=configs/tiny/judge.py
    vlmrl sft --config $judge:stage=brief --workdir A
    vlmrl sft --config $judge:stage=whole --config.model=A/model --workdir B
    vlmrl convert --source B/model --dtype bfloat16 --target vlmrl/tiny/judge

It begins as the tiny model's decoder and learns from CoTs whose conclusions are known
because they were written to be (vlmrl/tiny/judge_data.py), never of the seed that
judges are tested on. The first stage is of conclusions alone, the second of whole
CoTs.

What ships as vlmrl/tiny/judge was trained like this, with these differences: in `brief`
the prompts began with the question, and batches were drawn four at a time, not eight.

A step is 64 CoTs of 40 to 130 tokens: about 1.4 seconds of processor time. Every
length of `buckets.prefix` is a program, and each takes half a minute to compile; with
`unroll` and seven lengths the compiler took longer than the training.

Options after ':' — stage, runlocal (four steps).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

# mix: shares of kinds of CoTs (synthetic.KINDS, 'brief', 'scenes').
STAGES = {
    "brief": dict(
        seed=11, steps=100, average=1, mix=dict(brief=80, two=10, scenes=10)
    ),
    "whole": dict(
        seed=12, steps=200, average=6,
        mix=dict(
            plain=14, paraphrase=16, steps=12, retraction=14, withdrawn=7, two=8,
            none=8, truncated=7, adversarial=16, brief=6, scenes=18,
        ),
    ),
}  # fmt: skip


def get_config(arg=None):
    options = parse_arg(arg, stage=tuple(STAGES))
    stage, small = STAGES[options.stage], options.runlocal
    c = ConfigDict()
    c.algorithm = "sft"  # run by `vlmrl sft`
    c.source = "lessons"
    c.model = ""  # directory to start from; '' makes the tiny judge's
    c.seed = stage["seed"]  # of the CoTs
    c.steps = 4 if small else stage["steps"]
    c.groups = 8 if small else 64  # CoTs per step
    c.mix = ConfigDict(stage["mix"])

    c.buckets = ConfigDict()  # static lengths, tokens; a program for each
    c.buckets.prefix = (64, 80, 104, 144)
    c.buckets.branch = (4,)

    c.optimizer = ConfigDict()
    c.optimizer.peak = 2e-3
    c.optimizer.warmup = 2 if small else 20
    c.optimizer.decay = "constant"  # one program for both stages
    c.optimizer.horizon = 0  # steps that the decay is for; 0: those of the run
    c.optimizer.weight_decay = 0.0
    c.optimizer.b2 = 0.98
    c.optimizer.muon = 5.0  # rate of matrices by Muon, in peaks; 0: AdamW
    c.optimizer.embed = 3.0  # rate of the embedding, in peaks

    c.aggregation = "token"  # every token to learn weighs the same
    c.unroll = False  # layers in a scan: four programs are compiled
    c.log_every = 2 if small else 10
    c.save_every = 4 if small else 10
    c.average = stage["average"]  # checkpoints whose mean is exported
    return c
