"""Hugging Face directories ⇄ parameters, by the family's parameter table.

Safetensors only, and no code of a checkpoint is ever run. Strict in both directions:
every tensor of the files must belong to the table and the table must be filled, else
one error lists the names; this is known before the first weight is read.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import einops
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmrl.models import files, registry
from vlmrl.models.api import Model, Param
from vlmrl.prompts import tag_tokens
from vlmrl.types import UserError

SHARD = 5 * 10**9  # bytes per file on export, as on the hub


def find_tensors(path: Path, model: Model) -> dict[str, list[files.StoredTensor]]:
    """Return, by parameter, the tensors of a directory that it is read from.

    Raises:
      UserError: tensors are missing, unknown, stored twice or of the wrong shape, or a
        file is broken.
    """
    stored: dict[str, files.StoredTensor] = {}
    for name, tensor in files.list_tensors(path).items():
        hub = model.hub_name(name)
        if hub in stored:
            raise UserError(
                f"{tensor.file}: tensor {name} is stored twice, as "
                f"{stored[hub].name} too"
            )
        stored[hub] = tensor
    copy = None
    if all(p.role != "head" for p in model.table.values()):  # tied: may be there again
        heads = [n for n in stored if n.endswith("lm_head.weight")]
        copy = stored.pop(heads[0]) if heads else None
    matched = match_tensors(path, model.family, model.table, stored)
    if copy is not None:
        _check_tied(copy, matched["text.embed"][0])
    return matched


def match_tensors(
    path: Path,
    what: str,
    table: dict[str, Param],
    stored: dict[str, files.StoredTensor],
) -> dict[str, list[files.StoredTensor]]:
    """Return the tensors of every row of a table, checked from the headers alone.

    Args:
      path, what: for errors: where the tensors are, and what they should be.
      stored: by the name that the table has.
    Raises:
      UserError: names or shapes are not the table's.
    """
    names = {n for p in table.values() for n in p.stored_names}
    unknown, missing = set(stored) - names, names - set(stored)
    if unknown or missing:
        raise UserError(
            f"{path}: tensors do not match {what}; "
            f"missing: {_list(missing)}; unknown: {_list(unknown)}"
        )
    for key, p in table.items():
        shape = p.stored_shape
        for t in (stored[name] for name in p.stored_names):
            if list(t.shape) != shape:
                raise UserError(
                    f"{t.file}: tensor {t.name}: {key} of {what}: expected "
                    f"shape {shape}, got {list(t.shape)}"
                )
            if t.kind not in files.DTYPES:
                raise UserError(
                    f"{t.file}: tensor {t.name}: expected one of "
                    f"{', '.join(files.DTYPES)}, got {t.kind}"
                )
    return {k: [stored[n] for n in p.stored_names] for k, p in table.items()}


def _check_tied(head: files.StoredTensor, embed: files.StoredTensor) -> None:
    """A tied head that is stored again must be the embedding."""
    same = head.shape == embed.shape and head.kind == embed.kind
    size = max(1, 2**26 // max(1, 4 * int(np.prod(head.shape[1:]))))
    for at in range(0, head.shape[0] if same else 0, size):
        a, b = (files.read(t, at, at + size) for t in (head, embed))
        same = same and np.array_equal(a.view(np.uint8), b.view(np.uint8))
    if not same:
        raise UserError(
            f"{head.file}: tensor {head.name} differs from {embed.name}, but "
            "tie_word_embeddings of config.json is true"
        )


def save(
    directory: str | os.PathLike,
    model: Model,
    params,
    source,
    dtype=None,
    *,
    plain_tags: bool = False,
) -> Path:
    """Write a directory that transformers loads; side files come from `source`.

    Everything goes to a temporary directory that is renamed at the end. Tensors are
    taken from the devices one by one. All processes call this; the first one writes.

    Args:
      dtype: of the weights, written to config.json too; None: that of the parameters.
      plain_tags: the model was trained with reasoning tags as ordinary text, and so
        shall everyone read them (`prompts.tag_tokens`).
    Raises:
      UserError: the directory exists already, or `source` is no model.
    """
    source = registry.resolve(source)
    parts = files.shards(pending_tensors(model.table, params, dtype), SHARD)
    with new_directory(directory) as partial:
        for file, part in parts:
            files.write(partial / file, part)
        if jax.process_index() == 0:
            if len(parts) > 1:
                (partial / files.INDEX).write_text(files.index_json(parts))
            copy_side_files(source, partial, dtype, plain_tags)
    return Path(directory)


def copy_side_files(
    source: Path, target: Path, dtype=None, plain_tags: bool = False
) -> None:
    """Copy what a directory has beside weights; write `dtype` into config.json, and
    with `plain_tags` a tokenizer without added reasoning tags."""
    for name in registry.SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if plain_tags:
        tag_tokens.make_plain(target)
    if dtype is not None:
        config = files.read_json(target / "config.json")
        config.pop("torch_dtype", None)  # what older transformers called it
        config["dtype"] = np.dtype(dtype).name
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


@contextmanager
def new_directory(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a directory under a temporary name beside `target`, renamed at the end and
    removed if something fails. The first process alone makes, renames and removes it.

    Raises:
      UserError: `target` exists already.
    """
    target = Path(target)
    if target.exists():
        raise UserError(f"{target}: exists already; export to a new directory")
    partial = target.with_name(target.name + ".partial")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        yield partial
        if first:
            partial.rename(target)
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)


def pending_tensors(
    table: dict[str, Param], params, dtype=None
) -> list[files.PendingTensor]:
    """Return the tensors that a table's parameters are stored as, in natural order of
    their names, each to be computed when it is written."""
    pending = []
    for key, p in table.items():
        array = params[key]
        kind, shape = np.dtype(dtype or array.dtype), tuple(p.stored_shape)
        for i, name in enumerate(p.stored_names):
            make = functools.partial(_stored_value, p, array, i, kind)
            pending.append(files.PendingTensor(name, kind, shape, make))
    return sorted(pending, key=files.natural_order)


def _stored_value(p: Param, array, i: int, dtype: np.dtype) -> np.ndarray:
    left, right = p.layout.split(" -> ")
    part = _take(array, i) if p.stacked else array
    if not isinstance(part, jax.Array | np.ndarray):  # 8 bits, or base and adapter
        part = _to_array(part, dtype)
    if isinstance(part, jax.Array) and not part.is_fully_addressable:
        part = _replicate(part)
    part = np.asarray(part)
    return einops.rearrange(part, f"{right} -> {left}", **p.sizes).astype(dtype)


@jax.jit
def _take(weight, i):
    take = jax.lax.dynamic_index_in_dim
    return jax.tree.map(lambda x: take(x, i, 0, keepdims=False), weight)


@functools.partial(jax.jit, static_argnames="dtype")
def _to_array(weight, dtype):
    return weight.astype(dtype)


def _replicate(array):
    everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)(array)


def _list(names: set[str], limit: int = 8) -> str:
    shown = ", ".join(sorted(names)[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
