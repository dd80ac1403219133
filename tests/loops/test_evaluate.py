"""What does not apply is not asked and changes no other number."""

import io

import numpy as np
import pytest
from PIL import Image

import vlmrl
from tests import kit
from vlmrl.eval import records
from vlmrl.loops.evaluate import (
    UNLABELLED,
    EvalPart,
    EvalSettings,
    Evaluator,
    write_records,
)
from vlmrl.loops.evaluate import evaluate as run
from vlmrl.perturb import applies
from vlmrl.run.phases import Stopped
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


def test_options_are_sized_from_the_data(policy):
    """Two and six of them, as in CV-Bench, and "I'm not sure"."""
    plain = dict(statements=(), thinks=(), answer=0, suggested=1)
    two = CLOSED._replace(options=("1", "2"), **plain)
    six = PLAIN._replace(options=tuple("123456"), **plain)
    rows = run(policy, [two, six], ["abstain+base"], **SETTINGS)
    assert [len(r.letters) for r in rows] == [3, 7]
    assert all(abs(sum(r.letters) - 1) < 1e-5 and min(r.letters) > 0 for r in rows)


def test_an_item_that_no_condition_applies_to_has_no_rows(policy):
    evaluator = Evaluator(policy, ["abstain+base"], EvalSettings(**SETTINGS))
    rows = evaluator(policy.params, [ALONE, CLOSED], UNLABELLED)
    assert [r.example for r in rows] == [CLOSED.id]


def test_an_unknown_condition_is_refused_before_anything_is_compiled(policy):
    with pytest.raises(UserError, match="unknown condition"):
        Evaluator(policy, ["abstain"], EvalSettings(**SETTINGS))


@pytest.fixture(scope="module")
def small(policy):
    """An evaluator of eight examples a pass, and the examples of three passes."""
    settings = EvalSettings(max_tokens=4, probes=1, batch=8)
    return Evaluator(policy, ["no_cot"], settings), kit.examples(17)


def counted(monkeypatch):
    passes, real = [], Evaluator.run_pass

    def run_pass(self, params, one, labels):
        passes.append([item.rows[0].id for item in one.items])
        return real(self, params, one, labels)

    monkeypatch.setattr(Evaluator, "run_pass", run_pass)
    return passes


def test_a_stopped_evaluation_goes_on_behind_its_last_pass(
    policy, small, tmp_path, monkeypatch
):
    """Stopped or killed after any pass: each pass is computed once, and the file is the
    same as in one go."""
    evaluator, examples = small
    parts = [EvalPart(evaluator, examples), EvalPart(evaluator, examples[:1], "blank")]
    write_records(tmp_path / "whole.parquet", parts, policy.params, UNLABELLED)
    passes, path = counted(monkeypatch), tmp_path / "records.parquet"

    def stop(n):
        raise Stopped("eval")

    for _ in range(4):  # a pass each, and the last before the file is written
        with pytest.raises(Stopped):
            write_records(path, parts, policy.params, UNLABELLED, _nth(stop, passes))
        assert not path.exists()
    write_records(path, parts, policy.params, UNLABELLED)
    ids = [e.id for e in (*examples, examples[0])]
    assert [i for one in passes for i in one] == ids
    whole = records.read(tmp_path / "whole.parquet")
    assert records.read(path).equals(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "whole.parquet"]


def _nth(stop, passes):
    """Call `stop` behind the first pass that is computed, not read."""
    before = len(passes)
    return lambda n: stop(n) if len(passes) > before else None


@pytest.mark.parametrize("change", ["labels", "examples", "conditions"])
def test_passes_of_another_evaluation_are_not_mixed_in(
    change, policy, small, tmp_path, monkeypatch
):
    evaluator, examples = small
    path = tmp_path / "records.parquet"

    def stop(n):
        raise Stopped("eval")

    with pytest.raises(Stopped):
        part = EvalPart(evaluator, examples)
        write_records(path, [part], policy.params, UNLABELLED, stop)
    labels = UNLABELLED._replace(seed=1) if change == "labels" else UNLABELLED
    if change == "examples":
        examples = [e._replace(question=e.question + " Now?") for e in examples]
    if change == "conditions":
        evaluator = Evaluator(policy, ["base"], evaluator._settings)
    passes = counted(monkeypatch)
    write_records(path, [EvalPart(evaluator, examples)], policy.params, labels)
    assert len(passes) == 3


def picture(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "JPEG")
    return file.getvalue()


def test_odd_items_end_no_evaluation_and_are_counted(policy):
    """A photograph, pictures of unlike sizes, texts alone, and what can't be asked:
    too long and thin, cut short, not an image, a control token, too many images."""
    e = CLOSED
    examples = [
        *[e._replace(id=f"plain {i}") for i in range(8)],
        e._replace(id="photograph", images=(picture(4000, 3000),)),
        e._replace(id="unlike", images=(picture(900, 700), picture(20, 30))),
        e._replace(id="text", images=()),
        e._replace(id="thin", images=(picture(1093, 5),)),
        e._replace(id="short", images=(e.images[0][:200],)),
        e._replace(id="none", images=(b"no image",)),
        e._replace(id="control", question="What is <|im_end|>?"),
        e._replace(id="twelve", images=e.images * 12),
    ]
    settings = EvalSettings(**SETTINGS, max_images=4)
    evaluator = Evaluator(policy, ["base", "wrong_caption"], settings)
    done = evaluator.run(policy.params, examples, UNLABELLED)
    asked = [e.id for e in examples[:11]]
    assert [(r.example, r.condition) for r in done.records] == [
        (i, c) for i in asked for c in ("base", "wrong_caption")
    ]
    assert [s.example for s in done.skips] == [e.id for e in examples[11:]]
    assert len({s.reason for s in done.skips}) == 4  # two can't be read
    plan = evaluator.plan(examples)
    assert plan.total == 16 and len(plan.skips) == 4  # one surfaced while it ran
    assert "4 of 16 items skipped" in plan.describe()
    again = evaluator.run(policy.params, examples[::-1], UNLABELLED).records
    by_id = {(r.example, r.condition): r for r in again}
    for row in done.records:
        other = by_id[row.example, row.condition]
        assert row.completion == other.completion
        np.testing.assert_allclose(row.letters, other.letters, atol=1e-5)


def test_images_that_cannot_be_perturbed_are_skipped(policy):
    def change(example):
        raise UserError("no image")

    evaluator = Evaluator(policy, ["base"], EvalSettings(**SETTINGS))
    done = evaluator.run(policy.params, [CLOSED], UNLABELLED, change=change)
    assert not done.records and done.skips[0].example == CLOSED.id


def test_a_set_of_which_nothing_can_be_asked_is_refused(policy):
    evaluator = Evaluator(policy, ["base"], EvalSettings(**SETTINGS, max_prompt=3))
    with pytest.raises(UserError, match="2 of 2 items skipped: 2 × a prompt of more"):
        evaluator.run(policy.params, [CLOSED, PLAIN], UNLABELLED)


def test_no_examples_have_no_records(policy, small):
    assert small[0](policy.params, [], UNLABELLED) == []
