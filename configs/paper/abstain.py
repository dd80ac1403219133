"""A way out: the further option "I'm not sure". The paper: it doesn't help, and lowers
accuracy under wrong_think by a further 3 to 6 points."""

from configs.paper import common

SHOWN = (
    "base",
    "abstain+base",
    "wrong_think",
    "abstain+wrong_think",
    "wrong_caption",
    "abstain+wrong_caption",
)


def get_config(arg=None):
    _, c = common.study(
        arg, title="Abstaining", tables=("conditions", "abstain", "comparisons")
    )
    c.shown = SHOWN
    return c
