"""Checkpoints: whole or absent, bit-exact, strict about names."""

import json
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlmrl.run import checkpoint
from vlmrl.types import UserError

NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"]
NUMPY = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]


def dtype(name):
    return np.dtype(getattr(ml_dtypes, name) if name in NARROW else name)


def bits(x):
    return repr(x) if isinstance(x, int) else np.asarray(x).tobytes()


def mesh(shape):
    devices = np.asarray(jax.devices()[:8]).reshape(shape)
    return Mesh(devices, ("a", "b"), axis_types=(AxisType.Auto,) * 2)


class State(NamedTuple):
    params: dict
    opt: tuple
    step: int


def training_state():
    params = {"layers/q": jnp.arange(12.0).reshape(3, 4), "head": jnp.ones(2)}
    return State(params, optax.adamw(1e-3).init(params), 7)


def damage(path, keep=10):
    """Cuts every data file below `path` short."""
    for file in (path / "state").rglob("d/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:keep])


@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_round_trip_is_bit_exact_for_every_dtype(tmp_path, kind):
    rng = np.random.default_rng(0)
    state = {}
    for name in NUMPY + NARROW:
        if kind == "jax" and (name.endswith("64") or name == "complex128"):
            continue  # jax narrows 64-bit types unless x64 is on
        raw = rng.integers(0, 255, 64, dtype=np.uint8)  # NaN payloads included
        if name in ("bool", "int4"):
            raw = raw % 2
        value = raw.view(dtype(name)).reshape(2, -1)
        state[name] = value if kind == "numpy" else jnp.asarray(value)
    checkpoint.save(tmp_path, 3, state)()
    got, meta = checkpoint.restore(tmp_path, 3, state)
    assert meta == {}
    for name, value in state.items():
        assert isinstance(got[name], jax.Array if kind == "jax" else np.ndarray)
        assert got[name].dtype == value.dtype and got[name].shape == value.shape
        assert bits(got[name]) == bits(value), name


def test_odd_leaves_round_trip(tmp_path):
    state = {
        "true": True,
        "int": 2**70,
        "float": 0.1,
        "nan": float("nan"),
        "inf": float("-inf"),
        "numpy scalar": np.float64(0.1),
        "scalar": jnp.float32(0.1),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "none": None,
        "nothing": {},
        "a/b.c": [jnp.uint32(1), (np.arange(3),)],
    }
    checkpoint.save(tmp_path, 0, state, {"x": [1, {"y": None}]})()
    got, meta = checkpoint.restore(tmp_path, 0, state)
    assert meta == {"x": [1, {"y": None}]}
    assert jax.tree.structure(got) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True)
    for a, b in pairs:
        assert type(a) is type(b) or isinstance(b, np.generic)
        assert bits(a) == bits(b)
    assert got["true"] is True and got["int"] == 2**70
    assert got["empty"].shape == (0, 3) and got["empty"].dtype == jnp.bfloat16


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_prng_keys_go_on_with_the_same_stream(tmp_path, impl):
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    state = {"keys": keys, "raw": jax.random.PRNGKey(5)}
    checkpoint.save(tmp_path, 0, state)()
    got, _ = checkpoint.restore(tmp_path, 0, jax.eval_shape(lambda: state))
    assert got["keys"].dtype == keys.dtype
    assert bits(jax.random.normal(got["keys"][1])) == bits(jax.random.normal(keys[1]))
    assert bits(got["raw"]) == bits(state["raw"])
    with pytest.raises(UserError, match="another type: keys.*threefry2x32|shape: keys"):
        other = {"threefry2x32": "rbg", "rbg": "threefry2x32"}[impl]
        wrong = jax.random.split(jax.random.key(5, impl=other), 3)
        checkpoint.restore(tmp_path, 0, {**state, "keys": wrong})


def test_nested_records_and_optimizer_state_resume(tmp_path):
    state = training_state()
    checkpoint.save(tmp_path, 1, state)()
    like = jax.eval_shape(lambda: state)._replace(step=0)
    got, _ = checkpoint.restore(tmp_path, 1, like)
    assert isinstance(got, State) and got.step == 7
    assert jax.tree.structure(got) == jax.tree.structure(state)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(state)))


def test_restores_onto_another_mesh(tmp_path):
    x = jnp.arange(64.0).reshape(8, 8)
    saved = jax.device_put(x, NamedSharding(mesh((8, 1)), P("a", None)))
    checkpoint.save(tmp_path, 0, {"x": saved})()
    target = NamedSharding(mesh((2, 4)), P("b", "a"))
    like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=target)}
    got = checkpoint.restore(tmp_path, 0, like)[0]["x"]
    assert got.sharding == target and np.array_equal(got, x)
    alone = checkpoint.restore(tmp_path, 0, jax.eval_shape(lambda: {"x": x}))[0]["x"]
    assert len(alone.devices()) == 1 and np.array_equal(alone, x)


def test_saving_copies_before_it_returns(tmp_path):
    host, device = np.arange(1 << 20), jnp.arange(1 << 20)
    wait = checkpoint.save(tmp_path, 0, {"host": host, "device": device})
    host[:] = -1
    jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(device).block_until_ready()
    wait()
    got = checkpoint.restore(tmp_path, 0)[0]
    assert np.array_equal(got["host"], np.arange(1 << 20))
    assert np.array_equal(got["device"], np.arange(1 << 20))


def test_without_like_gives_a_flat_dict(tmp_path):
    state = training_state()
    checkpoint.save(tmp_path, 0, {"s": state, "key": jax.random.key(1)})()
    got, _ = checkpoint.restore(tmp_path, 0)
    assert got["s/step"] == 7
    assert np.array_equal(got["s/params/layers/q"], state.params["layers/q"])
    assert np.array_equal(got["key"], jax.random.key_data(jax.random.key(1)))
    table = checkpoint.leaves(tmp_path, 0)
    assert table["s/params/layers/q"] == checkpoint.Leaf("array", (3, 4), "float32")
    assert table["key"].kind == "key:threefry2x32" and set(table) == set(got)


def test_mismatches_are_named(tmp_path):
    state = {
        "a": jnp.zeros(3),
        "b": {"c": jnp.zeros((2, 2)), "d": jnp.zeros(1)},
        "n": 1,
    }
    checkpoint.save(tmp_path, 4, state)()
    like = {
        "a": jnp.zeros(3, jnp.int32),
        "b": {"c": jnp.zeros((2, 3)), "new": 0.5},
        "n": True,
    }
    with pytest.raises(UserError) as caught:
        checkpoint.restore(tmp_path, 4, like)
    text = str(caught.value)
    assert "\n" not in text and str(tmp_path / "4") in text
    assert "missing in the checkpoint: b/new;" in text
    assert "not expected: b/d;" in text
    assert "of another shape: b/c (saved (2, 2), expected (2, 3));" in text
    assert "a (saved float32, expected int32)" in text
    assert "n (saved number int, expected number bool)" in text


def test_partial_reads_a_part_and_stays_strict_about_it(tmp_path):
    state = training_state()
    checkpoint.save(tmp_path, 0, state)()
    like = {"params": jax.eval_shape(lambda: state.params)}
    got, _ = checkpoint.restore(tmp_path, 0, like, partial=True)
    assert np.array_equal(got["params"]["head"], state.params["head"])
    with pytest.raises(UserError, match="not expected: opt/0/count"):
        checkpoint.restore(tmp_path, 0, like)
    with pytest.raises(UserError, match="missing in the checkpoint: nope"):
        checkpoint.restore(tmp_path, 0, {"nope": 1}, partial=True)


def test_latest_passes_over_what_is_not_a_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.latest(tmp_path) is None
    for step in (9, 10):
        checkpoint.save(tmp_path, step, {"x": np.arange(3)})()
    (tmp_path / "11").mkdir()
    (tmp_path / "12").write_text("not a directory")
    (tmp_path / "013").mkdir()
    (tmp_path / "14.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "best").mkdir()
    checkpoint.save(tmp_path, 15, {"x": np.arange(3)})()
    (tmp_path / "15" / "meta" / "metadata").unlink()
    assert checkpoint.steps(tmp_path) == [9, 10] and checkpoint.latest(tmp_path) == 10
    checkpoint.save(tmp_path, 11, {"x": np.arange(4)})()  # torn ones make way
    checkpoint.save(tmp_path, 12, {"x": np.arange(4)})()
    assert checkpoint.latest(tmp_path) == 12
    with pytest.raises(UserError, match="exists already"):
        checkpoint.save(tmp_path, 9, {"x": np.arange(3)})


def test_an_unfinished_write_is_invisible(tmp_path):
    wait = checkpoint.save(tmp_path, 1, {"x": np.arange(1 << 22)})
    seen = checkpoint.steps(tmp_path)
    wait()
    assert seen in ([], [1]) and checkpoint.steps(tmp_path) == [1]
    if seen == [1]:  # it was that fast: then it was whole
        assert checkpoint.restore(tmp_path, 1)[0]["x"][-1] == (1 << 22) - 1


def test_a_process_that_dies_while_saving_leaves_the_one_before(tmp_path):
    code = """
import os, sys
import numpy as np
from vlmrl.run import checkpoint
checkpoint.save(sys.argv[1], 1, {"x": np.arange(3)})()
checkpoint.save(sys.argv[1], 2, {"x": np.zeros(1 << 24)})
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == 9
    assert (tmp_path / "2").exists() == (checkpoint.latest(tmp_path) == 2)
    assert np.array_equal(checkpoint.restore(tmp_path, 1)[0]["x"], np.arange(3))
    if checkpoint.latest(tmp_path) == 1:  # unless the disk was that fast
        checkpoint.save(tmp_path, 2, {"x": np.arange(4)})()
    assert checkpoint.steps(tmp_path) == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_keeps_the_newest(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, {"x": np.full(3, step)}, keep=2)()
    assert checkpoint.steps(tmp_path) == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
    checkpoint.save(tmp_path, 1, {"x": np.zeros(3)}, keep=2)()
    assert checkpoint.steps(tmp_path) == [1, 3, 4], "never deletes what it just wrote"


def test_keeps_the_best(tmp_path):
    for step, score in enumerate([0.2, 0.9, None, 0.9, 0.1, 0.3]):
        state = {"x": np.full(3, step)}
        checkpoint.save(tmp_path, step, state, keep=1, score=score)()
        assert checkpoint.latest(tmp_path) == step
    assert checkpoint.best(tmp_path) == 3, "of equals the newest"
    assert checkpoint.steps(tmp_path) == [3, 5]
    checkpoint.save(tmp_path, 6, state, keep=1, score=0.95)()
    assert checkpoint.steps(tmp_path) == [6]
    assert checkpoint.best(tmp_path / "none") is None


def test_saves_by_steps_and_by_minutes(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    save = checkpoint.Saver(tmp_path, keep=9, minutes=10, saved=2)
    for step, minute in ((3, 5), (4, 11), (5, 20), (6, 20.5), (7, 31)):
        clock[0] = 60 * minute
        save(step, {"x": np.full(3, step)}, None, now=step == 6)
    save(7, {"x": np.zeros(3)}, None, now=True)  # has been saved already
    save.finish()
    assert checkpoint.steps(tmp_path) == [4, 6, 7]
    assert checkpoint.restore(tmp_path, 7)[0]["x"][0] == 7


FULL = """
import resource, signal, sys
import numpy as np
from vlmrl.run import checkpoint
from vlmrl.types import UserError
checkpoint.save(sys.argv[1], 1, {"x": np.arange(3)})()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
big = np.random.default_rng(0).integers(0, 1 << 62, 1 << 18)
try:
    checkpoint.save(sys.argv[1], 2, {"x": big})()
except UserError as error:
    print(error)
"""


def test_a_write_that_fails_is_one_line_and_leaves_the_last_good_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path}: cannot write a checkpoint: "), done.stderr
    assert line.endswith("; step 1, the last good one, is kept")
    assert checkpoint.steps(tmp_path) == [1]
    checkpoint.save(tmp_path, 2, {"x": np.arange(3)})()
    assert checkpoint.steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError(
            "RESOURCE_EXHAUSTED: Error writing: No space left on device [OS 28]"
        ),
    ],
)
def test_a_full_disk_is_said_so(tmp_path, monkeypatch, error):
    checkpoint.save(tmp_path, 1, {"x": np.arange(3)})()

    def fails(self):
        raise RuntimeError("save failed") from error

    wait = checkpoint.save(tmp_path, 2, {"x": np.arange(4)})
    monkeypatch.setattr(checkpoint.ocp.AsyncCheckpointer, "wait_until_finished", fails)
    with pytest.raises(UserError, match="the disk is full; step [12], the last good"):
        wait()


def test_damage_is_one_line(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": np.arange(100_000)})()
    damage(tmp_path / "1")
    with pytest.raises(UserError, match="1: damaged checkpoint .*delete it") as caught:
        checkpoint.restore(tmp_path, 1)
    assert "\n" not in str(caught.value)
    checkpoint.save(tmp_path, 2, {"x": np.arange(3)})()
    meta = tmp_path / "2" / "meta" / "metadata"
    meta.write_text(meta.read_text()[:20])
    with pytest.raises(UserError, match="2: damaged checkpoint"):
        checkpoint.restore(tmp_path, 2)
    checkpoint.save(tmp_path, 3, {"x": np.arange(3)})()
    meta = tmp_path / "3" / "meta" / "metadata"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format is 99, expected 1"):
        checkpoint.restore(tmp_path, 3)
    with pytest.raises(UserError, match="no complete checkpoint; steps there: 1, 2, 3"):
        checkpoint.restore(tmp_path, 8)


@pytest.mark.parametrize(
    "state, complaint",
    [
        ({"a": {"b": "text"}}, "leaf a/b: cannot store a str"),
        ({"x": np.array(["text"])}, "leaf x: cannot store dtype <U4"),
        ({"x": np.array([object()])}, "leaf x: cannot store dtype object"),
        ({"n": 1, "e": np.zeros((0, 2))}, "no array with elements"),
        ({"a/b": 1, "a": {"b": 2}}, "two leaves have the path a/b"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing_behind(tmp_path, state, complaint):
    with pytest.raises(UserError, match=complaint):
        checkpoint.save(tmp_path / "new", 0, state)
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "new", 0, {"x": np.ones(1)}, {"meta": object()})
    with pytest.raises(UserError, match="step is -1"):
        checkpoint.save(tmp_path / "new", -1, {"x": 1})
    assert not (tmp_path / "new").exists()


def test_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot write a checkpoint"):
        checkpoint.save(tmp_path / "file" / "run", 0, {"x": np.arange(3)})
