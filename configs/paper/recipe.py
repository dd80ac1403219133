"""One recipe of `training.py`; `vlmrl train --config configs/paper/recipe.py:name=iii`.

Options after ':' — name (a recipe), seeds=N, runlocal.
"""

from configs.common import parse_arg
from configs.paper import common
from configs.tiny import grpo

SETS = {  # source → examples the paper drew from it, and so its share of the stream
    "i": {"sat": 32_000, "pixmo_count": 15_000},
    "ii": {"sat": 32_000, "pixmo_count": 15_000, "geometry3k": 2_100},
}
# name → (sets, augmented, faithfulness reward)
RECIPES = {
    "i": ("i", False, False),
    "ii": ("ii", False, False),
    "iii": ("ii", True, False),
    "i-f": ("i", False, True),
    "ii-f": ("ii", False, True),
    "iii-f": ("ii", True, True),
}


def get_config(arg=None):
    options = parse_arg(arg, name=tuple(RECIPES), seeds=3)
    sets, augmented, faithful = RECIPES[options.name]
    small = options.runlocal
    inner = f"{'runlocal,' if small else ''}seeds={options.seeds}"
    words = [options.name, "augmented" * augmented, "faithful" * faithful]
    c = grpo.recipe(
        inner,
        name=" ".join(filter(None, words)),
        reward="gated" if faithful else "grpo",
        mix=grpo.MIX if augmented else None,
    )
    if small:
        c.steps = c.eval.every = c.save_every = 2
        c.prompts, c.sampling.group_size = 8, 2
        c.sampling.max_tokens = c.eval.max_tokens = 16
        c.data.size, c.eval.size = 16, 8
        c.eval.conditions = ("base", "abstain+wrong_caption", "wrong_think")
        c.eval.start = True  # what the drift is measured from
        return c
    c.model = "Qwen/Qwen2.5-VL-7B-Instruct"
    c.style = "r1v"  # choice: the common style
    c.steps = 1200  # the paper: more than 1,000
    c.prompts = 128  # choice, ViGoRL
    c.sampling.group_size = 8
    c.sampling.max_tokens = 2048  # choice, ViGoRL and verl
    c.learner.microbatches = 8
    c.learner.unroll = False
    c.learner.remat = "nothing_saveable"
    c.compute = "bfloat16"  # choice; the parameters that learn are float32
    c.mesh.data, c.mesh.fsdp = 1, -1  # parameters and moments take 133 GB in all
    c.loss.kl_weight = 0.01  # choice, ViGoRL
    c.optimizer.peak = 1e-6  # choice, ViGoRL and verl
    c.optimizer.warmup = 0
    c.optimizer.weight_decay = 0.01  # choice, ViGoRL
    c.optimizer.freeze = ("vision.",)  # choice, ViGoRL
    c.buckets = dict(  # choice: static lengths for photographs and long prompts
        prefix=(512, 1024, 1536, 2048), branch=(64, 256), images=(1, 2),
        windows=(64, 144, 400),
    )  # fmt: skip
    c.data.source = ",".join(SETS[sets])
    c.data.weights = tuple(float(n) for n in SETS[sets].values())
    c.data.split = "train"
    c.data.size = 0  # all of each; which ones the paper drew is not stated
    c.eval.source = "cv_bench"  # choice: held out, and outside the training sets
    c.eval.split = "2D"
    c.eval.size = 0
    c.eval.every = 250
    c.eval.conditions = common.CONDITIONS
    c.eval.max_tokens = 2048
    c.save_every = 250
    c.keep = 10
    return c
