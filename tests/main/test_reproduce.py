"""`vlmrl reproduce`: every study of `configs/paper` in small, into one directory that
they share; resuming, remaking from records, and what is said to be missing.

And every other config is run in small by some test: `RUN_BY` says which.
"""

import contextlib
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from configs import common as configs_common
from configs.paper import recipe as paper_recipe
from tests.main.small import SMALL, overrides
from vlmrl import policy
from vlmrl.data.sets import SETS
from vlmrl.eval import records
from vlmrl.loops import run_config
from vlmrl.main import args, cli
from vlmrl.studies import jobs, tables

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
HELPERS = ("common.py", "paper/common.py")  # which have no get_config
STUDIES = sorted(
    p.stem
    for p in (CONFIGS / "paper").glob("*.py")
    if p.name not in ("common.py", "recipe.py")
)
# Which test file runs a config's ':runlocal'; this one the rest, below.
RUN_BY = {
    "plan.py": "test_plan.py",
    "paper/recipe.py": "test_reproduce.py",  # by the study 'training'
    "tiny/demo.py": "test_demo.py",  # and with it accuracy.py, faithful.py
    "tiny/eval.py": "test_eval.py",
    "tiny/both.py": "test_train.py",
    "tiny/accuracy.py": "test_train.py",
    "tiny/judge.py": "test_train.py",
    "tiny/sft.py": "test_train.py",
    **{f"paper/{name}.py": "test_reproduce.py" for name in STUDIES},
}
TRAINED = ("dapo", "dynamics", "grpo", "remedies")
# Recipes of the two studies; running these runs their files.
RECIPES = (
    "acre",
    "augmented",
    "blind",
    "cora",
    "faithful",
    "guided",
    "lagrange",
    "ranked",
)


def runlocal(name: str) -> dict:
    return args.load_config(f"configs/paper/{name}.py:runlocal").to_dict()


def load(path: str) -> dict:
    return args.load_config(path).to_dict()


def plan(name: str, workdir) -> list[jobs.Job]:
    return jobs.plan(runlocal(name), workdir, load)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def ran(shared):
    """ran(study): (its directory, what was said), each study run once."""
    output = {}

    def run(name):
        if name not in output:
            words = [f"configs/paper/{name}.py:runlocal", "--workdir", str(shared)]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert cli.main(["reproduce", *words]) == 0
            output[name] = out.getvalue()
        return shared / name, output[name]

    return run


def without_models(monkeypatch):
    """From here on nothing that takes a model can run."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(policy, "load", load)


def remaining(workdir):
    """What took work, as (time, bytes)."""
    files = [p for p in workdir.rglob("*") if p.is_file()]
    names = ("records", "checkpoints", "model", "verdicts.jsonl", "jobs.jsonl")
    mine = [p for p in files if {*p.relative_to(workdir).parts} & {*names}]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in mine}


def read(path):
    """Rows of a CSV table by heading."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- every study -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_ends_in_its_tables_and_figures(ran, name):
    folder, output = ran(name)
    config = runlocal(name)
    built = sorted((folder / "tables" / "study").glob("*.csv"))
    for table in config["tables"]:
        mine = [p.stem for p in built if re.fullmatch(rf"{table}(-.*)?", p.stem)]
        assert mine, f"{name} ends without its table '{table}'"
        assert mine[0] in output
    for path in built:
        check_table(path)
    figures = {p.suffix: p for p in (folder / "figures").iterdir()}
    assert figures[".pdf"].read_bytes()[:5] == b"%PDF-"
    with Image.open(figures[".png"]) as picture:
        assert min(picture.size) > 200
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{config['title']}" in page
    title = built[0].with_suffix(".md").read_text().partition("\n")[0].strip("# ")
    assert title.replace("&", "&amp;") in page, "the page lacks the study's own table"
    numbers = json.loads((folder / "metrics.json").read_text())
    expected = set(config["shown"]) or {row["condition"] for row in numbers}
    assert {row["condition"] for row in numbers} == expected


def check_table(path):
    """A table in its three files: a number lies in its interval, a share in 0..100 %,
    and all say the same rows."""
    rows = read(path)
    assert rows, path
    for row in rows:
        for name, text in row.items():
            if text and row.get(f"{name} lo"):
                value, lo, hi = (float(row[name + w]) for w in ("", " lo", " hi"))
                assert lo - 1e-9 <= value <= hi + 1e-9, (path, row)
    lines = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in path.with_suffix(".md").read_text().splitlines()
        if line.startswith("|")
    ]
    head, _, *body = lines
    assert len(body) == len(rows) and {len(line) for line in lines} == {len(head)}
    for line in body:
        for name, text in zip(head, line, strict=True):
            actual = re.match(r" −?[\d.]+", text)
            if "(%)" not in name or "Relative" in name or not actual:
                continue  # what is lost relative to base may be any gain
            signed = "κ" in name or path.stem.startswith("differences")
            least = -100 if signed else 0
            assert least <= float(actual[0].replace("−", "-")) <= 100, (path, line)
    latex = path.with_suffix(".tex").read_text()
    assert latex.count(r" \\") == len(rows) + 1


@pytest.mark.slow
def test_studies_share_what_they_have_in_common(ran, shared):
    """Three evaluations serve all studies, one of them most."""
    for name in STUDIES:
        ran(name)
    assert len(list((shared / "records").glob("*.parquet"))) == 3
    alike = [n for n in STUDIES if n not in ("prompts", "training", "visual")]
    plans = {n: plan(n, shared) for n in alike}
    files = {f for jobs in plans.values() for job in jobs for f in job.files}
    assert len(files) == 1
    (release,) = (shared / "perturbations").glob("*.jsonl")
    text = release.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    table = records.read(files.pop())
    assert {e["example"] for e in lines} == set(table["example"].to_pylist())
    message = {e["example"]: e["conditions"]["wrong_caption"]["caption"] for e in lines}
    for row in table.to_pylist():
        if row["condition"] == "wrong_caption":
            assert message[row["example"]] in row["prompt"]


@pytest.mark.slow
def test_a_second_run_does_nothing_again(ran, shared, vlmrl, capsys, monkeypatch):
    names = ("table3", "training")
    for name in names:
        ran(name)
    without_models(monkeypatch)
    for name in names:
        before = remaining(shared)
        capsys.readouterr()
        vlmrl("reproduce", f"configs/paper/{name}.py:runlocal", "--workdir", shared)
        assert remaining(shared) == before
        count = len(plan(name, shared))
        assert f"{count} jobs, {count} done" in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_lost_is_measured_again_and_no_more(ran, shared, vlmrl):
    """As after a run that was killed: one record file is not there."""
    ran("visual"), ran("table1")
    (job,) = plan("visual", shared)
    before = remaining(shared)
    log = (shared / "jobs.jsonl").read_text()
    (lost,) = job.files
    lost.unlink()
    config = "--config=configs/paper/visual.py:runlocal"
    vlmrl("reproduce", config, "--workdir", shared)
    after = remaining(shared)
    assert after.pop(lost)[1] == before.pop(lost)[1]
    more = (shared / "jobs.jsonl").read_text().removeprefix(log).splitlines()
    assert [json.loads(line)["job"] for line in more] == [job.name]
    del after[shared / "jobs.jsonl"], before[shared / "jobs.jsonl"]
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conditions", "table3", "training"])
def test_tables_are_remade_from_records_alone(
    ran, shared, vlmrl, refused, monkeypatch, tmp_path, name
):
    """In another place, from what a release holds: records and verdicts. No model."""
    folder, _ = ran(name)
    kinds = ("*.parquet", "verdicts.jsonl")
    for path in [p for kind in kinds for p in shared.rglob(kind)]:
        to = tmp_path / path.relative_to(shared)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    without_models(monkeypatch)
    words = ["reproduce", f"configs/paper/{name}.py:runlocal", "--workdir", tmp_path]
    vlmrl(*words, "--remake")
    built = sorted((tmp_path / name / "tables" / "study").iterdir())
    assert built and [p.name for p in built] == sorted(
        p.name for p in (folder / "tables" / "study").iterdir()
    )
    for path in built:
        expected = folder / "tables" / "study" / path.name
        assert path.read_bytes() == expected.read_bytes()
    for path in [p for kind in kinds for p in tmp_path.rglob(kind)]:
        path.unlink()
    output = refused(*words, "--remake")
    assert "no records of " in output and output.endswith("run without --remake")


@pytest.mark.slow
def test_the_papers_values_stand_beside_ours(ran, shared, tmp_path, vlmrl, monkeypatch):
    """A study of one's own that states a value: it shares the evaluation, and shows
    value and difference."""
    ran("table1")
    config = tmp_path / "own.py"
    config.write_text(OWN)
    without_models(monkeypatch)
    vlmrl("reproduce", config, "--workdir", shared)
    (row,) = read(shared / "own" / "tables" / "study" / "base.csv")
    assert float(row["Paper"]) == 0.75
    for end in ("", " lo", " hi"):
        difference = float(row["Difference" + end])
        assert difference == pytest.approx(float(row["Accuracy" + end]) - 0.75)
    (row,) = read(shared / "table1" / "tables" / "study" / "base.csv")
    assert row["Paper"] == row["Difference"] == ""  # none is known of the tiny model


OWN = """
from configs.paper import common

def get_config(arg=None):
    _, c = common.study("runlocal", title="Own", tables=("base",))
    c.known = (("tiny", "scenes", "base", "accuracy", 0.75),)
    return c
"""


# -- what a study asks for -------------------------------------------------------------


@pytest.mark.parametrize("mode", ["", ":runlocal", ":model=tiny,style=tiny"])
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_asks_for_what_there_is(name, mode, tmp_path):
    """Splits that sets have, tables that can be made, conditions it measures."""
    c = args.load_config(f"configs/paper/{name}.py{mode}").to_dict()
    for part in c["sets"]:
        if part["source"] != "scenes":
            assert part["split"] in SETS[part["source"]].splits
    assert {*c["tables"]} <= {*tables.TABLES, *tables.USUAL}
    images = [f"{image}+{n}" for image in c["images"] for n in c["conditions"]]
    assert {*c["shown"]} <= {*c["conditions"], *images}
    plan = jobs.plan(c, tmp_path, load)
    assert len({(job.folder, job.stem) for job in plan}) == len(plan)
    assert not any(job.done or job.recorded for job in plan)
    assert all(0 < tables.Known(*k).value < 1 for k in c["known"])


def test_table_1_holds_what_the_paper_states():
    known = args.load_config("configs/paper/table1.py").known
    assert len(known) == 12
    stated = {k[:2]: k[4] for k in known}
    assert stated["SpaceR", "3dsrbench"] == 0.5666
    assert stated["ViGoRL-Spatial", "cv_bench"] == 0.8229
    for value in (v for (_, source), v in stated.items() if source == "3dsrbench"):
        assert abs(value - round(value * 5157) / 5157) < 5e-5  # a count of 5,157 rows


@pytest.mark.parametrize(
    "name, lines",
    [
        (
            "table1",
            [
                "model RUBBISHLIKE/SpaceR: hf download RUBBISHLIKE/SpaceR",
                "set spatial_mm: vlmrl data prepare spatial_mm",
            ],
        ),
        (
            "table3:url=http://127.0.0.1:9/v1",
            [
                "judge Qwen/Qwen3-32B at http://127.0.0.1:9/v1: "
                "vllm serve Qwen/Qwen3-32B"
            ],
        ),
        ("training", ["set pixmo_count: vlmrl data prepare pixmo_count"]),
        ("closed", ["key of https://api.openai.com/v1: export OPENAI_API_KEY=..."]),
        ("closed:key_env=MY_KEY", ["export MY_KEY=..."]),
        ("refcoco", ["set refcoco: vlmrl data prepare refcoco"]),
        (
            "table1:model=org/mine@v2",
            ["org/mine@v2: hf download org/mine --revision v2"],
        ),
    ],
)
def test_what_is_missing_is_named_with_its_command(
    name, lines, refused, vlmrl, capsys, monkeypatch, tmp_path
):
    """A full study, where nothing has been prepared. Its plan says the same and ends
    well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for variable in ("VLMRL_DATA", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    study, _, arg = name.partition(":")
    words = ["reproduce", f"configs/paper/{study}.py" + f":{arg}" * bool(arg)]
    vlmrl(*words, "--plan", "--workdir", tmp_path / "run")
    message = capsys.readouterr().out
    missing = message.partition("missing:\n")[2].splitlines()
    for line in lines:
        assert any(line in m for m in missing), message
    assert len(set(missing)) == len(missing)
    assert re.search(r"about \d+ (s|min|h|days)", message) or study in (
        "closed",
        "training",
    )
    output = refused(*words, workdir=tmp_path / "run")
    assert f"{study}: {len(missing)} thing(s) are missing, listed above" in output


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["configs/paper/tabel1.py"], "did you mean configs/paper/table1.py?"),
        ([], "--config: must be given"),
        (["configs/paper/table1.py:sizes=3"], "unknown option 'sizes' after"),
        (["configs/paper/table1.py:runlocal", "--config.kind=x"], "config.kind is 'x'"),
        (["configs/paper/table1.py:runlocal,model=/no"], "table1: 1 thing(s)"),
    ],
)
def test_refusals(words, complaint, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint in refused("reproduce", *words, workdir=tmp_path / "run")


# -- every other config ----------------------------------------------------------------


def test_every_config_is_run_in_small_by_some_test():
    actual = {str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.py")}
    for name in HELPERS:
        assert "def get_config" not in (CONFIGS / name).read_text(), name
    here = {f"tiny/{name}.py" for name in (*TRAINED, *RECIPES)}
    assert actual == {*HELPERS, *RUN_BY, *here}
    for name, file in RUN_BY.items():
        text = (ROOT / "tests" / "main" / file).read_text()
        assert file == "test_reproduce.py" or f"configs/{name}:runlocal" in text, name
    recipes = [
        args.load_config(f"configs/tiny/{name}.py:runlocal").recipes
        for name in ("dynamics", "remedies")
    ]
    assert {*RECIPES, "accuracy", "both"} == {n for r in recipes for n in r}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_config_trains_in_small(name, vlmrl, tmp_path):
    """The recipes and both studies, a step of each: numbers, records, a model, and of
    a study its verdicts."""
    least = SMALL | {"steps": 1, "eval.every": 1, "save_every": 1}
    least |= {"eval.conditions": ("base",), "data.size": 8}
    study = name in ("dynamics", "remedies")
    words = ["study" if study else "train", "--config"]
    words += [f"configs/tiny/{name}.py:runlocal,seeds=1"]
    config = args.load_config(words[-1])
    names = list(config.recipes) if study else []
    for inner in names:
        words += overrides(least, f"recipes.{inner}.")
    if names:
        words += overrides({"size": 8, "ood_size": 0, "conditions": ("base",)})
        words += overrides({"kernel.max_tokens": 16, "kernel.batch": 8})
    else:
        words += overrides(least)
    if name == "dapo":
        words += overrides({"overlong.limit": 16, "overlong.buffer": 4})
    vlmrl(*words, "--workdir", tmp_path)
    seeds = [tmp_path / config.recipes[n].recipe / "seed-0" for n in names]
    for seed in seeds or [tmp_path / "seed-0"]:
        (row,) = (seed / "metrics.jsonl").read_text().splitlines()
        assert json.loads(row)["step"] == 1
        table = records.read(seed / "records" / "step-000001.parquet")
        assert table.num_rows == 8
        assert (seed / "model").is_dir()
    for table in ("claims", "remedies") if names else ():
        assert (tmp_path / "tables" / f"{table}.md").stat().st_size > 100


def test_every_field_of_the_papers_recipe_has_an_origin():
    """And nothing comes from the tiny model's recipes."""
    config = args.load_config("configs/paper/recipe.py").to_dict()
    fields = dict(leaves(config))
    table = {field: origin for field, _, origin in paper_recipe.FIELDS}
    assert len(table) == len(paper_recipe.FIELDS)
    rest = [f for f in fields if f not in table and parent(f) not in table]
    assert not rest
    assert not [f for f in table if not f.endswith(".*") and f not in fields]
    whose = {"paper", "verl", "EasyR1", "ViGoRL", "choice", "off"}
    for field, origin in table.items():
        named = re.split(r"[:;]", origin)[0].split(", ")
        assert set(named) <= whose, (field, origin)
    off = {f: v for f, v in fields.items() if f not in table}
    defaults = dict(leaves(configs_common.training().to_dict()))
    assert off == {f: defaults[f] for f in off}
    for file in ("recipe.py", "common.py", "training.py"):
        text = (CONFIGS / "paper" / file).read_text()
        assert not re.search(r"^(from|import) .*tiny", text, re.M), file


def leaves(config: dict, prefix: str = ""):
    """(dotted field, value) of a config; `mix` and the like are one value each."""
    for name, value in config.items():
        section = isinstance(value, dict) and name not in ("mix", "options", "shaping")
        if section:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parent(field: str) -> str:
    return field.partition(".")[0] + ".*"


@pytest.mark.parametrize("name", ["i", "ii", "iii", "i-f", "ii-f", "iii-f"])
def test_a_recipe_of_the_paper_passes_its_check(name):
    for mode in ("", "runlocal,"):
        config = args.load_config(f"configs/paper/recipe.py:{mode}name={name}")
        settings = config.to_dict()
        run_config.check(settings)
        assert (settings["reward"]["name"] == "gated") == name.endswith("f")
        assert bool(settings["mix"]) == name.startswith("iii")
