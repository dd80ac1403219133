"""Without a chain of thought: does thinking help at all? Models tuned to reason are
often below their own direct answers on spatial sets."""

from configs.paper import common

SHOWN = ("base", "no_cot", "stop_think")


def get_config(arg=None):
    _, c = common.study(
        arg, title="Without a chain of thought", tables=("conditions", "comparisons")
    )
    c.shown = SHOWN
    return c
