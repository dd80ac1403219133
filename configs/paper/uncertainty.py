"""How far each condition moves letter entropy and P(correct)."""

from configs.paper import common


def get_config(arg=None):
    _, c = common.study(
        arg,
        title="Letter entropy and P(correct)",
        tables=("letters", "calibration"),
    )
    return c
