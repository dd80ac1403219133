"""Evaluate a model under conditions: records, tables, figures and a page.

Each example is read once for all its conditions. Writes WORKDIR/records.parquet and
what `vlmrl report` makes of it.
"""

from __future__ import annotations

from vlmrl.data import loader
from vlmrl.engine import policy as policies
from vlmrl.eval import records
from vlmrl.eval.evaluate import evaluator
from vlmrl.main import args, report
from vlmrl.main.progress import bar
from vlmrl.main.train import describe_run

HELP = "accuracy, entropy, P(correct) and consistency under every condition"
FLAGS = {
    "config": ("configs/tiny/eval.py", "model, data and conditions"),
    "workdir": (None, "run directory to write into"),
}


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    c = config.to_dict()
    policy = policies.load(c["model"], style=c["style"])
    run = evaluator(policy, c["conditions"], **c["kernel"])
    examples = list(
        loader.examples_of(c["source"], c["split"], c["size"], workdir / "data")
    )
    describe_run(workdir, c)
    with bar(f"evaluate {c['recipe']}", len(examples)) as advance:
        found = run(
            policy.params,
            examples,
            recipe=c["recipe"],
            seed=c["seed"],
            step=c["step"],
            split=c["split"],
            progress=advance,
        )
    records.write(workdir / "records.parquet", found)
    report.write_images(workdir, examples)
    info = {
        "title": f"{c['recipe']} on {c['source']}",
        "Model": c["model"],
        "Data": f"{c['source']}, {c['split']} split, {len(examples)} examples",
    }
    report.build(
        workdir,
        report.find_records(workdir),
        report.read_images(workdir),
        info,
    )
