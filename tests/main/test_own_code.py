"""`vlmrl train` with functions of one's own, named by file: RefCOCO paid by IoU, a
condition and a term beside it; then a reward that raises, mended and resumed."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from tests.data import published
from tests.main.small import SMALL, overrides
from vlmrl import metrics, user_code
from vlmrl.eval import records
from vlmrl.run import checkpoint

CODE = '''
"""Functions that the config below names."""
from vlmrl.answers import values
from vlmrl.rl.rewards import Reward

def iou(completion, *, floor=0.25):
    """IoU of the answer's box with the gold one, and `floor` for any turn."""
    gold = values.box_of(completion.example.options[0])
    given = values.box_of(completion.parsed.answer or "")
    assert "expression" in completion.example.meta and gold
    return floor + (values.iou(gold, given) if given else 0)

def brevity(completion):
    """Read the text: short turns are better."""
    return -len(completion.text) / 100

def loud(example):
    return example._replace(question=example.question.upper())

def text(completion):
    given = 0.5 * completion.text.count("e") / len(completion.text)
    return Reward(given, 0.0, float(completion.correct), None)
'''
CONFIG = """
from configs.tiny import grpo

def get_config(arg=None):
    c = grpo.recipe("runlocal", name="own", reward="mine.py:iou")
    c.reward.options = {"floor": 0.5}
    c.reward.shaping = {"mine.py:brevity": 0.1}
    c.mix = {"mine.py:loud": 0.5}
    return c
"""
FIELDS = SMALL | {
    "data.source": "refcoco",
    "data.split": "testA",
    "data.size": 0,
    "eval.source": "scenes",
    "eval.conditions": ("base", "mine.py:loud"),
    "save_rollouts": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with prepared RefCOCO of eight boxes, a config and the functions."""
    top = tmp_path_factory.mktemp("own")
    rows = [
        published.refcoco_row(i, [f"man {i}"], [10.0 + i, 2.0, 5.5, 4.0])
        for i in range(8)
    ]
    path = top / "in/data/testA-00000-of-00001.parquet"
    published.parquet(path, rows, published.REFCOCO)
    (top / "mine.py").write_text(CODE)
    (top / "config.py").write_text(CONFIG)
    return top


@pytest.mark.slow
def test_refcoco_is_paid_by_iou_with_a_term_and_a_condition(place, vlmrl, monkeypatch):
    monkeypatch.chdir(place)
    vlmrl("data", "prepare", "refcoco", "--source", "in", "--workdir", "run")
    vlmrl("train", "--config", "config.py", *overrides(FIELDS), "--workdir", "run")
    digest = hashlib.sha256(CODE.encode()).hexdigest()[:16]
    assert (place / f"run/user_code/mine-{digest}.py").read_text() == CODE
    named = json.loads((place / "run/environment.json").read_text())["user_code"]
    names = [f"mine.py:{name}" for name in ("brevity", "iou", "loud")]
    assert named == dict.fromkeys(names, digest)
    rows = records.read(place / "run/seed-0/records/step-000002.parquet").to_pylist()
    assert {r["condition"] for r in rows} == {"base", "loud"}
    assert {r["code"] for r in rows} == {"; ".join(f"{n}={digest}" for n in names)}
    assert all(r["question"].isupper() == (r["condition"] == "loud") for r in rows)
    steps = metrics.read(place / "run/seed-0/metrics.jsonl")
    assert len(steps) == 2 and all(row["grad_norm"] > 0 for row in steps)
    kept = pq.read_table(place / "run/seed-0/rollouts/step-000001.parquet").to_pylist()
    assert {r["condition"] for r in kept} == {"base", "loud"}
    for row in kept:
        (term,) = row["terms"]
        assert term["name"] == "brevity"
        assert row["reward"] == pytest.approx(0.5 + 0.1 * term["value"], abs=0.6)


@pytest.mark.slow
def test_a_reward_that_raises_loses_nothing(
    place, vlmrl, refused, capsys, monkeypatch, tmp_path
):
    """It ends the run with one line; mended, the same command goes on after the last
    update, says that the file has changed, and keeps both sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(
        CONFIG.replace("mine.py:iou", "mine.py:text").replace('{"floor": 0.5}', "{}")
    )
    broken = CODE.replace(
        "    given = 0.5",
        "    seen.append(1)\n    1 / (len(seen) <= 20)\n    given = 0.5",
    )
    (tmp_path / "mine.py").write_text(broken + "\nseen = []\n")
    fields = FIELDS | {"save_every": 0, "data.source": "scenes", "data.split": "train"}
    fields |= {"data.size": 16, "eval.every": 0}
    words = ["train", "--config", "config.py", *overrides(fields), "--workdir", "run"]
    said = refused(*words)
    assert "mine.py:text: example '" in said and "ZeroDivisionError" in said
    seed = tmp_path / "run/seed-0"
    assert checkpoint.steps(seed / "checkpoints") == [1]
    (tmp_path / "mine.py").write_text(CODE)
    user_code.refresh()
    capsys.readouterr()
    vlmrl(*words)
    captured = capsys.readouterr()
    assert (
        "mine.py:text has changed since this run began" in captured.out + captured.err
    )
    assert checkpoint.steps(seed / "checkpoints") == [1, 2]
    assert [row["step"] for row in metrics.read(seed / "metrics.jsonl")] == [1, 2]
    assert len(list((tmp_path / "run/user_code").glob("mine-*.py"))) == 2
