"""`vlmrl convert`: weights in another dtype, and checkpoints of runs, as directories
that transformers loads."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlmrl.models import lora, peft, registry, weights
from vlmrl.rl import loop, update
from vlmrl.run import checkpoint


@pytest.fixture(scope="module")
def tiny():
    """(Model, params) as shipped."""
    return weights.load("tiny")


@pytest.fixture
def run(tmp_path, tiny):
    """A run directory as `vlmrl train` leaves it: two checkpoints, whose parameters are
    the shipped ones plus the step."""
    _, params = tiny
    tx = optax.adam(1e-3)
    points = tmp_path / "run" / "seed-0" / "checkpoints"
    for step in (2, 4):
        moved = jax.tree.map(lambda x, by=step: x + by, params)
        state = update.TrainState(moved, tx.init(moved), jnp.int32(step))
        checkpoint.save(points, step, loop.Carry(state, 8 * step))()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "tiny"}))
    return points.parent


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_a_directory_comes_back_as_it_was(vlmrl, capsys, tmp_path, tiny):
    target = tmp_path / "new"
    vlmrl("convert", "--source", "tiny", "--target", target)
    assert capsys.readouterr().out == f"{target}\n"
    same(weights.load(target)[1], tiny[1])
    for name in registry.SIDE_FILES:
        if name != "config.json" and (registry.TINY / name).is_file():
            assert (target / name).read_bytes() == (registry.TINY / name).read_bytes()
    config = json.loads((target / "config.json").read_text())
    assert config == json.loads((registry.TINY / "config.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.slow
def test_bfloat16_halves_the_weights_and_says_so(vlmrl, tmp_path, tiny):
    half, back = tmp_path / "half", tmp_path / "back"
    vlmrl("convert", "--source=tiny", f"--target={half}", "--dtype=bfloat16")
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    sizes = [(d / "model.safetensors").stat().st_size for d in (half, registry.TINY)]
    assert sizes[0] < 0.55 * sizes[1]
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny[1])
    same(weights.load(half, dtype=jnp.bfloat16)[1], rounded)
    vlmrl("convert", f"--source={half}", f"--target={tmp_path / 'same'}")
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"  # unless asked for another, as it was
    vlmrl("convert", f"--source={half}", f"--target={back}", "--dtype=float32")
    assert json.loads((back / "config.json").read_text())["dtype"] == "float32"
    same(weights.load(back)[1], jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


def test_a_run_gives_its_newest_parameters(vlmrl, tmp_path, tiny, run):
    vlmrl("convert", "--source", run, "--target", tmp_path / "four")
    same(weights.load(tmp_path / "four")[1], jax.tree.map(lambda x: x + 4, tiny[1]))
    vlmrl("convert", "--source", run, "--target", tmp_path / "two", "--step=2")
    same(weights.load(tmp_path / "two")[1], jax.tree.map(lambda x: x + 2, tiny[1]))


def test_a_supervised_run_brings_its_own_start(vlmrl, tmp_path, tiny):
    points = tmp_path / "checkpoints"
    state = update.TrainState(tiny[1], {}, jnp.int32(1))
    checkpoint.save(points, 1, state)()
    (tmp_path / "config.json").write_text(json.dumps({"model": ""}))
    shutil.copytree(registry.TINY, tmp_path / "start")
    (tmp_path / "start" / "model.safetensors").unlink()
    vlmrl("convert", "--source", tmp_path, "--target", tmp_path / "out")
    same(weights.load(tmp_path / "out")[1], tiny[1])


def test_there_and_back_through_orbax(vlmrl, tmp_path, tiny):
    orbax, back = tmp_path / "orbax", tmp_path / "back"
    vlmrl("convert", "--source=tiny", "--target", orbax, "--format=orbax")
    assert not list(orbax.glob("*.safetensors"))
    same(weights.load(orbax)[1], tiny[1])
    vlmrl("convert", "--source", orbax, "--target", back)
    files = [(d / "model.safetensors").read_bytes() for d in (back, registry.TINY)]
    assert sorted(files[0]) == sorted(files[1])
    same(weights.load(back)[1], tiny[1])
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]


def test_an_adapter_is_merged(vlmrl, tmp_path, tiny):
    model, params = tiny
    stored = lora.Adapter(2, 4.0, ("vision.layers.o", "text.layers.q"))
    both = lora.init(model, stored, params, jax.random.key(0))
    both = {n: x + 0.1 if n.endswith(".b") else x for n, x in both.items()}
    peft.save(tmp_path / "adapter", model, stored, both, "tiny")
    words = ["convert", "--source=tiny", "--adapter", tmp_path / "adapter"]
    vlmrl(*words, "--target", tmp_path / "merged")
    actual = weights.load(tmp_path / "merged")[1]
    expected = lora.merge(model, stored, both)
    same(actual, expected)
    moved = {n for n, x in actual.items() if not np.array_equal(x, params[n])}
    assert moved == set(stored.targets)


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_reads_what_is_written(vlmrl, tmp_path, tiny, run):
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    for name, words in {"half": ["tiny", "--dtype=bfloat16"], "whole": [run]}.items():
        target = tmp_path / name
        vlmrl("convert", "--target", target, "--source", *words)
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            target, dtype="auto", output_loading_info=True
        )
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
        assert model.dtype == (torch.bfloat16 if name == "half" else torch.float32)
        size = sum(p.numel() for p in model.parameters())
        assert size == tiny[0].size


def test_refusals(refused, tmp_path, run):
    target = tmp_path / "new"
    to = ["convert", "--target", target, "--source"]
    assert "--target: must be given" in refused("convert", "--source=tiny")
    assert "--source: must be given" in refused("convert", f"--target={target}")
    output = refused(*to, "tiny", "--dtype=float16")
    assert output == "--dtype: expected float32 or bfloat16, got 'float16'"
    output = refused(*to, "tiny", "--format=bin")
    assert output == "--format: expected hf or orbax, got 'bin'"
    output = refused(*to, "tiny", "--adapter", tmp_path / "nowhere")
    assert "adapter_config.json: No such file" in output
    assert "no such directory" in refused(*to, tmp_path / "nowhere")
    assert "--step: tiny has no checkpoints/" in refused(*to, "tiny", "--step=2")
    output = refused(*to, run, "--step=3")
    assert "no complete checkpoint; steps there: 2, 4" in output
    assert f"holds runs; give one: {run}" in refused(*to, run.parent)
    assert not target.exists()


def test_broken_sources_leave_nothing(refused, tmp_path, run):
    to = ["convert", "--target", tmp_path / "new", "--source"]
    (run.parent / "config.json").unlink()
    assert "no config.json here or above" in refused(*to, run)
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    (empty / "config.json").write_text('{"model": "tiny"}')
    assert "holds no complete checkpoint" in refused(*to, empty)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in registry.SIDE_FILES:
        if (registry.TINY / name).is_file():
            (bare / name).write_bytes((registry.TINY / name).read_bytes())
    assert "model.safetensors is missing" in refused(*to, bare)
    (bare / "model.safetensors").write_bytes(
        (registry.TINY / "model.safetensors").read_bytes()[:5000]
    )
    assert "not a whole safetensors file" in refused(*to, bare)
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_never_overwritten(refused, tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    (target / "mine").write_text("x")
    output = refused("convert", "--source=tiny", "--target", target)
    assert "exists already" in output and [p.name for p in target.iterdir()] == ["mine"]
    file = tmp_path / "file"
    file.write_text("x")
    output = refused("convert", "--source=tiny", "--target", file / "below")
    assert output.startswith(f"--target {file / 'below'}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]
