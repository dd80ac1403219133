"""Labels by people: the sheet that is drawn, and what a filled-in one says."""

import json
from collections import Counter

import pytest

from tests.eval.test_records import record
from vlmrl.eval import records
from vlmrl.judges import labels, verdicts
from vlmrl.judges.judge import JudgeItem
from vlmrl.types import UserError


def rows(count, conditions=("base", "wrong_think", "abstain+base")):
    """`count` readings of each condition, with a think and cluster of its own."""
    return [
        (
            JudgeItem(
                f"{c}/{k}", "Where?", ("left", "right"), f"{c} {k}. So B.", k % 2
            ),
            c,
            f"image{k}",
        )
        for c in conditions
        for k in range(count)
    ]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sheet_is_drawn_evenly_and_is_the_same_again(tmp_path):
    todo = [*rows(50), *rows(4, ("rare",))]
    assert labels.write_sheet(tmp_path / "a", todo, n=34, seed=1) == 34
    assert labels.write_sheet(tmp_path / "b", todo, n=34, seed=1) == 34
    labels.write_sheet(tmp_path / "c", todo, n=34, seed=2)
    assert lines(tmp_path / "a") == lines(tmp_path / "b") != lines(tmp_path / "c")
    each = Counter(row["condition"] for row in lines(tmp_path / "a"))
    assert each == {"base": 10, "wrong_think": 10, "abstain+base": 10, "rare": 4}
    assert len({row["id"] for row in lines(tmp_path / "a")}) == 34
    assert {row["conclusion"] for row in lines(tmp_path / "a")} == {""}
    with pytest.raises(UserError, match="exists already; give another name"):
        labels.write_sheet(tmp_path / "a", todo, n=34, seed=1)


def test_what_needs_no_judge_is_not_on_the_sheet_and_equal_thinks_are_once(tmp_path):
    item = rows(1)[0][0]
    todo = [
        (item, "base", "c"),
        (item._replace(id="other"), "base", "c"),
        (item._replace(id="n", think="x", applicable=False), "no_cot", "c"),
        (item._replace(id="o", think="y", predicted=-1), "base", "c"),
        (item._replace(id="p", think="  "), "base", "c"),
    ]
    assert labels.write_sheet(tmp_path / "s", todo, n=10, seed=0) == 1


def test_the_truth_is_what_most_annotators_say(tmp_path):
    todo = rows(3, ("base",))
    labels.write_sheet(tmp_path / "s", todo, n=3, seed=0)
    drawn = sorted(lines(tmp_path / "s"), key=lambda row: row["id"])
    output = [("ann", "B B A"), ("bob", "B none none"), ("cyd", "B none B")]
    with open(tmp_path / "l.jsonl", "w") as file:
        for who, letters in output:
            for row, letter in zip(drawn, letters.split(), strict=True):
                filled = row | {"conclusion": letter, "annotator": who}
                file.write(json.dumps(filled) + "\n")
        file.write(json.dumps(drawn[0] | {"annotator": "dan"}) + "\n\n")  # not yet
    actual = labels.read(tmp_path / "l.jsonl")
    assert [one.item.id for one in actual] == ["base/0", "base/1", "base/2"]
    assert actual[0].votes == {"ann": 1, "bob": 1, "cyd": 1}
    assert [one.conclusion for one in actual] == [1, -1, None]  # the last: no majority
    # answered A, B, A: what a judge should say
    built = verdicts.of_labels(actual)
    assert [row.truth for row in built] == ["inconsistent", "undecided", None]
    people = verdicts.people(tmp_path / "l.jsonl")
    assert list(people) == ["ann (person)", "bob (person)", "cyd (person)"]
    assert [v.label for _, v in people["bob (person)"].values()] == [
        "inconsistent",
        "undecided",
        "undecided",
    ]


def test_a_sheet_of_a_run_holds_what_it_wrote_last(tmp_path, vlmrl):
    built = []
    for step in (0, 5, 9):
        for k in range(6):
            text = f"Step {step}, row {k}. So the answer is A."
            built.append(record(step=step, example=f"e{k}", think=text, predicted=0))
    (tmp_path / "run" / "records").mkdir(parents=True)
    for step in (0, 5, 9):
        path = tmp_path / "run" / "records" / f"step-{step}.parquet"
        records.write(path, [r for r in built if r.step == step])
    vlmrl("judge", "sheet", "--on", tmp_path / "run", "--workdir", tmp_path / "s")
    drawn = lines(tmp_path / "s" / "sheet.jsonl")
    assert len(drawn) == 6
    assert all(row["think"].startswith("Step 9,") for row in drawn)


@pytest.fixture
def vlmrl():
    from vlmrl.main import cli

    def run(*words):
        assert cli.main([str(word) for word in words]) == 0

    return run


def test_a_line_ends_at_a_newline_alone(tmp_path):
    """U+2028 and U+0085 within a text end no line of the file."""
    item = JudgeItem("i", "Where?", ("left", "right"), "One.\u2028Two.\x85So B.", 1)
    labels.write_sheet(tmp_path / "s", [(item, "base", "c")], n=1, seed=0)
    (row,) = (json.loads(x) for x in (tmp_path / "s").read_text().split("\n") if x)
    row |= {"conclusion": "B", "annotator": "ann"}
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "l.jsonl").write_text(line + "\n", encoding="utf-8")
    (one,) = labels.read(tmp_path / "l.jsonl")
    assert one.item.think == item.think and one.conclusion == 1
