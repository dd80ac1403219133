"""Means that add, and the writer: resume, torn lines, missing packages."""

import json
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmrl.metrics import Max, Writer, add, read, values
from vlmrl.types import Mean, UserError


class Terms(NamedTuple):
    loss: Mean
    top: Max
    kl: Mean | None = None


def tree(x, n=2):
    return {"policy": Terms(Mean(x, n), Max(x)), "grads": jnp.array([x, 1.0])}


def test_add_joins_sums_counts_and_maxima():
    got = add(tree(1.0), tree(5.0), tree(2.0))
    assert got["policy"].loss == Mean(8, 6)
    assert got["policy"].top.value == 5
    np.testing.assert_array_equal(got["grads"], [8, 3])
    assert got["policy"].kl is None


def test_add_inside_jit_and_scan():
    trees = jax.tree.map(
        lambda *x: jnp.stack(x), *[tree(jnp.float32(x), jnp.int32(2)) for x in (1, 7)]
    )

    @jax.jit
    def run(trees):
        first = jax.tree.map(lambda x: x[0], trees)
        rest = jax.tree.map(lambda x: x[1:], trees)
        return jax.lax.scan(lambda a, b: (add(a, b), None), first, rest)[0]

    got = run(trees)
    assert got["policy"].loss == Mean(8, 4)
    assert got["policy"].top == Max(7)


def test_values_names_floats_and_leaves_out_what_counted_nothing():
    record = {
        "policy": Terms(Mean(jnp.float32(3), jnp.int32(4)), Max(jnp.float32(2))),
        "empty": Mean(0.0, 0),
        "rate": 0.5,
    }
    got = values(record, "train")
    expected = {"train/policy/loss": 0.75, "train/policy/top": 2.0, "train/rate": 0.5}
    assert got == expected
    assert all(type(v) is float for v in got.values())
    assert values({"a": Mean(1, 2)}) == {"a": 0.5}


def test_rows_are_appended_and_read_back(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write(0, {"loss": 1.5, "split": "val"})
        assert read(tmp_path / "metrics.jsonl") == [
            {"step": 0, "loss": 1.5, "split": "val"}
        ]  # on disk before the file is closed
        writer.write(1, {"loss": float("nan"), "kl": float("inf")})
    assert read(writer.path)[1] == {"step": 1, "loss": None, "kl": None}
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_resume_drops_later_rows_and_a_torn_line(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"loss": step / 2})
    with open(writer.path, "a") as file:
        file.write('{"step": 5, "lo')  # the run was killed here
    with Writer(tmp_path, restored=2) as writer:
        writer.write(3, {"loss": 9.0})
    assert [r["step"] for r in read(writer.path)] == [0, 1, 2, 3]
    assert read(writer.path)[-1]["loss"] == 9.0


def test_an_interrupted_run_leaves_the_same_file_as_an_uninterrupted_one(tmp_path):
    def run(folder, kill):
        os.mkdir(folder)
        with Writer(folder) as writer:
            for step in range(kill):
                writer.write(step, {"loss": 1 / (step + 3), "ü": "ü"})
        with Writer(folder, restored=3) as writer:
            for step in range(4, 8):
                writer.write(step, {"loss": 1 / (step + 3), "ü": "ü"})
        return writer.path.read_bytes()

    assert run(tmp_path / "a", 4) == run(tmp_path / "b", 7)


def test_a_new_run_starts_an_empty_file(tmp_path):
    for _ in range(2):
        with Writer(tmp_path) as writer:
            writer.write(0, {"loss": 1.0})
    assert len(read(writer.path)) == 1


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"loss": 1}'])
def test_a_broken_line_is_named_and_nothing_is_lost(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + bad + '\n{"step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2"):
        Writer(tmp_path, restored=1)
    assert path.read_bytes() == before


def test_an_unwritable_place_is_named(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl: can't be written"):
        Writer(tmp_path / "missing")


def test_missing_packages_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb: needs the package wandb"):
        Writer(tmp_path, wandb={"project": "x"})
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="tensorboard: needs the package tensorboardX"):
        Writer(tmp_path, tensorboard=True)
    assert not os.listdir(tmp_path)


def test_tensorboard_gets_the_floats(tmp_path):
    pytest.importorskip("tensorboardX")
    with Writer(tmp_path, tensorboard=True) as writer:
        writer.write(3, {"loss": 0.25, "split": "val", "kl": float("nan")})
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"loss" in data
    assert b"split" not in data and b"kl" not in data


def test_wandb_gets_the_floats(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, row, step):
            calls.append((step, row))

        def finish(self):
            calls.append("finish")

    class Wandb:
        @staticmethod
        def init(**kwargs):
            calls.append(kwargs)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    with Writer(tmp_path, wandb={"project": "x"}) as writer:
        writer.write(3, {"loss": 0.25, "split": "val"})
    assert calls == [
        {"dir": str(tmp_path), "project": "x"},
        (3, {"loss": 0.25}),
        "finish",
    ]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Writer(tmp_path) as writer:
        writer.write(0, {"loss": 1.0})
    assert not os.listdir(tmp_path)


def test_rows_are_one_line_each(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write(0, {"note": "two\nlines"})
    (line,) = writer.path.read_text().splitlines()
    assert json.loads(line)["note"] == "two\nlines"
