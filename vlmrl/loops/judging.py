"""Leave the verdicts of a judge in a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmrl.eval import records
from vlmrl.files import write_json
from vlmrl.judges import judge, verdicts
from vlmrl.judges.judge import Verdict
from vlmrl.types import Record


def write(
    workdir: Path,
    summary: dict,
    rows: Sequence[verdicts.VerdictRow],
    decided: Sequence[Verdict],
    old: Sequence[Record],
) -> None:
    """Write verdicts.jsonl, judge.json (`summary`, see `named.summary`) and, of `old`
    records, records.parquet under the new judge."""
    name = summary["judge"]
    verdicts.write(workdir / verdicts.NAME, rows, decided, name)
    write_json(workdir / "judge.json", summary)
    if old:
        rejudged = judge.apply_verdicts(old, decided, name)
        records.write(workdir / "records.parquet", rejudged)
        info = {k: str(v) for k, v in summary.items() if v and k != "spent"}
        write_json(workdir / "info.json", {"title": f"Judged by {name}"} | info)
