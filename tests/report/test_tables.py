"""Tables say what the metric rows say, in four renderings."""

import csv
import io
import re

import pytest
from rich.console import Console

from vlmrl.eval import records
from vlmrl.report import claim, render, tables
from vlmrl.studies import claims
from vlmrl.types import UserError

HOSTILE = render.Table(
    "x",
    "50 % & more_of {it}",
    "a|b \\ #1",
    (("A|B", "text"), ("Gain", "shift"), ("Rate", "share"), ("Acc", "interval")),
    [
        ("x_1|y & [bold]z[/bold]", -0.123, 0.5, (0.5, 0.25, 0.75)),
        ("none", None, None, None),
        ("zero", -0.0001, 0.0, (1.0, float("nan"), float("nan"))),
    ],
)


def test_cells_by_kind():
    assert render.cell(0.125, "share") == "12.5"
    assert render.cell(0.05, "shift") == "+5.0"
    assert render.cell(-0.05, "shift") == "−5.0"
    assert render.cell(-0.0001, "shift") == "0.0"
    assert render.cell(-0.001, "change") == "0.00"
    assert render.cell(None, "interval") == "–"
    assert render.cell((0.5, 0.25, 0.75), "interval") == "50.0 [25.0, 75.0]"
    assert render.cell((0.5, float("nan"), float("nan")), "interval") == "50.0"
    assert render.cell("a-b", "text") == "a-b"


def test_markdown_escapes_pipes_and_keeps_its_columns():
    lines = render.markdown(HOSTILE).splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert body[0] == "| A\\|B | Gain | Rate (%) | Acc (%) |"
    assert len(body) == 5
    assert all(line.replace("\\|", "").count("|") == 5 for line in body)


def test_csv_reads_back_at_full_precision():
    rows = list(csv.reader(io.StringIO(render.csv_text(HOSTILE))))
    assert rows[0] == ["A|B", "Gain", "Rate", "Acc", "Acc lo", "Acc hi"]
    assert [float(v) for v in rows[1][1:]] == [-0.123, 0.5, 0.5, 0.25, 0.75]
    assert rows[2][1:] == [""] * 5
    assert rows[3][3:] == ["1.0", "", ""]


def test_latex_is_escaped_booktabs():
    text = render.latex(HOSTILE)
    assert r"50 \% \& more\_of \{it\}. a\textbar{}b \textbackslash{} \#1" in text
    assert (
        r"x\_1\textbar{}y \& [bold]z[/bold] & $-$12.3 & 50.0 & 50.0 [25.0, 75.0] \\"
        in text
    )
    assert r"\begin{tabular}{lrrr}" in text
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rule) == 1


def check_latex(text: str, columns: int) -> None:
    """What LaTeX would stop at, or print otherwise than it was meant."""
    bare = re.sub(r"\\[\\{}$&%#_]", "", text)  # escaped characters
    bare = re.sub(r"\\label\{[^}]*\}|\$[^$]*\$", "", bare)  # and mathematics
    assert not re.search("[%#_^~<>|]", bare), bare
    assert bare.count("{") == bare.count("}") and bare.isascii()
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    for line in text.splitlines():
        assert re.sub(r"\\[\\$]", "", line).count("$") % 2 == 0, line
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    rows = [r for r in body.splitlines() if r.strip() and r.strip() != r"\midrule"]
    for row in rows:
        assert row.endswith(r" \\") and row.lstrip()[0] not in "[*", row
        assert len(re.findall(r"(?<!\\)&", row)) == columns - 1, row


def test_latex_would_compile(table, metrics):
    """The structure, character by character: there is no LaTeX among the tests' needs.
    A first cell that LaTeX would take for an option of the line break before it is
    guarded."""
    optional = HOSTILE._replace(rows=[("[2ex]", 0.1, 0.5, None), ("*", 0.1, 0.5, None)])
    made = [HOSTILE, optional, *tables.build(table, metrics)]
    made.append(claim.as_table(claims.judge_claims(table)))
    assert len(made) > 10
    for each in made:
        check_latex(render.latex(each), len(each.columns))
    assert "{}[2ex] & " in render.latex(optional)


def test_terminal_does_not_read_markup_and_fits_80_columns(table, metrics):
    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(render.terminal(HOSTILE))
    assert "[bold]z[/bold]" in out.getvalue()
    for made in tables.build(table, metrics):
        if made.name.startswith(("conditions", "robustness")):
            console.print(render.terminal(made))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_the_main_table_holds_the_metric_rows_of_the_last_step(table, metrics):
    main = next(t for t in tables.build(table, metrics) if t.name == "conditions-test")
    names = [name for name, _ in main.columns]
    rows = {(r[0], r[1]): dict(zip(names, r, strict=True)) for r in main.rows}
    want = {(r["condition"], r["recipe"], r["step"]): r for r in metrics}
    got, row = rows["wrong_think", "accuracy"], want["wrong_think", "accuracy", 60]
    assert got["Step"] == 60
    assert got["Accuracy"] == (row["accuracy"], row["accuracy_lo"], row["accuracy_hi"])
    assert got["Consistent"] == row["consistent"]
    assert got["Follows"] == row["follow"]
    assert rows["stop_think", "accuracy"]["Consistent"] is None
    base = want["base", "accuracy", 60]
    assert rows["all of these", "accuracy"]["Accuracy"][0] == base["robust_accuracy"]
    assert main.rows[0][0] == "base"


def test_one_seed_is_said_to_be_one_seed(table, metrics):
    for made in tables.build(table, metrics):
        if made.name.startswith(("conditions", "tasks")):
            assert "One seed" in made.note


def test_several_seeds_become_one_row_with_the_wider_interval(table, metrics):
    base = next(
        r for r in metrics if (r["recipe"], r["condition"]) == ("accuracy", "base")
    )
    other = base | {"seed": 1, "accuracy": base["accuracy"] + 0.1}
    (point,) = tables.points([base, other])
    value, lo, hi = point.interval("accuracy")
    assert value == pytest.approx(base["accuracy"] + 0.05)
    # t with one degree of freedom: half a width of 12.706 * 0.05, clipped to [0, 1]
    assert lo == pytest.approx(max(0, value - 12.7062 * 0.05), abs=1e-4) and hi == 1
    assert "Seeds: accuracy 2" in tables.seeds_note([point])
    twin = base | {"seed": 1}  # no spread: the item interval stays
    (point,) = tables.points([base, twin])
    assert point.interval("accuracy")[1:] == (base["accuracy_lo"], base["accuracy_hi"])


def test_tasks_add_up_to_the_whole(table, metrics):
    made = next(t for t in tables.build(table, metrics) if t.name == "tasks-test")
    recipe = [name for name, _ in made.columns].index("warm-start, step 0")
    total = sum(r[1] * r[recipe][0] for r in made.rows) / sum(r[1] for r in made.rows)
    base = metrics[0]
    assert (base["recipe"], base["condition"]) == ("warm-start", "base")
    assert total == pytest.approx(base["accuracy"])


def test_writing_leaves_only_the_three_files_of_each(tmp_path, table, metrics):
    made = tables.build(table, metrics)
    paths = render.write(tmp_path / "tables", made)
    assert sorted(tmp_path.joinpath("tables").iterdir()) == sorted(paths)
    assert len(paths) == 3 * len(made)
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(UserError, match="cannot write tables"):
        render.write(tmp_path / "file", made)


def test_no_records_is_one_line():
    with pytest.raises(UserError, match="no rows"):
        tables.build(records.SCHEMA.empty_table(), [])
