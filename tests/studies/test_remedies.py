"""The three bars of a remedy, told by one-sided bounds."""

import pyarrow as pa

from tests.eval.test_records import record
from vlmrl.eval import records
from vlmrl.report import render
from vlmrl.studies import remedies

N = 200


def rows(recipe, seed, step, shares):
    """N items; `shares` gives per condition the numbers right and consistent. The same
    items are right first, so that differences are paired."""
    return [
        record(
            recipe=recipe,
            stage="start" if recipe == "warm-start" else "trained",
            seed=seed,
            step=step,
            condition=condition,
            example=f"e{i}",
            cluster=f"i{i}",
            correct=i < right,
            verdict="consistent" if i < agree else "inconsistent",
        )
        for condition, (right, agree) in shares.items()
        for i in range(N)
    ]


START = rows("warm-start", 0, 0, {"base": (100, 180)})


def judged(*seeds, start=START):
    made = start + [
        r for s, shares in enumerate(seeds) for r in rows("r", s, 9, shares)
    ]
    table = pa.Table.from_pylist([r._asdict() for r in made], records.SCHEMA)
    (found,) = remedies.judge(table)
    return found


GOOD = {"base": (140, 181), "wrong_caption": (138, 0), "wrong_think": (137, 0)}


def test_a_recipe_that_meets_every_bar_works():
    found = judged(GOOD)
    assert found.works and found.seeds == 1
    assert abs(found.gain.value - 0.2) < 1e-9 and found.gain.bound > 0.1
    assert abs(found.think.value + 0.015) < 1e-9 and found.think.bound > -0.05


def test_each_bar_can_fail_alone():
    for change, bar in (
        (
            {"base": (100, 181), "wrong_caption": (99, 0), "wrong_think": (99, 0)},
            "gain",
        ),
        ({"base": (140, 172)}, "keeps"),
        ({"wrong_caption": (120, 0)}, "caption"),
        ({"wrong_think": (128, 0)}, "think"),
    ):
        found = judged(GOOD | change)
        met = {name: getattr(found, name).met for name in remedies.Remedy._fields[2:]}
        assert not found.works and [n for n, ok in met.items() if not ok] == [bar], bar


def test_seeds_that_disagree_lower_the_bound():
    """One seed in three falls far: the mean of −5 points holds no bound above −5."""
    bad = GOOD | {"wrong_think": (110, 0)}
    found = judged(GOOD, GOOD, bad)
    assert found.seeds == 3 and not found.think.met
    assert found.think.bound < judged(GOOD).think.bound - 0.1
    assert judged(GOOD, GOOD, GOOD).works


def test_what_was_not_measured_is_not_met():
    found = judged({k: v for k, v in GOOD.items() if k != "wrong_think"})
    assert found.think is None and not found.works
    assert judged(GOOD, start=[]).keeps is None
    made = render.markdown(remedies.as_table([found]))
    assert "+20.0 (> " in made and "✓" in made and "| no |" in made
