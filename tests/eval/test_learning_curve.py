"""Numbers logged at an evaluation: means, and paired changes since the start."""

import pyarrow as pa

from tests.eval.test_records import record
from vlmrl.eval import records
from vlmrl.eval.learning_curve import curve_point


def table(step: int, right: int, agree: int, n: int = 40) -> pa.Table:
    rows = [
        record(
            recipe="r",
            step=step,
            example=f"e{i}",
            cluster=f"i{i}",
            correct=i < right,
            verdict="consistent" if i < agree else "inconsistent",
        )
        for i in range(n)
    ]
    return pa.Table.from_pylist([r._asdict() for r in rows], records.SCHEMA)


def test_means_alone():
    got = curve_point(table(0, 20, 30))
    assert got["base/accuracy"] == 0.5 and got["base/consistent"] == 0.75
    assert got["base/p_correct"] == 0.75 and got["base/think_tokens"] == 4
    assert not any("change" in name or "drift" in name for name in got)


def test_changes_since_the_start():
    got = curve_point(table(4, 32, 20), table(0, 20, 30))
    assert abs(got["base/accuracy/change"] - 0.3) < 1e-9
    assert abs(got["base/consistent/change"] + 0.25) < 1e-9
    low, high = (got[f"base/accuracy/change/{end}"] for end in ("lo", "hi"))
    assert 0.1 < low < 0.3 < high < 0.5
    # Clear of zero on both: the slope is bounded, −0.25 / 0.3.
    assert abs(got["base/drift"] + 0.25 / 0.3) < 1e-9
    assert got["base/drift/lo"] < got["base/drift"] < got["base/drift/hi"] < 0


def test_no_gain_no_slope():
    got = curve_point(table(4, 20, 20), table(0, 20, 30))
    assert got["base/accuracy/change"] == 0 and "base/drift" not in got


def test_a_condition_that_was_not_measured_before_has_no_change():
    now = table(4, 20, 20)
    column = pa.array(["wrong_think"] * len(now))
    other = now.set_column(now.schema.get_field_index("condition"), "condition", column)
    got = curve_point(pa.concat_tables([now, other]), table(0, 20, 30))
    assert "base/accuracy/change" in got and "wrong_think/accuracy" in got
    assert "wrong_think/accuracy/change" not in got
