"""Fine-tune a model with reinforcement learning: GRPO and its relatives.

Reads a config, trains every seed of it under WORKDIR/seed-N, evaluates on a held-out
split while training, and exports WORKDIR/seed-N/model in Hugging Face format. The same
command again resumes from the newest checkpoint, to the bit. Several seeds are put
together in WORKDIR/tables and WORKDIR/report.html. `vlmrl sft` trains on given texts,
`vlmrl study` trains several recipes and compares them.

With config.lora.rank above 0 an adapter is trained, exported in peft's format to
WORKDIR/seed-N/adapter and merged into model/; config.quantize='int8' holds the base
under it in 8 bits.

A run directory holds config.json, environment.json, metrics.jsonl, records/ (one
Parquet file per evaluation), learning_curve.jsonl (their measures and changes),
rollouts/ (if kept), checkpoints/, model/, time.jsonl (seconds by phase, a line per
step) and goodput.jsonl (the same, a line per start of the run).

On several hosts the same command runs on each, with the run directory where all see it;
see launch/. SIGTERM to any of them is honoured at the next safe point of all: the state
is saved, and the exit status is 75. A run that hangs ends with 70.
"""

from __future__ import annotations

from vlmrl import user_code
from vlmrl.loops import seeds
from vlmrl.main import args
from vlmrl.main.progress import TERMINAL, say, show_report
from vlmrl.run import hosts
from vlmrl.run.phases import STOPPED
from vlmrl.studies import claims

HELP = "fine-tune a model with GRPO from a config, resumable"
FLAGS = {
    "config": (None, "what to train, e.g. configs/tiny/accuracy.py"),
    "workdir": (None, "run directory; an earlier run in it is resumed"),
    "coordinator": ("", "host:port of process 0, where no cluster says it"),
    "processes": (0, "number of processes (hosts) of the run"),
    "process": (-1, "which of them this is, from 0"),
    "devices": (0, "devices in all; the run ends if there are not as many"),
    "stuck_after": (1800.0, "seconds in one phase after which the run ends with 70"),
}


def main(argv):
    config, workdir, ops = args.parse(argv, FLAGS)
    args.check_algorithm(config, "grpo")
    hosts.start(ops.coordinator, ops.processes, ops.process)
    c = config.to_dict()
    seeds.check(c, workdir)
    text = config.to_json_best_effort(sort_keys=True)
    say(hosts.check(text + user_code.stamp(c), ops.devices))
    if not seeds.train(c, workdir, stuck_after=ops.stuck_after, display=TERMINAL):
        return STOPPED
    if len(c["seeds"]) > 1 and c["eval"]["every"] and hosts.first():
        info = {"title": c["recipe"], "Seeds": ", ".join(map(str, c["seeds"]))}
        show_report(claims.build_report(workdir, info))
    return 0
