"""Record files are strict, and their summary is what a hand count says."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmrl.eval import measures, records
from vlmrl.types import Record, UserError


def record(**changes) -> Record:
    """One consistent, correct row of the warm start; `changes` by field. The lenient
    reading is the strict one unless it is among them."""
    row = {
        "recipe": "warm-start",
        "seed": 0,
        "step": 0,
        "split": "test",
        "source": "scenes",
        "task": "count",
        "example": "e0",
        "cluster": "i0",
        "condition": "base",
        "sample": 0,
        "prompt": "p",
        "spans": [[0, 1]],
        "prompt_hash": "00",
        "style": "r1v",
        "question": "q",
        "options": ["1", "2"],
        "answer": 0,
        "suggested": 1,
        "abstain": -1,
        "prefill": "",
        "kind": "option",
        "open": False,
        "not_asked": [],
        "completion": "c",
        "think": "t",
        "think_sampled": "t",
        "predicted": 0,
        "correct": True,
        "followed": False,
        "format": True,
        "finish": "stop",
        "judge": "rule",
        "conclusion": 0,
        "verdict": "consistent",
        "verdict_sampled": "consistent",
        "forced": 0,
        "letters": [0.75, 0.25],
        "normalised": [],
        "scored": "letters",
        "entropy": 0.5623351446188083,
        "p_correct": 0.75,
        "p_suggested": 0.25,
        "option_mass": 0.9,
        "natural": True,
        "truncated": False,
        "think_entropy": 0.2,
        "think_tokens": 4,
        "sighted": [[0.5, 0.5], [0.75, 0.25]],
        "sighted_every": 2,
        "blind": [0.6, 0.4],
        "blind_stripped": [0.4, 0.6],
        "consistent_probe": True,
        "consistent_probe_stripped": False,
        "parser": "1",
        "lenient_parser": "1",
        "engine": "test",
        "pixels": [1, 2],
    }
    row |= changes
    same = {"lenient": row["predicted"], "lenient_correct": row["correct"]}
    return Record(**(same | row))


WRONG = {"predicted": 1, "correct": False, "followed": True}


def summary(rows):
    table = pa.Table.from_pylist([r._asdict() for r in rows], schema=records.SCHEMA)
    return {(r["recipe"], r["condition"]): r for r in measures.summarise(table)}


def test_round_trip_keeps_every_value_and_the_column_order(tmp_path):
    rows = [record(), record(example="e1", options=[], letters=[], sighted=[[]])]
    records.write(tmp_path / "r.parquet", rows)
    table = records.read(tmp_path / "r.parquet")
    assert table.column_names == list(Record._fields)
    assert [Record(**row) for row in table.to_pylist()] == rows
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_numpy_scalars_are_welcome(tmp_path):
    row = record(seed=np.int32(3), entropy=np.float32(0.5), correct=np.bool_(True))
    records.write(tmp_path / "r.parquet", [row])
    assert records.read(tmp_path / "r.parquet")["seed"].to_pylist() == [3]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"entropy": "low"}, "column entropy: expected double"),
        ({"options": "AB"}, "column options: expected list"),
        ({"task": None}, r"column task: row 1 \(example e1\) is None"),
    ],
)
def test_a_value_of_another_type_is_refused_and_nothing_is_left(
    tmp_path, changes, words
):
    path = tmp_path / "r.parquet"
    with pytest.raises(UserError, match=words):
        records.write(path, [record(), record(example="e1", **changes)])
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write records"):
        records.write(tmp_path / "none" / "r.parquet", [record()])


def test_read_names_what_is_wrong(tmp_path):
    path = tmp_path / "r.parquet"
    with pytest.raises(UserError, match="no such record file"):
        records.read(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet"):
        records.read(path)
    records.write(path, [record()])
    good = pq.read_table(path)
    seed = good.schema.get_field_index("seed")
    for table, words in [
        (good.drop_columns(["entropy", "blind"]), "missing column entropy, blind"),
        (good.append_column("extra", good["seed"]), "unknown column extra"),
        (
            good.set_column(seed, "seed", pa.array(["0"])),
            "column seed: type string; expected int64",
        ),
        (
            good.set_column(seed, "seed", pa.array([None], pa.int64())),
            "column seed: holds nulls",
        ),
        (pa.concat_tables([good, good]), "row given 2 times: split=test, recipe=warm"),
    ]:
        pq.write_table(table, path)
        with pytest.raises(UserError, match=words):
            records.read(path)
    records.write(path, [record(verdict="maybe")])
    with pytest.raises(UserError, match="column verdict: expected one of .*'maybe'"):
        records.read(path)


def test_metric_rows_start_with_the_agreed_keys_and_are_json():
    rows = list(summary([record()]).values())
    assert list(rows[0])[:14] == [
        "recipe",
        "seed",
        "step",
        "split",
        "condition",
        "n",
        "accuracy",
        "accuracy_lo",
        "accuracy_hi",
        "entropy",
        "p_correct",
        "p_suggested",
        "consistent",
        "faithful_accuracy",
    ]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_consistency_counts_undecided_as_failure_over_applicable_rows():
    verdicts = ["consistent", "consistent", "inconsistent", "undecided"]
    rows = [
        record(example=f"e{i}", cluster=f"i{i}", verdict=v, **(WRONG if i == 1 else {}))
        for i, v in enumerate([*verdicts, "not_applicable"])
    ]
    got = summary(rows)["warm-start", "base"]
    assert got["n"] == 5 and got["accuracy"] == 4 / 5
    assert got["consistent"] == 2 / 4
    assert got["consistent_best"] == 3 / 4
    assert got["undecided"] == 1 / 4
    assert got["faithful_accuracy"] == 1 / 4


def test_consistency_is_null_where_no_row_applies():
    row = record(condition="no_cot", verdict="not_applicable", think_tokens=0)
    got = summary([row])["warm-start", "no_cot"]
    assert got["consistent"] is None and got["faithful_accuracy"] is None
    assert got["think_entropy"] is None and got["accuracy"] == 1
    assert got["drop"] is None  # no base to compare with


def test_drop_retention_and_follow_against_base_are_paired():
    rows = [record(example=f"e{i}", **(WRONG if i == 3 else {})) for i in range(4)]
    rows += [
        record(example=f"e{i}", condition="wrong_caption", **(WRONG if i < 2 else {}))
        for i in range(4)
    ]
    got = summary(rows)["warm-start", "wrong_caption"]
    assert got["drop"] == pytest.approx(3 / 4 - 2 / 4)
    assert got["relative_drop"] == pytest.approx(1 / 3)
    assert got["retention"] == pytest.approx(1 / 3)  # e0, e1 lost, e2 kept
    assert got["follow_excess"] == pytest.approx(2 / 4 - 1 / 4)
    base = summary(rows)["warm-start", "base"]
    assert base["robust_accuracy"] == 1 / 4  # e2 alone is right under both
    assert base["drop"] == 0 and base["retention"] == 1


def test_ids_of_two_sources_do_not_pair():
    rows = [
        record(),
        record(source="other", condition="wrong_caption", **WRONG),
    ]
    assert summary(rows)["warm-start", "wrong_caption"]["drop"] is None


def test_the_interval_is_over_clusters():
    rows = [
        record(example=f"e{i}", cluster=f"i{i // 10}", **(WRONG if i < 30 else {}))
        for i in range(60)
    ]
    got = summary(rows)["warm-start", "base"]
    assert got["n"] == 60 and got["clusters"] == 6
    assert got["accuracy_lo"] < 0.2 and got["accuracy_hi"] > 0.8


def test_rows_come_base_first_and_otherwise_in_order():
    rows = [
        record(recipe=r, step=s, condition=c)
        for r, s in [("b", 9), ("b", 10), ("a", 5)]
        for c in ("zoo", "base", "alpha")
    ]
    table = pa.Table.from_pylist([r._asdict() for r in rows], schema=records.SCHEMA)
    got = [(r["recipe"], r["step"], r["condition"]) for r in measures.summarise(table)]
    want = [("b", 9), ("b", 10), ("a", 5)]
    assert got == [(r, s, c) for r, s in want for c in ("base", "zoo", "alpha")]


def test_no_rows_no_summary():
    assert measures.summarise(records.SCHEMA.empty_table()) == []


def test_jsonl_reads_back_as_the_same_records(tmp_path):
    rows = [
        record(completion="a\nb \u2028 “é”", entropy=float("nan"), letters=[]),
        record(example="e1", p_correct=1.0),
    ]
    records.write(tmp_path / "r.parquet", rows)
    table = records.read(tmp_path / "r.parquet")
    records.write_jsonl(tmp_path / "r.jsonl", table)
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3 and list(json.loads(lines[0])) == list(Record._fields)
    assert json.loads(lines[0])["entropy"] is None
    again = records.read(tmp_path / "r.jsonl")
    assert again.schema == table.schema
    assert again.drop_columns(["entropy"]).equals(table.drop_columns(["entropy"]))
    assert (
        np.isnan(again["entropy"][0].as_py())
        and again["entropy"][1] == table["entropy"][1]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "r.parquet"]


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 2: expected a line of JSON"),
        ("[]", "line 2: expected an object"),
        ('{"recipe": "x"}', "line 2: missing field seed, step"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, said):
    records.write(tmp_path / "r.parquet", [record()])
    records.write_jsonl(tmp_path / "r.jsonl", records.read(tmp_path / "r.parquet"))
    with open(tmp_path / "r.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=said):
        records.read(tmp_path / "r.jsonl")


def test_brier_and_the_top_option():
    table = pa.Table.from_pylist(
        [record()._asdict(), record(example="e1", answer=1, p_correct=0.25)._asdict()],
        schema=records.SCHEMA,
    )
    found = measures.row_measures(table)
    assert found["brier"].tolist() == pytest.approx([0.125, 1.125])
    assert found["top_right"].tolist() == [1, 0]


def test_the_top_option_is_told_by_the_letters():
    """The kernel's P(correct) may differ from its letter by the last bit."""
    sure = {"letters": [0.99988073, 0.00011927], "p_correct": 0.99988067}
    rows = [
        record(**sure),
        record(example="e1", **sure | {"answer": 1, "p_correct": 0.00011927}),
        record(example="e2", letters=[], answer=0, p_correct=np.nan),
        record(example="e3", **sure | {"answer": -1, "p_correct": np.nan}),
    ]
    table = pa.Table.from_pylist([r._asdict() for r in rows], schema=records.SCHEMA)
    found = measures.row_measures(table)["top_right"]
    np.testing.assert_array_equal(found, [1, 0, np.nan, 0])
    np.testing.assert_array_equal(
        measures.row_measures(table.slice(1, 2))["top_right"], [0, np.nan]
    )


NEW = ("kind", "open", "not_asked", "lenient", "lenient_correct", "lenient_parser",
       "forced", "scored", "normalised", "code")  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    "lacking",
    [tuple(records.ADDED), (*NEW, "stage", "augmented", "faithful"), NEW],
    ids=["first", "before stages", "before readings"],
)
def test_a_file_of_each_earlier_generation_is_read(tmp_path, ending, lacking):
    """What it lacks is absent, never zero or wrong."""
    rows = [
        record(recipe="warm-start", stage="start"),
        record(recipe="x", letters=[0.2, 0.8], completion="a\u2028b"),
        record(recipe="y", letters=[], entropy=np.nan, p_correct=np.nan),
    ]
    path = tmp_path / f"old.{ending}"
    records.write(tmp_path / "new.parquet", rows)
    new = records.read(tmp_path / "new.parquet")
    old = new.drop_columns(list(lacking))
    if ending == "jsonl":
        records.write_jsonl(path, old)
    else:
        pq.write_table(old, path)
    table = records.read(path)
    assert table.schema == records.SCHEMA
    rest = [n for n in old.column_names if n not in ("entropy", "p_correct")]
    assert table.select(rest).equals(new.select(rest))
    assert table["scored"].to_pylist() == ["letters", "letters", ""]
    assert table["forced"].to_pylist() == [0, 1, -1]
    unknown = "stage" in lacking
    stages = ["start", *["unknown" if unknown else "evaluated"] * 2]
    assert table["stage"].to_pylist() == stages
    for row in measures.summarise(table):
        assert row["lenient_adds"] is None and row["of"] == row["n"] == 1


# -- readings, and conditions that don't apply


def tabled(*rows) -> pa.Table:
    return pa.Table.from_pylist([r._asdict() for r in rows], schema=records.SCHEMA)


def test_accuracy_and_follow_are_of_the_reading():
    unread = {"predicted": -1, "correct": False}
    table = tabled(
        record(),
        record(example="e1", **unread, lenient=0, lenient_correct=True, forced=1),
        record(example="e2", **WRONG, forced=-1),
        record(example="e3", **unread, lenient_parser="", suggested=-1, forced=0),
    )
    nan = np.nan
    expected = {
        "strict": ([1, 0, 0, 0], [0, 0, 1, nan], [0, 1, 0, 1]),
        "lenient": ([1, 1, 0, nan], [0, 0, 1, nan], [0, 0, 0, nan]),
        "forced": ([1, 0, nan, 1], [0, 1, nan, nan], [0, 0, nan, 0]),
    }
    for reading, rates in expected.items():
        by_name = measures.row_measures(table, reading)
        for name, values in zip(
            ("accuracy", "follow", "unanswered"), rates, strict=True
        ):
            np.testing.assert_array_equal(by_name[name], values, f"{reading} {name}")
    strict, lenient = (measures.row_measures(table, r) for r in ("strict", "lenient"))
    np.testing.assert_array_equal(strict["lenient_adds"], [0, 1, 0, nan])
    np.testing.assert_array_equal(strict["forced_adds"], [0, 0, nan, 1])
    np.testing.assert_array_equal(lenient["strict_adds"], [0, -1, 0, nan])
    assert "strict_adds" not in strict
    (row,) = measures.summarise(table, "forced")
    assert (row["reading"], row["n"], row["of"]) == ("forced", 3, 4)
    assert row["accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="expected one of strict, lenient, forced"):
        measures.summarise(table, "loose")


def test_what_was_not_scored_is_absent_and_counted():
    """Not zero, not chance: also where a kernel left numbers in its columns."""
    table = tabled(
        record(p_correct=0.6, p_suggested=0.4),
        record(example="e1", scored="texts", p_correct=0.2, suggested=-1),
        record(example="e2", scored="", entropy=0.0, p_correct=0.0, option_mass=0.0),
        record(example="e3", scored="", letters=[], p_correct=np.nan),
    )
    rows = measures.row_measures(table)
    np.testing.assert_array_equal(rows["scored"], [1, 1, 0, 0])
    np.testing.assert_array_equal(rows["scored_texts"], [0, 1, np.nan, np.nan])
    names = "entropy p_correct p_max top_right brier p_other option_mass".split()
    for name in names:
        assert np.isnan(rows[name][2:]).all() and not np.isnan(rows[name][:2]).any()
    np.testing.assert_allclose(rows["p_other"][:2], [0, 0.8], atol=1e-12)
    assert np.isnan(rows["p_suggested"][1])
    (row,) = measures.summarise(table)
    assert row["p_correct"] == pytest.approx(0.4) and row["scored"] == 0.5


def test_comparisons_pair_only_what_was_asked_under_both_and_count_it():
    left_out = ["abstain+base: it is open", "wrong_think: it has no wrong option"]
    easy = {"p_correct": 0.9, "not_asked": left_out}
    table = tabled(
        record(),
        record(example="e1"),
        *(record(example=f"open{i}", **easy) for i in range(6)),
        record(condition="wrong_think", p_correct=0.5),
        record(condition="wrong_think", example="e1", **WRONG, p_correct=0.25),
        record(condition="abstain+base"),
    )
    rows = {r["condition"]: r for r in measures.summarise(table)}
    think, base = rows["wrong_think"], rows["base"]
    assert (base["n"], base["of"]) == (8, 8)
    assert (think["n"], think["of"], think["paired"]) == (2, 8, 2)
    assert (rows["abstain+base"]["n"], rows["abstain+base"]["of"]) == (1, 7)
    assert think["drop"] == 0.5 and think["retention"] == 0.5
    # 0.375 less 0.75 of the two, not less the mean over all eight
    assert think["p_correct_shift"] == pytest.approx(-0.375)
    assert base["robust_n"] == 1 and base["robust_accuracy"] == 1
    data = measures.columns(table)
    reasons = measures.not_asked(data, np.arange(len(table)))
    assert {c: dict(n) for c, n in reasons.items()} == {
        "abstain+base": {"it is open": 6},
        "wrong_think": {"it has no wrong option": 6},
    }
