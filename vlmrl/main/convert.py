"""Write a model as a directory that Hugging Face transformers loads.

The source is 'tiny', a directory in that format already (to change its dtype), or a run
directory with checkpoints/: WORKDIR/seed-N of `vlmrl train`, WORKDIR/RECIPE/seed-N of
`vlmrl demo`, WORKDIR of a supervised run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from vlmrl import checkpoint
from vlmrl.main import args
from vlmrl.models import hf
from vlmrl.types import UserError

HELP = "a checkpoint or model directory → a Hugging Face directory"
FLAGS = {
    "source": (None, "'tiny', a Hugging Face directory, or a run with checkpoints/"),
    "target": (None, "directory to make; it must not exist"),
    "dtype": ("float32", "of the weights written: float32 or bfloat16"),
    "step": (0, "checkpoint of a run to convert; 0 is its newest"),
}
DTYPES = ("float32", "bfloat16")
# Where checkpoints hold parameters: those of RL, those of the supervised warm start.
PLACES = (("state", "params"), ("params",))
FLOAT = checkpoint.Leaf("array", (), "float32")


def main(argv):
    _, _, other = args.parse(argv, FLAGS)
    for flag in ("source", "target"):
        if not getattr(other, flag):
            raise UserError(f"--{flag}: must be given; see --help")
    if other.dtype not in DTYPES:
        raise UserError(f"--dtype is '{other.dtype}', want {' or '.join(DTYPES)}")
    print(convert(other.source, other.target, other.dtype, other.step))


def convert(source: str, target: str, dtype: str = "float32", step: int = 0) -> Path:
    """Writes the directory; `step` as in FLAGS.

    Raises:
      UserError: `source` is none of the three, has no such step, or holds other tensors
        than its config.json says; `target` exists or cannot be written.
    """
    points = Path(source) / "checkpoints"
    if points.is_dir():
        origin = start_of(Path(source))
        model = hf.read_model(origin)
        params = read_params(points, step, model)
    elif step:
        raise UserError(f"--step: {source} has no checkpoints/ to choose from")
    elif runs := sorted(str(p.parent) for p in Path(source).glob("**/checkpoints")):
        raise UserError(f"--source {source}: holds runs; give one: {', '.join(runs)}")
    else:
        origin = hf.resolve(source)
        model, params = hf.load(origin)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    try:
        with tempfile.TemporaryDirectory() as beside:
            side_files(origin, Path(beside), dtype)
            return hf.save(target, model, params, beside)
    except OSError as error:
        raise UserError(f"--target {target}: {error.strerror or error}") from error


def start_of(run: Path) -> Path:
    """The model directory a run began with: its config.json and tokenizer are those of
    every checkpoint of the run."""
    begun = run / "start"  # a supervised run from random weights made its own
    if begun.is_dir():
        return hf.resolve(begun)
    for directory in (run, *run.absolute().parents[:2]):
        path = directory / "config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        if config.get("model"):
            return hf.resolve(config["model"])
    raise UserError(
        f"{run}: no config.json of the run here or above says what model it began with"
    )


def read_params(points: Path, step: int, model) -> dict:
    """Parameters alone out of a checkpoint of a whole training state."""
    step = step or checkpoint.latest(points)
    if step is None:
        raise UserError(f"{points}: holds no complete checkpoint")
    held = checkpoint.leaves(points, step)
    first = next(iter(model.table))
    path = next((p for p in PLACES if "/".join([*p, first]) in held), PLACES[0])
    prefix = "/".join(path)
    like = {
        name: jax.ShapeDtypeStruct(p.shape, held.get(f"{prefix}/{name}", FLOAT).dtype)
        for name, p in model.table.items()
    }
    for part in reversed(path):
        like = {part: like}
    tree, _ = checkpoint.restore(points, step, like, partial=True)
    for part in path:
        tree = tree[part]
    return tree


def side_files(origin: Path, target: Path, dtype: str) -> None:
    """What a model directory holds beside weights, with the dtype that is written."""
    for name in hf.SIDE_FILES:
        if (origin / name).is_file():
            shutil.copy(origin / name, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)  # what older transformers called it
    config["dtype"] = dtype
    path.write_text(json.dumps(config, indent=1) + "\n")
