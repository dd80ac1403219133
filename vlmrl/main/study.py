"""Train several recipes from one start over several seeds, and compare them.

Evaluates the start and every trained model under conditions, and leaves
records.parquet, metrics.json, tables/, figures/ and report.html in WORKDIR, with a
verdict on each of the paper's claims and on each remedy. A recipe's seeds are trained
in WORKDIR/RECIPE/seed-N as `vlmrl train` does it. The same command again continues
where it stopped.
"""

from __future__ import annotations

from vlmrl.main import args
from vlmrl.main.progress import CONSOLE, TERMINAL, say, show_report
from vlmrl.report import render
from vlmrl.studies import recipes

HELP = "train several recipes over seeds and compare them, resumable"
FLAGS = {
    "config": (
        "configs/tiny/dynamics.py",
        "the recipes, e.g. configs/tiny/remedies.py",
    ),
    "workdir": (None, "run directory; an earlier run in it is resumed"),
}


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    args.check_algorithm(config, "study")
    outcome = recipes.run(workdir, config.to_dict(), display=TERMINAL, verdicts=True)
    show_report(outcome.report)
    for table in outcome.verdicts:
        CONSOLE.print(render.terminal(table))
    say(f"{outcome.minutes:.1f} minutes")
