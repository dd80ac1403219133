"""Traces written to conclude what they do, and the rule judge on them."""

from collections import Counter
from pathlib import Path

import pytest

from vlmrl.judges import agree, rule, synthetic
from vlmrl.judges.judge import LABELS, ask

N = 2000


@pytest.fixture(scope="module")
def written():
    return synthetic.traces(N, seed=0)


def test_every_kind_and_label_is_there_and_ids_are_unique(written):
    kinds = Counter(t.kind for t in written)
    for kind, share in synthetic.KINDS.items():
        assert abs(kinds[kind] - share * N / 100) < 70, kind
    labels = Counter(t.label for t in written)
    assert set(labels) == set(LABELS) and min(labels.values()) > 400
    assert len({t.item.id for t in written}) == N
    assert len({t.item.think for t in written}) > 0.9 * N


def test_they_are_sound(written):
    for t in written:
        assert 0 <= t.item.predicted < len(t.item.options)
        assert -1 <= t.conclusion < len(t.item.options)
        assert (t.conclusion < 0) == (t.label == "undecided")
        nothing = ("withdrawn", "two", "none", "truncated")
        if t.kind != "adversarial":
            assert (t.conclusion < 0) == (t.kind in nothing)


def test_the_same_seed_writes_the_same_and_a_longer_list_starts_the_same(written):
    assert synthetic.traces(50, seed=0) == written[:50]
    other = synthetic.traces(50, seed=1)
    assert [t.item.think for t in other] != [t.item.think for t in written[:50]]


def test_kinds_can_be_chosen(written):
    brief = synthetic.traces(40, 5, {"brief": 1.0})
    assert {t.kind for t in brief} == {"brief"}
    assert all(t.conclusion >= 0 for t in brief)
    words = [len(t.item.think.split()) for t in brief]
    assert sum(words) / 40 < sum(len(t.item.think.split()) for t in written) / N / 2
    output = agree.against(
        [t.label for t in brief], ask(rule.JUDGE, [t.item for t in brief]), draws=10
    )
    assert output.precision.value == 1


def test_the_generator_shares_no_code_with_the_rule_judge():
    source = Path(synthetic.__file__).read_text(encoding="utf-8")
    assert "patterns" not in source and "import rule" not in source


def test_the_rule_judge_is_precise_and_covers():
    """On a seed that it was not written against (that was 0)."""
    written = synthetic.traces(N, synthetic.HELD_OUT)
    verdicts = ask(rule.JUDGE, [t.item for t in written])
    actual = agree.against([t.label for t in written], verdicts, draws=200)
    assert actual.precision.value >= 0.99 and actual.coverage.value >= 0.90
    pairs = zip(written, verdicts, strict=True)
    named = [v.conclusion == t.conclusion for t, v in pairs if v.conclusion >= 0]
    assert sum(named) / len(named) >= 0.99
    assert actual.kappa.lo > 0.9
