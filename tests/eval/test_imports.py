"""Results of other tools, in the formats they write, give the accuracy they state."""

import csv
import json
import math
import sys

import openpyxl
import pytest
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont

from vlmrl.eval import imports, measures, records
from vlmrl.eval.spreadsheets import read_xlsx
from vlmrl.types import UserError

THOUGHT = "<think>The left one is red. So it is B.</think><answer>B</answer>"
# index, question, A, B, C, answer, category, l2-category, split, prediction, hit, log
HEAD = (
    "index question hint A B C D answer category l2-category split prediction hit log"
).split()
ROWS = [
    [0, "Which is red?", None, "the cup", "the box", None, None, "B", "color", "AR",
     "dev", THOUGHT, 1, "Match Log: B. "],
    [1, "How many?", "look", 1, 2, 3, 4, "D", "count", "FP-S", "dev", "D", 1, "m"],
    [2, "Where?", None, "left", "right", None, None, "A", "place", "RR", "dev",
     "right, I think", 0, "m"],
    # their judge read another letter than our parser: theirs counts
    [3, "Who?", None, "a man", "a dog", None, None, "A", "who", "AR",
     "dev", "A", 0, "m"],
    [4, "What?", None, "NA", "x_1 & <y>", None, None, "A", "who", "AR",
     "dev", "", 0, "m"],
]  # fmt: skip


def write_xlsx(path, rows, head=HEAD):
    book = openpyxl.Workbook()
    for row in [head, *rows]:
        book.active.append(row)
    book.save(path)


@pytest.fixture
def theirs(tmp_path):
    """A run of VLMEvalKit: MODEL/MODEL_DATASET_openai_result.xlsx and its scores."""
    folder = tmp_path / "Qwen2.5-VL-7B-Instruct"
    folder.mkdir()
    stem = folder / "Qwen2.5-VL-7B-Instruct_MMBench_DEV_EN"
    write_xlsx(f"{stem}_openai_result.xlsx", ROWS)
    (folder / f"{stem.name}_acc.csv").write_text(
        '"split","Overall","AR","FP-S","RR"\n"dev","0.4","0.333","1.0","0.0"\n'
    )
    return folder / f"{stem.name}_openai_result.xlsx"


def test_vlmevalkits_result_file_gives_its_accuracy(theirs):
    rows, stated, where = imports.vlmevalkit(theirs)
    found = imports.as_records(
        rows, source="mmbench", model="m", condition="base", style="vlmevalkit",
        tool="vlmevalkit",
    )  # fmt: skip
    assert stated == 0.4 and where.endswith("_acc.csv")
    assert sum(r.correct for r in found) / len(found) == stated
    first = found[0]
    assert first.options == ["the cup", "the box"] and first.answer == 1
    assert first.think == "The left one is red. So it is B."
    assert (first.conclusion, first.verdict) == (1, "consistent")
    assert first.task == "AR/color" and first.example == "0" and first.split == "dev"
    assert found[1].options == ["1", "2", "3", "4"]
    assert found[2].verdict == "not_applicable", "no think, nothing to judge"
    assert found[3].predicted == -1 and not found[3].correct
    assert found[4].options == ["NA", "x_1 & <y>"] and found[4].completion == ""
    assert all(r.suggested not in (-1, r.answer) for r in found)


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".xlsx"])
def test_its_prediction_file_is_read_by_its_own_rule(tmp_path, suffix):
    """Without hit and log: as under its exact matching."""
    head, rows = HEAD[:-2], [r[:-2] for r in ROWS]
    path = tmp_path / f"m_MMStar{suffix}"
    if suffix == ".xlsx":
        write_xlsx(path, rows, head)
    elif suffix == ".tsv":
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows(
                [["" if v is None else v for v in r] for r in [head, *rows]]
            )
    else:
        path.write_text(json.dumps([dict(zip(head, r, strict=True)) for r in rows]))
    rows, stated, where = imports.vlmevalkit(path)
    assert stated is None and where == ""
    found = imports.as_records(
        rows, source="s", model="m", condition="base", style="vlmevalkit", tool="t"
    )
    # it reads what follows a think: '<answer>B</answer>' holds no letter word
    assert [r.predicted for r in found][1:] == [3, 1, 0, -1]
    assert [r.correct for r in found][1:] == [True, False, True, False]


def test_circular_copies_are_of_one_cluster(tmp_path):
    rows = [list(ROWS[1]), list(ROWS[1])]
    rows[1][0] = 3_000_001
    write_xlsx(tmp_path / "m_MMBench_result.xlsx", rows)
    found, _, _ = imports.vlmevalkit(tmp_path / "m_MMBench_result.xlsx")
    assert [r.id for r in found] == ["1", "3000001"]
    assert {r.cluster for r in found} == {"1"}


def test_a_broken_spreadsheet_is_named_by_row(tmp_path):
    bad = [list(r) for r in ROWS]
    bad[1][HEAD.index("answer")] = "E"
    write_xlsx(tmp_path / "m_S.xlsx", bad)
    with pytest.raises(UserError, match=r"row 3 \(index 1\): answer 'E' is not"):
        imports.vlmevalkit(tmp_path / "m_S.xlsx")
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04 not")
    with pytest.raises(UserError, match="not a readable .xlsx file"):
        imports.vlmevalkit(tmp_path / "x.xlsx")
    with pytest.raises(UserError, match=r"expected \.xlsx"):
        (tmp_path / "x.pkl").write_bytes(b"")
        imports.vlmevalkit(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="row 2: has no prediction"):
        write_xlsx(tmp_path / "n_S.xlsx", [r[:11] for r in ROWS], HEAD[:11])
        imports.vlmevalkit(tmp_path / "n_S.xlsx")


def test_cells_of_a_spreadsheet(tmp_path):
    """Runs of formatted text, escaped control characters, truth values, gaps."""
    path = tmp_path / "x.xlsx"
    pieces = CellRichText("pre", TextBlock(InlineFont(b=True), "diction"))
    rows = [[7, None, "a_x000A_b"], [None, "lost", True], [1.5, None, "=1+1"]]
    write_xlsx(path, rows, ["index", None, pieces])
    assert read_xlsx(path) == [
        {"index": 7, "prediction": "a\nb"},
        {"index": "", "prediction": 1},
        {"index": 1.5, "prediction": ""},
    ]


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"x.xlsx: .* pip install -e '.\[sheets\]'"):
        read_xlsx(tmp_path / "x.xlsx")


# -- lmms-eval -------------------------------------------------------------------------

ASKED = (
    "Which is {}?\nA. the cup\nB. the box\n"
    "Answer with the option's letter from the given choices directly."
)


def write_samples(folder, task, samples, results):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"20260923_172512_samples_{task}.jsonl"
    path.write_text("".join(json.dumps(s) + "\n" for s in samples))
    said = {
        "results": {task: {"alias": task, **results.pop("said")}},
        "configs": {}, **results,
    }  # fmt: skip
    (folder / "20260923_172512_results.json").write_text(json.dumps(said))
    return path


def sample(doc, target, said, metric, value, **more):
    """A line as `save_results_samples` writes it."""
    return {
        "doc_id": doc, "target": target, "filtered_resps": [said],
        "doc_hash": "74", "prompt_hash": "75", "target_hash": "76",
        metric: value, "input": ASKED.format(doc), **more,
    }  # fmt: skip


def test_lmms_evals_samples_give_its_accuracy(tmp_path):
    """CV-Bench's metric is an object with `is_correct`; its mean is stated."""
    about = {"type": "2D", "task": "Relation", "source": "COCO"}
    samples = [
        sample(i, t, s, "cv_bench_acc", {**about, "gt_content": t, "pred": s,
                                         "pred_parsed": s[:1], "is_correct": ok})
        for i, (t, s, ok) in enumerate(
            [("B", THOUGHT, True), ("(A)", "A. the cup", True), ("A", "B", False)]
        )
    ]  # fmt: skip
    said = {"cv_bench_acc,none": 2 / 3, "cv_bench_acc_stderr,none": 0.1}
    path = write_samples(
        tmp_path / "org__model", "cv_bench_2d", samples, {"said": said}
    )
    rows, stated, where = imports.lmms_eval(path)
    found = imports.as_records(
        rows, source="cv_bench", model="m", condition="base", style="lmms_eval",
        tool="lmms-eval",
    )  # fmt: skip
    assert stated == pytest.approx(2 / 3) and where.endswith("_results.json")
    assert sum(r.correct for r in found) / 3 == pytest.approx(stated)
    assert (
        found[0].options == ["the cup", "the box"]
        and found[0].question == "Which is 0?"
    )
    assert [r.answer for r in found] == [1, 0, 0]
    assert found[0].verdict == "consistent" and found[0].task == "2D/Relation"
    assert found[2].predicted == 1


def test_a_metric_in_per_cent_and_by_category(tmp_path):
    """V*: a metric per category beside the overall one, which is in per cent."""
    samples = []
    for i, (kind, score) in enumerate([("direct", 1.0), ("direct", 0.0), ("rel", 1.0)]):
        value = {"question_id": i, "category": kind, "score": score}
        samples.append(
            sample(i, "A", "A", f"vstar_{kind}_acc", value, vstar_overall_acc=value)
        )
    said = {"vstar_direct_acc,none": 50.0, "vstar_overall_acc,none": 200 / 3}
    path = write_samples(tmp_path, "vstar_bench", samples, {"said": said})
    rows, stated, _ = imports.lmms_eval(path)
    assert stated == pytest.approx(2 / 3) and [r.task for r in rows] == [
        "direct", "direct", "rel",
    ]  # fmt: skip
    rows, stated, _ = imports.lmms_eval(path, "vstar_direct_acc")
    assert len(rows) == 2 and stated == 0.5
    with pytest.raises(UserError, match="no metric 'f1'; it has vstar_direct_acc"):
        imports.lmms_eval(path, "f1")


def test_a_yes_no_benchmark_whose_score_is_no_mean(tmp_path):
    """MME: a sum over pairs is stated; correct answers are counted besides. Responses
    are a bare string, and images are named."""
    samples = []
    for i, (target, said) in enumerate([("Yes", "Yes"), ("No", "No"), ("Yes", "No")]):
        score = {
            "question_id": "a.png",
            "category": "code",
            "score": float(target == said),
        }
        samples.append({
            "doc_id": i, "target": target, "filtered_resps": said, "doc_hash": "7",
            "token_counts": [{"output_tokens": 2}], "input_media": ["a.png"],
            "mme_cognition_score": score, "input": "Is it code?\nAnswer yes or no.",
        })  # fmt: skip
    path = write_samples(
        tmp_path, "mme", samples,
        {"said": {"mme_cognition_score,none": 162.5},
         "efficiency": {"by_task": {"mme": {"docs": 3.0, "total_correct_score": 2.0}}}},
    )  # fmt: skip
    rows, stated, _ = imports.lmms_eval(path)
    assert stated == pytest.approx(2 / 3)
    assert [r.correct for r in rows] == [True, True, False]
    assert {r.cluster for r in rows} == {"a.png"} and rows[0].options == ("Yes",)


def test_options_in_one_line():
    question, options = imports._choices("Where is it? (A) left (B) right of the cup\n")
    assert question == "Where is it?" and options == ("left", "right of the cup")
    assert imports._choices("Is B. Obama shown? C. says so.")[1] == ()


def test_refusals(tmp_path):
    path = tmp_path / "1_samples_x.jsonl"
    path.write_text('{"doc_id": 0}\n')
    with pytest.raises(UserError, match="line 1: is no sample"):
        imports.lmms_eval(path)
    path.write_text('{"doc_id": 0, "target": "A", "input": "q", "m": {"x": 1}}\n')
    with pytest.raises(UserError, match="doc_id 0: m: does not say"):
        imports.lmms_eval(path)


def test_imported_records_are_records(tmp_path, theirs):
    rows, _, _ = imports.vlmevalkit(theirs)
    made = imports.as_records(
        rows, source="s", model="m", condition="wrong_caption", style="vlmevalkit",
        tool="t",
    )  # fmt: skip
    records.write(tmp_path / "r.parquet", made)
    (row,) = measures.summarise(records.read(tmp_path / "r.parquet"))
    assert row["condition"] == "wrong_caption" and row["accuracy"] == 0.4
    assert row["entropy"] is None and math.isnan(made[0].entropy)


def test_open_items_of_either_tool(tmp_path):
    """What the tool calls right is right in both readings; any text can be written."""
    path = tmp_path / "20260101_samples_t.jsonl"
    replies = [
        (5, "There are 5.", 1),
        (["red", "crimson"], "red", 1),
        ("x", "\ud800", 0),
    ]
    path.write_text(
        "\n".join(
            json.dumps(
                {"doc_id": i, "target": t, "input": "q", "resps": [[r]], "acc": v}
            )
            for i, (t, r, v) in enumerate(replies)
        )
    )
    rows, _, _ = imports.lmms_eval(path)
    made = imports.as_records(
        rows, source="s", model="m", condition="base", style="r1v", tool="t"
    )
    assert [(r.kind, r.correct, r.lenient_correct) for r in made] == [
        ("number", True, True),
        ("text", True, True),
        ("text", False, False),
    ]
    records.write(tmp_path / "r.parquet", made)
    texts = records.read(tmp_path / "r.parquet")["completion"].to_pylist()
    assert texts == ["There are 5.", "red", "\ufffd"]
