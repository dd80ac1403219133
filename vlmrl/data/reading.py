"""Read published files: rows of Parquet, TSV, CSV and JSON, their image cells and their
notations of a missing value.

A set's own file turns one row into `SetItem`s; `build.py` makes `Example`s of them. A
row that cannot be read as its publishers meant it raises `Refused` with the reason.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlmrl.files import read_lines
from vlmrl.types import UserError


class Refused(Exception):
    """This row can't be used; the message says why, without saying where it is."""


class Place(NamedTuple):
    """Where a row stands, and what lies around it."""

    root: Path  # directory of the published files
    split: str
    file: str  # of the row, relative to the root
    row: int  # 0-based, header not counted
    seed: int = 0  # of every choice that a set leaves open, as the order of options


class SetItem(NamedTuple):
    """What a row says, in the set's own terms."""

    id: str  # unique within the set
    images: tuple[bytes, ...]  # encoded files
    question: str
    options: tuple[str, ...]  # in letter order; of an open question, candidate answers
    answer: int
    task: str  # category path, 'height/height_higher'
    group: str = ""  # shared by copies of one question: rotated, mirrored; '' for id
    cluster: str = ""  # '' for that of its first image
    open: bool = False  # the question is asked without its options
    kind: str = ""  # of its gold answer (`answers.kinds`); '' to have it inferred
    statements: tuple[str, ...] = ()  # where the set knows them better than a template
    thinks: tuple[str, ...] = ()
    trace: str = ""
    suggested: int = -1  # -1 to have it drawn
    meta: dict = {}  # what only the set knows
    repairs: tuple[str, ...] = ()  # what was put right, in words


Items = Iterable[SetItem]  # of one row


class Set(NamedTuple):
    """A published data set: where its rows are and what they mean."""

    name: str
    about: str
    splits: Mapping[str, int | None]  # split → examples as published, None if unknown
    tasks: tuple[str, ...]  # first parts of the category paths
    files: Mapping[str, tuple[str, ...]]  # split → globs; the first that matches counts
    items: Callable[[dict[str, Any], Place], Items]
    beside: tuple[str, ...] = ()  # globs of what rows point at
    pool: str = ""  # column whose texts are wrong answers to other rows' open questions


# -- rows ------------------------------------------------------------------------------


def find(bench: Set, split: str, root: Path) -> list[Path]:
    """Return the files of a split below `root`, in order of name; [] if there are
    none."""
    for pattern in bench.files[split]:
        if files := sorted(p for p in root.glob(pattern) if p.is_file()):
            return files
    return []


def estimate(path: Path) -> int:
    """Return about how many rows a file has, for a progress bar; 0 if that takes
    reading."""
    if path.suffix == ".parquet":
        try:
            return pq.ParquetFile(path).metadata.num_rows
        except (pa.ArrowException, OSError):
            return 0  # reading it will tell
    if path.suffix in (".jsonl", ".tsv", ".csv"):
        with open(path, "rb") as file:
            blocks = iter(lambda: file.read(1 << 20), b"")
            return sum(block.count(b"\n") for block in blocks)
    return 0


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file by its suffix: parquet, tsv, csv, jsonl or json (a
    list).

    A row of a list becomes {'0': …, '1': …}, and so do the columns of a csv file, whose
    header is not to be trusted. The image cells of a tsv are resolved (`tsv`).
    """
    kinds = {".parquet": parquet, ".tsv": tsv, ".csv": _csv, ".jsonl": _lines}
    read = kinds.get(path.suffix.lower(), _json)
    try:
        yield from read(path)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(
            f"{path}: not a readable {path.suffix} file: {error}"
        ) from error


def parquet(path: Path, batch: int = 8) -> Iterator[dict[str, Any]]:
    """Yield rows in small batches: row groups of 5 GB exist."""
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for part in file.iter_batches(batch_size=batch):
            yield from part.to_pylist()


def tsv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows of VLMEvalKit's layout (https://github.com/open-compass/VLMEvalKit):
    `image` holds base64, or the index of another row that does (64 characters at most),
    or a list of them. It becomes a tuple of base64 texts, or the `Refused` to raise.

    Images that other rows point at wait in a temporary file, not in memory.
    """
    wanted: set[str] = set()
    for row in _table(path, "\t"):
        wanted.update(c for c in _cells(row.get("image")) if len(c) <= 64)
    spooled: dict[str, list[tuple[int, int] | str]] = {}
    with tempfile.TemporaryFile() as spool:
        if wanted:
            for row in _table(path, "\t"):
                if (index := (row.get("index") or "").strip()) not in wanted:
                    continue
                spooled[index] = []
                for cell in _cells(row.get("image")):
                    where: tuple[int, int] | str = cell
                    if len(cell) > 64:
                        where = (spool.tell(), len(cell))
                        spool.write(cell.encode())
                    spooled[index].append(where)

        def resolve(cell: str, seen: tuple[str, ...] = ()) -> list[str]:
            if len(cell) > 64:
                return [cell]
            if cell not in spooled:
                raise Refused(f"its image is that of row {cell}, which is not there")
            if cell in seen:
                raise Refused(f"its image is that of row {cell}, which points back")
            out = []
            for at in spooled[cell]:
                if isinstance(at, str):
                    out += resolve(at, (*seen, cell))
                else:
                    spool.seek(at[0])
                    out.append(spool.read(at[1]).decode())
            return out

        for row in _table(path, "\t"):
            try:
                cells = [resolve(c) for c in _cells(row.get("image"))]
                row["image"] = tuple(c for part in cells for c in part)
            except Refused as reason:
                row["image"] = reason
            yield row


def _cells(cell: str | None) -> list[str]:
    text = (cell or "").strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return [text]
        return [str(c).strip() for c in listed]
    return [] if missing(text) else [text]


def _table(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            row.pop(None, None)  # cells beyond the header
            yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        next(reader, None)
        yield from ({str(i): c for i, c in enumerate(row)} for row in reader)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    yield from (_row(value) for _, value in read_lines(path))


def _json(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        listed = json.loads(text)
    except ValueError:  # some publish lines of JSON under .json
        if text.lstrip().startswith("["):
            raise
        yield from _lines(path)
        return
    if not isinstance(listed, list):
        raise ValueError("it holds no list")
    yield from map(_row, listed)


def _row(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {str(i): v for i, v in enumerate(value)}
    return {"0": value}


# -- cells -----------------------------------------------------------------------------


def missing(value: Any) -> bool:
    """Return whether a cell is None, NaN, '', blank, or the text 'nan'."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().casefold() in ("", "nan")


def text(row: Mapping[str, Any], *names: str, needed: bool = True) -> str:
    """Return the first of the columns that is there and not missing, trimmed."""
    for name in names:
        if not missing(row.get(name)):
            return str(row[name]).strip()
    if needed:
        raise Refused(f"{names[0]} is missing")
    return ""


def optional(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return the texts of columns that may be missing, '' for those that are."""
    return {name: text(row, name, needed=False) for name in names}


def options(cells: Sequence[Any]) -> tuple[str, ...]:
    """Return the option texts, at least two; missing cells at the end are no
    options."""
    texts = list(cells)
    while texts and missing(texts[-1]):
        texts.pop()
    for i, cell in enumerate(texts):
        if missing(cell):
            last = LETTERS[len(texts) - 1]
            raise Refused(f"option {LETTERS[i]} is missing, {last} is not")
    if len(texts) < 2:
        raise Refused(f"it has {len(texts)} options, at least 2 are needed")
    if len(texts) > len(LETTERS):
        raise Refused(f"it has {len(texts)} options, at most {len(LETTERS)} are named")
    return tuple(str(c).strip() for c in texts)


def columns(row: Mapping[str, Any], names: Sequence[str] = LETTERS):
    """Return (options, repairs) of a row with one column per letter."""
    there = [row.get(name) for name in names if name in row]
    texts = options(there)
    said_nan = [c for c in there if isinstance(c, str) and c.strip().lower() == "nan"]
    return texts, ("option cells 'nan' read as missing",) if said_nan else ()


_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")


def letter(value: Any, count: int) -> int:
    """Return the index that `C`, `(C)`, `c.` names, of `count` options."""
    if missing(value):
        raise Refused("answer is missing (hidden test answers are)")
    match = _LETTER.fullmatch(str(value).strip())
    if not match:
        raise Refused(f"answer {str(value)!r} is not a letter")
    index = LETTERS.index(match[1].upper())
    if index >= count:
        raise Refused(f"answer {match[1].upper()} is not one of its {count} options")
    return index


def normal(value: str) -> str:
    return " ".join(value.casefold().split()).rstrip(".").rstrip()


def index_of(answer: str, texts: Sequence[str]) -> int:
    """Return the option with this text: the same, or the same but for case, blanks and
    a final full stop."""
    same = [i for i, t in enumerate(texts) if t == answer]
    same = same or [i for i, t in enumerate(texts) if normal(t) == normal(answer)]
    if not same:
        raise Refused(f"answer {answer!r} is not one of its options")
    if len(same) > 1:
        raise Refused(f"answer {answer!r} is {len(same)} of its options")
    return same[0]


def pictures(*cells: Any, place: Place) -> tuple[bytes, ...]:
    """Return encoded image files of one or more cells, in order.

    A cell is bytes, base64 text, the {'bytes', 'path'} of a Hugging Face image, a file
    name below the root, or a list of them. Missing cells hold no image.
    """
    out: list[bytes] = []
    for cell in cells:
        if isinstance(cell, Refused):
            raise cell
        if isinstance(cell, list | tuple):
            for part in cell:
                if missing(part):
                    raise Refused("one of its images is missing")
                out += pictures(part, place=place)
        elif isinstance(cell, Mapping):
            if cell.get("bytes"):
                out.append(bytes(cell["bytes"]))
            elif not missing(cell.get("path")):
                out.append(beside(cell["path"], place))
            else:
                raise Refused("its image has neither bytes nor a path")
        elif isinstance(cell, bytes | bytearray):
            out.append(bytes(cell))
        elif not missing(cell):
            named = len(cell) < 1024 and "." in cell
            out.append(beside(cell, place) if named else decoded(cell))
    return tuple(out)


def one(*cells: Any, place: Place) -> tuple[bytes, ...]:
    """Return `pictures`, of which there must be at least one."""
    files = pictures(*cells, place=place)
    if not files:
        raise Refused("it has no image")
    return files


def decoded(cell: str) -> bytes:
    body = cell.split(",", 1)[1] if cell.startswith("data:") else cell
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("its image is not base64") from None


def beside(name: str, place: Place, *folders: str) -> bytes:
    """Return the bytes of a file that a row names, below the root or one of its
    folders."""
    relative = Path(str(name).strip().removeprefix("./"))
    if relative.is_absolute() or ".." in relative.parts:
        raise Refused(f"its image {name} lies outside the set's directory")
    for folder in ("", *folders):
        path = place.root / folder / relative
        if path.is_file():
            return path.read_bytes()
    raise Refused(f"its image {name} is not below {place.root.name}/")


def multiple_choice(
    row: Mapping[str, Any], texts: tuple[str, ...], place: Place
) -> dict[str, Any]:
    """Return the fields of a `SetItem` that the usual columns hold: `image`, `question`
    and `answer`, a letter of the options `texts`."""
    return {
        "images": one(row.get("image"), place=place),
        "question": text(row, "question"),
        "options": texts,
        "answer": letter(row.get("answer"), len(texts)),
    }


# -- choices that a set leaves open ----------------------------------------------------


def draw(*words: Any) -> int:
    """Return an integer hashed from the words, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def shuffled(texts: Sequence[str], answer: int, *words: Any):
    """Return (options, answer) in an order drawn from the words."""
    order = sorted(range(len(texts)), key=lambda i: (draw("order", *words, i), i))
    return tuple(texts[i] for i in order), order.index(answer)
