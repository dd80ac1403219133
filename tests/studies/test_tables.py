"""Study tables: benchmarks apart and pooled, beside the paper's values."""

import numpy as np
import pyarrow as pa
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


def test_base_accuracy_stands_beside_the_papers(two):
    known = [tables.Known("accuracy", "cv_bench", "base", "accuracy", 0.75)]
    (made,) = tables.build(two, ["base"], known)
    rows = {r[:2]: r for r in made.rows}
    assert len(rows) == 6
    _, _, n, found, paper, gap = rows["accuracy", "cv_bench"]
    assert n == 24 and paper == 0.75
    assert gap == pytest.approx(tuple(v - 0.75 for v in found))
    assert rows["warm-start", "scenes"][4:] == (None, None)


def test_usual_tables_come_pooled_and_by_benchmark(two):
    made = tables.build(two, ["conditions", "quadrants"])
    assert [t.name for t in made] == [
        "conditions-all",
        "conditions-scenes",
        "conditions-cv_bench",
        "quadrants-all",
        "quadrants-scenes",
        "quadrants-cv_bench",
    ]


def test_official_scores_are_those_of_the_benchmark(two):
    (made,) = tables.build(two, ["official"])
    names = {r[2] for r in made.rows if r[1] == "cv_bench"}
    assert {"2D", "3D"} & names or len(names) > 1, names


def test_abstaining_is_paired_with_the_same_condition(two):
    (made,) = tables.build(two, ["abstain"])
    row = next(r for r in made.rows if r[:2] == ("accuracy", "scenes"))
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
    wanted = means["abstain+wrong_think"] - means["wrong_think"]
    assert row[6][0] == pytest.approx(wanted)
    assert row[3][0] == pytest.approx(
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
