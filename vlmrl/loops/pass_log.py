"""Records of an evaluation pass by pass: what was computed is on disk before the next
pass begins, and the same command goes on from there.

While it is unfinished, the evaluation of FILE.parquet has a directory FILE.parquet.part
beside it: `about.json`, what decides its records, and per pass a Parquet file and the
number of rows of each of its examples.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import vlmrl
from vlmrl.eval import records
from vlmrl.files import write_json
from vlmrl.run import hosts
from vlmrl.types import Record


class PassLog:
    """The passes of one evaluation. The first host writes; all may read.

    Args:
      path: the record file that the passes will become.
      about: what decides the records, JSON-ready. Passes of another evaluation are
        removed.
    """

    def __init__(self, path: Path, about: dict):
        self._folder = path.with_name(path.name + ".part")
        about = {"version": vlmrl.__version__, "columns": records.SCHEMA.names, **about}
        note = self._folder / "about.json"
        about = json.loads(json.dumps(about))
        same = note.is_file() and json.loads(note.read_text()) == about
        if hosts.first() and not same:
            self.remove()
            self._folder.mkdir(parents=True)
            write_json(note, about)
        hosts.wait("passes")

    def run(
        self, number: int, compute: Callable[[], list[list[Record]]]
    ) -> list[list[Record]]:
        """Return the records of each example of a pass: from its file, else computed,
        on every host alike, and written."""
        path = self._folder / f"{number:06d}.parquet"
        if not hosts.agree(not path.is_file()):
            rows = iter(records.read(path).to_pylist())
            sizes = json.loads(path.with_suffix(".json").read_text())
            return [[Record(**row) for row in islice(rows, n)] for n in sizes]
        computed = compute()
        if hosts.first():
            write_json(path.with_suffix(".json"), [len(rows) for rows in computed])
            records.write(path, [row for rows in computed for row in rows])
        return computed

    def remove(self) -> None:
        """Remove the passes, once the whole is written."""
        shutil.rmtree(self._folder, ignore_errors=True)


def digest(parts) -> str:
    """Return a hash of an iterable of texts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() + b"\0")
    return whole.hexdigest()[:16]
