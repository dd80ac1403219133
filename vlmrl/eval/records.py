"""Records on disk.

A record file is Parquet whose columns are the fields of `vlmrl.types.Record`, in order.
What is computed from them is in `measures`.
"""

from __future__ import annotations

import os
import typing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmrl.files import atomic_write, read_lines, write_lines
from vlmrl.types import Record, UserError

STAGES = ("start", "trained", "evaluated", "unknown")
VERDICTS = ("consistent", "inconsistent", "undecided", "not_applicable")

CELL = ["split", "recipe", "seed", "step", "condition"]

# What tells one row from another; a repeat would count an example twice.
_KEY = [*CELL, "source", "example", "sample"]

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow(annotation) -> pa.DataType:
    if typing.get_origin(annotation) is list:
        return pa.list_(_arrow(*typing.get_args(annotation)))
    return _ARROW[annotation]


SCHEMA = pa.schema(
    [
        pa.field(name, _arrow(kind))
        for name, kind in typing.get_type_hints(Record).items()
    ]
)


# Columns that older record files lack, with what is known of them; see `_completed`.
ADDED = {
    **dict.fromkeys(
        ("version", "backend", "device", "dtype", "tags", "prefill_as", "code"), ""
    ),
    "letters_from": "unknown",
    "kind": "option",
    "open": False,
    "not_asked": [],
    "lenient": -1,
    "lenient_correct": False,
    "lenient_parser": "",
    "forced": -1,
    "normalised": [],
    "scored": "",
    "letter_samples": 0,
    "stage": "unknown",
    "augmented": False,
    "faithful": False,
}

_FACTS = ("recipe", "letters", "letters_from")  # what `_completed` knows them by


def _completed(row: dict) -> dict:
    """Return a row with the columns of `ADDED`, where it has none of them.

    In older files the recipe 'warm-start' was what a study started from; how others
    were trained is not recorded. Their probabilities are of letters, in open questions
    too; the likeliest is the forced reading, unless they are shares of samples.
    """
    known = {"stage": "start"} if row.get("recipe") == "warm-start" else {}
    if letters := row.get("letters"):
        known["scored"] = "letters"
        if row.get("letters_from") != "samples":
            known["forced"] = max(range(len(letters)), key=letters.__getitem__)
    return {**ADDED, **known, **row}


def write(path: str | os.PathLike, records: list[Record] | pa.Table) -> None:
    """Write records as Parquet, whole or not at all.

    Raises:
      UserError: a value that its column can't hold, or a place that can't be written.
    """
    path = Path(path)
    table = records if isinstance(records, pa.Table) else _table(path, records)
    try:
        atomic_write(path, lambda p: pq.write_table(table, p, compression="zstd"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot write records: {error.strerror or error}"
        ) from None


def _table(path: Path, records: list[Record]) -> pa.Table:
    columns = []
    for i, field in enumerate(SCHEMA):
        values = [record[i] for record in records]
        try:
            # arrow would take a string for the list of its letters
            if pa.types.is_list(field.type) and any(isinstance(v, str) for v in values):
                raise pa.ArrowTypeError("got a string")
            try:
                column = pa.array(values, field.type)
            except UnicodeEncodeError:
                column = pa.array([_encodable(v) for v in values], field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise UserError(
                f"{path}: column {field.name}: expected {field.type} ({error})"
            ) from None
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise UserError(
                f"{path}: column {field.name}: row {row} (example "
                f"{records[row].example}) is None; expected {field.type}"
            )
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _encodable(value):
    """Return texts without lone surrogates, which replies in JSON may hold and UTF-8
    has no form for: U+FFFD stands in their place."""
    if isinstance(value, list):
        return [_encodable(v) for v in value]
    if not isinstance(value, str):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read(path: str | os.PathLike) -> pa.Table:
    """Read a record file, Parquet or (by its ending) JSONL, in `SCHEMA` order.

    Raises:
      UserError: no such file, not Parquet, missing, unknown or mistyped columns,
        nulls, a verdict outside `VERDICTS`, or a row given twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such record file; `vlmrl eval` writes one")
    if path.suffix == ".jsonl":
        return _checked(_read_jsonl(path), path)
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})"
        ) from None
    names, expected = table.column_names, SCHEMA.names
    if not set(ADDED) <= set(names) and "recipe" in names:
        table = _with_added(table)
        names = table.column_names
    if missing := [name for name in expected if name not in names]:
        raise UserError(f"{path}: missing column {', '.join(missing)}")
    if unknown := [name for name in names if name not in expected]:
        raise UserError(f"{path}: unknown column {', '.join(unknown)}")
    if len(names) != len(expected):
        raise UserError(
            f"{path}: a column is given twice; expected {len(expected)} columns"
        )
    table = table.select(expected)
    for field in SCHEMA:
        column = table.column(field.name)
        if column.type != field.type:
            raise UserError(
                f"{path}: column {field.name}: type {column.type}; "
                f"expected {field.type}"
            )
        if column.null_count:
            raise UserError(f"{path}: column {field.name}: holds nulls; expected none")
    return _checked(table, path)


def _with_added(table: pa.Table) -> pa.Table:
    """Return a table of before with the columns of `ADDED`."""
    facts = [n for n in _FACTS if n in table.column_names]
    rows = [_completed(row) for row in table.select(facts).to_pylist()]
    for name in set(ADDED) - set(table.column_names):
        column = pa.array([row[name] for row in rows], SCHEMA.field(name).type)
        table = table.append_column(name, column)
    return table


def write_jsonl(path: str | os.PathLike, table: pa.Table) -> None:
    """Write the same records as JSON, one object per line, keys in `SCHEMA` order; NaN
    is null. `read` takes it back."""
    path = Path(path)
    batches = table.to_batches(max_chunksize=1000)
    rows = (_finite(row) for batch in batches for row in batch.to_pylist())
    try:
        write_lines(path, rows)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write records: {error.strerror or error}"
        ) from None


def _finite(value):
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return (
        {k: _finite(v) for k, v in value.items()} if isinstance(value, dict) else value
    )


def _read_jsonl(path: Path) -> pa.Table:
    rows = []
    for number, row in read_lines(path):
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object")
        row = _completed(row)
        for name, wrong in (
            ("missing", [n for n in SCHEMA.names if n not in row]),
            ("unknown", [n for n in row if n not in SCHEMA.names]),
        ):
            if wrong:
                listed = ", ".join(wrong)
                raise UserError(f"{path}, line {number}: {name} field {listed}")
        rows.append(Record(**{n: _number(row[n], n) for n in SCHEMA.names}))
    return _table(path, rows)


def _number(value, name: str):
    """JSON's null in a float column is NaN, and 1 there is 1.0."""
    if SCHEMA.field(name).type != pa.float64():
        return value
    return np.nan if value is None else value


def concat(tables: list[pa.Table]) -> pa.Table:
    """Return one table of several, no row given twice."""
    return _checked(pa.concat_tables(tables), "records")


def _checked(table: pa.Table, where) -> pa.Table:
    known = {"verdict": VERDICTS, "verdict_sampled": VERDICTS, "stage": STAGES}
    for name, values in known.items():
        for value in table.column(name).unique().to_pylist():
            if value not in values:
                raise UserError(
                    f"{where}: column {name}: expected one of {', '.join(values)}; "
                    f"got '{value}'"
                )
    counts = table.select(_KEY).group_by(_KEY).aggregate([([], "count_all")])
    if counts.num_rows < table.num_rows:
        repeated = counts.filter(pa.compute.greater(counts["count_all"], 1))
        row = repeated.slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{where}: row given {row['count_all']} times: "
            + ", ".join(f"{name}={row[name]}" for name in _KEY)
        )
    return table
