"""A checkpoint of more than 4 GiB: how much memory loading takes, how much each of two
processes reads, and how fast, beside a plain read of the same files.

Run as a script this file makes the checkpoint, and measures in a process (see `main`):

    python tests/models/test_big.py write DIR
    python tests/models/test_big.py DIR 0 1 0 [cold]
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Few fat layers in the shape of Qwen2.5-VL: 9 × 436 MB, and 2 × 262 MB of vocabulary.
CONFIG = dict(
    architectures=["Qwen2_5_VLForConditionalGeneration"],
    model_type="qwen2_5_vl",
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=9,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32000,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=dict(type="mrope", mrope_section=[16, 24, 24]),
    tie_word_embeddings=False,
    vision_config=dict(
        depth=2,
        hidden_size=256,
        num_heads=4,
        intermediate_size=512,
        in_chans=3,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=[1],
        out_hidden_size=4096,
    ),
)


def write(path: Path) -> int:
    """The checkpoint in shards of 1 GB, with the bytes of tensors that differ; returns
    their number."""
    import jax.numpy as jnp

    from vlmrl.models import files, registry

    (path / "config.json").write_text(json.dumps(CONFIG))
    model = registry.read_model(path)
    pattern = np.random.default_rng(0).normal(size=2**20 + 7).astype(jnp.bfloat16)

    def make(shape, seed):
        return np.resize(np.roll(pattern, -7919 * seed), shape)

    plans, kind = [], np.dtype(jnp.bfloat16)
    for p in model.table.values():
        shape = tuple(p.stored_shape)
        for name in p.stored_names:
            seed = len(plans)
            plan = files.PendingTensor(
                name, kind, shape, lambda x=shape, i=seed: make(x, i)
            )
            plans.append(plan)
    parts = files.shards(sorted(plans, key=files.natural_order), 10**9)
    for file, part in parts:
        files.write(path / file, part)
    (path / files.INDEX).write_text(files.index_json(parts))
    return sum(p.nbytes for p in plans)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """(directory, bytes); deleted when the tests are done."""
    path = tmp_path_factory.mktemp("big")
    free = os.statvfs(path)
    if free.f_bavail * free.f_frsize < 8e9:
        pytest.fail(f"{path}: needs 8 GB of free disk")
    try:
        yield path, write(path)
    finally:
        for file in path.iterdir():
            file.unlink()


def run(path: Path, processes: int) -> list[dict]:
    """Loads in so many processes at once; what each says of itself."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", XLA_FLAGS="")
    words = [sys.executable, __file__, str(path), str(port), str(processes)]
    every = [
        subprocess.Popen([*words, str(i)], env=env, stdout=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    try:
        said = [p.communicate(timeout=900)[0] for p in every]
    finally:
        for p in every:
            p.kill()
    assert [p.returncode for p in every] == [0] * processes
    return [json.loads(text.splitlines()[-1]) for text in said]


@pytest.mark.slow
def test_one_process_holds_little_more_than_the_parameters(big):
    path, size = big
    assert size > 4 * 2**30
    (found,) = run(path, 1)
    print(f"\n{size / 1e9:.2f} GB: {found}")
    assert found["equal"] and found["read"] < 1.02 * size
    assert found["peak"] < 1.25 * size, found


@pytest.mark.slow
def test_each_of_two_processes_reads_half(big):
    path, size = big
    every = run(path, 2)
    for found in every:
        print(f"\n{size / 1e9:.2f} GB on two processes: {found}")
        assert found["equal"]
        assert 0.49 * size < found["read"] < 0.52 * size, found
        assert found["peak"] < 0.75 * size, found


# -- one process -----------------------------------------------------------------------


def proc(file: str, field: str) -> int:
    """A number of /proc/self."""
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


class Clock:
    """Seconds by the clock and of this process's processor time."""

    def __init__(self):
        self.begun = time.perf_counter(), time.process_time()

    def read(self) -> list[float]:
        now = time.perf_counter(), time.process_time()
        return [round(b - a, 2) for a, b in zip(self.begun, now, strict=True)]


def drop(path: Path) -> None:
    """The files' pages leave the page cache."""
    for file in path.glob("*.safetensors"):
        with open(file, "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(path: Path) -> list[float]:
    """Reads the files through a buffer; how long it took (`Clock`)."""
    clock, buffer = Clock(), bytearray(2**24)
    for file in sorted(path.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass
    return clock.read()


def main(path: str, port: str, processes: str, index: str, cold: str = "") -> None:
    """Loads in bfloat16 on a mesh of all processes and prints a line of JSON. With
    `cold`, every reading is from the disk, else from the page cache if they are there.

    peak   anonymous memory while loading, bytes; mapped files apart
    start  the same before loading
    read   bytes asked of the kernel, those of Python's modules among them
    load   seconds by the clock and of processor time
    plain  the same of reading the files through a buffer, before and after
    equal  the last layer of every parameter is what the files hold
    """
    import jax
    import jax.numpy as jnp

    if int(processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(index))
    from vlmrl import sharding
    from vlmrl.models import files, registry, weights

    path, found = Path(path), {}

    def read_plainly():
        if cold:
            drop(path)
        return plain(path)

    found["plain"] = [read_plainly()]
    if cold:
        drop(path)
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    places = sharding.param_shardings(mesh, registry.read_model(path).table)
    done, peak = threading.Event(), [0]

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], 1024 * proc("status", "RssAnon"))

    watcher = threading.Thread(target=watch)
    found["start"] = 1024 * proc("status", "RssAnon")
    before, clock = proc("io", "rchar"), Clock()
    watcher.start()
    model, params = weights.load(path, dtype=jnp.bfloat16, shardings=places)
    found["load"] = clock.read()
    done.set()
    watcher.join()
    found["read"], found["peak"] = proc("io", "rchar") - before, peak[0]
    found["plain"].append(read_plainly())
    stored = files.list_tensors(path)
    found["equal"] = all(
        same(p, params[key], i, files.read(stored[name]))
        for key, p in model.table.items()
        for i, name in list(enumerate(p.stored_names))[-1:]
    )
    print(json.dumps(found))


def same(p, array, layer: int, wanted: np.ndarray) -> bool:
    """Whether what this process holds of a tensor is what the file does."""
    import einops

    wanted = einops.rearrange(wanted, p.layout, **p.sizes)
    for shard in array.addressable_shards:
        at, data = shard.index, shard.data
        if "{}" in p.name:
            at, data = at[1:], data[layer]
        part = wanted[at].reshape(-1).view(np.uint16)
        held = np.asarray(data).reshape(-1).view(np.uint16)
        if not np.array_equal(part, held):
            return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "write":
        Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
        print(write(Path(sys.argv[2])))
    else:
        main(*sys.argv[1:])
