"""`vlmrl bench`: what is timed and how, what is written, and what a regression is."""

import json

import jax
import numpy as np
import pytest

from vlmrl.bench import device, suites, timing, workloads
from vlmrl.engine.attention import choose
from vlmrl.engine.score import score
from vlmrl.main import bench, cli
from vlmrl.models import registry
from vlmrl.plan import compiled

TINY = workloads.TINY


def test_sides_take_turns_and_a_peer_says_its_own_time(monkeypatch):
    monkeypatch.setattr(timing, "REST", 0.0)
    turns = []

    def side(name, value):
        def run():
            turns.append(name)
            return value

        return run

    seconds = timing.interleave({"a": side("a", None), "b": side("b", 2.0)}, 3)
    assert turns == ["a", "b"] * 4  # one to warm up
    assert seconds["b"] == [2.0] * 3 and len(seconds["a"]) == 3
    assert timing.ratio({"x": [2, 9, 6], "y": [1, 3, 1]}, "x", "y") == 3


def actual(date, kind="cpu-2", **values):
    results = [timing.result(n, v, "d", less=n == "cost") for n, v in values.items()]
    return {"date": date, "machine": {"class": kind, "cpu": "c"}, "results": results}


def test_five_percent_worse_is_a_regression():
    before = actual("2026-01-01T00:00:00", step=2.0, cost=0.3, gone=1.0)
    assert suites.regressions(before, actual("", step=1.91, cost=0.314, new=1.0)) == []
    assert suites.regressions(before, actual("", step=1.89, cost=0.32)) == [
        "REGRESSION step: 1.890, was 2.000",
        "REGRESSION cost: 0.320, was 0.300",
    ]


def test_the_newest_of_the_same_class_is_compared_with(tmp_path):
    assert suites.newest(tmp_path, {"class": "cpu-2"}) is None
    for date, kind, value in (
        ("2026-01-01T00:00:00+00:00", "cpu-2", 1.0),
        ("2026-03-01T00:00:00+00:00", "cpu-2", 3.0),
        ("2026-04-01T00:00:00+00:00", "cpu-8", 4.0),
    ):
        path = suites.save(actual(date, kind, step=value), tmp_path)
        assert kind in path.name
    path, newest = suites.newest(tmp_path, {"class": "cpu-2"})
    assert newest["results"][0]["value"] == 3.0 and "2026-03-01" in path.name
    assert not list(tmp_path.glob("*.part"))


def test_bad_words_and_files(capsys, tmp_path):
    assert cli.main(["bench", "stpe"]) == 2
    assert "no suite 'stpe'; there are counts, step" in capsys.readouterr().err
    assert cli.main(["bench", "counts", "--rounds=0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
    assert cli.main(["bench", "decode"]) == 2
    assert "decode: needs a GPU, or --tiny" in capsys.readouterr().err
    (tmp_path / "bench-x.json").write_text("{}")
    with pytest.raises(bench.UserError, match="no result of `vlmrl bench`"):
        suites.newest(tmp_path, {"class": "cpu-2"})


def test_a_run_writes_its_results_and_flags_what_got_worse(
    monkeypatch, tmp_path, capsys
):
    values = iter([2.0, 2.1, 1.5, None])

    def suite(settings):
        return [timing.result("step", next(values), "what it is", bar=1.8)]

    monkeypatch.setattr(suites, "SUITES", {"step": suite})
    assert cli.main(["bench", "--out", str(tmp_path)]) == 0
    assert "at least 1.8: reached" in capsys.readouterr().out
    (file,) = tmp_path.glob("*.json")
    built = json.loads(file.read_text())
    assert built["results"][0]["definition"] == "what it is"
    assert built["machine"]["class"].startswith("cpu-") and built["versions"]["jax"]
    assert cli.main(["bench", "--against", str(tmp_path)]) == 0
    assert cli.main(["bench", "--against", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "REGRESSION step: 1.500, was 2.000" in out and "NOT reached" in out
    assert cli.main(["bench"]) == 1  # what was not measured is no success
    assert "NOT MEASURED" in capsys.readouterr().out


def test_a_peer_that_does_not_come_up_is_told(monkeypatch, tmp_path):
    script = "import sys\nif '--prepare' not in sys.argv: sys.exit('no such module')\n"
    (tmp_path / "gone.py").write_text(script)
    ready = """
import json, sys
if "--prepare" in sys.argv: sys.exit()
print(json.dumps({"versions": {"here": "1"}}), flush=True)
for _ in sys.stdin: print(json.dumps({"seconds": 3.0}), flush=True)
"""
    (tmp_path / "here.py").write_text(ready)
    monkeypatch.setattr(timing, "PEERS", tmp_path)
    monkeypatch.setattr(timing, "REST", 0.0)
    settings = {"gone": {}, "here": dict(new=1)}
    peers = {
        name: (of, dict(name=f"x/{name}", definition=f"against {name}"))
        for name, of in settings.items()
    }
    results, _ = timing.compare({}, None, None, {}, lambda: None, 2, peers)
    gone, here = results
    assert gone["value"] is None and gone["definition"].endswith("no such module")
    assert here["value"] > 3 and here["seconds"]["here"] == [3.0, 3.0]
    assert here["versions"] == {"here": "1"}


def test_lengths_have_the_hazard_asked_for():
    """Log-normal with median 20 and one natural logarithm of spread, whatever tokens
    are drawn."""
    hazard = workloads.hazards(20, 1.0, 200)
    alive = np.cumprod(1 - hazard)
    assert abs(alive[19] - 0.5) < 1e-6  # P(longer than the median)
    assert abs(alive[53] - 0.1587) < 0.003  # one spread above: 54.4 tokens
    stops = workloads.lasting(3000, hazard)
    hits = np.asarray(stops.hits)
    assert np.abs(hits.mean(0) - hazard).max() < 0.02
    table = np.asarray(stops.table)
    assert (table[:, 0] == 1).all() and (table[:, -1] == 199).all()


def test_what_a_step_must_do_is_counted_right():
    """FLOPs of the tokens computed, against the jaxpr's with whole score matrices; a
    causal count is less, by half of the scores within a link."""
    model = registry.build_model(TINY.sees, "bench")
    params = jax.eval_shape(model.init, jax.random.key(0))
    group = workloads.scored(TINY)
    actual = compiled.flops(
        lambda p, g: score(model, p, g, unroll=True, attend=choose("plain"))[0],
        params, group,
    )  # fmt: skip
    expected = sum(device.forward(model, group, causal=False))
    assert abs(actual / expected - 1) < 0.05, actual / expected
    t = model.config.text
    n, s = group.prefix.ids.shape
    rows, length = group.branches.ids.shape
    fewer = n * s * (s - 1) / 2 + rows * length * (length - 1) / 2
    saved = expected - sum(device.forward(model, group))
    assert abs(saved / (4 * t.layers * t.heads * t.head_dim * fewer) - 1) < 1e-6

    # By hand: 8 branches, 4 behind a prefix of 10 tokens, 3 own ones.
    step = device.decoding(model, 8, 4, 10, 3)
    token = 2 * t.layers * t.kv_heads * t.head_dim
    layer = 2 * t.width * (t.heads + t.kv_heads) * t.head_dim + 3 * t.width * t.mlp
    weights = t.layers * layer + t.vocab * t.width
    assert step.bytes == 2 * (weights + token * (2 * 10 + 8 * 3))
    mix = 4 * t.layers * t.heads * t.head_dim
    assert step.flops == 2 * weights * 8 + mix * 8 * 13


@pytest.mark.slow
def test_the_work_is_the_same_work():
    """Grouped and replicated: equal gradients. Prompts have the sizes they say."""
    sizes = TINY._replace(prompt=64, branches=8, length=12)
    model, params = workloads.build(sizes.sees)
    assert workloads.prompt(sizes).ids.shape == (16 + 64,)
    one = workloads.gradient(model, workloads.scored(sizes))(params)
    many = workloads.gradient(model, workloads.scored(sizes, 8))(params)
    for name, g in jax.device_get(one).items():
        np.testing.assert_allclose(
            g, many[name], atol=1e-4 * np.abs(many[name]).max() + 1e-6, err_msg=name
        )
    sizes = sizes._replace(conditions=10, own=64)
    together = workloads.asked(sizes)
    assert together.prefix.mask.sum() == 80 and together.branches.ids.shape == (10, 64)
    apart = workloads.asked(sizes, together=False)
    assert apart.branches is None and apart.prefix.mask.sum() == 10 * 144
    drawn = workloads.sampler(model, together, 10, 3)(params)
    assert drawn.shape == (10, 3)
