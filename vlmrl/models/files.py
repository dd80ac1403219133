"""Safetensors files (https://github.com/huggingface/safetensors): read by rows, so that
a process takes from a file only what it needs, and written tensor by tensor.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name →
dtype, shape, byte range) and the tensors, one after the other, row-major.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.types import UserError

INDEX = "model.safetensors.index.json"  # of a checkpoint in several files
MOST_HEADER = 100 * 2**20  # bytes; the format's own limit
MOST_READ = 2**30  # bytes per system call: Linux gives at most 2 GiB
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4,
         "I64": 8, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
         **{n: d.itemsize for n, d in DTYPES.items()}}  # fmt: skip


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    name: str
    kind: str  # dtype as the format calls it
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.kind]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * BYTES[self.kind]


def read_json(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not JSON ({e})") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from e
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return raw


def contents(file: Path) -> dict[str, Stored]:
    """Name → where it lies, of every tensor of a file; reads the header alone.

    Raises:
      UserError: the file is cut short, or is no safetensors file.
    """

    def broken(why) -> UserError:
        return UserError(f"{file}: not a whole safetensors file: {why}")

    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise UserError(f"{file}: tensor {twice} is stored twice")
        return found

    try:
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise broken(f"its header is cut short ({size} bytes in all)")
            header = json.loads(f.read(length), object_pairs_hook=once)
    except OSError as e:
        raise UserError(f"{file}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise broken(f"its header is not JSON ({e})") from None
    try:
        header.pop("__metadata__", None)
        found = {
            name: (Stored(file, name, t["dtype"], tuple(t["shape"]), 8 + length),
                   *t["data_offsets"])
            for name, t in header.items()
        }  # fmt: skip
        end = 0
        for name, (s, start, stop) in sorted(found.items(), key=lambda x: x[1][1:]):
            count = int(np.prod(s.shape, dtype=object)) * BYTES[s.kind]
            if start != end or stop - start != count:
                raise broken(
                    f"tensor {name}, {s.kind} {list(s.shape)}, lies at bytes "
                    f"{start} to {stop} of its data, want {end} to {end + count}"
                )
            end = stop
            if 8 + length + end > size:
                raise broken(
                    f"tensor {name} ends at byte {8 + length + end}, the file at {size}"
                )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise broken(f"its header has no valid entry ({e!r})") from None
    if 8 + length + end != size:
        raise broken(f"{size - 8 - length - end} bytes follow the last tensor")
    return {n: s._replace(offset=8 + length + at) for n, (s, at, _) in found.items()}


def tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint directory: one file, or those its index names.

    Raises:
      UserError: a file is missing or broken, the index and the files disagree, or the
        weights are pickled.
    """
    index = directory / INDEX
    if not index.is_file():
        file = directory / "model.safetensors"
        if not file.is_file():
            raise _no_weights(directory)
        return contents(file)
    try:
        where = json.loads(index.read_text())["weight_map"]
        names = sorted(set(where.values()))
        if not all(Path(n).name == n for n in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{index}: must be a JSON object whose 'weight_map' names the file of "
            "every tensor"
        ) from None
    found: dict[str, Stored] = {}
    for name in names:
        if not (directory / name).is_file():
            first = min(t for t, n in where.items() if n == name)
            raise UserError(
                f"{directory}: weights file {name} is missing, where {INDEX} has "
                f"tensor {first}"
            )
        for tensor, stored in contents(directory / name).items():
            if tensor in found:
                raise UserError(
                    f"{stored.file}: tensor {tensor} is stored twice, in "
                    f"{found[tensor].file.name} too"
                )
            if tensor not in where:
                raise UserError(f"{index}: has no entry for tensor {tensor} of {name}")
            found[tensor] = stored
    for tensor, name in where.items():
        if tensor not in found or found[tensor].file.name != name:
            raise UserError(f"{index}: tensor {tensor} is not in {name} as it says")
    return found


def read(stored: Stored, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows [start, stop) of a tensor, and not a byte more; all of it by default.

    Raises:
      UserError: the file ends too early, or cannot be read.
    """
    shape = stored.shape
    if shape:
        start, stop, _ = slice(start, stop).indices(shape[0])
        shape = (max(0, stop - start), *shape[1:])
    out = np.empty(shape, stored.dtype)
    view = memoryview(out.reshape(-1).view(np.uint8))
    at = stored.offset + start * (out.nbytes // max(1, len(out)) if shape else 0)
    try:
        with open(stored.file, "rb", buffering=0) as f:
            while len(view):
                count = os.preadv(f.fileno(), [view[:MOST_READ]], at)
                if not count:
                    raise UserError(
                        f"{stored.file}: ends inside tensor {stored.name}, at byte {at}"
                    )
                view, at = view[count:], at + count
    except OSError as e:
        raise UserError(f"{stored.file}: tensor {stored.name}: {e.strerror}") from e
    return out


class Plan(NamedTuple):
    """A tensor to be written; `make()` gives it, when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def natural_order(plan: Plan):
    """Return a sort key of names that has layer 2 before layer 10."""
    return [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in plan.name.split(".")]


def write(file: Path, plans: Iterable[Plan]) -> None:
    """One safetensors file; holds one tensor at a time. All processes of a run make the
    tensors, the first one writes."""
    kinds = {d: k for k, d in DTYPES.items()}
    header, at = {"__metadata__": {"format": "pt"}}, 0
    plans = list(plans)
    for p in plans:
        entry = dict(dtype=kinds[p.dtype], shape=p.shape)
        header[p.name] = dict(entry, data_offsets=(at, at + p.nbytes))
        at += p.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = jax.process_index() == 0
    with open(file if first else os.devnull, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for p in plans:
            array = np.ascontiguousarray(p.make())
            f.write(array.reshape(-1).view(np.uint8))


def shards(plans: Iterable[Plan], most: int) -> list[tuple[str, list[Plan]]]:
    """(file name, tensors) of a checkpoint in files of at most `most` bytes, named and
    filled in order as upstream does; a larger tensor has a file of its own."""
    parts, size = [[]], 0
    for p in plans:
        if size + p.nbytes > most and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(p)
        size += p.nbytes
    n = len(parts)
    if n == 1:
        return [("model.safetensors", parts[0])]
    return [(f"model-{i + 1:05d}-of-{n:05d}.safetensors", p)
            for i, p in enumerate(parts)]  # fmt: skip


def index_of(parts: list[tuple[str, list[Plan]]]) -> str:
    """The JSON text of INDEX."""
    where = {p.name: file for file, plans in parts for p in plans}
    every = [p for _, plans in parts for p in plans]
    document = {
        "metadata": {
            "total_parameters": sum(int(np.prod(p.shape, dtype=object)) for p in every),
            "total_size": sum(p.nbytes for p in every),
        },
        "weight_map": where,
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def any_weights(directory: Path) -> bool:
    """Whether a directory holds weights, pickled ones among them."""
    return any(directory.glob("*.safetensors")) or bool(_pickled(directory))


def _pickled(directory: Path) -> list[str]:
    kinds = ("bin", "pt", "pth", "ckpt")
    return sorted(f.name for kind in kinds for f in directory.glob(f"*.{kind}"))


def _no_weights(directory: Path) -> UserError:
    """What to say of a directory without safetensors."""
    pickled = _pickled(directory)
    if not pickled:
        return UserError(
            f"{directory}: weights file model.safetensors is missing, and there is no "
            f"{INDEX}"
        )
    try:
        config = json.loads((directory / "config.json").read_text())
        sees = "ImageTextToText" if "vision_config" in config else "CausalLM"
        kind = (config.get("architectures") or [f"AutoModelFor{sees}"])[0]
    except (OSError, ValueError, TypeError, AttributeError):
        kind = "AutoModel"
    return UserError(
        f"{directory / pickled[0]}: pickled weights can run code when they are read, "
        "so they never are; where you trust them and have torch, convert them: "
        f'python -c "from transformers import {kind} as M; M.from_pretrained('
        f"'{directory}', dtype='auto').save_pretrained('{directory}-safetensors')\""
    )
