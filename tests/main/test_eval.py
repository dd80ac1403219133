"""`vlmrl eval`: the same checkpoint gives the same records, however it is batched."""

import json

import numpy as np
import pytest

from tests import kit
from tests.main.small import CONDITIONS, KERNEL, PROMISED, overrides
from vlmrl import perturb
from vlmrl.data import loader
from vlmrl.eval import records

WORDS = ["eval", "--config", "configs/tiny/eval.py:runlocal"]
FIELDS = {"size": 16, "conditions": CONDITIONS}
FIELDS |= {f"kernel.{name}": value for name, value in KERNEL.items()}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """workdir(name, **overrides) of an evaluation, each made once."""
    from vlmrl.main import cli

    built = {}

    def run(name, **fields):
        if name not in built:
            built[name] = tmp_path_factory.mktemp(name)
            words = overrides(FIELDS | fields)
            assert cli.main([*WORDS, *words, "--workdir", str(built[name])]) == 0
        return built[name]

    return run


def rows(workdir):
    """Rows by (example, condition)."""
    table = records.read(workdir / "records.parquet").to_pylist()
    return {(row["example"], row["condition"]): row for row in table}


@pytest.mark.slow
def test_it_leaves_records_numbers_and_a_page(evaluated):
    workdir = evaluated("once")
    actual = rows(workdir)
    examples = loader.SOURCES["scenes"]("validation", 16)
    assert set(actual) == {(e.id, c) for e in examples for c in CONDITIONS}
    for example in examples:
        row = actual[example.id, "base"]
        assert row["question"] == example.question and row["recipe"] == "warm-start"
        assert 0 <= row["p_correct"] <= 1 and sum(row["letters"]) == pytest.approx(1)
    numbers = json.loads((workdir / "metrics.json").read_text())
    assert [row["condition"] for row in numbers] == [
        c for c in perturb.ORDER if c in CONDITIONS
    ]
    for row in numbers:
        assert set(PROMISED) <= set(row)
        mine = [actual[e.id, row["condition"]] for e in examples]
        assert row["n"] == 16 and row["split"] == "validation"
        assert row["accuracy"] == pytest.approx(np.mean([r["correct"] for r in mine]))
        assert row["entropy"] == pytest.approx(np.mean([r["entropy"] for r in mine]))
        assert row["accuracy_lo"] <= row["accuracy"] <= row["accuracy_hi"]
        scores = json.loads((workdir / "scores.json").read_text())[row["condition"]]
        assert scores["accuracy"] == pytest.approx(row["accuracy"])
    page = (workdir / "report.html").read_text()
    assert examples[0].question in page and "data:image/png;base64," in page
    for name in ("tables", "figures", "config.json", "environment.json"):
        assert (workdir / name).exists()
    assert not [p for p in workdir.rglob("*") if ".partial" in p.name]


@pytest.mark.slow
def test_twice_gives_the_same_records(evaluated):
    first, second = evaluated("once"), evaluated("again")
    assert rows(first) == rows(second)
    name = "metrics.json"
    assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.slow
def test_batch_size_and_order_of_conditions_change_nothing(evaluated):
    shuffled = (CONDITIONS[2], CONDITIONS[0], CONDITIONS[1])
    other = evaluated("other", **{"kernel.batch": 16, "conditions": shuffled})
    actual, expected = rows(other), rows(evaluated("once"))
    assert actual.keys() == expected.keys()
    for key, row in expected.items():
        for name, value in row.items():
            if isinstance(value, float) or (isinstance(value, list) and value):
                if isinstance(value, list) and isinstance(value[0], str):
                    assert actual[key][name] == value, (key, name)
                    continue
                np.testing.assert_allclose(
                    actual[key][name], value, rtol=0, atol=1e-5, err_msg=f"{key} {name}"
                )
            else:
                assert actual[key][name] == value, (key, name)


@pytest.mark.slow
def test_a_workdir_keeps_to_its_config(evaluated, refused):
    workdir = evaluated("once")
    before = (workdir / "records.parquet").read_bytes()
    words = overrides(FIELDS | {"size": 8})
    output = refused(*WORDS, *words, "--workdir", workdir)
    assert output == (
        f"{workdir}: holds a run of another config (it differs in size); give another "
        "--workdir"
    )
    assert (workdir / "records.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--config.model=/nowhere"], "model '/nowhere': no such directory"),
        (["--config.conditions=('base','wrong')"], "unknown condition 'wrong'; known"),
        (["--config.condition=('base',)"], "unknown config field config.condition"),
        (["--config.size=many"], "--config.size: expected int, got 'many'"),
        (["--config.size=0"], "size of validation: expected at least 1, got 0"),
        (["--config.split=all"], "split 'all' is not one of train, validation"),
        (["--config.source=scene"], "data source 'scene' is not one of scenes"),
        (["--config.style=x"], "unknown prompt style 'x'; known: tiny"),
        (["--config.kernel.samples=4"], "samples is 4 but temperature is 0"),
        (["--config", "configs/tiny/evil.py"], "did you mean configs/tiny/eval.py?"),
        (["--config", "configs/tiny/eval.py:fast"], "unknown option 'fast' after ':'"),
        (["--conditions=base"], "unknown flag --conditions"),
    ],
)
def test_bad_input_is_refused(words, complaint, refused, tmp_path):
    assert complaint in refused(*WORDS, *words, workdir=tmp_path / "run")


def test_a_workdir_that_cannot_be_written(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    output = refused(*WORDS, "--workdir", file / "run")
    assert output.startswith(f"--workdir {file / 'run'}: not writable")
    assert output == refused(*WORDS, workdir=file / "run") and file.read_text() == "x"


def test_a_picture_that_does_not_decode_is_skipped_and_listed(
    vlmrl, tmp_path, monkeypatch
):
    good = kit.examples(8)
    good = [e._replace(source="broken") for e in good]
    broken = [*good[:5], good[5]._replace(images=(good[5].images[0][:200],)), *good[6:]]
    monkeypatch.setitem(loader.SOURCES, "broken", lambda split, n: broken[:n])
    vlmrl(*WORDS, "--config.source=broken", "--workdir", tmp_path)
    asked = dict.fromkeys(example for example, _ in rows(tmp_path))
    assert list(asked) == [e.id for i, e in enumerate(good) if i != 5]
    (line,) = (tmp_path / "skips.jsonl").read_text().splitlines()
    assert good[5].id in line and "an image can't be read" in line
