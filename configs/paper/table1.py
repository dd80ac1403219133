"""Table 1: base accuracy of the six open models on the eight benchmarks."""

from configs.paper import common

# 3DSRBench: plain accuracy over the 5,157 rows. CV-Bench: probably a macro average, so
# the official one stands beside plain accuracy.
PAPER = {
    "Qwen2.5-VL-7B": (0.5525, 0.7860),
    "SpaceR": (0.5666, 0.7812),
    "Video-R1": (0.5656, 0.7268),
    "Vision-R1": (0.5422, 0.7384),
    "VLAA-Thinker": (0.5759, 0.7701),
    "ViGoRL-Spatial": (0.5327, 0.8229),
}


def get_config(arg=None):
    _, c = common.study(
        arg, title="Base accuracy", paper="Table 1", tables=("base", "official")
    )
    c.known = tuple(
        (model, source, "base", "accuracy", value)
        for model, values in PAPER.items()
        for source, value in zip(("3dsrbench", "cv_bench"), values, strict=True)
    )
    return c
