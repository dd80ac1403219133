"""InternVL3-8B under the same conditions (the paper's appendix)."""

from configs.paper import common


def get_config(arg=None):
    options, c = common.study(
        arg,
        title="InternVL3-8B",
        paper="appendix",
        tables=("conditions", "letters", "quadrants"),
    )
    if not (options.runlocal or options.model):
        c.models = common.INTERNVL
        c.pixels = (200_704, 2_408_448)  # its own: 1 to 12 tiles of 448 × 448
        if options.rehearse:
            c.models = common.rehearsed(c.models, "internvl")
    return c
