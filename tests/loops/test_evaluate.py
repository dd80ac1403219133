"""What does not apply is not asked and changes no other number."""

import numpy as np
import pytest

import vlmrl
from tests import kit
from vlmrl.loops.evaluate import UNLABELLED, EvalSettings, Evaluator
from vlmrl.loops.evaluate import evaluate as run
from vlmrl.perturb import applies
from vlmrl.types import Record, UserError

CLOSED, PLAIN = kit.examples(2)
OPEN = PLAIN._replace(id="open", open=True)
ALONE = PLAIN._replace(id="alone", open=True, answer=0, suggested=-1,
                       options=PLAIN.options[:1], statements=(), thinks=())  # fmt: skip
SETTINGS = dict(max_tokens=8, probes=1, batch=8)


@pytest.fixture(scope="module")
def policy():
    return vlmrl.load("tiny")


def test_what_does_not_apply_is_not_asked_and_nothing_else_changes(policy):
    conditions = ["base", "wrong_caption", "abstain+base"]
    examples = [CLOSED, OPEN, ALONE]
    rows = run(policy, examples, conditions, **SETTINGS)
    asked = [(e.id, c) for e in examples for c in conditions if not applies(e, c)]
    assert [(r.example, r.condition) for r in rows] == asked
    assert len(asked) == 3 + 2 + 1
    by_id = {r.example: r for r in rows}
    assert by_id[CLOSED.id].not_asked == []
    assert by_id["open"].not_asked == ["abstain+base: it is asked without its options"]
    assert [r.partition(":")[0] for r in by_id["alone"].not_asked] == conditions[1:]


def test_what_is_not_asked_changes_no_bit_of_what_is(policy):
    """Its places hold what is asked first: here base."""
    given = run(policy, [OPEN], ["base", "wrong_caption", "abstain+base"], **SETTINGS)
    twice = run(policy, [OPEN], ["base", "wrong_caption", "base"], **SETTINGS)
    assert [r.condition for r in given] == ["base", "wrong_caption"]
    for one, other in zip(given, twice, strict=False):
        for name, x, y in zip(Record._fields, one, other, strict=True):
            assert name == "not_asked" or np.array_equal(x, y, isinstance(x, float))


def test_an_item_that_no_condition_applies_to_has_no_rows(policy):
    evaluator = Evaluator(policy, ["abstain+base"], EvalSettings(**SETTINGS))
    rows = evaluator(policy.params, [ALONE, CLOSED], UNLABELLED)
    assert [r.example for r in rows] == [CLOSED.id]


def test_an_unknown_condition_is_refused_before_anything_is_compiled(policy):
    with pytest.raises(UserError, match="unknown condition"):
        Evaluator(policy, ["abstain"], EvalSettings(**SETTINGS))
