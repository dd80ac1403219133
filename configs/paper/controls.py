"""Controls: correct captions and CoTs have the same form as the wrong ones, so they
show that content, not format, does the harm."""

from configs.paper import common

SHOWN = ("base", "correct_caption", "wrong_caption", "correct_think", "wrong_think")


def get_config(arg=None):
    _, c = common.study(
        arg, title="Correct captions and CoTs", tables=("conditions", "comparisons")
    )
    c.shown = SHOWN  # of the conditions measured
    return c
