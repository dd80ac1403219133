"""Prompt sensitivity: every model in its own style, in the common one, and in the
wording of VLMEvalKit, which asks for no chain of thought."""

from configs.paper import common

COMMON = ("r1v", "vlmevalkit")
CONDITIONS = ("base", "wrong_caption")


def get_config(arg=None):
    options, c = common.study(arg, title="Prompt styles", tables=("base", "styles"))
    c.shown = CONDITIONS
    if not options.runlocal:
        c.conditions = CONDITIONS
    own = c.models
    # two are enough to go through every step
    others = ("r1v",) if options.runlocal else COMMON
    c.models = own + tuple(
        {**m, "name": f"{m['name']} ({style})", "style": style}
        for m in own
        for style in others
        if style != m["style"]
    )
    return c
