"""Judge the chains of thought of a run again, and measure how far judges agree.

  vlmrl judge --on=runs/x --judge=rule,http:Qwen/Qwen3-32B --url=http://127.0.0.1:8000/v1
      judges every record of a run: WORKDIR/records.parquet under the new judge, with
      WORKDIR/verdicts.jsonl and judge.json (prompt hash, cost, what a cascade saved)
  vlmrl judge --on=synthetic:2000        2,000 traces whose conclusions are known
  vlmrl judge --on=labels.jsonl            traces that people labelled
  vlmrl judge agree A B C      agreement of several such WORKDIRs (or label files) per
      condition, with intervals, Holm-corrected paired tests, and against known truth
  vlmrl judge vote A B C                   the majority of several such WORKDIRs
  vlmrl judge sheet --on=runs/x --count=200    traces for people to label, drawn evenly
      over conditions from the records of the run's last step

Several judges, separated by commas, are a cascade: each is asked what those before it
left undecided. With --vote they are a majority. A judge is one of

  rule          patterns, letters and option texts by rule
  model:DIR     a model of this project: the probabilities of two verdict tokens;
                model:tiny is the one that ships with it
  http:MODEL    a model behind an OpenAI-compatible endpoint at --url, with the key in
                the environment variable --key_env

Replies are cached in WORKDIR/replies.jsonl: the same command continues a stopped run.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from vlmrl.eval import records
from vlmrl.files import write_json
from vlmrl.judges import agree, labels, named, verdicts
from vlmrl.loops import judging
from vlmrl.main import args, endpoint
from vlmrl.main.progress import CONSOLE, bar
from vlmrl.report import agreement as tables
from vlmrl.report import assemble, render
from vlmrl.run.directory import describe_run
from vlmrl.types import Record, UserError

HELP = "judge chains of thought by rule, model or HTTP; agreement of judges"
FLAGS = {
    "workdir": (None, "directory to write into"),
    "on": ("", "a run directory, a label file (.jsonl), or synthetic[:COUNT]"),
    "judge": ("rule", "rule, model:DIR, http:MODEL; several: a cascade"),
    "vote": (False, "several judges vote instead"),
    "url": ("", "base URL of the endpoint, e.g. http://127.0.0.1:8000/v1"),
    "key_env": ("", "environment variable that holds the endpoint's key"),
    "insecure": (False, "allow plain http to another machine"),
    "concurrency": (16, "requests in flight"),
    "attempts": (5, "per request"),
    "max_tokens": (2048, "of a reply"),
    "temperature": (0.0, "of a reply"),
    "budget_tokens": (0, "tokens to spend at most; 0: no limit"),
    "budget_cost": (0.0, "money to spend at most; 0: no limit"),
    "prompt_price": (0.0, "per million prompt tokens"),
    "completion_price": (0.0, "per million completion tokens"),
    "again": (False, "ask again what failed before"),
    "prompt": ("", "judge prompt file, instead of the project's own"),
    "brief": (False, "a model judge is asked by the prompt's short part"),
    "sure": (0.5, "probability below which a model judge is undecided"),
    "count": (200, "rows of a sheet"),
    "seed": (0, "of synthetic traces and of a sheet's draw"),
    "reading": (
        "whole",
        "agree on the 'whole' chain of thought, or its 'sampled' part",
    ),
    "args": ("[agree PLACE ... | vote PLACE ... | sheet]", "what to do; none: judge"),
}


def main(argv):
    _, workdir, flags = args.parse(argv, FLAGS)
    action, *places = flags.args or [""]
    actions = {"": judge_run, "agree": compare, "vote": vote, "sheet": write_sheet}
    if action not in actions or (places and action == "sheet"):
        raise UserError(f"expected agree, vote or sheet, got '{' '.join(flags.args)}'")
    actions[action](workdir, flags, *places)


def compare(workdir: Path, f, *places: str) -> None:
    comparison = agree.compare(verdicts.gather(places), f.reading)
    out = tables.comparison(comparison)
    numbers = {"items": comparison.items, "tables": [t._asdict() for t in out]}
    write_json(workdir / "agreement.json", numbers)
    show(out, workdir)


def vote(workdir: Path, f, *places: str) -> None:
    name, rows, elected = verdicts.vote(raters := verdicts.gather(places))
    describe_run(workdir, {"vote": list(raters)})
    about = {"judge": name, "labels": Counter(v.label for v in elected)}
    path = Path(places[0]) / "records.parquet"
    table = records.read(path).to_pylist() if path.is_file() else []
    finish(workdir, about, rows, elected, [Record(**row) for row in table])


def judge_run(workdir: Path, f) -> None:
    old, rows = load(f)
    options = endpoint.judge_options(f, workdir / "replies.jsonl")
    judges = named.named(f.judge, options, vote=f.vote, field="--judge")
    with judges.client or nullcontext():
        describe_run(workdir, endpoint.config_of(f, "count", "reading"))
        with bar(f"judge {judges.judge.name}", len(rows)) as advance:
            items, part = [r.item for r in rows], max(500, 20 * f.concurrency)
            decided = named.judge_all(judges, items, part, advance)
        about = named.summary(judges, decided)
    finish(workdir, about, rows, decided, old)


def finish(workdir: Path, about: dict, rows, decided, old: list[Record]) -> None:
    """Write verdicts and their summary, and the `old` records under the new judge."""
    judging.write(workdir, about, rows, decided, old)
    CONSOLE.print_json(json.dumps(about))
    labelled = [(r, v) for r, v in zip(rows, decided, strict=True) if r.truth]
    if labelled:
        show([tables.quality({about["judge"]: labelled})], workdir)


def load(f) -> tuple[list[Record], list[verdicts.VerdictRow]]:
    """Return the records of the run, if --on names one, and the rows to judge."""
    kind = f.on.partition(":")[0]
    if kind in ("synthetic", "constructed") or f.on.endswith(".jsonl"):
        return [], verdicts.of_file(f.on, f.seed)
    if not f.on or not Path(f.on).is_dir():
        expected = "a run directory, a label file or synthetic[:COUNT]"
        raise UserError(f"--on: expected {expected}, got '{f.on}'")
    table = assemble.find_records(Path(f.on))
    old = [Record(**row) for row in table.to_pylist()]
    return old, verdicts.of_records(old)


def write_sheet(workdir: Path, f) -> None:
    old, rows = load(f)
    if old:  # of a run that was evaluated while it trained, what it ended with
        rows = verdicts.of_records(labels.last_steps(old))
    path = workdir / "sheet.jsonl"
    items = [(r.item, r.condition, r.cluster) for r in rows if r.reading == "whole"]
    n = labels.write_sheet(path, items, n=f.count, seed=f.seed)
    CONSOLE.print(f"{n} traces to label: {path}", soft_wrap=True, markup=False)


def show(out: list[render.Table], workdir: Path) -> None:
    render.write(workdir / "tables", out)
    for table in out:
        CONSOLE.print(render.terminal(table))
