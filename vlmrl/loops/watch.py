"""What a run leaves to look at while it trains: its course and sample rollouts."""

from __future__ import annotations

from pathlib import Path

from vlmrl.eval import records
from vlmrl.eval.course import course
from vlmrl.files import atomic_write, json_lines
from vlmrl.rl import rollout_log
from vlmrl.run import hosts


def course_of(workdir: Path, kept: Path, step: int) -> None:
    """course.jsonl: a line per evaluation up to `step`, with measures by condition and
    paired changes since the first (`eval.course`), made anew from the records."""
    files = {int(p.stem.rpartition("-")[2]): p for p in kept.glob("step-*.parquet")}
    steps = sorted(s for s in files if s <= step)
    first = records.read(files[steps[0]])
    rows = [{"step": steps[0], **course(first)}]
    rows += [{"step": s, **course(records.read(files[s]), first)} for s in steps[1:]]
    atomic_write(workdir / "course.jsonl", json_lines(rows))


def rollouts_of(workdir: Path, samples, advantages, *, step, lag, seed) -> None:
    """rollouts/step-N.parquet, by the first host; see `rl.keep.write`."""
    if hosts.first():
        path = workdir / "rollouts" / f"step-{step:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        rollout_log.write(path, samples, advantages, step=step, lag=lag, seed=seed)
