"""Make tables, figures and the report of a run again, from its records alone.

Reads WORKDIR/records.parquet, or every Parquet file under WORKDIR/**/records/, and
WORKDIR/images.parquet if there; writes metrics.json, tables/, figures/ and report.html.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlmrl.eval import records
from vlmrl.main import args
from vlmrl.main.progress import CONSOLE
from vlmrl.report import claims, figures, html, render, tables
from vlmrl.types import Example, UserError

HELP = "tables, figures and the page of a run, from its records"
FLAGS = {
    "workdir": (None, "run directory with records"),
    "title": ("", "title of the page"),
}


def main(argv):
    _, workdir, other = args.parse(argv, FLAGS)
    info = {"title": other.title} if other.title else {}
    if (workdir / "info.json").is_file():
        info = {**json.loads((workdir / "info.json").read_text()), **info}
    build(workdir, find_records(workdir), read_images(workdir), info)


def find_records(workdir: Path) -> pa.Table:
    """All records of a run directory."""
    whole = workdir / "records.parquet"
    files = [whole] if whole.is_file() else sorted(workdir.glob("**/records/*.parquet"))
    if not files:
        raise UserError(f"{workdir}: holds no records; run vlmrl eval or train first")
    return records.concat([records.read(f) for f in files])


def write_images(workdir: Path, examples: Sequence[Example]) -> None:
    """images.parquet: the first image of every example, by its id."""
    path = workdir / "images.parquet"
    held = read_images(workdir)
    held.update({e.id: e.images[0] for e in examples if e.images})
    table = pa.table({"example": list(held), "image": list(held.values())})
    part = path.with_name(path.name + ".partial")
    pq.write_table(table, part)
    os.replace(part, path)


def read_images(workdir: Path) -> dict[str, bytes]:
    path = workdir / "images.parquet"
    if not path.is_file():
        return {}
    held = pq.read_table(path).to_pydict()
    return dict(zip(held["example"], held["image"], strict=True))


def build(workdir: Path, table: pa.Table, images: dict[str, bytes], info: dict) -> None:
    """Everything a reader sees, and the main table on the terminal."""
    rows = records.summarise(table)
    write_json(workdir / "metrics.json", rows)
    write_json(workdir / "claims.json", claims.as_rows(claims.judge_claims(table)))
    write_json(workdir / "info.json", info)
    made = tables.build(table, rows)
    render.write(workdir / "tables", made)
    figures.write(workdir / "figures", figures.build(rows))
    page = html.write_report(workdir, table, rows, images, info)
    CONSOLE.print(render.terminal(made[0]))
    CONSOLE.print(f"\nreport: {page}", soft_wrap=True, markup=False, highlight=False)


def write_json(path: Path, data) -> None:
    part = path.with_name(path.name + ".partial")
    part.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(part, path)
