"""Evaluate a model under conditions: records, tables, figures and a page.

Each example is read once for all its conditions. Writes WORKDIR/records.parquet, what
`vlmrl report` makes of it, and WORKDIR/scores.json: the published scores of the set
(vlmrl/eval/scoring.py) under every condition.

Every pass over a batch of examples is on disk before the next one begins. SIGTERM ends
the run after the present pass with exit status 75, and the same command goes on there.
"""

from __future__ import annotations

from vlmrl import perturb, sharding, user_code
from vlmrl import policy as policies
from vlmrl.data import loader
from vlmrl.eval import measures, scoring
from vlmrl.eval.record_builder import RunLabels
from vlmrl.files import write_json
from vlmrl.loops.evaluate import (
    EvalPart,
    Evaluator,
    load_examples,
    settings_of,
    write_records,
)
from vlmrl.loops.run_config import READ
from vlmrl.main import args
from vlmrl.main.progress import bar, say, show_report
from vlmrl.report import assemble
from vlmrl.run import hosts
from vlmrl.run.directory import describe_run
from vlmrl.run.phases import STOPPED, STOPPED_LINE, Phases, Stopped
from vlmrl.studies import claims

HELP = "accuracy, entropy, P(correct) and consistency under every condition"
FLAGS = {
    "config": ("configs/tiny/eval.py", "model, data and conditions"),
    "workdir": (None, "run directory to write into"),
    "coordinator": ("", "host:port of process 0, where no cluster says it"),
    "processes": (0, "number of processes (hosts) of the run"),
    "process": (-1, "which of them this is, from 0"),
    "devices": (0, "devices in all; the run ends if there are not as many"),
}


def main(argv):
    config, workdir, ops = args.parse(argv, FLAGS)
    hosts.start(ops.coordinator, ops.processes, ops.process)
    say(hosts.check(config.to_json_best_effort(sort_keys=True), ops.devices))
    c = config.to_dict()
    measures.check(c["reading"], "config.reading")
    perturb.check(*c["conditions"])
    if loader.is_procedural(c["source"]):
        loader.source_of(c["source"])
    policy = policies.load(
        c["model"],
        **{name: c[name] for name in READ},
        mesh=sharding.make_mesh(**c["mesh"]),
    )
    say(policy.processor.about_tags())
    evaluator = Evaluator(policy, c["conditions"], settings_of(c["kernel"]))
    examples = load_examples(
        c["source"], c["split"], c["size"], workdir / "data", c["texts"]
    )
    if hosts.first():
        for line in describe_run(workdir, c):
            say(line)
    labels = RunLabels(
        c["recipe"], c["seed"], c["step"], c["split"], code=user_code.stamp(c)
    )
    say(evaluator.plan(examples).describe())
    phases = Phases()
    try:
        with (
            phases.watched(workdir / "hosts"),
            bar(f"evaluate {c['recipe']}", len(examples)) as advance,
        ):
            rows = write_records(
                workdir / "records.parquet",
                [EvalPart(evaluator, examples)],
                policy.params,
                labels,
                phases.after("eval", advance),
            )
    except Stopped:
        say(STOPPED_LINE)
        return STOPPED
    if not hosts.first():
        return 0
    scores = scoring.by_condition(c["source"], rows)
    write_json(workdir / "scores.json", scores)
    assemble.write_images(workdir, examples)
    info = {
        "title": f"{c['recipe']} on {c['source']}",
        "Model": c["model"],
        "Data": f"{c['source']}, {c['split']} split, {len(examples)} examples",
    }
    show_report(claims.build_report(workdir, info, reading=c["reading"]))
    return 0
