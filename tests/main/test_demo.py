"""`vlmrl demo`: the whole job, on a dozen examples, and the same command again."""

import csv
import json
import time

import pytest

from tests import kit
from tests.main.small import CONDITIONS, KERNEL, PROMISED, SMALL, overrides
from vlmrl import perturb
from vlmrl.data import loader
from vlmrl.eval import measures, records
from vlmrl.main import cli
from vlmrl.models import weights
from vlmrl.run import checkpoint

WORDS = ["demo", "--config", "configs/tiny/demo.py:runlocal"]
RECIPES = ("accuracy", "faithful")
SIZE, PERTURBED, OOD = 12, 8, 6
FIELDS = {"perturbed_size": PERTURBED, "ood_size": OOD, "conditions": CONDITIONS}
FIELDS |= {f"kernel.{name}": value for name, value in KERNEL.items()}
WORDS_SMALL = [*WORDS, *overrides(FIELDS)] + [
    word for name in RECIPES for word in overrides(SMALL, f"recipes.{name}.")
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(workdir, seconds it took) of the command."""
    workdir = tmp_path_factory.mktemp("demo")
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        assert cli.main([*WORDS_SMALL, "--workdir", str(workdir)]) == 0
    return workdir, time.monotonic() - began


def remaining(workdir):
    """What took work: checkpoints, models and every evaluation, as (time, bytes)."""
    files = [p for p in workdir.rglob("*") if p.is_file()]
    names = ("checkpoints", "model", "records")
    mine = [p for p in files if any(n in p.relative_to(workdir).parts for n in names)]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in mine}


@pytest.mark.slow
def test_it_leaves_every_promised_file(demo):
    workdir, _ = demo
    for name in ("records.parquet", "metrics.json", "tables", "figures", "report.html"):
        assert (workdir / name).exists(), name
    stems = {p.stem for p in (workdir / "tables").iterdir()}
    suffixes = {p.suffix for p in (workdir / "tables").iterdir()}
    assert suffixes == {".md", ".csv", ".tex"}
    for stem in stems:
        for suffix in suffixes:
            assert (workdir / "tables" / (stem + suffix)).stat().st_size > 20
        with open(workdir / "tables" / f"{stem}.csv", newline="") as file:
            lines = list(csv.reader(file))
        assert len({len(line) for line in lines}) == 1
    drawn = [p for p in (workdir / "figures").iterdir() if p.stat().st_size > 500]
    assert len(drawn) >= 3, drawn
    page = (workdir / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>") and "<svg" in page
    assert "data:image/png;base64," in page
    for address in ('src="http', 'href="http', "url(http", "@import"):
        assert address not in page, address
    for recipe in RECIPES:
        seed = workdir / recipe / "seed-0"
        assert checkpoint.latest(seed / "checkpoints") == SMALL["steps"]
        weights.load(seed / "model")
    assert not [p for p in workdir.rglob("*") if ".partial" in p.name]


@pytest.mark.slow
def test_its_numbers_are_those_promised(demo):
    workdir, _ = demo
    rows = json.loads((workdir / "metrics.json").read_text())
    for row in rows:
        assert set(PROMISED) <= set(row)
        assert row["accuracy_lo"] <= row["accuracy"] <= row["accuracy_hi"]
        assert row["consistent"] is None or 0 <= row["consistent"] <= 1
    at = [(r["recipe"], r["step"], r["split"], r["condition"], r["n"]) for r in rows]
    assert len(set(at)) == len(at)
    steps = {"warm-start": 0, **dict.fromkeys(RECIPES, SMALL["steps"])}
    expected = {
        (recipe, step, split, condition, n)
        for recipe, step in steps.items()
        for split, condition, n in [
            ("ood", "base", OOD),
            *(("test", c, SIZE if c == "base" else PERTURBED) for c in CONDITIONS),
        ]
    } | {
        (recipe, SMALL["steps"], "validation", condition, 8)
        for recipe in RECIPES
        for condition in CONDITIONS
    }
    assert set(at) == expected
    table = records.read(workdir / "records.parquet")
    assert table.num_rows == sum(row["n"] for row in rows)
    assert json.loads(json.dumps(measures.summarise(table))) == rows


@pytest.mark.slow
def test_again_it_does_only_what_is_missing(demo, vlmrl, capsys, monkeypatch):
    """A demo that was cut off before the last evaluation: nothing else is done again,
    and the numbers come out as they were."""
    workdir, seconds = demo
    monkeypatch.setenv("COLUMNS", "160")
    numbers = (workdir / "metrics.json").read_bytes()
    table = records.read(workdir / "records.parquet")
    before = remaining(workdir)
    last = workdir / "records" / "faithful-seed-0-test.parquet"
    evaluation = before.pop(last)[1]
    for gone in (last, workdir / "records.parquet", workdir / "metrics.json"):
        gone.unlink()
    began = time.monotonic()
    vlmrl(*WORDS_SMALL, "--workdir", workdir)
    assert time.monotonic() - began < seconds
    after = remaining(workdir)
    assert after.pop(last)[1] == evaluation
    assert after == before
    assert (workdir / "metrics.json").read_bytes() == numbers
    assert records.read(workdir / "records.parquet").equals(table)
    output = capsys.readouterr().out
    for word in (*CONDITIONS, *RECIPES, "warm-start", "report.html"):
        assert word in output


@pytest.mark.slow
def test_a_workdir_keeps_to_its_config(demo, refused):
    workdir, _ = demo
    output = refused(*WORDS_SMALL, "--config.size=13", "--workdir", workdir)
    assert "holds a run of another config (it differs in size)" in output


def test_the_whole_demo_measures_every_condition():
    from vlmrl.main import args

    config = args.load_config("configs/tiny/demo.py")
    assert set(perturb.CONDITIONS) <= set(config.conditions)
    assert any(c.startswith(perturb.ABSTAIN) for c in config.conditions)
    assert config.size >= 500 and config.split == "test"
    for recipe in config.recipes.values():
        assert recipe.eval.split == "validation" and recipe.data.split == "train"
        assert recipe.sampling.group_size == 8


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--config.model=/nowhere"], "model '/nowhere': no such directory"),
        (["--config.conditions=('bass',)"], "unknown condition 'bass'; known: base"),
        (["--config.sise=3"], "unknown config field config.sise (did you mean size?)"),
        (["--config.recipes.faithful.reward.name=x"], "config.reward.name is 'x', exp"),
        (["--config.recipes.accuracy.sampling.group_size=1"], "group_size is 1, but"),
        (
            ["--config.recipes.accuracy.ema=0.5"],
            "config.recipes.accuracy.learner.ema",
        ),
        (["--config.recipes.acuracy.steps=1"], "config.recipes.acuracy"),
        (["--config.size=0"], "size of test: expected at least 1, got 0"),
        (["--config.split=all"], "split 'all' is not one of train, validation"),
    ],
)
def test_bad_input_is_refused(words, complaint, refused, tmp_path):
    assert complaint in refused(*WORDS_SMALL, *words, workdir=tmp_path / "run")


def test_a_workdir_that_cannot_be_written(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    assert "not writable" in refused(*WORDS_SMALL, workdir=file)


def test_a_picture_that_does_not_decode_is_skipped_and_counted(
    vlmrl, tmp_path, monkeypatch, capsys
):
    good = kit.examples(12)
    broken = [*good[:3], good[3]._replace(images=(b"GIF89a",)), *good[4:]]
    monkeypatch.setitem(loader.SOURCES, "broken", lambda split, n: broken[:n])
    words = [f"--config.recipes.{name}.data.source=broken" for name in RECIPES]
    vlmrl(*WORDS_SMALL, *words, "--workdir", tmp_path)
    output = " ".join(capsys.readouterr().out.split())
    assert "1 of 12 items skipped: 1 × an image can't be read" in output
    listed = tmp_path / "records" / "warm-start-seed-0-test.skips.jsonl"
    assert good[3].id in listed.read_text()
