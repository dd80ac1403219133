"""Files to follow a run by while it trains: the learning curve, sample rollouts."""

from __future__ import annotations

from pathlib import Path

from vlmrl.eval import records
from vlmrl.eval.learning_curve import curve_point
from vlmrl.files import write_lines
from vlmrl.rl import rollout_log
from vlmrl.run import hosts


def write_learning_curve(workdir: Path, step: int) -> None:
    """Write learning_curve.jsonl from the records: a line per evaluation up to `step`,
    with measures by condition and paired changes since the first
    (`eval.learning_curve`). It replaces the course.jsonl of earlier versions."""
    paths = (workdir / "records").glob("step-*.parquet")
    files = {int(p.stem.rpartition("-")[2]): p for p in paths}
    steps = sorted(s for s in files if s <= step)
    first = records.read(files[steps[0]])
    rows = [{"step": steps[0], **curve_point(first)}]
    rows += [
        {"step": s, **curve_point(records.read(files[s]), first)} for s in steps[1:]
    ]
    write_lines(workdir / "learning_curve.jsonl", rows)
    (workdir / "course.jsonl").unlink(missing_ok=True)


def write_rollouts(workdir: Path, samples, advantages, *, step, lag, seed) -> None:
    """Write rollouts/step-N.parquet on the first host; see `rl.rollout_log.write`."""
    if hosts.first():
        path = workdir / "rollouts" / f"step-{step:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        rollout_log.write(path, samples, advantages, step=step, lag=lag, seed=seed)
