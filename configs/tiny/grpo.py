"""What the GRPO recipes of the tiny model share. Each recipe file names its reward and
its augmentation; everything else stands here, tuned on the validation split.

Options after ':' — runlocal (three steps, a handful of items), seeds=N (seeds 0..N−1).
"""

from ml_collections import ConfigDict

from configs import common
from configs.common import parse_arg
from vlmrl.rl import recipe as recipes

# 10 % each, 60 % clean (arXiv 2602.12506).
MIX = {
    "correct_think": 0.1,
    "wrong_think": 0.1,
    "correct_caption": 0.1,
    "wrong_caption": 0.1,
}

# The conditions of the paper's table, then abstain as a modifier of two of them.
CONDITIONS = (*common.CONDITIONS, "abstain+base", "abstain+wrong_think")


def recipe(arg, *, name: str, reward: str = "grpo", mix: dict | None = None):
    """The config of one recipe."""
    options = parse_arg(arg, seeds=1)
    small = options.runlocal
    c = ConfigDict(recipes.as_dict())  # every choice of the recipe at its default
    c.algorithm = "grpo"  # run by `vlmrl train`
    c.recipe = name  # its name in records, tables and figures
    c.model = "tiny"  # 'tiny' or a directory in Hugging Face format
    c.style = "tiny"  # prompt style (vlmrl/prompts/styles.py: STYLES)
    c.quantize = ""  # 'int8': a base in 8 bits, which takes lora.rank and 'quant'
    c.dtype = "float32"  # of the parameters that learn, and their moments
    c.compute = ""  # 'bfloat16': of activations, and weights as they are read
    c.pixels = ()  # least and most pixels of an image; () as the checkpoint says
    c.buckets = (
        ConfigDict()
    )  # static shapes that programs are compiled for; () as for scenes
    c.buckets.prefix = ()  # tokens of a prompt, (512, 1024)
    c.buckets.branch = ()  # tokens of a condition's text
    c.buckets.images = ()  # images of an example
    c.buckets.windows = ()  # attention windows, or tiles, of an image
    c.seeds = tuple(range(options.seeds))  # one run each, under WORKDIR/seed-N
    c.steps = 3 if small else 50  # updates
    c.prompts = 8 if small else 16  # groups per step
    c.sampling.group_size = 8  # completions per prompt (the paper's)
    c.sampling.max_tokens = 72  # of a completion
    c.reward.name = reward
    c.mix = dict(mix or {})
    c.learner.unroll = True  # layers in a Python loop: measured 18 % less CPU time

    # Arguments of rl/losses/objective.py: policy_objective, and of its surrogate.
    c.loss.clip_low = 0.2
    c.loss.clip_high = 0.2
    c.loss.aggregation = "token"  # 'token', 'sequence' or 'constant'
    c.loss.kl_weight = 0.0  # KL to the starting policy, per nat
    c.loss.entropy_weight = 0.0  # bonus per nat

    c.optimizer.peak = 2.5e-4  # learning rate
    c.optimizer.warmup = 5  # steps
    c.optimizer.decay = "linear"
    c.optimizer.freeze = ("vision.",)

    c.data = ConfigDict()
    c.data.source = "scenes"  # or a prepared set, or several: 'sat,geometry3k'
    c.data.weights = ()  # share of each of several sources; equal if empty
    c.data.split = "train"
    c.data.size = 64 if small else 2400  # examples of each source; 0: all it has
    c.data.texts = ""  # file of misleading texts instead of the sources' own

    c.eval = ConfigDict()  # during training, on a held-out split
    c.eval.source = ""  # of what is held out; '': data.source
    c.eval.texts = ""  # as data.texts
    c.eval.split = "validation"
    c.eval.size = 8 if small else 72
    c.eval.every = 3 if small else 25  # steps; 0 for never
    c.eval.start = not small  # also before the first step
    c.eval.conditions = ("base", "wrong_caption", "wrong_think", "stop_think")
    c.eval.max_tokens = 72

    c.save_every = 3 if small else 25  # steps between checkpoints
    c.save_minutes = 0.0  # and minutes without one after which there is one; 0: never
    c.keep = 2  # checkpoints kept
    c.keep_best = ""  # and the best by a column of records: 'correct/base'; '': none

    c.lora = ConfigDict()  # train a low-rank adapter instead of all parameters
    c.lora.rank = 0  # 0: no adapter
    c.lora.alpha = 32.0  # its product is scaled by alpha / rank
    c.lora.targets = ("text.*",)  # patterns of adapted parameters
    c.save_rollouts = 0  # steps between sample rollouts (rollouts/*.parquet); 0: none
    c.tensorboard = True  # event files beside metrics.jsonl
    c.wandb = ""  # Weights & Biases project; '': none

    c.mesh = ConfigDict()  # devices: data × fsdp × tensor; one may be −1, what is left
    c.mesh.data = -1  # copies of the parameters
    c.mesh.fsdp = 1  # shares of parameters and optimizer, gathered layer by layer
    c.mesh.tensor = 1  # shares of heads, MLPs and vocabulary
    return c


def get_config(arg=None):
    """Accuracy only, under the name 'grpo'."""
    return recipe(arg, name="grpo")
