"""The further tables say what the records say."""

import numpy as np
import pytest

from vlmrl.eval import calibration, measures, stats
from vlmrl.report import analysis, render


@pytest.fixture(scope="module")
def made(table):
    data = measures.columns(table)
    built = analysis.build(measures.view(data, "test"), "test")
    return {t.name.removesuffix("-test"): t for t in built}, data


def rows_of(table, *key):
    names = [name for name, _ in table.columns]
    found = [r for r in table.rows if r[: len(key)] == key]
    assert len(found) == 1, (key, len(found))
    return dict(zip(names, found[0], strict=True))


def pick(data, recipe, step, condition):
    at = (data["recipe"] == recipe) & (data["condition"] == condition)
    return np.flatnonzero(at & (data["step"] == step))


def test_quadrants_are_shares_of_what_can_be_judged(made):
    tables, data = made
    row = rows_of(tables["quadrants"], "accuracy", "wrong_think")
    at = pick(data, "accuracy", 60, "wrong_think")
    right, verdict = data["accuracy"][at] == 1, data["verdict"][at]
    wanted = (right & (verdict == "inconsistent")).mean()
    assert row["Right for the wrong reason"] == pytest.approx(wanted) and wanted > 0
    shares = [v for name, v in row.items() if isinstance(v, float)]
    assert sum(shares) == pytest.approx(1) and row["n"] == 60
    # no think, nothing to judge
    assert not any(r[1] == "stop_think" for r in tables["quadrants"].rows)


def test_the_leaderboard_is_sorted_by_faithful_accuracy(made):
    tables, data = made
    rows = tables["leaderboard"].rows
    values = [r[2][0] for r in rows]
    assert values == sorted(values, reverse=True) and len(rows) == 3
    row = rows_of(tables["leaderboard"], "accuracy")
    at = {c: pick(data, "accuracy", 60, c) for c in dict.fromkeys(data["condition"])}
    every = np.stack(
        [data["accuracy"][i][np.argsort(data["item"][i])] for i in at.values()]
    )
    assert row["Robust acc."][0] == pytest.approx(every.all(0).mean())
    both = np.stack(
        [
            data["faithful_accuracy"][i][np.argsort(data["item"][i])]
            for c, i in at.items()
            if c != "stop_think"
        ]
    )
    assert row["Robust and faithful"][0] == pytest.approx(both.all(0).mean())


def test_calibration_is_that_of_the_top_option(made, table):
    tables, data = made
    row = rows_of(tables["calibration"], "accuracy", "base")
    at = pick(data, "accuracy", 60, "base")
    letters = [table["letters"][int(i)].as_py() for i in at]
    answers = [table["answer"][int(i)].as_py() for i in at]
    top = np.array([int(np.argmax(p)) for p in letters])
    assert row["Top right"] == pytest.approx((top == answers).mean())
    assert row["Brier"] == pytest.approx(calibration.brier(letters, answers).mean())
    sure = np.array([max(p) for p in letters])
    wanted = float(calibration.ece(sure, top == answers))
    assert row["ECE"] == pytest.approx(wanted)


def test_comparisons_are_paired_and_corrected(made):
    tables, data = made
    table = tables["comparisons"]
    row = rows_of(table, "accuracy: wrong_think against base")
    at = [pick(data, "accuracy", 60, c) for c in ("base", "wrong_think")]
    base, other = (data["accuracy"][i] for i in at)
    assert row["Difference"][0] == pytest.approx(other.mean() - base.mean())
    assert row["h"] == pytest.approx(stats.cohens_h(base.mean(), other.mean()))
    assert row["Test"] == "bootstrap"  # two items share an image
    p = [r[4] for r in table.rows]
    np.testing.assert_allclose([r[5] for r in table.rows], stats.holm(p))
    assert rows_of(table, "base: accuracy against warm-start")["Difference"][0] > 0


def test_prediction_pairs_base_with_the_condition(made):
    tables, data = made
    row = rows_of(tables["prediction"], "accuracy", "wrong_caption", "all")
    at = [pick(data, "accuracy", 60, c) for c in ("base", "wrong_caption")]
    score, label = data["p_correct"][at[0]], data["accuracy"][at[1]] == 1
    assert (data["item"][at[0]] == data["item"][at[1]]).all()
    assert row["P(correct)"][0] == pytest.approx(float(stats.auroc(score, label)))


def test_drift_is_from_the_warm_start(made):
    tables, data = made
    row = rows_of(tables["drift"], "accuracy", "base")
    start, end = pick(data, "warm-start", 0, "base"), pick(data, "accuracy", 60, "base")
    change = np.mean(data["consistent"][end]) - np.mean(data["consistent"][start])
    assert row["Δ consistent"][0] == pytest.approx(change) and change < 0
    assert row["Slope"].startswith("−") and "[" in row["Slope"]
    assert not any(r[0] == "warm-start" for r in tables["drift"].rows)


def test_every_table_renders(made):
    tables, _ = made
    assert list(tables) == (
        "leaderboard quadrants calibration prediction comparisons drift".split()
    )
    for table in tables.values():
        for text in (
            render.markdown(table),
            render.latex(table),
            render.csv_text(table),
        ):
            assert "nan" not in text, table.name


def test_latex_is_sound(made):
    """What pdflatex would refuse: a cell too many, an open brace, a bare special
    character, or one that its utf8 input encoding does not know."""
    import re

    tables, _ = made
    for table in tables.values():
        text = render.latex(table)
        bare = re.sub(r"\\[\\&%$#_{}]", "", text)
        assert bare.count("{") == bare.count("}"), table.name
        assert bare.count("$") % 2 == 0 and not set("#%") & set(bare), table.name
        for line in text.splitlines():
            if line.endswith(r"\\"):
                cells = re.sub(r"\\&", "", line).count("&")
                assert cells == len(table.columns) - 1, line
        inside = re.sub(r"\$[^$]*\$|\\label\{[^}]*\}", "", bare)
        assert not set("_^<>") & set(inside), (table.name, set("_^<>") & set(inside))
        assert not {c for c in text if ord(c) > 0x17F} - set("–—‘’“”…"), table.name
