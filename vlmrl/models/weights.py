"""Parameters of a named model: from Hugging Face files, or from a checkpoint of a run.

Names are those of `registry`.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.models import hf, lora, quant, registry
from vlmrl.models.api import Model, linear
from vlmrl.models.assemble import assemble
from vlmrl.run import checkpoint
from vlmrl.types import UserError

DTYPES = ("float32", "bfloat16")  # that parameters are loaded and written in
# Paths of the parameters within a checkpoint's tree: that of RL training, and those of
# supervised training and of `vlmrl convert`.
PARAMS_PATHS = (("state", "params"), ("params",))


def load(
    name: str | os.PathLike,
    *,
    dtype=jnp.float32,
    shardings=None,
    quantize: str | None = None,
    step: int = 0,
):
    """Return (Model, params) of a named model; called by all processes alike.

    Args:
      name: see `registry`.
      dtype: of the parameters; None: as they are stored.
      shardings: name → Sharding; None keeps everything on the default device.
      quantize: 'int8' holds the linear layers in 8 bits (`quant.Int8`), each rounded
        as it is read; needs qwix.
      step: which of a run's checkpoints; 0: its newest.
    Raises:
      UserError: tensors are missing, unknown, of the wrong shape, or a file is broken.
    """
    if quantize is not None:
        quant.check_method(quantize)
    path = registry.directory(name, weights=True)
    model = registry.read_model(path)
    shardings = shardings or dict.fromkeys(model.table)
    int8 = {key for key, p in model.table.items() if quantize and linear(p)}
    checkpoints = path / registry.CHECKPOINTS
    if checkpoints.is_dir():
        params = read_checkpoint(checkpoints, model, step, shardings)
        return model, {
            key: _convert(model.table[key], x, dtype, key in int8)
            for key, x in params.items()
        }
    if step:
        raise UserError(
            f"step {step}: {name} has no {registry.CHECKPOINTS}/ to choose from"
        )
    tensors = hf.find_tensors(path, model)
    return model, {
        key: assemble(p, tensors[key], dtype, shardings[key], key in int8)
        for key, p in model.table.items()
    }


def run_meta(name: str | os.PathLike, step: int = 0) -> dict:
    """Return what a run saved beside the parameters of a checkpoint, {} for any other
    model; arguments as in `load`."""
    checkpoints = registry.directory(name, weights=True) / registry.CHECKPOINTS
    step = step or checkpoint.latest(checkpoints) if checkpoints.is_dir() else None
    return {} if step is None else checkpoint.meta(checkpoints, step) or {}


def _convert(p, array, dtype, int8: bool):
    """An array of a checkpoint as it was asked for; what is in 8 bits already stays."""
    if isinstance(array, quant.Int8):
        if int8:
            return array
        array = array.astype(jnp.float32)
    array = array if dtype is None else array.astype(dtype)
    return quant.quantize(array, quant.output_axes(p, layers=True)) if int8 else array


def read_checkpoint(
    checkpoints: Path, model: Model, step: int = 0, shardings=None
) -> dict:
    """Return the parameters alone of a checkpoint of a whole training state, as they
    are stored; where a run trained an adapter, merged into the base.

    Raises:
      UserError: there is no such checkpoint, or it holds another model's parameters.
    """
    step = step or checkpoint.latest(checkpoints)
    if step is None:
        raise UserError(f"{checkpoints}: holds no complete checkpoint")
    leaves = checkpoint.leaves(checkpoints, step)
    first = next(iter(model.table))
    path = next((p for p in PARAMS_PATHS if "/".join([*p, first]) in leaves), None)
    path = path or PARAMS_PATHS[0]
    prefix = "/".join(path)

    def shape_of(name, p):
        leaf = leaves.get(f"{prefix}/{name}")
        sharding = shardings and shardings[name]
        if f"{prefix}/{name}/values" in leaves:  # a base in 8 bits
            parts = zip(
                quant.shapes_of(p), quant.shardings_of(p, sharding), strict=True
            )
            return quant.Int8(*(_shape(x.shape, x.dtype, s) for x, s in parts))
        return _shape(p.shape, leaf.dtype if leaf else "float32", sharding)

    adapter = _adapter(checkpoints, step, leaves, prefix)
    added = lora.rows(model, adapter) if adapter else {}
    tree = {name: shape_of(name, p) for name, p in model.table.items()}
    tree |= {name: np.empty(p.shape, np.float32) for name, p in added.items()}
    for part in reversed(path):
        tree = {part: tree}
    tree, _ = checkpoint.restore(checkpoints, step, tree, partial=True)
    for part in path:
        tree = tree[part]
    if adapter is None:
        return tree
    base = {n: tree[n] for n in model.table}
    adapted = base | lora.put_like(base, added, {n: tree[n] for n in added})
    return lora.merge(model, adapter, adapted)


def _shape(shape, dtype, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _adapter(checkpoints: Path, step: int, leaves, prefix: str) -> lora.Adapter | None:
    """The adapter that a checkpoint's run trained."""
    settings = checkpoint.meta(checkpoints, step).get("lora")
    if settings is not None:
        targets = tuple(settings["targets"])
        return lora.Adapter(settings["rank"], settings["alpha"], targets)
    if any(name.startswith(f"{prefix}/{lora.PREFIX}") for name in leaves):
        raise UserError(
            f"{checkpoints / str(step)}: holds an adapter, but not its alpha: use the "
            "directory model/ that the run exported"
        )
    return None
