"""`vlmrl bench`: what is timed and how, what is written, and what a regression is."""

import json

import jax
import numpy as np
import pytest

from vlmrl.main import bench, cli, workloads

SMALL = dict(width=128, layers=1, heads=2, kv_heads=1, mlp=64, vision=64)


def test_sides_take_turns_and_a_peer_says_its_own_time():
    turns = []

    def side(name, value):
        def run():
            turns.append(name)
            return value

        return run

    seconds = bench.interleave({"a": side("a", None), "b": side("b", 2.0)}, 3)
    assert turns == ["a", "b"] * 4  # one to warm up
    assert seconds["b"] == [2.0] * 3 and len(seconds["a"]) == 3
    assert bench.ratio({"x": [2, 9, 6], "y": [1, 3, 1]}, "x", "y") == 3


def found(date, kind="cpu-2", **values):
    results = [
        bench.result(n, v, "d", unit="share" if n == "cost" else "ratio")
        for n, v in values.items()
    ]
    return {"date": date, "machine": {"class": kind, "cpu": "c"}, "results": results}


def test_five_percent_worse_is_a_regression():
    before = found("2026-01-01T00:00:00", step=2.0, cost=0.3, gone=1.0)
    assert bench.regressions(before, found("", step=1.91, cost=0.314, new=1.0)) == []
    assert bench.regressions(before, found("", step=1.89, cost=0.32)) == [
        "REGRESSION step: 1.890, was 2.000",
        "REGRESSION cost: 0.320, was 0.300",
    ]


def test_the_newest_of_the_same_class_is_compared_with(tmp_path):
    assert bench.newest(tmp_path, {"class": "cpu-2"}) is None
    for date, kind, value in (
        ("2026-01-01T00:00:00+00:00", "cpu-2", 1.0),
        ("2026-03-01T00:00:00+00:00", "cpu-2", 3.0),
        ("2026-04-01T00:00:00+00:00", "cpu-8", 4.0),
    ):
        path = bench.save(found(date, kind, step=value), tmp_path)
        assert kind in path.name
    path, newest = bench.newest(tmp_path, {"class": "cpu-2"})
    assert newest["results"][0]["value"] == 3.0 and "2026-03-01" in path.name
    assert not list(tmp_path.glob("*.part"))


def test_bad_words_and_files(capsys, tmp_path):
    assert cli.main(["bench", "stpe"]) == 2
    assert "no suite 'stpe'; there are counts, step" in capsys.readouterr().err
    assert cli.main(["bench", "counts", "--rounds=0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
    (tmp_path / "bench-x.json").write_text("{}")
    with pytest.raises(bench.UserError, match="no result of `vlmrl bench`"):
        bench.newest(tmp_path, {"class": "cpu-2"})


def test_a_run_writes_its_results_and_flags_what_got_worse(
    monkeypatch, tmp_path, capsys
):
    values = iter([2.0, 2.1, 1.5])

    def suite(rounds):
        return [bench.result("step", next(values), "what it is", bar=1.8)]

    monkeypatch.setattr(bench, "SUITES", {"step": suite})
    assert cli.main(["bench", "--out", str(tmp_path)]) == 0
    assert "at least 1.8: reached" in capsys.readouterr().out
    (file,) = tmp_path.glob("*.json")
    made = json.loads(file.read_text())
    assert made["results"][0]["definition"] == "what it is"
    assert made["machine"]["class"].startswith("cpu-") and made["versions"]["jax"]
    assert cli.main(["bench", "--against", str(tmp_path)]) == 0
    assert cli.main(["bench", "--against", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "REGRESSION step: 1.500, was 2.000" in out and "NOT reached" in out


@pytest.mark.slow
def test_the_work_is_the_same_work(monkeypatch):
    """Grouped and replicated: equal gradients. Prompts have the sizes they say."""
    monkeypatch.setattr(workloads, "SIDE", 8)
    monkeypatch.setattr(workloads, "LENGTH", 12)
    config = workloads.sees(**SMALL)
    model, params = workloads.build(config)
    assert workloads.prompt(config).ids.shape == (16 + 64,)
    one = workloads.gradient(model, workloads.scored(config))(params)
    many = workloads.gradient(model, workloads.scored(config, 8))(params)
    for name, g in jax.device_get(one).items():
        np.testing.assert_allclose(
            g, many[name], atol=1e-4 * np.abs(many[name]).max() + 1e-6, err_msg=name
        )
    together = workloads.asked(config)
    assert together.prefix.mask.sum() == 80 and together.branches.ids.shape == (10, 64)
    apart = workloads.asked(config, together=False)
    assert apart.branches is None and apart.prefix.mask.sum() == 10 * 144
    drawn = workloads.sampler(model, together, 10, 3)(params)
    assert drawn.shape == (10, 3)
