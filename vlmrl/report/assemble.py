"""Build the report of a run directory: tables, figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlmrl.eval import measures, records
from vlmrl.files import atomic_write, write_json
from vlmrl.prompts.scan import describe
from vlmrl.report import claim, figures, html, render, tables
from vlmrl.run import directory
from vlmrl.types import Example, Skip, UserError


class Report(NamedTuple):
    """What `build` leaves: the main table, the path of the page, and its claims."""

    table: render.Table
    page: Path
    claims: Sequence[claim.Claim] = ()


def gather(runs: Sequence[Path]) -> tuple[pa.Table, dict[str, bytes]]:
    """Return records and images of several runs as those of one.

    Raises:
      UserError: a run without records, or two of the same name that share a recipe.
    """
    tables_ = [find_records(run) for run in runs]
    names = [table.column("recipe").unique().to_pylist() for table in tables_]
    shared = {n for i, a in enumerate(names) for b in names[:i] for n in {*a} & {*b}}
    out, images = [], {}
    for run, table in zip(runs, tables_, strict=True):
        renamed = [
            f"{run.resolve().name}/{r}" if r in shared else r
            for r in table.column("recipe").to_pylist()
        ]
        at = table.schema.get_field_index("recipe")
        out.append(table.set_column(at, "recipe", pa.array(renamed, pa.string())))
        images |= read_images(run)
    return records.concat(out), images


def find_records(workdir: Path) -> pa.Table:
    """Return all records of a run directory."""
    whole = workdir / "records.parquet"
    files = [whole] if whole.is_file() else sorted(workdir.glob("**/records/*.parquet"))
    if not files:
        raise UserError(f"{workdir}: holds no records; run vlmrl eval or train first")
    return records.concat([records.read(f) for f in files])


def write_images(workdir: Path, examples: Sequence[Example]) -> None:
    """Write images.parquet: the first image of every example, by source/id."""
    path = workdir / "images.parquet"
    images = read_images(workdir)
    images.update({f"{e.source}/{e.id}": e.images[0] for e in examples if e.images})
    table = pa.table({"example": list(images), "image": list(images.values())})
    atomic_write(path, lambda partial: pq.write_table(table, partial))


def read_images(workdir: Path) -> dict[str, bytes]:
    path = workdir / "images.parquet"
    if not path.is_file():
        return {}
    columns = pq.read_table(path).to_pydict()
    return dict(zip(columns["example"], columns["image"], strict=True))


def with_skips(
    built: Sequence[render.Table], table: pa.Table, skips: Sequence[Skip]
) -> list[render.Table]:
    """Return tables whose notes end with what was not asked of their sets."""
    pairs = zip(
        *(table.column(c).to_pylist() for c in ("source", "example")), strict=True
    )
    asked = set(pairs)
    left = list({(s.dataset, s.example): s for s in skips}.values())
    left = [s for s in left if (s.dataset, s.example) not in asked]
    line = describe(left, len(asked) + len(left))
    if not line:
        return list(built)
    return [t._replace(note=f"{t.note} {line}.".strip()) for t in built]


def build(
    workdir: Path,
    table: pa.Table,
    images: dict[str, bytes],
    info: dict,
    own: Sequence[render.Table] = (),
    claims: Sequence[claim.Claim] = (),
    reading: str = "strict",
) -> Report:
    """Write all that a reader sees.

    Args:
      own: tables that stand on the page before those of every run.
      claims: with their verdicts (`vlmrl.studies.claims.judge_claims`).
      reading: what accuracy is of, one of `measures.READINGS`.
    """
    rows = measures.summarise(table, reading)
    info = {**info, "Reading": reading}
    write_json(workdir / "metrics.json", rows)
    write_json(workdir / "claims.json", claim.as_rows(claims))
    write_json(workdir / "info.json", info)
    skips = directory.read_skips(sorted(workdir.glob("**/*skips.jsonl")))
    built = with_skips(tables.build(table, rows, reading), table, skips)
    render.write(workdir / "tables", built)
    figures.write(workdir / "figures", figures.build(rows))
    names = {one.name for one in own}
    built = [*own, *(one for one in built if one.name not in names)]
    page = html.Page(table, rows, built, info, claims, reading)
    return Report(built[0], html.write_report(workdir, page, images), claims)
