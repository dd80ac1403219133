"""`vlmrl reproduce`: every study in small, from start to tables; what is missing; and
tables from records alone."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlmrl.data import texts
from vlmrl.engine import policy
from vlmrl.eval import records
from vlmrl.main import args, cli, work

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
STUDIES = sorted(
    p.stem for p in PAPER.glob("*.py") if p.stem not in ("common", "recipe")
)
# What each must end with, besides figures and a page.
ENDS = {
    "abstain": "abstain",
    "closed": "conditions-all",
    "conditions": "comparisons-all",
    "controls": "conditions-all",
    "faithfulness": "quadrants-all",
    "internvl": "letters-all",
    "no_cot": "conditions-all",
    "prediction": "calibration-all",
    "prompts": "styles",
    "refcoco": "grounding",
    "table1": "base",
    "table3": "agreement-0",
    "training": "seeds",
    "uncertainty": "letters-all",
    "visual": "robustness-all",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One run directory for all studies, as they share evaluations."""
    return tmp_path_factory.mktemp("paper", numbered=False)


def reproduce(name, small, *more):
    words = [
        "reproduce",
        f"configs/paper/{name}.py:runlocal",
        "--workdir",
        small,
        *more,
    ]
    return [str(word) for word in words]


def test_every_study_is_listed():
    assert set(ENDS) == set(STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_in_small(vlmrl, small, name):
    vlmrl(*reproduce(name, small))
    folder = small / name
    held = folder / "tables" / "study"
    for ending in ("md", "csv", "tex"):
        text = (held / f"{ENDS[name]}.{ending}").read_text()
        assert len(text.splitlines()) > 2, text
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".png", ".pdf"}
    page = (folder / "report.html").read_text()
    assert args.load_config(f"configs/paper/{name}.py:runlocal").title in page


@pytest.mark.slow
def test_the_same_command_again_runs_nothing(vlmrl, small, monkeypatch, capsys):
    vlmrl(*reproduce("conditions", small))
    before = (
        small / "conditions" / "tables" / "study" / "conditions-all.csv"
    ).read_bytes()
    monkeypatch.setattr(policy, "load", None)  # no model is loaded again
    monkeypatch.setattr(work, "_evaluate", None)
    capsys.readouterr()
    vlmrl(*reproduce("conditions", small))
    assert "1 jobs, 1 done" in capsys.readouterr().out
    # another study on the same evaluation
    vlmrl(*reproduce("faithfulness", small))
    path = small / "conditions" / "tables" / "study" / "conditions-all.csv"
    path.unlink()
    vlmrl(*reproduce("conditions", small, "--remake"))
    assert path.read_bytes() == before


def test_the_release_says_what_conditions_did(tmp_path):
    from tests import kit

    examples = kit.examples(3)
    path = tmp_path / "x.jsonl"
    work.release(path, examples, ["base", "wrong_caption", "abstain+base"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["example"] for line in lines] == [e.id for e in examples]
    first = lines[0]["conditions"]
    assert first["base"]["caption"] == "" and first["wrong_caption"]["caption"]
    assert len(first["abstain+base"]["options"]) == len(examples[0].options) + 1
    assert lines[0]["texts"] == json.loads(json.dumps(texts.entry(examples[0])))
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_what_is_missing_is_said_with_the_command_that_gets_it(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("VLMRL_DATA", raising=False)
    path = PAPER / "table1.py"
    assert cli.main(["reproduce", str(path), "--plan", "--workdir=w"]) == 0
    said = capsys.readouterr().out
    for line in (
        "model RUBBISHLIKE/SpaceR: hf download RUBBISHLIKE/SpaceR",
        "set cv_bench 2D: vlmrl data prepare cv_bench",
        "90 jobs, 0 done",
        "GB of weights per device",
    ):
        assert line in said, said
    assert said.count("hf download") == 6
    assert cli.main(["reproduce", str(path), "--workdir=w"]) == 2
    error = capsys.readouterr().err
    assert "table1: 21 thing(s) are missing" in error and error.count("\n") == 1
    assert not list((tmp_path / "w").rglob("*.parquet"))
    closed = PAPER / "closed.py"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert cli.main(["reproduce", f"{closed}:size=10", "--plan", "--workdir=w"]) == 0
    assert "export OPENAI_API_KEY=" in capsys.readouterr().out
    judges = PAPER / "table3.py"
    words = [f"{judges}:url=http://127.0.0.1:9/v1", "--plan", "--workdir=w"]
    assert cli.main(["reproduce", *words]) == 0
    assert "vllm serve Qwen/Qwen3-32B" in capsys.readouterr().out


def test_refusals(refused, tmp_path):
    said = refused("reproduce", "configs/paper/table1.py", "--remake", workdir=tmp_path)
    assert "no records of Qwen2.5-VL-7B on 3dsrbench flip" in said
    assert "--config: must be given" in refused("reproduce", workdir=tmp_path)
    config = tmp_path / "own.py"
    config.write_text(
        "from configs.paper import table1\n"
        "def get_config(arg=None):\n"
        "    c = table1.get_config(arg)\n    c.kind = 'guess'\n    return c\n"
    )
    said = refused("reproduce", f"{config}:runlocal", workdir=tmp_path / "w")
    assert said == ("config.kind is 'guess', want one of evaluate, train, judge, ask")


def test_estimates_grow_with_what_is_asked():
    c = args.load_config("configs/paper/table1.py").to_dict()
    jobs = work.plan(c, Path("w"))
    big = work.estimate(jobs[0], c["device"])
    jobs[0].about["max_tokens"] *= 2
    bigger = work.estimate(jobs[0], c["device"])
    assert 1.5 < bigger.seconds / big.seconds < 2.1
    assert big.memory == pytest.approx(2 * 8.29e9 * 1.33 / 8, rel=0.02)
    assert 60 < big.seconds < 10 * 86400


def test_a_job_is_named_by_what_decides_its_numbers():
    def stems(**changes):
        c = args.load_config("configs/paper/table1.py:runlocal").to_dict() | changes
        return [job.stem for job in work.plan(c, Path("w"))]

    (one,) = stems()
    assert stems(title="other", device=None, tables=()) == [one]
    assert stems(conditions=("base",)) != [one]
    assert stems(seed=1) != [one]


def test_every_study_reads_what_is_written_in_its_config():
    """In full size too: names of sets and splits, styles and tables exist."""
    from vlmrl import perturb, prompts
    from vlmrl.data import distort
    from vlmrl.data.sets import SETS
    from vlmrl.report import studies

    for name in STUDIES:
        c = args.load_config(f"configs/paper/{name}.py").to_dict()
        for part in c["sets"]:
            assert part["split"] in SETS[part["source"]].splits, (name, part)
        for model in c["models"]:
            assert model["style"] in prompts.STYLES, (name, model)
        for condition in (*c["conditions"], *c["shown"]):
            perturb.check(condition)
        assert set(c["images"]) <= set(distort.DISTORTIONS)
        assert set(c["tables"]) <= {*studies.TABLES, *studies.USUAL}, name
        assert c["title"] and c["kind"] in work.KINDS


def test_a_run_holds_the_time_each_job_took(vlmrl, small):
    vlmrl(*reproduce("conditions", small))
    lines = (small / "jobs.jsonl").read_text().splitlines()
    assert all(json.loads(line)["seconds"] > 0 for line in lines)
    (found,) = {
        f for f in (small / "records").glob("*.parquet") if _conditions(f) == 12
    }
    held = records.read(found)
    assert held.num_rows == 8 * 12
    perturbed = small / "perturbations" / "scenes-validation.jsonl"
    assert len(perturbed.read_text().splitlines()) == 8


def _conditions(file) -> int:
    return len(pq.read_table(file, columns=["condition"])["condition"].unique())
