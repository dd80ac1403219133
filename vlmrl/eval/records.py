"""Records on disk, the measures of a row, and the rows of metrics.json.

A record file is Parquet whose columns are the fields of `vlmrl.types.Record`, in order.
Every table and figure starts from `read`, and every number from `measures`, so that
one definition of, say, the consistent ratio serves them all.
"""

from __future__ import annotations

import json
import os
import typing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmrl.eval import stats
from vlmrl.perturb import ORDER
from vlmrl.types import Record, UserError

VERDICTS = ("consistent", "inconsistent", "undecided", "not_applicable")

_CELL = ["split", "recipe", "seed", "step", "condition"]

# What tells one row from another; a repeat would count an example twice.
_KEY = [*_CELL, "source", "example", "sample"]

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


def write(path: str | os.PathLike, records: list[Record] | pa.Table) -> None:
    """Writes records as Parquet under a temporary name, then renames.

    Raises:
      UserError: a value that its column can't hold, or a place that can't be written.
    """
    path = Path(path)
    table = records if isinstance(records, pa.Table) else _table(path, records)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write records: {error.strerror or error}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _table(path: Path, records: list[Record]) -> pa.Table:
    columns = []
    for i, field in enumerate(SCHEMA):
        values = [record[i] for record in records]
        try:
            # arrow would take a string for the list of its letters
            if pa.types.is_list(field.type) and any(isinstance(v, str) for v in values):
                raise pa.ArrowTypeError("got a string")
            column = pa.array(values, field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise UserError(
                f"{path}: column {field.name}: want {field.type} ({error})"
            ) from None
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise UserError(
                f"{path}: column {field.name}: row {row} (example "
                f"{records[row].example}) is None; want {field.type}"
            )
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read(path: str | os.PathLike) -> pa.Table:
    """Reads a record file, Parquet or (by its ending) JSONL, in `SCHEMA` order.

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
    have, want = table.column_names, SCHEMA.names
    if missing := [name for name in want if name not in have]:
        raise UserError(f"{path}: missing column {', '.join(missing)}")
    if unknown := [name for name in have if name not in want]:
        raise UserError(f"{path}: unknown column {', '.join(unknown)}")
    if len(have) != len(want):
        raise UserError(f"{path}: a column is given twice; want {len(want)} columns")
    table = table.select(want)
    for field in SCHEMA:
        column = table.column(field.name)
        if column.type != field.type:
            raise UserError(
                f"{path}: column {field.name}: type {column.type}; want {field.type}"
            )
        if column.null_count:
            raise UserError(f"{path}: column {field.name}: holds nulls; want none")
    return _checked(table, path)


def write_jsonl(path: str | os.PathLike, table: pa.Table) -> None:
    """The same records as JSON, one object per line, keys in `SCHEMA` order; NaN is
    null. `read` takes it back."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for batch in table.to_batches(max_chunksize=1000):
                for row in batch.to_pylist():
                    file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write records: {error.strerror or error}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


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
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: want an object")
            for name, wrong in (
                ("missing", [n for n in SCHEMA.names if n not in row]),
                ("unknown", [n for n in row if n not in SCHEMA.names]),
            ):
                if wrong:
                    said = ", ".join(wrong)
                    raise UserError(f"{path}, line {number}: {name} field {said}")
            rows.append(Record(**{n: _number(row[n], n) for n in SCHEMA.names}))
    return _table(path, rows)


def _number(value, name: str):
    """JSON's null in a float column is NaN, and 1 there is 1.0."""
    if SCHEMA.field(name).type != pa.float64():
        return value
    return np.nan if value is None else value


def unmeasured() -> dict:
    """The fields of a record that only the kernel can fill, saying that it did not."""
    missing = "entropy p_correct p_suggested option_mass think_entropy".split()
    empty = "letters sighted blind blind_stripped pixels".split()
    return {
        **dict.fromkeys(missing, np.nan),
        **{name: [] for name in empty},
        "think_tokens": -1,
        "sighted_every": 0,
        "consistent_probe": False,
        "consistent_probe_stripped": False,
    }


def concat(tables: list[pa.Table]) -> pa.Table:
    """One table of several, no row given twice."""
    return _checked(pa.concat_tables(tables), "records")


def _checked(table: pa.Table, where) -> pa.Table:
    for name in ("verdict", "verdict_sampled"):
        for value in table.column(name).unique().to_pylist():
            if value not in VERDICTS:
                raise UserError(
                    f"{where}: column {name}: '{value}'; want one of "
                    f"{', '.join(VERDICTS)}"
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


def columns(table: pa.Table) -> dict[str, np.ndarray]:
    """The columns that statistics need, as arrays; the float ones are the `measures`.

    `item` (the example) and `cluster` are qualified by source, since ids are unique
    within one only; `trial` is the item with its sample, what two conditions pair on.
    """
    out = {}
    for name in (*_CELL, "source", "task", "example", "cluster", "verdict", "sample"):
        if table.schema.field(name).type != pa.string():
            out[name] = table.column(name).to_numpy()
            continue
        column = table.column(name).combine_chunks().dictionary_encode()
        words = np.array(column.dictionary.to_pylist() or [""], dtype=str)
        out[name] = words[column.indices.to_numpy(zero_copy_only=False)]
    out["item"] = _qualify(out["source"], out["example"])
    out["cluster"] = _qualify(out["source"], out["cluster"])
    out["trial"] = _qualify(out["item"], out["sample"].astype(str), "#")
    return out | measures(table)


def _qualify(outer, inner, mark="/"):
    return np.char.add(np.char.add(outer, mark), inner)


def measures(table: pa.Table) -> dict[str, np.ndarray]:
    """Every per-row measure as float64[n], NaN where it does not apply.

    accuracy, follow, consistent, ... are 0 or 1, so their means are rates. Agreement
    (consistent and its kin) applies unless the verdict is 'not_applicable', and counts
    undecided as failure: `consistent` is the ratio's worst case too, `consistent_best`
    its best. faithful_accuracy is correct and consistent. p_other is the rest of the
    renormalised mass, p_max the top option's, and top_right whether that is the right
    one; brier is the row's part of the Brier score. think_entropy applies where the
    model wrote a think of its own.
    """

    def take(name):
        return table.column(name).to_numpy().astype(float)

    verdict = np.array(table.column("verdict").to_pylist(), dtype=str)
    sampled = np.array(table.column("verdict_sampled").to_pylist(), dtype=str)
    applies = verdict != "not_applicable"
    correct = take("correct")
    thinks = applies & (take("think_tokens") > 0)
    no_letters = pa.compute.equal(pa.compute.list_value_length(table["letters"]), 0)
    lettered = ~no_letters.to_numpy().astype(bool)

    # a model behind an API has no probes, and may not say how many tokens it wrote
    unread = pa.compute.equal(pa.compute.list_value_length(table["blind"]), 0)
    probed = applies & ~unread.to_numpy().astype(bool)
    counted = applies & (take("think_tokens") >= 0)

    squares = _squares(table["letters"])

    def where(mask, values):
        return np.where(mask, np.asarray(values, float), np.nan)

    return {
        "accuracy": correct,
        "entropy": where(lettered, take("entropy")),
        "p_correct": where(lettered, take("p_correct")),
        "p_suggested": where(lettered, take("p_suggested")),
        "p_max": (top := _largest(table["letters"])),
        # not p_correct, which the kernel may have rounded otherwise
        "top_right": where(lettered, _at(table["letters"], table["answer"]) >= top),
        "brier": where(lettered, squares - 2 * take("p_correct") + 1),
        "p_other": where(lettered, 1 - take("p_correct") - take("p_suggested")),
        "consistent": where(applies, verdict == "consistent"),
        "faithful_accuracy": where(applies, (verdict == "consistent") * correct),
        "consistent_best": where(applies, verdict != "inconsistent"),
        "undecided": where(applies, verdict == "undecided"),
        "consistent_sampled": where(
            sampled != "not_applicable", sampled == "consistent"
        ),
        "consistent_probe": where(probed, take("consistent_probe")),
        "consistent_probe_stripped": where(probed, take("consistent_probe_stripped")),
        "follow": take("followed"),
        "unanswered": (table["predicted"].to_numpy() < 0).astype(float),
        "abstained": where(
            table["abstain"].to_numpy() >= 0,
            table["predicted"].to_numpy() == table["abstain"].to_numpy(),
        ),
        "format": take("format"),
        "natural": take("natural"),
        "truncated": take("truncated"),
        "option_mass": where(lettered, take("option_mass")),
        "think_tokens": where(counted, take("think_tokens")),
        "think_entropy": where(thinks, take("think_entropy")),
    }


def _at(lists: pa.ChunkedArray, places: pa.ChunkedArray) -> np.ndarray:
    """float64[n]: the element of each list at its place, NaN where there is none."""
    lists, places = lists.combine_chunks(), places.to_numpy()
    lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    held = (places >= 0) & (places < lengths)
    out = np.full(len(lengths), np.nan)
    starts = np.cumsum(lengths) - lengths
    out[held] = lists.flatten().to_numpy()[(starts + places)[held]]
    return out


def _largest(lists: pa.ChunkedArray) -> np.ndarray:
    """float64[n]: the largest element of each list, NaN where it is empty."""
    return _reduced(lists, np.maximum, lambda x: x)


def _squares(lists: pa.ChunkedArray) -> np.ndarray:
    """float64[n]: the sum of squares of each list, NaN where it is empty."""
    return _reduced(lists, np.add, np.square)


def _reduced(lists: pa.ChunkedArray, ufunc: np.ufunc, each) -> np.ndarray:
    lists = lists.combine_chunks()
    lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    out = np.full(len(lengths), np.nan)
    starts = np.cumsum(lengths) - lengths
    if lengths.any():
        flat = each(lists.flatten().to_numpy())
        out[lengths > 0] = ufunc.reduceat(flat, starts[lengths > 0])
    return out


def cells(data: dict[str, np.ndarray]) -> dict[tuple, np.ndarray]:
    """Row numbers of each (split, recipe, seed, step, condition).

    Splits and recipes keep the order they first appear in, conditions that of
    `perturb.ORDER`; the rows of a cell are in (item, sample) order.
    """
    rank = {name: _ranks(data[name]) for name in ("split", "recipe", "condition")}
    known = [data["condition"] == name for name in ORDER]
    places = np.arange(len(ORDER)) - len(ORDER)
    rank["condition"] = np.select(known, places, rank["condition"])
    order = np.lexsort(
        [data["sample"], data["item"]]
        + [rank.get(name, data[name]) for name in reversed(_CELL)]
    )
    if len(order) == 0:
        return {}
    codes = np.stack([rank.get(name, data[name])[order] for name in _CELL])
    starts = np.flatnonzero((np.diff(codes) != 0).any(0)) + 1
    return {
        tuple(data[name][rows[0]].item() for name in _CELL): rows
        for rows in np.split(order, starts)
    }


def _ranks(values):
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    return first[codes]


def summarise(table: pa.Table) -> list[dict]:
    """The rows of metrics.json: one per split, recipe, seed, step and condition.

    Rates and means are over rows; `accuracy_lo`, `accuracy_hi` and the ends of
    `consistent` are 95 % intervals over clusters (`stats.proportion`). Measures that
    apply to no row are None. Against base, on the examples both have: `drop` =
    accuracy(base) − accuracy, `relative_drop` = drop / accuracy(base), `retention` =
    P(correct | correct under base), `follow_excess` = follow − follow(base).
    `robust_accuracy`, on base rows, is the share of examples right under every one of
    the cell's conditions.
    """
    data, rows = columns(table), []
    groups = cells(data)
    for (split, recipe, seed, step, condition), index in groups.items():
        at = {name: data[name][index] for name in data}
        accuracy = stats.proportion(at["accuracy"], at["cluster"])
        agree = stats.proportion(at["consistent"], at["cluster"])
        means = {name: _mean(at[name]) for name in at if at[name].dtype == float}
        siblings = {
            key[4]: other
            for key, other in groups.items()
            if key[:4] == (split, recipe, seed, step)
        }
        rows.append(
            {
                "recipe": recipe,
                "seed": seed,
                "step": step,
                "split": split,
                "condition": condition,
                "n": len(index),
                "accuracy": means.pop("accuracy"),
                "accuracy_lo": accuracy.lo,
                "accuracy_hi": accuracy.hi,
                "entropy": means.pop("entropy"),
                "p_correct": means.pop("p_correct"),
                "p_suggested": means.pop("p_suggested"),
                "consistent": means.pop("consistent"),
                "faithful_accuracy": means.pop("faithful_accuracy"),
                "clusters": accuracy.clusters,
                "consistent_lo": _none(agree.lo),
                "consistent_hi": _none(agree.hi),
            }
            | means
            | _against_base(data, index, siblings.get("base"))
            | (_robust(data, siblings) if condition == "base" else {})
        )
    return rows


def _against_base(data, index, base):
    """Paired by example and sample; all None where there is no base to pair with."""
    names = ("drop", "relative_drop", "retention", "follow_excess")
    if base is None:
        return dict.fromkeys(names)
    _, here, there = np.intersect1d(
        data["trial"][index], data["trial"][base], True, return_indices=True
    )
    here, there = index[here], base[there]
    if len(here) == 0:
        return dict.fromkeys(names)
    right, before = data["accuracy"][here], data["accuracy"][there]
    excess = data["follow"][here] - data["follow"][there]
    drop = float(before.mean() - right.mean())
    solved = before.any()
    return {
        "drop": drop,
        "relative_drop": drop / float(before.mean()) if solved else None,
        "retention": float(right[before == 1].mean()) if solved else None,
        "follow_excess": float(excess.mean()),
    }


def robust(
    data, siblings: dict[str, np.ndarray], measure: str = "accuracy"
) -> stats.Interval:
    """Share of items right (or `measure`, of 0 and 1) under every condition of
    `siblings` and in every sample, among the items measured under all of them."""
    rows = np.concatenate(list(siblings.values()))
    items, first, codes = np.unique(
        data["item"][rows], return_index=True, return_inverse=True
    )
    missed = np.bincount(codes, 1 - np.nan_to_num(data[measure][rows]))
    seen = sum(np.isin(items, data["item"][index]) for index in siblings.values())
    every = seen == len(siblings)
    return stats.proportion(missed[every] == 0, data["cluster"][rows][first][every])


def _robust(data, siblings):
    share = robust(data, siblings)
    return {
        "robust_accuracy": _none(share.value),
        "robust_lo": _none(share.lo),
        "robust_hi": _none(share.hi),
    }


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _none(value):
    return None if np.isnan(value) else float(value)
