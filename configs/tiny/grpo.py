"""What the GRPO recipes of the tiny model share. Each recipe file names its reward and
its augmentation; everything else stands here, tuned on the validation split.

Options after ':' — runlocal (three steps, a handful of items), seeds=N (seeds 0..N−1).
"""

from configs import common
from configs.common import parse_arg

MIX = common.MIX

# The conditions of the paper's table, then abstain as a modifier of two of them.
CONDITIONS = (*common.CONDITIONS, "abstain+base", "abstain+wrong_think")


def recipe(arg, *, name: str, reward: str = "grpo", mix: dict | None = None):
    """The config of one recipe."""
    options = parse_arg(arg, seeds=1)
    small = options.runlocal
    c = common.training(options.seeds)
    c.recipe = name
    c.steps = 3 if small else 50
    c.prompts = 8 if small else 16
    c.sampling.group_size = 8  # the paper's
    c.sampling.max_tokens = 72
    c.reward.name = reward
    c.mix = dict(mix or {})
    c.learner.unroll = True  # layers in a Python loop: measured 18 % less CPU time
    c.optimizer.peak = 2.5e-4
    c.optimizer.warmup = 5
    c.optimizer.decay = "linear"
    c.optimizer.freeze = ("vision.",)
    c.data.size = 64 if small else 2400
    c.eval.size = 8 if small else 72
    c.eval.every = c.save_every = 3 if small else 25
    c.eval.start = not small
    c.eval.conditions = ("base", "wrong_caption", "wrong_think", "stop_think")
    c.eval.max_tokens = 72
    return c


def get_config(arg=None):
    """Accuracy only, under the name 'grpo'."""
    return recipe(arg, name="grpo")
