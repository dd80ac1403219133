"""The paper's study at toy size: four recipes × three seeds from one warm start,
measured while they train and at the end, then a verdict on each of its eight claims.

    vlmrl study --config configs/tiny/dynamics.py --workdir runs/dynamics

Options after ':' — runlocal (seconds instead of minutes), seeds=N, only=A+B (some of
its recipes).
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.tiny import accuracy, augmented, both, faithful, grpo

RECIPES = {
    "accuracy": accuracy,  # (ii): right answers pay
    "augmented": augmented,  # (iii): on perturbed prompts, too
    "faithful": faithful,  # (iv): only where the CoT concludes the answer
    "both": both,
}


CURVES = grpo.CONDITIONS[:-2]  # all but those with a way to abstain


def study(arg, recipes, *, seeds: int, title: str, summary: str, curves=CURVES):
    """The config of a study of recipes, by name the modules that make them. `curves`
    are the conditions measured while they train, () for those of the recipes."""
    options = parse_arg(arg, seeds=seeds, only="")
    only = options.only.split("+") if options.only else list(recipes)
    if unknown := [name for name in only if name not in recipes]:
        known = ", ".join(recipes)
        raise ValueError(f"option 'only' names '{unknown[0]}', want some of {known}")
    small = options.runlocal
    inner = f"{'runlocal,' if small else ''}seeds={options.seeds}"
    c = ConfigDict()
    c.algorithm = "study"  # run by `vlmrl study`
    c.about = ConfigDict(dict(title=title, summary=summary))
    c.recipes = ConfigDict()  # trained one after the other from the same start
    for name in only:
        recipe = recipes[name].get_config(inner)
        if curves:
            recipe.eval.conditions = curves if not small else ("base",)
        c.recipes[name] = recipe
    c.model = "tiny"  # the warm start
    c.style = "tiny"  # prompt style
    c.tags = "auto"  # <think> and its like: 'added' tokens, 'plain' text, or 'auto'
    c.split = "test"  # read once, at the end
    c.size = 12 if small else 504  # examples of it
    c.perturbed_size = 8 if small else 216  # of them under every condition
    c.ood_size = 6 if small else 120  # out of distribution, base alone
    c.conditions = grpo.CONDITIONS

    c.kernel = ConfigDict()  # loops/evaluate.py: EvalSettings
    c.kernel.samples = 1
    c.kernel.temperature = 0.0  # greedy
    c.kernel.max_tokens = 72
    c.kernel.probe_every = 16
    c.kernel.probes = 4
    c.kernel.batch = 12 if small else 24
    return c


def get_config(arg=None):
    return study(
        arg,
        RECIPES,
        seeds=3,
        title="What RL does to robustness and faithfulness, at toy size",
        summary=(
            "Four recipes, three seeds each, from one warm start on procedural scenes: "
            "accuracy reward, with augmentation, with the faithfulness reward, both."
        ),
    )
