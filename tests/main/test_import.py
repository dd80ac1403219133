"""`vlmrl import`: another tool's log becomes records, tables and a page, with the
accuracy that the tool states."""

import json
import re

import pytest

from tests.eval.test_imports import (
    HEAD,
    ROWS,
    THOUGHT,
    sample,
    write_samples,
    write_xlsx,
)
from vlmrl.eval import records


@pytest.fixture
def kit(tmp_path):
    """A run of VLMEvalKit, judged: its result file; its score file says 40 %."""
    folder = tmp_path / "theirs" / "Qwen2.5-VL-7B-Instruct"
    folder.mkdir(parents=True)
    stem = folder / "Qwen2.5-VL-7B-Instruct_MMBench_DEV_EN"
    write_xlsx(f"{stem}_openai_result.xlsx", ROWS)
    (folder / f"{stem.name}_acc.csv").write_text(
        '"split","Overall","AR"\n"dev","0.4","0.333"\n'
    )
    return folder / f"{stem.name}_openai_result.xlsx"


def lmms(folder, right, name="cv_bench_2d"):
    """A run of lmms-eval of three samples, some right."""
    samples = [
        sample(i, "B", THOUGHT if i < right else "A", "cv_bench_acc",
               {"type": "2D", "task": "Count", "is_correct": i < right})
        for i in range(3)
    ]  # fmt: skip
    output = {"cv_bench_acc,none": right / 3, "cv_bench_acc_stderr,none": 0.1}
    return write_samples(folder / "org__model", name, samples, {"said": output})


def by_condition(workdir):
    rows = json.loads((workdir / "metrics.json").read_text())
    return {row["condition"]: row for row in rows}


def test_vlmevalkits_run_becomes_a_report(vlmrl, capsys, kit, tmp_path):
    run = tmp_path / "run"
    vlmrl("import", "vlmevalkit", kit, "--workdir", run)
    output = capsys.readouterr().out
    assert (
        "5 rows of Qwen2.5-VL-7B-Instruct on MMBench_DEV_EN: 40.0000 % correct"
        in output
    )
    assert "40.0000 % in " in output and "_acc.csv" in output
    row = by_condition(run)["base"]
    assert row["accuracy"] == 0.4 and row["n"] == 5 and row["entropy"] is None
    assert row["recipe"] == "Qwen2.5-VL-7B-Instruct" and row["split"] == "dev"
    table = records.read(next((run / "records").iterdir()))
    assert sum(table["correct"].to_pylist()) / table.num_rows == 0.4
    assert "consistent" in table["verdict"].to_pylist()  # the think was judged
    for name in ("tables/quadrants-dev.md", "tables/conditions-dev.tex", "report.html"):
        assert (run / name).stat().st_size > 200, name


def test_a_perturbed_log_of_lmms_eval_pairs_with_base(vlmrl, capsys, tmp_path):
    run = tmp_path / "run"
    base = lmms(tmp_path / "a", right=2)
    wrong = lmms(tmp_path / "b", right=1)
    vlmrl("import", "lmms-eval", base, "--workdir", run)
    assert "66.6667 % correct; 66.6667 % in " in capsys.readouterr().out
    vlmrl("import", "lmms-eval", wrong, "--condition=wrong_caption", "--workdir", run)
    assert "33.3333 % correct; 33.3333 % in " in capsys.readouterr().out
    actual = by_condition(run)
    assert actual["base"]["accuracy"] == pytest.approx(2 / 3)
    assert actual["wrong_caption"]["accuracy"] == pytest.approx(1 / 3)
    assert actual["wrong_caption"]["drop"] == pytest.approx(1 / 3)
    names = {p.name for p in (run / "records").iterdir()}
    assert names == {
        "org__model-cv_bench_2d-base.parquet",
        "org__model-cv_bench_2d-wrong_caption.parquet",
    }


def test_both_tools_side_by_side_and_again(vlmrl, kit, tmp_path):
    """Two logs of one set under names that are given; the same import twice is one."""
    run = tmp_path / "run"
    words = ["--source=mine", "--split=all", "--workdir", run]
    for _ in range(2):
        vlmrl("import", "vlmevalkit", kit, "--model=a", *words)
    vlmrl("import", "lmms-eval", lmms(tmp_path, 3), "--model=b", *words)
    rows = json.loads((run / "metrics.json").read_text())
    actual = {(r["recipe"], r["split"]): (r["n"], r["accuracy"]) for r in rows}
    assert actual == {("a", "all"): (5, 0.4), ("b", "all"): (3, 1.0)}


def test_the_page_of_a_log_is_json_that_browsers_read(vlmrl, tmp_path):
    """Numbers that a log does not hold are null, not NaN, which no browser parses."""
    run = tmp_path / "run"
    vlmrl("import", "lmms-eval", lmms(tmp_path, 2), "--workdir", run)
    page = (run / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)

    def never(word):
        raise AssertionError(word)

    stored = [json.loads(text, parse_constant=never) for text in scripts]
    (chunk,) = [h for h in stored if "prompts" in h]
    assert [row["h"] for row in chunk["rows"]] == [None] * 3


def test_an_accuracy_that_is_not_theirs_is_refused(refused, kit, tmp_path):
    kit.with_name("Qwen2.5-VL-7B-Instruct_MMBench_DEV_EN_acc.csv").write_text(
        '"split","Overall"\n"dev","0.6"\n'
    )
    output = refused("import", "vlmevalkit", kit, workdir=tmp_path / "run")
    assert "40.0000 % of its rows are correct" in output and "60.0000 %" in output
    assert not list((tmp_path / "run").glob("records/*"))


def test_refusals(refused, kit, tmp_path):
    run = tmp_path / "run"
    for words, complaint in (
        (["vlmevalkit"], "takes vlmevalkit or lmms-eval, then a file"),
        (["kit", kit], "takes vlmevalkit or lmms-eval, then a file"),
        (["vlmevalkit", tmp_path / "no.xlsx"], "no.xlsx: no such file"),
        (["vlmevalkit", kit, "--condition=bass"], "unknown condition 'bass'; known"),
        (["vlmevalkit", kit, "--style=x"], "unknown prompt style 'x'"),
        (["lmms-eval", lmms(tmp_path, 1), "--metric=f1"], "no metric 'f1'"),
    ):
        assert complaint in refused("import", *words, workdir=run)
    bad = [list(r) for r in ROWS]
    bad[2][HEAD.index("answer")] = "Z"
    write_xlsx(kit, bad)
    assert "row 4 (index 2): answer 'Z'" in refused(
        "import", "vlmevalkit", kit, workdir=run
    )
