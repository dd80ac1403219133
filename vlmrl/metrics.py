"""Numbers that add, and where they are written.

A step returns a tree (dicts, NamedTuples) of `Mean` and `Max`. Trees of microbatches
are joined by `add`, and become plain floats, by `values`, only when they are written.
"""

from __future__ import annotations

import math
import operator
import os
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vlmrl.files import json_line, read_lines, write_lines
from vlmrl.types import Array, Mean, UserError


class Max(NamedTuple):
    """A maximum, which joins as `Mean` does: `a + b` is the larger of both."""

    max: Array

    def __add__(self, other):
        return Max(jnp.maximum(self.max, other.max))

    @property
    def value(self):
        return self.max


def _is_number(x) -> bool:
    return isinstance(x, (Mean, Max))


def add(*trees):
    """Return the sum of trees of equal structure, e.g. of the microbatches'."""

    def join(a, b):
        return jax.tree.map(operator.add, a, b, is_leaf=_is_number)

    return reduce(join, trees)


def values(tree, prefix: str = "") -> dict[str, float]:
    """Return floats by name, e.g. {'train/policy/ratio': 1.02}. One transfer serves
    all of them.

    A Mean that counted nothing (a share of an empty set) is left out: it has no value,
    and 0 would be read as one.

    Args:
      tree: dicts and NamedTuples of Mean, Max and scalars; None is skipped.
      prefix: put before every name, with a slash.
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree), _is_number)
    out = {}
    for path, leaf in leaves:
        if isinstance(leaf, Mean) and leaf.count == 0:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = "/".join(part for part in (prefix, name) if part)
        out[name] = float(leaf.value if _is_number(leaf) else leaf)
    return out


class Writer:
    """Append rows to `<workdir>/metrics.jsonl`; TensorBoard and W&B if asked.

    One line per `write`, in one system call, so that a killed run leaves at most one
    torn line, the last. Only process 0 writes. Numbers that are not finite become null
    (JSON has none). A context manager.

    Args:
      workdir: existing directory of the run.
      restored: the step a checkpoint brought back. Rows of later steps were written by
        work that is being done again: they are dropped. None: a new run, no rows kept.
      tensorboard: also write event files to `<workdir>/tensorboard`.
      wandb: also log to Weights & Biases: keyword arguments of `wandb.init`.

    Raises:
      UserError: the file can't be written or read back, or an optional package that
        was asked for is missing.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        restored: int | None = None,
        tensorboard: bool = False,
        wandb: dict | None = None,
    ):
        self.path = Path(workdir) / "metrics.jsonl"
        self._fd = self._board = self._wandb = None
        if jax.process_index() != 0:
            return
        board = tensorboard and _optional("tensorboardX", "tensorboard")
        run = None if wandb is None else _optional("wandb", "wandb")
        try:
            _truncate(self.path, restored)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as e:
            raise UserError(f"{self.path}: can't be written ({e.strerror})") from e
        if board:
            purge = None if restored is None else restored + 1
            folder = str(Path(workdir) / "tensorboard")
            self._board = board.SummaryWriter(folder, purge_step=purge)
        if run:
            self._wandb = run.init(dir=str(workdir), **wandb)

    def write(self, step: int, row: dict) -> None:
        """Append {'step': step, **row}; floats also go to TensorBoard and W&B."""
        if self._fd is None:
            return
        row = {k: _finite(v) for k, v in row.items()}
        line = json_line({"step": int(step), **row}).encode()
        if os.write(self._fd, line) != len(line):
            raise UserError(f"{self.path}: the disk is full")
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._wandb:
            self._wandb.log(numbers, step=int(step))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
        self._fd = self._board = self._wandb = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read(path: str | Path) -> list[dict]:
    """Return the rows of a metrics file, without a torn last line.

    Raises:
      UserError: a line before the last is not a JSON object with a step.
    """
    rows = []
    for number, row in read_lines(path, torn=True):
        if not isinstance(row, dict) or "step" not in row:
            raise UserError(
                f"{path}, line {number}: expected a JSON object with 'step', got "
                f"{str(row)[:40]}"
            )
        rows.append(row)
    return rows


def _truncate(path: Path, restored: int | None) -> None:
    """Drop the rows after step `restored`; the file is replaced as a whole."""
    rows = read(path) if restored is not None and path.exists() else []
    write_lines(path, (row for row in rows if row["step"] <= restored))


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _optional(module: str, field: str):
    try:
        return __import__(module)
    except ImportError as e:
        raise UserError(
            f"{field}: needs the package {module}; run pip install {module}"
        ) from e
