"""Train a model on given texts: the supervised warm start of the toy models.

Reads a config, trains with cross-entropy on the texts its source generates, and exports
WORKDIR/model in Hugging Face format. The same command again resumes from the newest
checkpoint. WORKDIR also holds config.json, environment.json, metrics.jsonl and
checkpoints/.
"""

from __future__ import annotations

from vlmrl.loops import sft
from vlmrl.main import args
from vlmrl.main.progress import say
from vlmrl.models import registry
from vlmrl.run import directory

HELP = "supervised fine-tuning of a toy model from a config, resumable"
FLAGS = {
    "config": (None, "what to train, e.g. configs/tiny/sft.py:stage=letters"),
    "workdir": (None, "run directory; an earlier run in it is resumed"),
}


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    args.check_algorithm(config, "sft")
    settings = config.to_dict()
    settings.pop("algorithm")
    if settings["model"]:
        registry.resolve(settings["model"])
    directory.describe_run(workdir, config.to_dict())
    sft.run(workdir=workdir, say=say, **settings)
