"""`vlmrl train`: exact resume, the same numbers twice, every recipe, and refusals."""

import hashlib
import json
import shutil
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import kit
from tests.data import published
from tests.judges.server import body_of, item_of, serve
from tests.main.small import CONDITIONS, KERNEL, SMALL, overrides
from vlmrl import metrics
from vlmrl.data import loader
from vlmrl.eval import records
from vlmrl.loops import grpo, run_config
from vlmrl.main import args, cli
from vlmrl.models import lora, peft, weights
from vlmrl.models.api import linear
from vlmrl.rl import loop
from vlmrl.run import checkpoint, directory
from vlmrl.types import UserError

RECIPES = ("accuracy", "augmented", "faithful", "both")
# Everything that could lose its place: augmentation, both rewards' parts, KL, decay.
WORDS = ["train", "--config", "configs/tiny/both.py:runlocal"]
FIELDS = SMALL | {"steps": 4, "loss.kl_weight": 0.01, "optimizer.decay": "linear"}


class Stop(KeyboardInterrupt):
    """Ctrl-C, at a chosen place."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same command: {'straight': …, 'resumed': …}, each (workdir,
    {step: its samples}); the second is stopped during step 4 and started again, when
    its newest checkpoint is that of step 2."""
    patch = pytest.MonkeyPatch()
    patch.delenv("VLMRL_TRACEBACK", raising=False)
    plain, actual = loop.train, {}

    def run(name, status=0, stop=None):
        workdir = tmp_path_factory.mktemp(name, numbered=False)
        again(name, workdir, status, stop)

    def again(name, workdir, status=0, stop=None):
        samples = actual.setdefault(name, (workdir, {}))[1]

        def watched(*positional, **named):
            return seen(plain(*positional, **named))

        def seen(steps):
            for step in steps:
                if step.step == stop:
                    raise Stop
                samples.setdefault(step.step, []).append(step.samples)
                yield step

        patch.setattr(loop, "train", watched)
        words = [*WORDS, *overrides(FIELDS), "--workdir", str(workdir)]
        assert cli.main(words) == status

    try:
        run("straight")
        run("resumed", status=130, stop=4)
        workdir = actual["resumed"][0]
        shutil.copytree(workdir, workdir.with_name("stopped"))
        again("resumed", workdir)
    finally:
        patch.undo()
    return actual


def logged(workdir):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "input_wait")}
        for row in metrics.read(workdir / "seed-0" / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(runs):
    workdir, samples = runs["straight"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["recipe"] == "both" and config["steps"] == 4
    environment = json.loads((workdir / "environment.json").read_text())
    assert len(environment["devices"]) == 8 and environment["packages"]["jax"]
    seed = workdir / "seed-0"
    assert checkpoint.steps(seed / "checkpoints") == [2, 4]
    assert [row["step"] for row in logged(workdir)] == [1, 2, 3, 4]
    for row in metrics.read(seed / "metrics.jsonl"):
        assert 0 < row["input_wait"] <= row["seconds"]
    for row in logged(workdir):
        assert row["grad_norm"] > 0 and 0 <= row["reward/total"] <= 1.1
        assert np.isfinite(list(row.values())).all()
    for step in (2, 4):
        table = records.read(seed / "records" / f"step-{step:06d}.parquet")
        assert table.num_rows == 8 * len(CONDITIONS) and set(
            table["step"].to_pylist()
        ) == {step}
    assert sorted(samples) == [1, 2, 3, 4]
    for (drawn,) in samples.values():
        assert len(drawn) == 8 * 2
    curve = metrics.read(seed / "learning_curve.jsonl")
    assert [row["step"] for row in curve] == [2, 4]
    assert "base/accuracy" in curve[0] and "base/accuracy/change" in curve[1]
    conditions = {s.condition for (drawn,) in samples.values() for s in drawn}
    assert "base" in conditions and len(conditions) > 1
    assert (workdir / "data").is_dir()
    assert not [p for p in workdir.rglob("*") if ".partial" in p.name]


@pytest.mark.slow
def test_the_model_that_is_exported_is_the_last_checkpoint(runs):
    seed = runs["straight"][0] / "seed-0"
    stored, _ = checkpoint.restore(seed / "checkpoints", 4)
    model, params = weights.load(seed / "model")
    _, start = weights.load("tiny")
    for name in model.table:
        np.testing.assert_array_equal(params[name], stored[f"state/params/{name}"])
    assert any((params[n] != start[n]).any() for n in model.table)


@pytest.mark.slow
def test_a_stopped_run_has_nothing_that_looks_finished(runs):
    stopped = runs["resumed"][0].with_name("stopped") / "seed-0"
    assert checkpoint.steps(stopped / "checkpoints") == [2]
    assert not (stopped / "model").exists()
    assert [row["step"] for row in logged(stopped.parent)] == [1, 2, 3]


@pytest.mark.slow
def test_resuming_is_exact(runs):
    (straight, expected), (resumed, actual) = runs["straight"], runs["resumed"]
    for step in (2, 4):
        one, _ = checkpoint.restore(straight / "seed-0" / "checkpoints", step)
        two, _ = checkpoint.restore(resumed / "seed-0" / "checkpoints", step)
        assert one.keys() == two.keys()
        assert any("opt_state" in name for name in one)
        for name, value in one.items():
            np.testing.assert_array_equal(two[name], value, err_msg=name)
    assert logged(resumed) == logged(straight)
    for path in ("records/step-000004.parquet", "records/step-000002.parquet"):
        tables = [records.read(d / "seed-0" / path) for d in (straight, resumed)]
        assert tables[0].equals(tables[1])
    name = "seed-0/model/model.safetensors"
    assert (straight / name).read_bytes() == (resumed / name).read_bytes()
    # Step 3 was done twice: before the stop, and again from the checkpoint of step 2.
    assert {k: len(v) for k, v in actual.items()} == {1: 1, 2: 1, 3: 2, 4: 1}
    for step, times in actual.items():
        for drawn in times:
            assert drawn == expected[step][0], step


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(runs, vlmrl):
    workdir, samples = runs["straight"]
    files = [p for p in (workdir / "seed-0").rglob("*") if p.is_file()]
    before = {p: p.read_bytes() for p in files}
    vlmrl(*WORDS, *overrides(FIELDS), "--workdir", workdir)
    after = [p for p in (workdir / "seed-0").rglob("*") if p.is_file()]
    assert {p: p.read_bytes() for p in after} == before
    assert all(len(times) == 1 for times in samples.values())


@pytest.mark.slow
def test_a_workdir_keeps_to_its_config(runs, refused):
    workdir = runs["straight"][0]
    words = overrides(FIELDS | {"steps": 6, "sampling.max_tokens": 20})
    output = refused(*WORDS, *words, "--workdir", workdir)
    assert f"{workdir}: holds a run of another config" in output
    assert "sampling.max_tokens, steps)" in output
    assert json.loads((workdir / "config.json").read_text())["steps"] == 4


@pytest.mark.parametrize("mode", ["", ":runlocal", ":seeds=3"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_consistent(name, mode):
    config = args.load_config(f"configs/tiny/{name}.py{mode}")
    settings = config.to_dict()
    assert settings.pop("algorithm") == "grpo" and config.recipe == name
    settings["prompts"] = 8  # of 8 devices
    run_config.check(settings)
    assert config.reward.name == ("gated" if name in ("faithful", "both") else "grpo")
    assert bool(config.mix) == (name in ("augmented", "both"))
    assert config.seeds == ((0, 1, 2) if "seeds" in mode else (0,))


REMEDIES = ("guided", "lagrange", "cora", "acre", "blind", "ranked")


@pytest.mark.parametrize("mode", ["", ":runlocal", ":seeds=3"])
@pytest.mark.parametrize("name", ["dynamics", "remedies"])
def test_every_study_is_consistent(name, mode):
    config = args.load_config(f"configs/tiny/{name}.py{mode}")
    recipes = config.to_dict()["recipes"]
    assert config.algorithm == "study"
    own = RECIPES if name == "dynamics" else ("accuracy", *REMEDIES)
    assert sorted(recipes) == sorted(own)
    assert len({r["recipe"] for r in recipes.values()}) == len(recipes)
    for settings in recipes.values():
        settings["prompts"] = 8  # of 8 devices
        run_config.check(settings)
        assert settings["seeds"] == (0, 1, 2)
        assert settings["eval"]["split"] != config.split  # which is read at the end
        if mode != ":runlocal":
            points = settings["steps"] // settings["eval"]["every"]
            assert points + settings["eval"]["start"] >= 3  # of a curve
            assert "stop_think" in settings["eval"]["conditions"]


def test_a_study_can_be_of_some_of_its_recipes():
    some = args.load_config("configs/tiny/remedies.py:only=guided+cora").to_dict()
    whole = args.load_config("configs/tiny/remedies.py").to_dict()
    assert sorted(some["recipes"]) == ["cora", "guided"]
    expected = {name: whole["recipes"][name] for name in some["recipes"]}
    assert some == whole | {"recipes": expected}
    with pytest.raises(UserError, match="'only' names 'core', want some of accuracy"):
        args.load_config("configs/tiny/remedies.py:only=guided+core")


@pytest.mark.slow
def test_a_study_of_two_recipes_and_the_same_again(vlmrl, tmp_path):
    fields = {"size": 8, "conditions": CONDITIONS}
    fields |= {f"kernel.{name}": value for name, value in KERNEL.items()}
    small = SMALL | {"steps": 1, "eval.every": 1, "save_every": 1}
    config = tmp_path / "configs" / "two.py"
    config.parent.mkdir()
    config.write_text(STUDY)
    words = ["study", "--config", str(config), *overrides(fields)]
    for name in ("accuracy", "lagrange"):
        words += overrides(small, f"recipes.{name}.")
    workdir = tmp_path / "run"
    vlmrl(*words, "--workdir", workdir)
    for seed in (0, 1):
        done = workdir / "lagrange-faithful-augmented" / f"seed-{seed}"
        (row,) = metrics.read(done / "metrics.jsonl")
        assert row["control/multiplier"] == 0.0
        (curve,) = metrics.read(done / "learning_curve.jsonl")
        assert curve["step"] == 1 and 0 <= curve["base/accuracy"] <= 1
        assert (done / "model").is_dir()
    for name in ("claims", "remedies"):
        text = (workdir / "tables" / f"{name}.md").read_text()
        assert "lagrange" in text or name == "claims"
    claims = json.loads((workdir / "claims.json").read_text())
    assert [c["number"] for c in claims] == list(range(1, 9))
    before = {p: p.read_bytes() for p in workdir.rglob("seed-*/**/*") if p.is_file()}
    vlmrl(*words, "--workdir", workdir)
    after = {p: p.read_bytes() for p in workdir.rglob("seed-*/**/*") if p.is_file()}
    assert after == before


STUDY = """
from configs.tiny import accuracy, dynamics, lagrange

def get_config(arg=None):
    both = {"accuracy": accuracy, "lagrange": lagrange}
    return dynamics.study("runlocal", both, seeds=2, title="t", summary="s")
"""


@pytest.mark.slow
def test_a_served_judge_pays_and_stalls_no_step(vlmrl, tmp_path, monkeypatch, capfd):
    """Its verdicts gate the reward; where it hangs a step costs the set time, and the
    completions are undecided; its key is nowhere; the same again sends nothing."""
    canary = "sk-canary-2718281828"
    monkeypatch.setenv("JUDGE_KEY", canary)

    def agrees(request):
        output = {"conclusion": item_of(request)["answer"], "verdict": "consistent"}
        return body_of(json.dumps(output | {"confidence": 0.9}))

    def some_hang(body, nth):
        return "slow" if hashlib.sha256(body).digest()[0] < 80 else "ok"

    with serve(agrees, some_hang) as server:
        server.slow_seconds = 60.0
        fields = {
            "judge.name": "http:m",
            "judge.url": server.url,
            "judge.key_env": "JUDGE_KEY",
            "judge.seconds": 3.0,
            "sampling.max_tokens": 32,
            "save_rollouts": 1,
            "eval.every": 0,
        }
        words = ["train", "--config", "configs/tiny/faithful.py:runlocal"]
        words += [*overrides(SMALL | fields), "--workdir", tmp_path]
        vlmrl(*words)
        sent = len(server.bodies)
        assert server.kinds["slow"] and server.kinds["ok"]
        assert all(f"Bearer {canary}" in head for head in server.headers)
        vlmrl(*words)
        assert len(server.bodies) == sent
    rows = metrics.read(tmp_path / "seed-0" / "metrics.jsonl")
    late = sum(r["judge/late"] for r in rows) * 16
    assert 1 <= round(late) <= server.kinds["slow"]
    assert all(r["judge/waited"] < 30 for r in rows)
    paths = (tmp_path / "seed-0" / "rollouts").glob("*.parquet")
    built = [row for path in paths for row in pq.read_table(path).to_pylist()]
    verdicts = Counter(row["verdict"] for row in built)
    assert len(built) == 32 and set(verdicts) == {"consistent", "undecided"}
    assert verdicts["undecided"] >= round(late)
    replies = (tmp_path / "seed-0" / "replies.jsonl").read_text().splitlines()
    # On a slow machine what hung may be answered before the run ends.
    ok = server.kinds["ok"]
    assert ok <= len(replies) <= ok + server.kinds["slow"]
    out = capfd.readouterr()
    assert canary not in out.out + out.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_large_models_way_in_small(vlmrl, tmp_path):
    """Parameters in float32, shared by four devices, and each with another; computed,
    sampled, measured and exported in bfloat16; layers rematerialised."""
    fields = SMALL | {"steps": 1, "eval.every": 1, "save_every": 1}
    fields |= {
        "compute": "bfloat16",
        "learner.remat": "nothing_saveable",
        "learner.unroll": False,
    }
    fields |= {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    fields |= {"loss.kl_weight": 0.1, "optimizer.warmup": 0}
    words = ["train", "--config", "configs/tiny/accuracy.py:runlocal"]
    vlmrl(*words, *overrides(fields), "--workdir", tmp_path)
    seed = tmp_path / "seed-0"
    stored, _ = checkpoint.restore(seed / "checkpoints", 1)
    model, start = weights.load("tiny")
    _, exported = weights.load(seed / "model", dtype=None)
    for name in model.table:
        learnt = stored[f"state/params/{name}"]
        assert learnt.dtype == np.float32 and exported[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(learnt.astype(jnp.bfloat16), exported[name])
    moved = {n for n in model.table if (stored[f"state/params/{n}"] != start[n]).any()}
    assert any(n.startswith("text.layers.") for n in moved)
    (row,) = metrics.read(seed / "metrics.jsonl")
    # A sum over tensor shards is rounded shard by shard, here and there in two ways.
    assert row["ratio_max"] == pytest.approx(1, abs=1e-2) and row["kl_ref"] < 1e-4
    table = records.read(seed / "records" / "step-000001.parquet")
    assert set(table["dtype"].to_pylist()) == {"bfloat16"}


@pytest.mark.slow
def test_an_adapter_is_trained_and_merged(vlmrl, tmp_path):
    """Only the adapter moves, rollouts are kept, and what is exported is the sum."""
    fields = SMALL | {"steps": 1, "eval.every": 0, "save_every": 1}
    fields |= {"lora.rank": 2, "save_rollouts": 1, "loss.entropy_weight": 0.1}
    words = ["train", "--config", "configs/tiny/accuracy.py:runlocal"]
    fields |= {"optimizer.warmup": 0, "lora.alpha": 6.0}
    vlmrl(*words, *overrides(fields), "--workdir", tmp_path)
    seed = tmp_path / "seed-0"
    stored, _ = checkpoint.restore(seed / "checkpoints", 1)
    model, start = weights.load("tiny")
    adapters = [n for n in stored if n.startswith("state/params/lora.")]
    assert adapters and any(stored[n].any() for n in adapters if n.endswith(".b"))
    assert not any("text.embed" in n for n in stored if n.startswith("state/opt_state"))
    for name in model.table:
        np.testing.assert_array_equal(stored[f"state/params/{name}"], start[name])
    _, exported = weights.load(seed / "model")
    moved = {n for n in model.table if (exported[n] != start[n]).any()}
    assert moved and all(n.startswith("text.layers.") for n in moved)
    # The newest checkpoint, and the adapter on the base, are the same model.
    actual = {"checkpoint": weights.load(seed)[1]}
    options, both = peft.load(seed / "adapter", model, start)
    assert (options.rank, options.alpha) == (2, 6.0)
    actual["adapter"] = lora.merge(model, options, both)
    for params in actual.values():
        for name in model.table:
            np.testing.assert_array_equal(params[name], exported[name])
    rows = pq.read_table(seed / "rollouts" / "step-000001.parquet").to_pylist()
    assert len(rows) == 16 and {r["weights_step"] for r in rows} == {0}


@pytest.mark.slow
def test_an_adapter_is_trained_on_a_base_in_8_bits(vlmrl, tmp_path):
    """The base stays as it was rounded, is resumed, evaluated and exported with what
    was learnt on it."""
    fields = SMALL | {"steps": 2, "save_every": 1, "optimizer.warmup": 0}
    fields |= {"quantize": "int8", "lora.rank": 2, "loss.entropy_weight": 0.1}
    words = ["train", "--config", "configs/tiny/accuracy.py:runlocal"]
    words += overrides(fields)
    vlmrl(*words, "--workdir", tmp_path)
    seed = tmp_path / "seed-0"
    model, base = weights.load("tiny", quantize="int8")
    stored, about = checkpoint.restore(seed / "checkpoints", 2)
    linears = [n for n, p in model.table.items() if linear(p)]
    for name in linears:
        remaining = stored[f"state/params/{name}/values"]
        assert remaining.dtype == np.int8
        np.testing.assert_array_equal(remaining, base[name].values)
    options, both = peft.load(seed / "adapter", model, base)
    assert about["lora"]["targets"] == ["text.*"]
    expected = lora.merge(model, options, both)
    _, exported = weights.load(seed / "model")
    _, newest = weights.load(seed)
    for name in model.table:
        np.testing.assert_array_equal(exported[name], expected[name])
        np.testing.assert_array_equal(newest[name], expected[name])
    learnt = [n for n in linears if n.startswith("text.")]
    assert all((exported[n] != base[n].astype(np.float32)).any() for n in learnt)
    assert records.read(seed / "records" / "step-000002.parquet").num_rows
    # Resumed from its first step, it ends where it ended.
    shutil.copytree(tmp_path, tmp_path.with_name("again"))
    again = tmp_path.with_name("again") / "seed-0"
    for path in ("model", "adapter", "checkpoints/2"):
        shutil.rmtree(again / path)
    vlmrl(*words, "--workdir", again.parent)
    for name in ("model/model", "adapter/adapter_model"):
        file = f"{name}.safetensors"
        assert (again / file).read_bytes() == (seed / file).read_bytes()


@pytest.mark.parametrize("mode", ["", ":runlocal"])
@pytest.mark.parametrize("name", [*REMEDIES, "dapo"])
def test_every_other_recipe_passes_its_check(name, mode):
    settings = args.load_config(f"configs/tiny/{name}.py{mode}").to_dict()
    settings["prompts"] = 8
    run_config.check(settings)


def test_the_other_configs_load():
    names = [f"sft.py:stage={s}" for s in ("letters", "ends", "scenes")]
    for name in [*names, "sft.py", "eval.py", "demo.py", "grpo.py"]:
        for mode in ("", ",runlocal" if ":" in name else ":runlocal"):
            config = args.load_config(f"configs/tiny/{name}{mode}")
            assert config.style == "tiny"
            assert ("sft" in name) == (config.get("algorithm") == "sft")
    demo = args.load_config("configs/tiny/demo.py")
    assert [r.recipe for r in demo.recipes.values()] == ["accuracy", "faithful"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, model",
    [
        ("configs/tiny/sft.py:runlocal", "tiny"),
        ("configs/tiny/judge.py:runlocal", "tiny_judge"),
    ],
)
def test_a_supervised_run_and_the_same_again(config, model, vlmrl, tmp_path):
    fields = {"model": model, "steps": 2, "save_every": 2}
    words = ["sft", "--config", config, *overrides(fields)]
    vlmrl(*words, "--workdir", tmp_path)
    (row,) = metrics.read(tmp_path / "metrics.jsonl")
    assert row["step"] == 2 and all(np.isfinite(v) for v in row.values())
    stored, _ = checkpoint.restore(tmp_path / "checkpoints", 2)
    _, params = weights.load(tmp_path / "model")
    for name, value in params.items():
        np.testing.assert_array_equal(value, stored[f"params/{name}"])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    vlmrl(*words, "--workdir", tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"seed": 7101}, "config.seed is 7101, expected another: judges are tested on"),
        (
            {"source": "songs"},
            "config.source is 'songs', expected one of scenes",
        ),
    ],
)
def test_lessons_that_are_refused(fields, complaint, refused, tmp_path):
    words = ["sft", "--config", "configs/tiny/judge.py", *overrides(fields)]
    assert complaint in refused(*words, workdir=tmp_path / "w")


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"model": "/nowhere"}, "model '/nowhere': no such directory"),
        (
            {"sampling.group_size": 1},
            "is 1, but config.advantage.name='grpo'",
        ),
        ({"sampling.temperature": 0.0}, "config.sampling.temperature is 0.0, but the"),
        (
            {"judge.name": "gpt"},
            "config.judge.name is 'gpt', expected one of rule",
        ),
        ({"judge.name": "http:m"}, "config.judge.name: an http judge needs a url"),
        (
            {"reward.name": "gated", "judge.name": ""},
            "config.reward.name='gated' needs a verdict, but",
        ),
        (
            {"judge.parts": 2},
            "a multiple of the 16 devices in each of 2 parts",
        ),
        (
            {"sampling.off_policy_steps": 1, "sampling.resampling_rounds": 2},
            "config.sampling.off_policy_steps=1 samples a step early, but",
        ),
        ({"lora.rank": -1}, "config.lora.rank is -1, expected 0 or more"),
        ({"quantize": "int8"}, "config.quantize is 'int8', a base that can't learn, "),
        ({"quantize": "int3", "lora.rank": 2}, "'int3' is not supported; supported:"),
        (
            {"compute": "bfloat16", "lora.rank": 2},
            "config.compute is 'bfloat16' beside an adapter",
        ),
        ({"compute": "int8"}, "compute: expected float32, bfloat16 or '', got 'int8'"),
        (
            {"learner.remat": "all"},
            "config.learner.remat is 'all', expected one of n",
        ),
        ({"reward.name": "gate"}, "config.reward.name is 'gate', expected one of grpo"),
        ({"advantage.name": "x"}, "config.advantage.name is 'x', expected one of"),
        ({"algorithm": "ppo"}, "config.algorithm is 'ppo', expected 'grpo'"),
        ({"algorithm": "sft"}, "config.algorithm is 'sft', expected 'grpo'; run this"),
        ({"algorithm": "study"}, "with `vlmrl study`"),
        ({"data.source": "x"}, "data source 'x' is not one of scenes"),
        ({"data.source": ""}, "config.data.source is ''"),
        ({"data.source": "scenes,x"}, "config.eval.source is '', but config.data.so"),
        ({"eval.split": "train"}, "config.eval.split is 'train', the split that is"),
        ({"eval.conditions": "('bass',)"}, "unknown condition 'bass'; known: base"),
        ({"optimizer.decay": "x"}, "config.optimizer.decay is 'x', expected one of"),
        ({"prompts": 12}, "config.prompts is 12, expected a multiple of the 8 dev"),
        ({"prompts": 0}, "config.prompts is 0, expected a multiple of the 8 devi"),
        (
            {"learner.microbatches": 3},
            "config.prompts is 8, expected a multiple of the 3 microbatches",
        ),
        ({"data.size": 4}, "config.data.size is 4, fewer than the 8 prompts of a step"),
        ({"data.split": "all"}, "split 'all' is not one of train, validation"),
        ({"eval.size": 0}, "size of validation: expected at least 1, got 0"),
        ({"style": "x"}, "unknown prompt style 'x'"),
        ({"group_size": 4}, "config.group_size: it is config.sampling.group_size now"),
        ({"lag": 1}, "config.lag: it is config.sampling.off_policy_steps now"),
        ({"judging.parts": 2}, "config.judging.parts: it is config.judge.parts now"),
        ({"constraint.most": 2}, "config.constraint.most: it is config.constraint.max"),
        ({"reward": "gated"}, "config.reward: it is config.reward.name now"),
        ({"stepz": 3}, "unknown config field config.stepz (did you mean steps?)"),
        ({"steps": "many"}, "--config.steps: expected int, got 'many'"),
        ({"optimizer.peak": "fast"}, "--config.optimizer.peak: expected float"),
    ],
)
def test_bad_input_is_refused(fields, complaint, refused, tmp_path):
    workdir = tmp_path / "run"
    output = refused(*WORDS, *overrides(SMALL | fields), workdir=workdir)
    assert complaint in output
    assert not directory._results(workdir)


def test_a_share_of_the_mix_that_makes_no_sense():
    settings = args.load_config("configs/tiny/both.py").to_dict() | {"prompts": 8}
    settings["mix"] = {"wrong_think": 0.6, "wrong_caption": 0.6}
    with pytest.raises(UserError, match=r"config.mix: shares sum to 1.2"):
        run_config.check(settings)


def test_other_bad_places(refused, tmp_path):
    assert "--config: must be given" in refused("train", workdir=tmp_path / "a")
    assert "--workdir: must be given" in refused(*WORDS)
    file = tmp_path / "file"
    file.write_text("x")
    assert "not writable" in refused(*WORDS, workdir=file)
    assert file.read_text() == "x"


def test_after_a_failure_the_same_place_can_be_used(refused, tmp_path):
    """A config that got as far as the directory, and failed, does not occupy it."""
    for size in (0, -1):  # found out when the data are made
        words = overrides(SMALL | {"eval.size": size})
        output = refused(*WORDS, *words, workdir=tmp_path)
        assert "size of validation" in output and str(size) in output
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["eval"]["size"] == size


def test_sets_that_were_prepared_are_trained_on_mixed(tmp_path, vlmrl, refused):
    row = {"options": ["cup", "mug"], "answer": 1}
    rows = [json.dumps(row | {"question": f"Which is number {i}?"}) for i in range(6)]
    for split, some in {"train": rows[:4], "dev": rows[4:]}.items():
        published.text(tmp_path / f"in/{split}.jsonl", "\n".join(some))
    vlmrl("data", "prepare", "own", "--source", tmp_path / "in", "--workdir", tmp_path)
    data = dict(source="scenes,own", split="train", size=3, weights=(1, 2))
    data, folder = run_config.Data(**data), tmp_path / "data"
    eval = run_config.Evaluation("own", "dev", 0, every=0, conditions=(), max_tokens=1)
    parts, weights, held_out = grpo.load_data(data, eval, folder)
    assert [len(p) for p in parts] == [3, 3] and weights == [1, 2]
    assert [e.question for e in held_out] == [
        json.loads(r)["question"] for r in rows[4:]
    ]
    with pytest.raises(UserError, match="names 2 sources, weights are .1, 2, 3."):
        grpo.load_data(data._replace(weights=(1, 2, 3)), eval, folder)
    with pytest.raises(UserError, match="split train has 4 examples, not 5"):
        grpo.load_data(data._replace(size=5), eval, folder)
    words = overrides(SMALL | {"data.source": "scenes,own", "eval.source": "other"})
    output = refused(*WORDS, *words, workdir=tmp_path)  # before any data are made
    assert "run `vlmrl data prepare own` first" not in output
    assert "run `vlmrl data prepare other` first" in output


def test_a_picture_that_does_not_decode(refused, tmp_path, monkeypatch):
    good = kit.examples(16)
    broken = [e._replace(images=(e.images[0][:200],)) for e in good]
    source = {"train": broken, "validation": good}
    monkeypatch.setitem(loader.SOURCES, "broken", lambda split, n: source[split][:n])
    words = overrides(SMALL | {"data.source": "broken"})
    output = refused(*WORDS, *words, workdir=tmp_path)
    assert "scenes/test/" in output and "does not decode" in output
    assert not directory._results(tmp_path)
