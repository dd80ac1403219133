"""Bring in results of VLMEvalKit or lmms-eval, for the same tables and analyses.

  vlmrl import vlmevalkit Qwen2.5-VL-7B-Instruct_MMBench_DEV_EN_openai_result.xlsx \\
      --workdir runs/theirs
  vlmrl import lmms-eval 20260101_120000_samples_cv_bench.jsonl --workdir runs/theirs

Writes one record file per import under WORKDIR/records/, says the accuracy there and
the one the tool states, and makes the report of all that were brought in. Logs of a
benchmark that was perturbed go in with --condition, so that they pair with base.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from vlmrl.eval import imports, records
from vlmrl.main import args
from vlmrl.main.progress import say, show_report
from vlmrl.studies import claims
from vlmrl.types import UserError

HELP = "bring in results of VLMEvalKit or lmms-eval"
FLAGS = {
    "args": ("vlmevalkit | lmms-eval FILE", "the tool, and its file"),
    "workdir": (None, "run directory to write into"),
    "model": ("", "name in records and tables; by default from the file"),
    "source": ("", "name of the benchmark; by default from the file"),
    "split": ("", "split in the records, the same for logs that are to pair"),
    "condition": ("base", "the condition it was run under"),
    "style": ("", "prompt style whose rule reads answers that the file does not"),
    "metric": ("", "lmms-eval: the metric that tells right from wrong"),
}
STYLES = {"vlmevalkit": "vlmevalkit", "lmms-eval": "lmms_eval"}


def main(argv):
    _, workdir, f = args.parse(argv, FLAGS)
    if len(f.args) != 2 or f.args[0] not in imports.READERS:
        tools = " or ".join(imports.READERS)
        raise UserError(f"vlmrl import takes {tools}, then a file")
    tool, path = f.args[0], Path(f.args[1])
    if tool == "vlmevalkit":
        rows, stated, where = imports.vlmevalkit(path)
        model, source = _named(path)
    else:
        rows, stated, where = imports.lmms_eval(path, f.metric)
        model, source = path.parent.name, rows[0].split
    if f.split:
        rows = [r._replace(split=f.split) for r in rows]
    model, source = f.model or model, f.source or source
    ours = imports.as_records(
        rows,
        source=source,
        model=model,
        condition=f.condition,
        style=f.style or STYLES[tool],
        tool=tool,
    )
    share = 100 * sum(r.correct for r in ours) / len(ours)
    theirs = "it states none" if stated is None else f"{100 * stated:.4f} % in {where}"
    say(f"{len(ours)} rows of {model} on {source}: {share:.4f} % correct; {theirs}")
    if stated is not None and not math.isclose(100 * stated, share, abs_tol=5e-3):
        raise UserError(
            f"{path}: {share:.4f} % of its rows are correct, but {where} states "
            f"{100 * stated:.4f} %: are they of one run?"
        )
    safe = re.sub(r"[^\w.-]", "_", f"{model}-{source}-{f.condition}")
    (workdir / "records").mkdir(exist_ok=True)
    records.write(workdir / "records" / f"{safe}.parquet", ours)
    info = {"title": f"Results of {tool}"}
    show_report(claims.build_report(workdir, info))


def _named(path: Path) -> tuple[str, str]:
    """Return (model, dataset) of MODEL_DATASET[_JUDGE_result].xlsx. The model is the
    name of the directory, or the part before the first underscore."""
    stem = re.sub(r"_[^_]+_result$", "", path.stem)
    for folder in (path.resolve().parent, *path.resolve().parents):
        if stem.startswith(f"{folder.name}_"):
            return folder.name, stem[len(folder.name) + 1 :]
    model, _, dataset = stem.partition("_")
    return model, dataset or "vlmevalkit"
