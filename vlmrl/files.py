"""Files that appear whole or not at all; the one reader and writer of JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmrl.types import UserError


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


# -- JSON lines ------------------------------------------------------------------------

# Characters that end a line for `str.splitlines`, though not in JSON: as escapes they
# are safe in every reader.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def json_line(row) -> str:
    """Return a row as a line of JSON with its newline.

    Non-ASCII characters stay readable, but for those that other tools take for the end
    of a line, and a text with a lone surrogate, which UTF-8 has no form for.
    """
    line = json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line + "\n"


def write_lines(path: str | os.PathLike, rows: Iterable) -> None:
    """Write rows as lines of JSON, whole or not at all."""
    atomic_write(path, map(json_line, rows))


def append_line(path: str | os.PathLike, row) -> None:
    """Append a row to a file of JSON lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_line(row))


def read_lines(
    path: str | os.PathLike, *, torn: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, value) of the lines of a JSON lines file that aren't blank.

    Lines end at a newline byte alone.

    Args:
      torn: drop a last line without a newline, as an interrupted writer leaves it.

    Raises:
      UserError: a line is not JSON in UTF-8.
      OSError: the file can't be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (torn and not line.endswith(b"\n")):
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)
                raise UserError(
                    f"{path}, line {number}: expected a line of JSON, got {line[:40]!r}"
                    f" ({reason})"
                ) from None
            yield number, value
