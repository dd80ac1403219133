"""RefCOCO grounding (the paper's appendix): does RL on answers cost localisation?
Acc@0.5 and mean IoU of the first box an answer holds.

In small there are no boxes to find: the tiny model answers questions about scenes, and
every answer without a box scores an empty one.
"""

from configs.paper import common

CONDITIONS = ("base", "no_cot")


def get_config(arg=None):
    options, c = common.study(
        arg, title="RefCOCO", paper="appendix", tables=("grounding",)
    )
    c.shown = CONDITIONS
    if not options.runlocal:
        c.conditions = CONDITIONS
        splits = ("val", "testA", "testB")
        sets = [dict(source="refcoco", split=s, size=0) for s in splits]
        c.sets = common.sized(sets, options.size)
    return c
