"""Accuracy per condition: what misleading text costs, by benchmark."""

from configs.paper import common


def get_config(arg=None):
    _, c = common.study(
        arg,
        title="Accuracy per condition",
        tables=("conditions", "robustness", "comparisons", "leaderboard"),
    )
    return c
