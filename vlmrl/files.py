"""Files that appear whole or not at all: every file that others read is written so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it at the end and removed if
    something fails. Its name starts with a dot and ends in '.partial'."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write(
    path: str | os.PathLike,
    data: str | bytes | Iterable[str] | Callable[[Path], object],
) -> None:
    """Write a file whole or not at all.

    Args:
      data: text (UTF-8), bytes, pieces of text, or a function that writes to the path
        it is given.
    Raises:
      OSError: the file can't be written.
    """
    with atomic_path(path) as partial:
        if isinstance(data, str):
            partial.write_text(data, encoding="utf-8")
        elif isinstance(data, bytes):
            partial.write_bytes(data)
        elif callable(data):
            data(partial)
        else:
            with open(partial, "w", encoding="utf-8") as file:
                file.writelines(data)


def write_json(path: str | os.PathLike, data) -> None:
    """Write a JSON document, whole or not at all."""
    atomic_write(path, json.dumps(data, indent=1) + "\n")


def numbered_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of the lines of a text file that aren't blank.

    Lines end at a newline alone: `str.splitlines` also splits at U+2028 and the like,
    which JSON text may hold.
    """
    with open(path, encoding="utf-8") as file:
        yield from ((n, line) for n, line in enumerate(file, 1) if line.strip())


def json_lines(rows: Iterable) -> Iterator[str]:
    """Yield each row as a line of JSON, for `atomic_write`."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
