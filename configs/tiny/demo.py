"""The main job in small: the warm start, then two recipes trained from it, each
measured under every condition on the held-out test split.

Options after ':' — runlocal (seconds instead of minutes), seeds=N.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.tiny import accuracy, faithful, grpo


def get_config(arg=None):
    options = parse_arg(arg, seeds=1)
    inner = f"{'runlocal,' if options.runlocal else ''}seeds={options.seeds}"
    c = ConfigDict()
    c.recipes = ConfigDict()  # trained one after the other from the same start
    c.recipes.accuracy = accuracy.get_config(inner)
    c.recipes.faithful = faithful.get_config(inner)
    for recipe in c.recipes.values():
        recipe.eval.size = 8 if options.runlocal else 48
    c.model = "tiny"  # the warm start
    c.style = "tiny"  # prompt style
    c.split = "test"
    c.size = 12 if options.runlocal else 504  # examples of the test split
    c.perturbed_size = 8 if options.runlocal else 168  # of them under every condition
    c.ood_size = 6 if options.runlocal else 120  # out of distribution, base alone
    c.conditions = grpo.CONDITIONS

    c.kernel = ConfigDict()  # eval/evaluate.py: evaluator
    c.kernel.samples = 1
    c.kernel.temperature = 0.0  # greedy
    c.kernel.max_tokens = 72
    c.kernel.probe_every = 16
    c.kernel.probes = 4
    c.kernel.batch = 12 if options.runlocal else 24
    return c
