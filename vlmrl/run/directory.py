"""The files of a run directory that describe its run."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import jax

import vlmrl
from vlmrl import user_code
from vlmrl.files import (
    append_line,
    atomic_write,
    read_lines,
    write_json,
    write_lines,
)
from vlmrl.run import hosts
from vlmrl.types import Skip, UserError


def append(path: Path, row: dict) -> None:
    """Append a line of JSON to a file, on the first host."""
    if hosts.first():
        append_line(path, row)


def describe_run(workdir: Path, config: dict) -> list[str]:
    """Write config.json, environment.json and the user's code that the config names
    (`user_code.save`) of a run directory; return lines for the user to read.

    Raises:
      UserError: the directory holds results of another config.
    """
    text = json.dumps(config, indent=1, default=list) + "\n"
    path = workdir / "config.json"
    if path.is_file() and path.read_text() != text and _results(workdir):
        old, new = _fields(json.loads(path.read_text())), _fields(json.loads(text))
        names = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        raise UserError(
            f"{workdir}: holds a run of another config (it differs in "
            f"{', '.join(names)}); give another --workdir"
        )
    atomic_write(path, text)
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    environment = {
        "vlmrl": vlmrl.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": [d.device_kind for d in jax.devices()],
        "processes": jax.process_count(),
        "packages": {p: version(p) for p in packages},
        "revision": _revision(),
        "user_code": user_code.hashes(config),
    }
    write_json(workdir / "environment.json", environment)
    return user_code.save(workdir, config)


def skips_path(records: Path) -> Path:
    """Return where the skips of a record file stand: RUN/skips.jsonl for the records of
    a run; beside each file of a study, whose records are shared."""
    if records.name.startswith("step-"):
        return records.parents[1] / "skips.jsonl"
    if records.parent.name == "records":
        return records.with_suffix(".skips.jsonl")
    return records.with_name("skips.jsonl")


def add_skips(path: Path, skips: Sequence[Skip]) -> None:
    """Add what was left out to a file of skips, each once."""
    known = read_skips([path])
    if new := [s for s in dict.fromkeys(skips) if s not in known]:
        write_lines(path, (s._asdict() for s in (*known, *new)))


def read_skips(paths: Iterable[Path]) -> list[Skip]:
    """Return the skips of those files that are there, each once."""
    rows = (row for p in paths if p.is_file() for _, row in read_lines(p))
    return list(dict.fromkeys(Skip(**row) for row in rows))


def _fields(config: dict, prefix: str = "") -> dict:
    """Return the fields of nested dicts by dotted name."""
    out = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        out |= _fields(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return out


def _results(workdir: Path) -> bool:
    """Return whether a run directory holds anything that took work."""
    names = ("checkpoints/*", "records/*.parquet", "records.parquet")
    depths = ("", "*/", "*/*/")  # seeds of recipes
    return any(any(workdir.glob(d + name)) for d in depths for name in names)


def _revision() -> str | None:
    """Return the checkout's git revision, with '+' if it has changes; None outside."""
    import subprocess

    git = shutil.which("git")
    if git is None:
        return None

    def say(*words):
        top = Path(vlmrl.__file__).resolve().parents[1]
        done = subprocess.run(
            [git, "-C", str(top), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None

    revision = say("rev-parse", "HEAD")
    return revision and revision + ("+" if say("status", "--porcelain") else "")
