"""Reproduce a study of the paper: run what isn't done, end with its tables and figures.

  vlmrl reproduce configs/paper/table1.py              on this machine's accelerators
  vlmrl reproduce configs/paper/table1.py:runlocal     in small, on a laptop
  vlmrl reproduce configs/paper/table1.py --plan       what it needs, and how long
  vlmrl reproduce configs/paper/table1.py --remake     from the records alone
  vlmrl reproduce all:rehearse                         every study, narrow models

First it says what is missing (models, sets, judges), with the command that gets it, and
what is left to do, with an estimate of time and memory. Then it runs what isn't done;
the same command goes on where it was stopped. Studies share a --workdir, and in it
every evaluation that they have in common.

`:rehearse` runs a study with everything real but the width of the models: sets, splits,
prompts, conditions, limits and image sizes. `all` stands for every study of
configs/paper, one after the other.

WORKDIR/records/ holds one Parquet file per model and set (of training, each seed its
own under WORKDIR/train/), WORKDIR/perturbations/ what conditions made of each set, and
WORKDIR/STUDY/ the tables (Markdown, CSV, LaTeX), figures (PDF, PNG) and report.html.
--remake needs only the records: anyone can make the tables again from released ones,
without a model.
"""

from __future__ import annotations

from pathlib import Path

import jax

from vlmrl.eval import measures, records
from vlmrl.main import args
from vlmrl.main.progress import CONSOLE, TERMINAL, say, show_report
from vlmrl.report import assemble, render
from vlmrl.run import directory, hosts
from vlmrl.run.phases import STOPPED
from vlmrl.studies import claims, estimates, jobs, missing, running, tables
from vlmrl.types import UserError

HELP = "a table or figure of the paper, from its config"
FLAGS = {
    "config": (None, "the study, e.g. configs/paper/table1.py"),
    "workdir": (
        "runs/paper",
        "shared by studies; 'runs/paper-small' for :runlocal, 'runs/rehearsal' for "
        ":rehearse",
    ),
    "plan": (False, "say what is missing and what is left to do, and stop"),
    "coordinator": ("", "host:port of process 0, where no cluster says it"),
    "processes": (0, "number of processes (hosts) of the run"),
    "process": (-1, "which of them this is, from 0"),
    "devices": (0, "devices in all; the run ends if there are not as many"),
    "remake": (False, "make the tables again from the records; run nothing"),
    "args": ("[CONFIG]", "the study, instead of --config; all: every study"),
}
WORKDIRS = {"runlocal": "runs/paper-small", "rehearse": "runs/rehearsal"}


def main(argv):
    argv, config = _with_config(argv)
    name, colon, arg = config.partition(":")
    if not name:  # refused, or help is asked for
        return _reproduce(argv, "")
    for path in jobs.studies() if name == "all" else [name]:
        status = _reproduce([f"--config={path}{colon}{arg}", *argv], Path(path).stem)
        if status:
            return status
    return 0


def _reproduce(argv: list[str], name: str) -> int:
    config, workdir, other = args.parse(argv, FLAGS)
    if not (other.plan or other.remake or jax.distributed.is_initialized()):
        hosts.start(other.coordinator, other.processes, other.process)
        say(hosts.check(config.to_json_best_effort(sort_keys=True), other.devices))
    c = config.to_dict()
    reading = measures.check(c["reading"], "config.reading")
    title, known = c["title"], [tables.Known(*k) for k in c["known"]]
    plan = jobs.plan(c, workdir, lambda path: args.load_config(path).to_dict())
    if not other.remake:
        say(estimates.describe(plan, c))
        lacking = missing.missing(plan, c, workdir)
        if lacking:
            say("\n".join(["missing:", *(f"  {line}" for line in lacking)]))
        if other.plan:
            return 0
        if lacking:
            raise UserError(
                f"{name}: {len(lacking)} thing(s) are missing, listed above with the "
                "command that gets each; then give the same command again"
            )
        if not running.run(plan, c, workdir, TERMINAL):
            return STOPPED
        if not hosts.first():
            return 0
    unrecorded = [job.name for job in plan if not job.recorded]
    if unrecorded:
        raise UserError(
            f"{workdir}: no records of {', '.join(unrecorded)}; run without --remake"
        )
    files = list(dict.fromkeys(f for job in plan for f in job.files))
    whole = records.concat([records.read(f) for f in files])
    table = tables.shown(whole, c["shown"])
    folder = workdir / name
    folder.mkdir(exist_ok=True)
    sources = table.column("source").unique().to_pylist()
    models = table.column("recipe").unique().to_pylist()
    info = {
        "title": title + (f" ({c['paper']})" if c["paper"] else ""),
        "Models": ", ".join(models),
        "Benchmarks": ", ".join(sources),
        "Records": f"{len(table):,}, from {len(files)} files under {workdir}",
    }
    shown = tables.build(table, c["tables"], known, reading)
    skips = directory.read_skips([directory.skips_path(f) for f in files])
    shown = assemble.with_skips(shown, table, skips)
    shown += running.judge_tables(plan)
    images = assemble.read_images(workdir)
    whole = tables.pooled(table)
    report = claims.build_report(
        folder, info, table=whole, images=images, own=shown, reading=reading
    )
    render.write(folder / "tables" / "study", shown)
    show_report(report)
    for one in shown[1:2]:
        CONSOLE.print(render.terminal(one))
    names = ", ".join(one.name for one in shown)
    say(f"{title}: {names} in {folder}/tables/study")
    return 0


def _with_config(argv: list[str]) -> tuple[list[str], str]:
    """Return argv without its config, which may stand as its first word that is no
    flag, and the config; of a small mode with that mode's run directory."""
    argv, given = list(argv), ""
    for i, word in enumerate(argv):
        if word.startswith("--config="):
            given = argv.pop(i).partition("=")[2]
            break
        if word == "--config" and i + 1 < len(argv):
            _, given = argv.pop(i), argv.pop(i)
            break
        if not word.startswith("-") and argv[i - 1 : i] != ["--workdir"]:
            given = argv.pop(i)
            break
    words = given.partition(":")[2].split(",")
    chosen = any(w.partition("=")[0] == "--workdir" for w in argv)
    modes = [folder for mode, folder in WORKDIRS.items() if mode in words]
    if modes and not chosen:
        argv.append(f"--workdir={modes[0]}")
    return argv, given
