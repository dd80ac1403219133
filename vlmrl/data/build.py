"""Build a published set: its rows become Examples in one TFDS data set (array_record)
per split.

Each row yields examples, some of them repaired, or is refused with a reason; a build
ends with these counts, in `report.json` beside the data. Rows go into shards of `ROWS`
rows each. A shard gets its final name once it is complete, so an interrupted build
continues after its last complete shard and ends with the same files.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vlmrl.answers import kinds
from vlmrl.data import distractors, features, images, reading, statements
from vlmrl.data.features import Shard, serialised, write_metadata
from vlmrl.data.reading import Place, Refused, Set, SetItem, draw, normal
from vlmrl.files import atomic_path, atomic_write, write_json
from vlmrl.types import Example, UserError

VERSION = "1.2.0"  # of what readers return for the same files; raise it with any change
ROWS = 256  # source rows per shard
THREADS = 2  # rows decoded at a time; Pillow lets other threads run
AHEAD = 8  # rows read ahead per thread


class BuildReport(NamedTuple):
    """Counts of the rows of one split: converted, repaired, refused."""

    rows: int
    examples: int  # a row may hold several; 'kept' in report.json
    repaired: list[dict]  # {"id", "where", "why"}
    refused: list[dict]  # {"where", "why"}
    rules: dict[str, int]  # statement template → examples; 'quoted' among them

    @property
    def line(self) -> str:
        quoted = self.rules.get("quoted", 0)
        return (
            f"{self.rows} rows: {self.examples} examples kept, {len(self.repaired)} of"
            f" them repaired, {len(self.refused)} rows refused; statements by template"
            f" {self.examples - quoted}, quoted {quoted}"
        )


def directory(data_dir: str | os.PathLike, name: str, split: str) -> Path:
    return Path(data_dir) / name / split / VERSION


def build(
    bench: Set,
    split: str,
    root: Path,
    data_dir: str | os.PathLike,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[Path, BuildReport]:
    """Write a split and return its directory and report; a finished build is left
    alone.

    Args:
      bench: the set.
      split: one of its splits.
      root: directory of the published files.
      data_dir: root of the prepared data.
      seed: of everything drawn: option order, suggested options, wrong answers.
      progress: called with rows as they are done.

    Raises UserError for an unknown split, missing files, a finished build of other
    files, and where no row can be used.
    """
    if split not in bench.files:
        raise UserError(
            f"{bench.name}: split {split!r} is not one of {', '.join(bench.files)}"
        )
    files = reading.find(bench, split, root)
    if not files:
        wanted = " or ".join(bench.files[split])
        raise UserError(f"{bench.name}: {root} holds no {wanted} for split {split}")
    made_of = {
        "set": bench.name,
        "split": split,
        "seed": seed,
        "version": VERSION,
        "fields": list(Example._fields),
        "files": [[str(f.relative_to(root)), f.stat().st_size] for f in files],
        "beside": _beside(bench, root),
    }
    final = directory(data_dir, bench.name, split)
    if final.exists():
        if json.loads((final / "made_of.json").read_text()) != made_of:
            raise UserError(
                f"{final}: was built from other files or another seed; remove it "
                "to prepare it again"
            )
        return final, report(final)
    work = final.with_name(f".unfinished-{VERSION}")
    _claim(work, made_of)
    if not (work / "report.json").is_file():
        _shards(bench, split, root, files, work, seed, progress)
        _finish(bench, split, work)
    for path in [*work.glob("shard-*"), *work.glob("*.partial")]:
        path.unlink()
    os.rename(work, final)
    return final, report(final)


def report(directory: Path) -> BuildReport:
    """Return the report of a finished build."""
    fields = json.loads((Path(directory) / "report.json").read_text())
    return BuildReport(examples=fields.pop("kept"), **fields)


def _beside(bench: Set, root: Path) -> list:
    """Return [count, hash] of the files that rows may point at: more of them change
    which rows are refused."""
    files = sorted(
        [str(path.relative_to(root)), path.stat().st_size]
        for pattern in bench.beside
        for path in root.glob(pattern)
        if path.is_file() and path.suffix not in (".jsonl", ".partial")
    )
    return [len(files), hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]]


def _claim(work: Path, made_of: dict) -> None:
    """Create the work directory, or continue one made from the same files."""
    stamp = work / "made_of.json"
    text = json.dumps(made_of)
    if stamp.is_file() and stamp.read_text() != text:
        shutil.rmtree(work)  # an unfinished build of other files
    try:
        work.mkdir(parents=True, exist_ok=True)
        atomic_write(stamp, text)
    except OSError as error:
        raise UserError(f"{work.parent}: not writable: {error.strerror}") from error


# -- shards ----------------------------------------------------------------------------


def _shards(bench, split, root, files, work, seed, progress) -> None:
    """Write the missing shards: `shard-00000`, then its counts in `shard-00000.json`,
    …"""
    pool = _pool(bench, files)
    # Bounds how long a thread that finished decoding waits for the interpreter lock:
    # measured 5 % faster.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    try:
        _write_shards(bench, split, root, files, work, seed, progress, pool)
    finally:
        sys.setswitchinterval(interval)


def _write_shards(bench, split, root, files, work, seed, progress, pool) -> None:
    stream = _numbered(files, root, split, seed)
    seen: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for number in itertools.count():
            done = work / f"shard-{number:05d}.json"
            rows = itertools.islice(stream, ROWS)
            if done.is_file():
                counts = json.loads(done.read_text())
                seen.update(counts["ids"])
                progress(sum(1 for _ in rows))
                if counts["rows"] < ROWS:
                    return
                continue
            converted = _ahead(threads, rows, lambda row: _convert(bench, *row, pool))
            counts = _shard(work / f"shard-{number:05d}", converted, seen, progress)
            atomic_write(done, json.dumps(counts))
            if counts["rows"] < ROWS:
                return


def _numbered(files, root, split, seed) -> Iterator[tuple[dict, Place]]:
    count = itertools.count()
    for path in files:
        name = str(path.relative_to(root))
        for row in reading.rows(path):
            yield row, Place(root, split, name, next(count), seed)


def _pool(bench: Set, files: list[Path]) -> tuple[str, ...]:
    """Return the answers of other rows, from which wrong answers are drawn."""
    if not bench.pool:
        return ()
    texts = {str(row.get(bench.pool)) for path in files for row in reading.rows(path)}
    return tuple(sorted(t for t in texts if not reading.missing(t)))


def _ahead(threads, rows: Iterable, make: Callable) -> Iterator:
    """Yield make(row) in order, with a bounded number of rows at work or waiting."""
    waiting: collections.deque = collections.deque()
    for row in rows:
        waiting.append(threads.submit(make, row))
        if len(waiting) >= THREADS * AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _convert(bench, row, place, pool):
    """Return (where, [(id, repairs, rule, record)]), or (where, why the row is
    refused)."""
    where = f"{place.file} row {place.row}"
    try:
        items = bench.items(row, place)
        out = []
        for item in items:
            example, rule = example_of(item, bench.name, place, pool)
            out.append((example.id, item.repairs, rule, serialised(example)))
        return where, out
    except Refused as reason:
        return where, str(reason)


def _shard(path: Path, converted: Iterable, seen, progress) -> dict[str, Any]:
    counts: dict[str, Any] = {"rows": 0, "kept": 0, "bytes": 0, "rules": {}}
    counts |= {"ids": [], "repaired": [], "refused": []}

    def opened(partial: Path):
        writer = features.writer(partial)
        return contextlib.closing(writer)

    with atomic_path(path) as partial, opened(partial) as writer:
        for where, result in converted:
            counts["rows"] += 1
            progress(1)
            if isinstance(result, str):
                counts["refused"].append({"where": where, "why": result})
                continue
            if again := [id for id, *_ in result if id in seen]:
                why = f"the id {again[0]} occurs twice"
                counts["refused"].append({"where": where, "why": why})
                continue
            for id, repairs, rule, record in result:
                seen.add(id)
                counts["ids"].append(id)
                counts["kept"] += 1
                counts["bytes"] += len(record)
                counts["rules"][rule] = counts["rules"].get(rule, 0) + 1
                writer.write(record)
                if repairs:
                    why = "; ".join(repairs)
                    counts["repaired"].append({"id": id, "where": where, "why": why})
    return counts


def _finish(bench, split, work) -> None:
    """Give shards their TFDS names, then write the metadata and the report."""
    parts = [json.loads(p.read_text()) for p in sorted(work.glob("shard-*.json"))]
    rules = collections.Counter()
    for part in parts:
        rules.update(part["rules"])
    report = BuildReport(
        rows=sum(p["rows"] for p in parts),
        examples=sum(p["kept"] for p in parts),
        repaired=[r for p in parts for r in p["repaired"]],
        refused=[r for p in parts for r in p["refused"]],
        rules=dict(sorted(rules.items())),
    )
    if not report.examples:
        first = next(iter(report.refused), None)
        why = f"the first, {first['where']}: {first['why']}" if first else "it is empty"
        shutil.rmtree(work)
        raise UserError(f"{bench.name}, split {split}: none of its rows is kept; {why}")
    shards = [
        Shard(work / f"shard-{i:05d}", p["kept"], p["bytes"])
        for i, p in enumerate(parts)
        if p["kept"]
    ]
    write_metadata(work, bench.name, VERSION, {split: shards}, bench.about)
    fields = {"kept" if k == "examples" else k: v for k, v in report._asdict().items()}
    write_json(work / "report.json", fields)


# -- one example -----------------------------------------------------------------------


def example_of(
    item: SetItem, source: str, place: Place, pool: tuple[str, ...] = ()
) -> tuple[Example, str]:
    """Return (Example, rule of its statements). Raises Refused where the item is
    unusable."""
    if not item.question.strip():
        raise Refused("its question is empty")
    sizes = []
    for i, data in enumerate(item.images):
        try:
            sizes.append(list(images.decode(data, f"image {i}").size))
        except UserError as error:
            raise Refused(str(error)) from None
    options = item.options
    if not 0 <= item.answer < len(options):
        raise Refused(f"answer {item.answer} is not one of its {len(options)} options")
    right = options[item.answer]
    if item.open and len(options) == 1:
        options += distractors.wrong(right, place.seed, source, item.id, pool=pool)
    group = item.group or item.id
    sentences, rule = item.statements, "own"
    if not sentences:
        sentences, rule = statements.states(item.question, options)
    meta = {
        "group": group,
        "row": place.row,
        "file": place.file,
        "sizes": sizes,
        "rule": rule,
        **({"repairs": list(item.repairs)} if item.repairs else {}),
        **{k: v for k, v in item.meta.items() if v not in ("", None, [])},
    }
    chosen = item.suggested
    if chosen == -1:
        chosen = suggested(options, item.answer, place.seed, source, group)
    first = item.images[0] if item.images else item.id.encode()
    return Example(
        id=item.id,
        images=item.images,
        question=item.question,
        options=options,
        answer=item.answer,
        suggested=chosen,
        source=source,
        task=item.task,
        cluster=item.cluster or hashlib.sha256(first).hexdigest()[:16],
        statements=sentences,
        thinks=item.thinks,
        trace=item.trace,
        meta=json.dumps(meta),
        open=item.open,
        kind=(item.kind or kinds.infer(right)) if item.open else "option",
    ), rule


def suggested(options: tuple[str, ...], answer: int, *words: object) -> int:
    """Return the wrong option that misleading texts suggest, -1 if no option is wrong.
    It is drawn by its text, so that rotated copies of a question suggest the same."""
    right = normal(options[answer])
    wrong = [i for i, o in enumerate(options) if normal(o) != right]
    return min(wrong, key=lambda i: draw("suggest", *words, options[i]), default=-1)
