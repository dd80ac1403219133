"""The paper's GRPO job on Qwen2.5-VL, for `vlmrl plan`: 128 prompts × 8 completions,
prompts of 2,048 tokens with images, responses of 2,048 (arXiv 2602.12506).

Options after ':' — model=7b|3b|72b, runlocal (the tiny model at toy size).
"""

from ml_collections import ConfigDict

from configs.common import CONDITIONS, parse_arg

MODELS = {
    "7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "72b": "Qwen/Qwen2.5-VL-72B-Instruct",
}


def get_config(arg=None):
    options = parse_arg(arg, model=tuple(MODELS))
    small = options.runlocal
    c = ConfigDict()
    c.algorithm = "grpo"  # run by `vlmrl train`
    c.model = "tiny" if small else MODELS[options.model]
    c.steps = 3 if small else 500  # updates
    c.prompts = 8 if small else 128  # groups per step
    c.mesh = ConfigDict()  # sizes of data, fsdp, tensor; empty: chosen by the model
    c.dtype = "float32"  # of the parameters and the optimizer
    c.compute = "" if small else "bfloat16"  # of activations; '' as `dtype`

    c.sampling = ConfigDict()
    c.sampling.group_size = 2 if small else 8
    c.sampling.max_tokens = 16 if small else 2048  # of a completion
    c.sampling.gather_params = True  # gather over fsdp once; False: in every token
    c.learner = ConfigDict()
    c.learner.microbatches = 1 if small else 8
    c.learner.remat = "" if small else "nothing_saveable"
    c.learner.float32_residual = True  # False: remat saves half as much

    c.buckets = ConfigDict()  # the largest shapes
    c.buckets.prefix = 96 if small else 2048
    c.buckets.images = 1
    c.buckets.windows = 4 if small else 81  # of 112 × 112 pixels: 1008 × 1008

    c.loss = ConfigDict()
    c.loss.clip_low = 0.2
    c.loss.clip_high = 0.2
    c.loss.aggregation = "token"
    c.loss.kl_weight = 0.0 if small else 0.01

    c.optimizer = ConfigDict()
    c.optimizer.peak = 1e-6
    c.optimizer.warmup = 5
    c.optimizer.decay = "constant"
    c.optimizer.clip = 1.0
    c.optimizer.offload = False  # its moments in the hosts' memory

    c.eval = ConfigDict()  # the whole suite at every checkpoint
    c.eval.size = 8 if small else 2000
    c.eval.every = 3 if small else 50
    c.eval.conditions = CONDITIONS[:2] if small else CONDITIONS
    c.eval.batch = 8 if small else 64  # examples per pass
    c.eval.max_tokens = 16 if small else 1024
    c.eval.texts = 76 if small else 256  # tokens of a condition's text
    return c
