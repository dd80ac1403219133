"""Make tables, figures and the report of a run again, from its records alone.

Reads WORKDIR/records.parquet, or every Parquet file under WORKDIR/**/records/, and
WORKDIR/images.parquet if there; writes metrics.json, tables/, figures/ and report.html.

  vlmrl report --workdir runs/x                      one run
  vlmrl report --workdir runs/both runs/x runs/y     several, side by side

Of several runs, recipes that share a name get their run's name before it.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlmrl.eval import measures, records
from vlmrl.main import args
from vlmrl.main.progress import show_report
from vlmrl.report import assemble
from vlmrl.studies import claims

HELP = "tables, figures and the page of a run, from its records"
FLAGS = {
    "workdir": (None, "run directory with records"),
    "title": ("", "title of the page"),
    "reading": ("", "strict, lenient or forced: what accuracy is of; '' as it was"),
    "jsonl": (False, "also write records.jsonl, one record a line"),
    "args": ("[RUN ...]", "run directories to compare; WORKDIR itself if none"),
}


def main(argv):
    _, workdir, other = args.parse(argv, FLAGS)
    info = {"title": other.title} if other.title else {}
    if (workdir / "info.json").is_file():
        info = {**json.loads((workdir / "info.json").read_text()), **info}
    reading = other.reading or info.get("Reading", "strict")
    measures.check(reading, "--reading")
    runs = [Path(word) for word in other.args]
    if runs:
        table, images = assemble.gather(runs)
        info.setdefault("title", "Comparison of " + ", ".join(r.name for r in runs))
        info["Runs"] = ", ".join(map(str, runs))
    else:
        table, images = assemble.find_records(workdir), assemble.read_images(workdir)
    if other.jsonl:
        records.write_jsonl(workdir / "records.jsonl", table)
    show_report(
        claims.build_report(workdir, info, table=table, images=images, reading=reading)
    )
