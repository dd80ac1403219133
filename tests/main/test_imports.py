"""`vlmrl import`: other tools' logs become a run with a report."""

import json

import pytest

from tests.eval.test_imports import ROWS, sample, write_samples, write_xlsx
from vlmrl.eval import records


@pytest.fixture
def theirs(tmp_path):
    folder = tmp_path / "Some-VL"
    folder.mkdir()
    path = folder / "Some-VL_MMBench_DEV_EN_openai_result.xlsx"
    write_xlsx(path, ROWS)
    scores = folder / "Some-VL_MMBench_DEV_EN_acc.csv"
    scores.write_text('"split","Overall"\n"dev","0.4"\n')
    return path, scores


def test_an_import_ends_in_a_report_and_conditions_pair(
    vlmrl, capsys, tmp_path, theirs
):
    path, scores = theirs
    run = tmp_path / "run"
    vlmrl("import", "vlmevalkit", path, "--workdir", run)
    said = capsys.readouterr().out
    assert "5 rows of Some-VL on MMBench_DEV_EN: 40.0000 % correct; 40.0000 %" in said
    scores.unlink()
    vlmrl("import", "vlmevalkit", path, "--workdir", run, "--condition=wrong_caption")
    assert "it states none" in capsys.readouterr().out
    rows = json.loads((run / "metrics.json").read_text())
    assert [(r["condition"], r["accuracy"], r["drop"]) for r in rows] == [
        ("base", 0.4, 0.0),
        ("wrong_caption", 0.4, 0.0),
    ]
    assert (run / "report.html").is_file()


def test_what_does_not_agree_is_refused(refused, theirs, tmp_path):
    path, scores = theirs
    scores.write_text('"split","Overall"\n"dev","0.8"\n')
    said = refused("import", "vlmevalkit", path, workdir=tmp_path / "run")
    assert "40.0000 % of its rows are correct, but" in said and "80.0000 %" in said
    assert "takes vlmevalkit or lmms-eval" in refused(
        "import", workdir=tmp_path / "run"
    )


def test_lmms_eval_logs(vlmrl, capsys, tmp_path):
    samples = [
        sample(i, "A", "AB"[i % 2], "exact_match", float(i % 2 == 0)) for i in (0, 1)
    ]
    said = {"said": {"exact_match,none": 0.5}}
    path = write_samples(tmp_path / "org__model", "own", samples, said)
    vlmrl("import", "lmms-eval", path, "--workdir", tmp_path / "run")
    assert "2 rows of org__model on own: 50.0000 % correct; 50.0000 %" in (
        capsys.readouterr().out
    )
    (file,) = (tmp_path / "run" / "records").iterdir()
    assert records.read(file).num_rows == 2
