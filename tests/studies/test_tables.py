"""Study tables: benchmarks apart and pooled, beside the paper's values."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.report import synthetic
from vlmrl.eval import measures, records
from vlmrl.studies import tables
from vlmrl.types import UserError

MODELS = {k: v for k, v in synthetic._MODELS.items() if k[1] in (0, 60)}
CONDITIONS = ("base", "wrong_caption", "wrong_think", "abstain+wrong_think")


@pytest.fixture(scope="module")
def two():
    """Records of two benchmarks, one in two files."""
    rows = synthetic.records(examples=36, models=MODELS, conditions=CONDITIONS)
    sources = [("scenes", "test"), ("cv_bench", "2D"), ("cv_bench", "3D")]
    out = []
    for r in rows:
        source, split = sources[int(r.example[-2:]) % 3]
        task = "2D/count" if split == "2D" else "3D/depth"
        out.append(r._replace(source=source, split=split, task=task))
    return pa.Table.from_pylist([r._asdict() for r in out], schema=records.SCHEMA)


def rows_of(table):
    """Return the rows by their headings."""
    names = [name for name, _ in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_base_accuracy_stands_beside_the_papers(two):
    known = [tables.Known("accuracy", "cv_bench", "base", "accuracy", 0.75)]
    (table,) = tables.build(two, ["base"], known)
    rows = {(r["Model"], r["Benchmark"]): r for r in rows_of(table)}
    assert len(rows) == 6
    row = rows["accuracy", "cv_bench"]
    assert row["n"] == "24" and row["Paper"] == 0.75
    expected = tuple(v - 0.75 for v in row["Accuracy"])
    assert row["Difference"] == pytest.approx(expected)
    other = rows["warm-start", "scenes"]
    assert other["Paper"] is None and other["Difference"] is None


def test_a_study_reports_the_reading_it_names(two):
    (strict,), (lenient,) = (
        tables.build(two, ["base"], (), reading) for reading in ("strict", "lenient")
    )
    for a, b in zip(rows_of(strict), rows_of(lenient), strict=True):
        assert b["Accuracy"][0] == pytest.approx(a["Accuracy"][0] + a["Lenient"])
        assert b["Strict"] == -a["Lenient"]
    assert any(r["Lenient"] > 0 for r in rows_of(strict))


def test_a_condition_that_applies_to_some_items_ends_no_study(two):
    """Every table of abstaining over half of the items, and none of the others."""
    open_item = pa.array([e[-1] in "02468" for e in two["example"].to_pylist()])
    reasons = [["abstain+wrong_think: it is open"] if o else [] for o in
               open_item.to_pylist()]  # fmt: skip
    at = two.schema.get_field_index("not_asked")
    table = two.set_column(at, two.schema.field(at), pa.array(reasons))
    abstains = pc.starts_with(table["condition"], "abstain+")
    table = table.filter(pc.invert(pc.and_(abstains, open_item)))
    built = tables.build(table, [*tables.TABLES, *tables.USUAL])
    by_name = {t.name: t for t in built}
    for row in rows_of(by_name["abstain"]):
        n, _, total = row["n"].partition(" of ")
        assert 0 < int(n) < int(total) and row["Difference"] is not None
    conditions = by_name["conditions-all"]
    counts = {r["Condition"]: r["n"] for r in rows_of(conditions)}
    assert counts["abstain+wrong_think"] == counts["all of these"] == "18 of 36"
    assert "abstain+wrong_think of 18 of 36 items (it is open)" in conditions.note
    robustness = rows_of(by_name["robustness-all"])
    assert {r["n"] for r in robustness} == {"36", "18 of 36"}


def test_usual_tables_come_pooled_and_by_benchmark(two):
    built = tables.build(two, ["conditions", "quadrants"])
    assert [t.name for t in built] == [
        "conditions-all",
        "conditions-scenes",
        "conditions-cv_bench",
        "quadrants-all",
        "quadrants-scenes",
        "quadrants-cv_bench",
    ]


def test_official_scores_are_those_of_the_benchmark(two):
    (built,) = tables.build(two, ["official"])
    names = {r[2] for r in built.rows if r[1] == "cv_bench"}
    assert {"2D", "3D"} & names or len(names) > 1, names


def test_abstaining_is_paired_with_the_same_condition(two):
    (table,) = tables.build(two, ["abstain"])
    row = next(
        r
        for r in rows_of(table)
        if (r["Model"], r["Benchmark"]) == ("accuracy", "scenes")
    )
    data = measures.columns(two)
    at = {
        c: np.flatnonzero(
            (data["recipe"] == "accuracy")
            & (data["source"] == "scenes")
            & (data["condition"] == c)
        )
        for c in ("wrong_think", "abstain+wrong_think")
    }
    means = {c: data["accuracy"][i].mean() for c, i in at.items()}
    expected = means["abstain+wrong_think"] - means["wrong_think"]
    assert row["Difference"][0] == pytest.approx(expected)
    assert row["Abstains"][0] == pytest.approx(
        data["abstained"][at["abstain+wrong_think"]].mean()
    )


def test_only_what_is_shown_is_counted(two):
    part = tables.shown(two, ("base",))
    assert set(part["condition"].to_pylist()) == {"base"}
    assert tables.shown(two, ()) is two


def test_refusals(two):
    with pytest.raises(UserError, match="'tabel' is not one of base, official"):
        tables.build(two, ["tabel"])
    with pytest.raises(UserError, match="no rows"):
        tables.build(records.SCHEMA.empty_table(), ["base"])
