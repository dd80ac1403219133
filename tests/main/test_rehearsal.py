"""Rehearsals: every config of the paper with everything real but the width."""

import json

import pytest

from configs import common
from tests import rehearsal
from vlmrl.data import loader
from vlmrl.data.sets import SETS
from vlmrl.main import args
from vlmrl.studies import jobs

NARROW = {"model", "rehearse", "device", "key_env", "url"}  # of a study
SHORTER = {"steps", "prompts", "eval", "save_every", "save_rollouts", "learner"}


def flat(config: dict, prefix: str = "") -> dict:
    out = {}
    for name, value in config.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


@pytest.mark.parametrize("path", jobs.studies())
def test_a_rehearsal_changes_nothing_but_the_weights(path):
    real, narrow = (
        args.load_config(path + mode).to_dict() for mode in ("", ":rehearse")
    )
    for a, b in zip(real.pop("models"), narrow.pop("models"), strict=True):
        assert {k for k in a if a[k] != b[k]} <= {"model"}
        assert b["model"].startswith(common.REHEARSAL) or real["kind"] == "ask"
    if real["kind"] == "train":
        assert (real.pop("seeds"), narrow.pop("seeds")) == (3, 1)
    real, narrow = flat(real), flat(narrow)
    changed = {k for k in real if real[k] != narrow[k]}
    assert {k.partition(".")[0] for k in changed} <= NARROW


@pytest.mark.parametrize("name", ["i", "iii-f"])
def test_a_rehearsed_recipe_is_only_shorter(name):
    real, narrow = (
        flat(args.load_config(f"configs/paper/recipe.py:{mode}name={name}").to_dict())
        for mode in ("", "rehearse,")
    )
    changed = {k for k in real if real[k] != narrow[k]}
    assert {k.partition(".")[0] for k in changed} <= NARROW | SHORTER
    assert {k for k in changed if k.startswith("eval")} == {"eval.size", "eval.every"}
    assert narrow["sampling.max_tokens"] == 2048


def test_other_configs_rehearse_as_they_run_in_small():
    for path in ("configs/tiny/accuracy.py", "configs/tiny/eval.py", "configs/plan.py"):
        small, rehearsed = (
            args.load_config(path + mode).to_dict()
            for mode in (":runlocal", ":rehearse")
        )
        assert small == rehearsed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    where = tmp_path_factory.mktemp("rehearsal")
    rehearsal.prepare(where)
    return where


@pytest.mark.slow
def test_every_set_of_the_paper_is_there_with_its_extremes(data, monkeypatch):
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(data))
    asked = set()
    for path in jobs.studies():
        c = args.load_config(path + ":rehearse").to_dict()
        load = lambda path: args.load_config(path).to_dict()  # noqa: E731
        for job in jobs.plan(c, data, load):
            if job.kind in ("evaluate", "ask"):
                asked.add((job.about["source"], job.about["split"]))
            if job.kind == "train":
                sources = job.config["data"]["source"].split(",")
                asked |= {(s, job.config["data"]["split"]) for s in sources}
    prepared = {(s, t) for s in SETS for t in loader.splits_of(s, data)}
    assert asked <= prepared and {s for s, _ in prepared} == set(rehearsal.WRITERS)
    sizes, options, images, opened = set(), set(), set(), set()
    for source, split in asked:
        for e in loader.examples_of(source, split, 0, data):
            options.add(len(e.options))
            images.add(len(e.images))
            opened.add(e.open)
            sizes |= {tuple(s) for s in json.loads(e.meta)["sizes"]}
    assert {2, 4, 5, 6} <= options and {1, 2} <= images and opened == {True, False}
    pixels = [w * h for w, h in sizes]
    assert min(pixels) < 4000 and max(pixels) > 40e6
