"""How long a reader waits for the report: its first view, in a real browser."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from vlmrl import policy
from vlmrl.bench.timing import result
from vlmrl.data import scenes
from vlmrl.eval import measures, records
from vlmrl.loops.evaluate import evaluate
from vlmrl.report import html, tables
from vlmrl.types import Record, UserError

CONDITIONS = ["base", "stop_think", "wrong_think", "wrong_caption", "correct_caption"]
SCENES = 16  # evaluated; their records are repeated under other names
# Says, at the end of the page, how long all before it took, laid out and all.
PROBE = """<script>{
  const size = document.body.offsetHeight, out = document.createElement("output");
  out.id = "first-view";
  out.textContent = document.documentElement.dataset.ready === "yes" && size > 0
    ? String(performance.now()) : "not ready";
  document.body.append(out);
}</script>"""


def suite(s) -> list[dict]:
    """Time the report of `sizes.records` records of the tiny model on scenes."""
    examples = scenes.suite("test", SCENES)
    measured = evaluate(policy.load("tiny"), examples, CONDITIONS, max_tokens=48)
    rows = repeated(measured, s.sizes.records)
    image_of = {e.id: e.images[0] for e in examples}
    images = {r.example: image_of[r.example.split("~")[0]] for r in rows}
    with tempfile.TemporaryDirectory(prefix="vlmrl-bench-") as place:
        file = Path(place) / "records.parquet"
        records.write(file, rows)
        table = records.read(file)
        begin = time.perf_counter()
        metrics = measures.summarise(table)
        built = tables.build(table, metrics)
        report = html.Page(table, metrics, built, {"title": "bench"})
        page = html.write_report(place, report, images)
        written, size = time.perf_counter() - begin, page.stat().st_size
        try:
            seconds = [first_view(page) for _ in range(s.rounds)]
        except UserError as error:
            return [result("page", None, str(error), unit="seconds", less=True)]
    return [
        result(
            "page", statistics.median(seconds),
            f"seconds from opening the report of {len(rows):,} records to its scripts "
            f"done and all laid out, headless Chromium, a fresh profile each time; "
            f"{size / 1e6:.1f} MB, written in {written:.1f} s",
            bar=2.0, less=True, unit="seconds", seconds={"first view": seconds},
        )
    ]  # fmt: skip


def repeated(records: list[Record], count: int) -> list[Record]:
    """Return `count` records: copies under other names of examples."""
    return [
        r._replace(
            example=f"{r.example}~{copy}", cluster=f"{r.cluster}~{copy}", recipe="tiny"
        )
        for copy in range(-(-count // len(records)))
        for r in records
    ][:count]


def first_view(page: Path) -> float:
    """Return the seconds from the navigation's start to a page ready and laid out."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise UserError("no chromium: Debian's package brings it")
    head, _, tail = page.read_text(encoding="utf-8").rpartition("</body>")
    probed = page.with_name("probed.html")
    probed.write_text(f"{head}{PROBE}</body>{tail}", encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        words = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={profile}", "--dump-dom", probed.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True)
    match = re.search(r'<output id="first-view">(.*?)</output>', done.stdout)
    if match is None or match[1] == "not ready":
        raise UserError("chromium showed a page whose scripts had not ended")
    return float(match[1]) / 1e3
