"""Faithfulness: consistent or not × right or wrong, under every condition."""

from configs.paper import common


def get_config(arg=None):
    _, c = common.study(
        arg, title="Faithfulness quadrants", tables=("quadrants", "agreement")
    )
    return c
