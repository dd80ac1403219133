"""Verdicts follow from the intervals, in each of their four values."""

import json

import numpy as np
import pyarrow as pa
import pytest

from tests.report import synthetic
from vlmrl.eval import records
from vlmrl.eval.stats import Interval
from vlmrl.report import claim as claim_
from vlmrl.report import render
from vlmrl.report.claim import SLIGHT, ClaimPart
from vlmrl.studies import claims
from vlmrl.studies.evidence import FAR, SAME

EXAMPLE = synthetic.records(examples=1)[0]._replace(cluster="")


FACTS = {
    "warm-start": {"stage": "start"},
    "accuracy": {"stage": "trained"},
    "augmentation": {"stage": "trained", "augmented": True},
    "faithfulness": {"stage": "trained", "faithful": True},
    "both": {"stage": "trained", "augmented": True, "faithful": True},
}


def world(cells: dict, n: int = 100) -> pa.Table:
    """Records from {(recipe, seed, step, condition): fields}; a field is a value for
    all examples or a function of the example's number, and `correct` sets the answer.
    """
    rows = []
    for (recipe, seed, step, condition), fields in cells.items():
        for e in range(n):
            made = {k: v(e) if callable(v) else v for k, v in fields.items()}
            made |= FACTS.get(recipe, FACTS["accuracy"]) | fields.get("facts", {})
            made.pop("facts", None)
            made["predicted"] = 0 if made.get("correct", True) else 1
            row = EXAMPLE._replace(
                recipe=recipe, seed=seed, step=step, condition=condition,
                example=f"e{e:03d}", cluster=f"i{e:03d}", answer=0, suggested=1,
            )._asdict()  # fmt: skip
            rows.append(row | {"correct": True, "verdict": "consistent"} | made)
    return pa.Table.from_pylist(rows, schema=records.SCHEMA)


def share(p):
    """True for a share p of the examples, spread evenly."""
    return lambda e: (e * 37 % 100) < 100 * p


def verdict_on(number, cells, **more):
    claim = claims.judge_claims(world(cells, **more))[number - 1]
    assert claim.number == number
    return claim


def start(**fields):
    return {("warm-start", 0, 0, "base"): fields}


def end(recipe="accuracy", condition="base", seed=0, **fields):
    return {(recipe, seed, 100, condition): fields}


@pytest.mark.parametrize(
    "lo, hi, floor, verdict",
    [
        (0.01, 0.2, 0.0, "holds"),
        (-0.01, 0.2, 0.0, "open"),
        (-0.3, -0.1, 0.0, "fails"),
        (-0.01, SLIGHT - 0.001, 0.0, "fails"),  # any effect worth a claim is ruled out
        (-0.01, SLIGHT + 0.001, 0.0, "open"),
        (-0.04, 0.01, -SAME, "holds"),
        (-0.06, 0.01, -SAME, "open"),
        (-0.2, -0.06, -SAME, "fails"),
        (np.nan, np.nan, 0.0, "open"),
    ],
)
def test_a_part_holds_fails_or_stays_open(lo, hi, floor, verdict):
    assert ClaimPart("x", Interval(0, lo, hi, 50, 50), floor).verdict == verdict


def test_few_clusters_decide_nothing():
    assert ClaimPart("x", Interval(1.0, 1.0, 1.0, 50, 9)).verdict == "open"


def drift(accuracy, consistent):
    return {"correct": share(accuracy)} | {
        "verdict": lambda e: "consistent" if share(consistent)(e + 13) else "undecided"
    }


@pytest.mark.parametrize(
    "before, after, verdict",
    [
        ((0.5, 0.95), (0.8, 0.70), "shows"),
        ((0.5, 0.95), (0.8, 0.97), "does not show"),  # consistency rose
        ((0.5, 0.95), (0.3, 0.70), "does not show"),  # accuracy fell
        ((0.5, 0.95), (0.8, 0.95), "does not show"),  # exactly nothing: ruled out
    ],
)
def test_claim_2_needs_accuracy_up_and_consistency_down(before, after, verdict):
    cells = start(**drift(*before)) | end(**drift(*after))
    assert verdict_on(2, cells).verdict == verdict


def test_claim_2_is_unclear_when_small():
    cells = start(**drift(0.5, 0.95)) | end(**drift(0.65, 0.80))
    claim = verdict_on(2, cells, n=16)
    assert claim.verdict == "unclear at this size"
    assert claim.lo <= 0 < claim.hi


def test_claim_2_must_hold_in_every_recipe_without_the_faithfulness_reward():
    cells = start(**drift(0.5, 0.95)) | end(**drift(0.8, 0.70))
    cells |= end("faithfulness", **drift(0.8, 0.99))
    assert verdict_on(2, cells).verdict == "shows"
    cells |= end("augmentation", **drift(0.8, 0.99))
    assert verdict_on(2, cells).verdict == "does not show"


def test_effect_is_the_weakest_parts():
    cells = start(**drift(0.5, 0.95)) | end(**drift(0.8, 0.85))
    claim = verdict_on(2, cells)
    assert claim.verdict == "shows"
    assert claim.effect == pytest.approx(0.10)
    assert claim.note.startswith("Base consistent, start − end (recipe accuracy).")
    assert "2 of 2 parts hold" in claim.note and "One seed." in claim.note


@pytest.mark.parametrize("stage", ["evaluated", "unknown"])
def test_a_model_that_no_recipe_trained_is_not_judged_against_itself(stage):
    cells = end(**drift(0.8, 0.7), facts={"stage": stage})
    cells |= end(condition="wrong_caption", correct=share(0.3), facts={"stage": stage})
    for number in (2, 3, 4, 5, 8):
        claim = verdict_on(number, cells)
        assert claim.verdict == "not measured" and not claim.parts, claim
    assert ("accuracy don't say" in verdict_on(2, cells).note) == (stage == "unknown")


def test_a_run_that_was_evaluated_once_has_no_change():
    for cells in (end(**drift(0.8, 0.7)), {("accuracy", 0, 0, "base"): {}}):
        assert verdict_on(2, cells).verdict == "not measured"


def test_what_a_recipe_does_is_not_read_from_its_name():
    cells = start(**drift(0.5, 0.95)) | end("no-augment", **drift(0.8, 0.7))
    assert "Needs a recipe trained with augmentation" in verdict_on(4, cells).note
    assert verdict_on(2, cells).verdict == "shows"
    cells |= end("unfaithful", **drift(0.8, 0.99))
    assert verdict_on(2, cells).verdict == "does not show"


def entropies(**by_condition):
    def about(value):
        return {"entropy": lambda e: value + 0.01 * (e % 3)}

    cells = {}
    for condition, (before, after) in by_condition.items():
        cells["warm-start", 0, 0, condition] = about(before)
        cells["accuracy", 0, 9, condition] = about(after)
    return cells


def test_claim_3_needs_every_condition_and_stop_think():
    falls = entropies(base=(0.9, 0.4), stop_think=(0.9, 0.5))
    assert verdict_on(3, falls).verdict == "shows"
    rises = entropies(base=(0.9, 0.4), stop_think=(0.5, 0.9))
    assert verdict_on(3, rises).verdict == "does not show"
    lacks = verdict_on(3, entropies(base=(0.9, 0.4)))
    assert lacks.verdict == "not measured" and "stop_think" in lacks.note


def test_claim_1_asks_for_all_of_it():
    def cell(condition, accuracy, p, consistent):
        def verdict(e):
            return "consistent" if share(consistent)(e) else "inconsistent"

        return end(condition=condition, correct=share(accuracy), p_correct=p,
                   verdict=verdict)  # fmt: skip

    cells = cell("base", 0.9, 0.9, 1.0) | cell("wrong_caption", 0.6, 0.6, 0.4)
    cells |= cell("wrong_think", 0.3, 0.3, 0.1)
    shows = verdict_on(1, cells)
    assert shows.verdict == "shows" and len(shows.parts) == 7
    same = verdict_on(1, cells | cell("wrong_think", 0.65, 0.6, 0.4))
    assert same.verdict == "does not show"  # wrong_think costs less than wrong_caption
    del cells["accuracy", 0, 100, "wrong_caption"]
    assert verdict_on(1, cells).verdict == "not measured"


def test_claim_4_wants_an_augmented_recipe():
    cells = start(**drift(0.5, 0.95)) | end(**drift(0.8, 0.8))
    assert "augmentation" in verdict_on(4, cells).note
    cells |= end(condition="wrong_caption", correct=share(0.3))
    cells |= end(condition="wrong_think", correct=share(0.2))
    cells |= end("augmentation", **drift(0.8, 0.8))
    cells |= end("augmentation", "wrong_caption", correct=share(0.8))
    cells |= end("augmentation", "wrong_think", correct=share(0.3))
    assert verdict_on(4, cells).verdict == "shows"
    cells |= end("augmentation", "wrong_think", correct=share(0.8))
    assert verdict_on(4, cells).verdict == "does not show"


def test_claim_5_is_not_measured_by_half():
    cells = start(**drift(0.5, 0.9), think_tokens=20) | end(**drift(0.8, 0.6))
    cells |= end("faithfulness", **drift(0.8, 0.95))
    half = verdict_on(5, cells)
    assert half.verdict == "not measured" and "2 of 2 parts hold" in half.note
    cells |= end("both", **drift(0.8, 0.7), think_tokens=lambda e: 5 + e % 3)
    whole = verdict_on(5, cells)
    assert whole.verdict == "shows"
    tokens = next(p for p in whole.parts if "tokens" in p.label)
    assert tokens.interval.value == pytest.approx(1 - 6 / 20, abs=0.01)


def test_claim_6_compares_two_auroc_and_names_all_three():
    kept = share(0.5)
    knows = {"p_correct": lambda e: 0.9 if kept(e) else 0.2 + e % 7 / 100}
    blind = {"entropy": lambda e: e * 13 % 100 / 100, "letters": [0.5, 0.5]}
    cells = end(**knows, **blind)
    for condition in ("wrong_caption", "wrong_think"):
        cells |= end(condition=condition, correct=kept)
    claim = verdict_on(6, cells)
    assert claim.verdict == "shows" and claim.unit == "AUROC" and claim.lo > FAR
    assert "P(correct)/−H/max p 1.00/0." in claim.parts[0].label
    assert claim.parts[0].label.endswith("/0.50 (recipe accuracy)")
    same = end(p_correct=lambda e: 1 - e % 10 / 10, entropy=lambda e: e % 10 / 10)
    for condition in ("wrong_caption", "wrong_think"):
        same |= end(condition=condition, correct=kept)
    assert verdict_on(6, same).verdict == "does not show"


def test_claim_7_is_no_harm_within_five_points():
    cells = end(correct=share(0.8)) | end(condition="abstain+base", correct=share(0.8))
    cells |= end(condition="correct_caption", correct=share(0.9))
    cells |= end(condition="correct_think", correct=share(0.9))
    assert verdict_on(7, cells).verdict == "shows"
    helps = cells | end(condition="abstain+base", correct=share(0.95))
    assert verdict_on(7, helps).verdict == "does not show"
    harm = cells | end(condition="correct_think", correct=share(0.5))
    assert verdict_on(7, harm).verdict == "does not show"


def seeded(per_recipe):
    return {
        (recipe, seed, 100, "base"): {"correct": share(p)}
        for recipe, ps in per_recipe.items()
        for seed, p in enumerate(ps)
    }


def test_claim_8_needs_seeds_and_compares_spreads():
    assert verdict_on(8, seeded({"a": [0.5], "b": [0.6]})).verdict == "not measured"
    noisy = seeded({"a": [0.3, 0.5, 0.7, 0.9], "b": [0.35, 0.5, 0.75, 0.9]})
    claim = verdict_on(8, noisy)
    assert claim.verdict == "shows" and claim.hi == np.inf
    json.dumps(claim_.as_rows([claim]), allow_nan=False)
    few = seeded({"a": [0.50, 0.55], "b": [0.62, 0.68]})
    assert verdict_on(8, few).verdict == "unclear at this size"
    apart = seeded(
        {
            r: [p, p + 0.01, p - 0.01] * 2
            for r, p in zip("abcdef", range(1, 7), strict=True)
        }
        | {r: [p / 10, p / 10 + 0.01] * 4 for p, r in enumerate("abcdefg", 1)}
    )
    assert verdict_on(8, apart).verdict == "does not show"


def test_two_seeds_widen_the_interval():
    one = start(**drift(0.5, 0.95)) | end(**drift(0.8, 0.70))
    two = one | end(seed=1, **drift(0.7, 0.80))
    a, b = (verdict_on(2, cells).parts[0].interval for cells in (one, two))
    assert b.value == pytest.approx(0.25) and b.n == 2
    assert b.hi - b.lo > a.hi - a.lo
    assert "One seed" not in verdict_on(2, two).note


def test_the_test_split_is_judged_and_no_other(table):
    other = table.set_column(
        table.column_names.index("split"), "split", pa.array(["train"] * len(table))
    )
    both = records.concat([other, table])
    assert claims.judge_claims(both) == claims.judge_claims(table)


def test_no_records_measure_nothing():
    made = claims.judge_claims(records.SCHEMA.empty_table())
    assert [c.verdict for c in made] == ["not measured"] * 8
    assert [c.number for c in made] == list(range(1, 9))


def test_judging_is_deterministic_and_json_ready(table):
    made = claims.judge_claims(table)
    assert made == claims.judge_claims(table)
    rows = claim_.as_rows(made)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_an_effect_is_shown_with_its_unit():
    assert claim_.shown(0.116, -0.004, 0.23, "points") == "+11.6 [−0.4, +23.0] points"
    assert claim_.shown(0.5, 0.25, np.inf, "ratio") == "0.50 [0.25, ∞] ratio"
    assert claim_.shown(0.1, np.nan, np.nan, "nats") == "+0.10 [–, –] nats"
    assert claim_.shown(None, None, None, "points") == ""


def test_claims_make_a_table(table):
    made = claim_.as_table(claims.judge_claims(table))
    assert len(made.rows) == 8
    assert made.rows[3][1:3] == ("not measured", None)
    assert "8. Seed variance" in render.markdown(made)
