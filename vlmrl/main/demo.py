"""The whole job in small, on a laptop: fine-tune a vision-language model with GRPO and
see what that did to its robustness and its reasoning.

Evaluates the warm start under misleading captions and wrong chains of thought, trains
an accuracy-only and a faithfulness recipe, evaluates both, and leaves records.parquet,
metrics.json, tables/, figures/ and report.html in the run directory. The same command
again continues where it stopped.
"""

from __future__ import annotations

from vlmrl.main import args
from vlmrl.main.progress import TERMINAL, say, show_report
from vlmrl.studies import recipes

HELP = "the whole job in small: evaluate, fine-tune with GRPO, evaluate, report"
FLAGS = {
    "config": ("configs/tiny/demo.py", "what the demo does"),
    "workdir": ("runs/demo", "run directory"),
}


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    args.check_algorithm(config, "study")
    outcome = recipes.run(workdir, config.to_dict(), display=TERMINAL)
    show_report(outcome.report)
    say(f"{outcome.minutes:.1f} minutes")
