"""Hugging Face checkpoints ⇄ parameters, by the family's parameter table.

Safetensors only. Strict in both directions: every tensor of the files must belong to
the table and the table must be filled, else one error lists the names.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import einops
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vlmrl.models import qwen2_5_vl
from vlmrl.models.api import Model, Param
from vlmrl.types import UserError

FAMILIES = {qwen2_5_vl.FAMILY: qwen2_5_vl}
TINY = Path(__file__).parent / "tiny"  # the model that ships with the project
SHARD = 5 * 2**30  # bytes per file on export, as upstream
# What a model directory holds beside weights; copied on export.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def resolve(name: str | os.PathLike) -> Path:
    """Directory of a checkpoint: 'tiny', or a path.

    Raises:
      UserError: there is no such directory, or no config.json in it.
    """
    path = TINY if str(name) == "tiny" else Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"model '{name}': no such directory (or use 'tiny')")
    if not (path / "config.json").is_file():
        raise UserError(f"model '{name}': {path} holds no config.json")
    return path


def read_model(name: str | os.PathLike) -> Model:
    """The `api.Model` of a checkpoint directory, found from its config.json."""
    path = resolve(name) / "config.json"
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: not JSON ({e})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object")
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(
            f"{path}: model_type '{kind}' is not supported; "
            "supported: " + ", ".join(sorted(FAMILIES))
        )
    family = FAMILIES[kind]
    return family.model(raw, str(path))


def load(name: str | os.PathLike, *, dtype=jnp.float32, shardings=None):
    """(Model, params) of a checkpoint directory.

    Args:
      dtype: of the parameters.
      shardings: name → Sharding; None keeps everything on the default device.
    Raises:
      UserError: tensors are missing, unknown, of the wrong shape, or a file is broken.
    """
    path = resolve(name)
    model = read_model(path)
    files = _files(path)
    index: dict[str, str] = {}
    handles = {}
    for file in files:
        try:
            handles[file] = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file}: not a whole safetensors file ({e})") from None
        for key in handles[file].keys():  # noqa: SIM118 (not a dict)
            name_ = _plain(key)
            if name_ in index:
                raise UserError(f"{file}: tensor {key} is stored twice")
            index[name_] = (file, key)

    wanted = {n for p in model.table.values() for n in _names(p)}
    extra = set(index) - wanted - _ignored(model)
    missing = wanted - set(index)
    if extra or missing:
        raise UserError(
            f"{path}: tensors do not match {model.family}; "
            f"missing: {_list(missing)}; unknown: {_list(extra)}"
        )

    params = {}
    for key, p in model.table.items():
        parts = []
        for hf_name in _names(p):
            file, stored = index[hf_name]
            array = handles[file].get_tensor(stored)
            try:
                part = einops.rearrange(array, p.layout, **p.sizes)
            except einops.EinopsError:
                part = None
            if part is None or part.shape != _part_shape(p):
                raise UserError(
                    f"{file}: tensor {stored} has shape {list(array.shape)}; {key} of "
                    f"this config.json needs {_stored_shape(p)}"
                )
            parts.append(part)
        array = np.stack(parts) if "{}" in p.name else parts[0]
        params[key] = jax.device_put(array.astype(dtype), shardings and shardings[key])
    return model, params


def save(directory: str | os.PathLike, model: Model, params, source) -> Path:
    """Write a directory that transformers loads; side files come from `source`.

    Everything goes to a temporary directory that is renamed at the end.
    """
    target = Path(directory)
    if target.exists():
        raise UserError(f"{target}: exists already; export to a new directory")
    source = resolve(source)
    parts = target.with_name(target.name + ".partial")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    tensors = {}
    for key, p in model.table.items():
        array = np.asarray(jax.device_get(params[key]))
        tensors.update(_disassemble(p, array))
    shards, size = [{}], 0
    for name, array in tensors.items():
        if size + array.nbytes > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        n = len(shards)
        names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
        where = {k: f for f, s in zip(names, shards, strict=True) for k in s}
        total = sum(a.nbytes for a in tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": where})
        (parts / "model.safetensors.index.json").write_text(text)
    for file, shard in zip(names, shards, strict=True):
        save_file(shard, parts / file, metadata={"format": "pt"})
        (parts / file).chmod(0o644)  # it is written for its owner alone
    for side in SIDE_FILES:
        if (source / side).is_file():
            shutil.copy(source / side, parts / side)
    parts.rename(target)
    return target


def _files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            where = json.loads(index.read_text())["weight_map"]
            files = [path / n for n in sorted(set(where.values()))]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{index}: must be a JSON object whose 'weight_map' names the file of "
                "every tensor"
            ) from None
    else:
        files = [path / "model.safetensors"]
    for f in files:
        if not f.is_file():
            raise UserError(f"{path}: weights file {f.name} is missing")
    return files


def _plain(name: str) -> str:
    """The hub's name of a tensor, whichever transformers wrote it."""
    for old, new in qwen2_5_vl.RENAMES:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _ignored(model: Model) -> set[str]:
    # A tied head may be stored again; the embedding is what counts.
    return {"lm_head.weight"} if "text.head" not in model.table else set()


def _names(p: Param) -> list[str]:
    n = p.shape[0] if "{}" in p.name else 1
    return [p.name.format(i) for i in range(n)]


def _part_shape(p: Param) -> tuple[int, ...]:
    return p.shape[1:] if "{}" in p.name else p.shape


def _stored_shape(p: Param) -> list[int]:
    left, right = p.layout.split(" -> ")
    array = np.broadcast_to(np.int8(0), _part_shape(p))
    return list(einops.rearrange(array, f"{right} -> {left}", **p.sizes).shape)


def _disassemble(p: Param, array: np.ndarray) -> dict[str, np.ndarray]:
    left, right = p.layout.split(" -> ")
    arrays = array if "{}" in p.name else [array]
    back = f"{right} -> {left}"
    return {
        n: np.ascontiguousarray(einops.rearrange(a, back, **p.sizes))
        for n, a in zip(_names(p), arrays, strict=True)
    }


def _list(names: set[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
