"""Visual controls, which the paper lacks: the same text over a blank, shuffled or noisy
image. A model that holds its answer against a wrong caption because it looks should
lose it here; one that ignores text and image alike does not."""

from configs.paper import common

SHOWN = ("base", "wrong_caption", "wrong_think")


def get_config(arg=None):
    _, c = common.study(
        arg, title="Visual controls", tables=("conditions", "robustness")
    )
    c.conditions = SHOWN
    c.images = ("blank", "shuffled", "noisy")  # each with every condition
    return c
