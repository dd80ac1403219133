"""What the studies of the paper share: models, sets, conditions, decoding.

The paper is arXiv 2602.12506. What it does not state is the project's choice and marked
so. `:runlocal` swaps models and sets for the tiny model on scenes, the smallest run
that goes through every step; studies then share one evaluation, but for those of other
prompts, other images and of training.
"""

from ml_collections import ConfigDict

from configs import common
from configs.common import parse_arg

# Prompt style and decoding are each model's own, from its repository. Where that is
# sampling, it is read as written at temperature; top-p is left out (choice: the letter
# distribution is read at temperature 1 whatever the sampling). Lengths are upstream's.
MODELS = (
    # generation_config of the checkpoint is near-greedy; prompt unknown: common style
    dict(name="Qwen2.5-VL-7B", model="Qwen/Qwen2.5-VL-7B-Instruct", style="r1v",
         temperature=0.0, max_tokens=2048),
    dict(name="SpaceR", model="RUBBISHLIKE/SpaceR", style="spacer",
         temperature=0.01, max_tokens=1024),
    dict(name="Video-R1", model="Video-R1/Video-R1-7B", style="video_r1",
         temperature=0.1, max_tokens=1024),
    dict(name="Vision-R1", model="Osilly/Vision-R1-7B", style="vision_r1",
         temperature=0.6, max_tokens=4096),
    dict(name="VLAA-Thinker", model="UCSC-VLAA/VLAA-Thinker-Qwen2.5VL-7B", style="vlaa",
         temperature=0.0, max_tokens=1000),
    dict(name="ViGoRL-Spatial", model="gsarch/ViGoRL-7b-Spatial", style="vigorl",
         temperature=0.0, max_tokens=2048),
)  # fmt: skip
INTERNVL = (
    dict(name="InternVL3-8B", model="OpenGVLab/InternVL3-8B-hf", style="r1v",
         temperature=0.0, max_tokens=2048),
)  # fmt: skip
URL = "http://127.0.0.1:8000/v1"  # of an OpenAI-compatible server

TINY = (
    dict(name="tiny", model="tiny", style="tiny", temperature=0.0, max_tokens=72),
)  # fmt: skip

# The eight benchmarks, as `vlmrl data list` names their splits. size 0: all of it.
# 3DSRBench: the file of 5,157 rows, which the paper's figures are fractions of.
SETS = tuple(
    dict(source=source, split=split, size=0)
    for source, splits in (
        ("3dsrbench", ("flip",)),
        ("cv_bench", ("2D", "3D")),
        ("spatial_mm", ("one_obj", "two_obj", "multihop")),
        ("whatsup", ("controlled_a", "controlled_b", "coco_one", "coco_two",
                     "gqa_one", "gqa_two")),
        ("vstar", ("test",)),
        ("mme_realworld_lite", ("test",)),
        ("mmbench", ("dev",)),
    )
    for split in splits
)  # fmt: skip
SCENES = (dict(source="scenes", split="validation", size=8),)

# One evaluation serves every study: an item's conditions share its image.
CONDITIONS = (
    *common.CONDITIONS,
    "abstain+base",
    "abstain+wrong_think",
    "abstain+wrong_caption",
)


def sized(sets, size: int):
    """The sets with `size` examples of each, 0 for as many as they say themselves."""
    return tuple({**s, "size": size or s["size"]} for s in sets)


def rehearsed(models, family: str = "qwen2_5_vl"):
    """The models with the weights of a narrow one of their family, all else as it
    is."""
    return tuple({**m, "model": f"{common.REHEARSAL}/{family}"} for m in models)


def study(arg, *, title: str, paper: str = "", tables: tuple = (), **options):
    """(options, config) of a study that evaluates models on sets under conditions.

    Options of every study after ':' — runlocal; rehearse; size=N, examples of each
    set; model=DIR_OR_ID with style=STYLE, to run it on one model of your own instead;
    url, where judges and closed models are served.

    Args:
      arg: what follows the colon; these and the study's own `options`.
      title: of the page and its tables.
      paper: the table or figure of the paper, '' where unknown or not in it.
      tables: what it ends with, in order: names in vlmrl/studies/tables.py.
    """
    every = dict(model="", style="r1v", size=0, rehearse=False, url=URL)
    read = parse_arg(arg, **every | options)
    small = read.runlocal
    own = dict(name=read.model, model=read.model, style=read.style, temperature=0.0,
               max_tokens=2048)  # fmt: skip
    c = ConfigDict()
    c.kind = "evaluate"  # 'evaluate', 'train', 'judge' or 'ask'
    c.title = title
    c.paper = paper
    c.tables = tables
    c.models = (own,) if read.model else TINY if small else MODELS
    if read.rehearse:
        c.models = rehearsed(c.models)
    c.rehearse = read.rehearse
    c.url = read.url
    c.sets = sized(SCENES if small else SETS, read.size)
    c.conditions = CONDITIONS
    c.shown = ()  # conditions its tables show; () for all that were measured
    c.images = ()  # image perturbations besides: blank, shuffled, noisy, masked
    c.reading = "strict"  # of an answer, what accuracy is of: strict, lenient, forced
    c.known = ()  # the paper's values: (model, source, condition, measure, value)
    c.seed = 0  # of the sampler
    # choice: up to 5,120 image tokens, 2 × 2 of the 1,280 that Qwen suggests. V* and
    # MME-RealWorld ask for details of photographs that the checkpoint's own limit,
    # 12.8 megapixels, would make 16,384 tokens of; below it little is resized.
    c.pixels = () if small else (3_136, 4_014_080)  # least and most of an image

    c.kernel = ConfigDict()  # loops/evaluate.py: EvalSettings
    c.kernel.samples = 1
    c.kernel.probe_every = 16 if small else 32  # choice: think tokens between probes
    c.kernel.probes = 4 if small else 32
    c.kernel.slots = 0  # samples decoded side by side, for unlike lengths; 0: all
    c.kernel.batch = 8 if small else 16  # examples per pass
    # choice: six of the largest images; what is longer is skipped and counted
    c.kernel.max_prompt = 0 if small else 32_768  # tokens, images included

    c.mesh = ConfigDict()  # devices: data × fsdp × tensor; one may be −1, what is left
    c.mesh.data = -1  # copies of the weights
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.device = ConfigDict()  # what estimates assume: one host of eight H100 SXM
    here = small or read.rehearse
    c.device.chip = "host" if here else "h100"  # vlmrl/plan/chips.py: CHIPS
    c.device.count = 1 if here else 8
    c.device.efficiency = 0.8 if small else 0.4  # share of its FLOP/s that is reached
    return read, c
