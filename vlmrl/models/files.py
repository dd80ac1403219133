"""Safetensors files (https://github.com/huggingface/safetensors): read by rows, and
written tensor by tensor.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name →
dtype, shape, byte range) and the tensors, one after the other, row-major.

The format's own library maps files into memory. Its page faults, one small read each,
are slow on the network file systems of clusters, and count as memory of the process.
Here a process reads the rows of its share, into their place, with few large reads.
"""

from __future__ import annotations

import json
import math
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
MAX_HEADER = 100 * 2**20  # bytes; the format's own limit
MAX_READ = 2**30  # bytes per system call: Linux gives at most 2 GiB
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4,
         "I64": 8, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
         **{n: d.itemsize for n, d in DTYPES.items()}}  # fmt: skip


class StoredTensor(NamedTuple):
    """Position of a tensor in a file."""

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
        return math.prod(self.shape) * BYTES[self.kind]


class PendingTensor(NamedTuple):
    """A tensor to be written; `compute()` gives it, when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    compute: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> dict:
    """Return the object of a JSON file.

    Raises:
      UserError: the file cannot be read, or holds none.
    """
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not JSON ({e})") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from e
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return raw


# -- reading ---------------------------------------------------------------------------


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return name → position of every tensor of a file; read the header alone.

    Raises:
      UserError: the file is cut short, or is no safetensors file.
    """

    def broken(reason) -> UserError:
        return UserError(f"{file}: not a whole safetensors file: {reason}")

    def unique(pairs):
        if pairs:
            name, count = Counter(name for name, _ in pairs).most_common(1)[0]
            if count > 1:
                raise UserError(f"{file}: tensor {name} is stored twice")
        return dict(pairs)

    try:
        with open(file, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise broken(f"its header is cut short ({size} bytes in all)")
            header = json.loads(f.read(length), object_pairs_hook=unique)
    except OSError as e:
        raise UserError(f"{file}: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise broken(f"its header is not JSON ({e})") from None
    begin, end, tensors = 8 + length, 0, {}
    try:
        header.pop("__metadata__", None)
        for name, t in sorted(header.items(), key=lambda x: x[1]["data_offsets"]):
            start, stop = t["data_offsets"]
            tensor = StoredTensor(
                file, name, t["dtype"], tuple(t["shape"]), begin + start
            )
            if start != end or stop - start != tensor.nbytes:
                raise broken(
                    f"tensor {name}, {tensor.kind} {list(tensor.shape)}: expected "
                    f"bytes {end} to {end + tensor.nbytes}, got {start} to {stop}"
                )
            if begin + stop > size:
                raise broken(
                    f"tensor {name} ends at byte {begin + stop}, the file at {size}"
                )
            end, tensors[name] = stop, tensor
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise broken(f"its header has no valid entry ({e!r})") from None
    if begin + end != size:
        raise broken(f"{size - begin - end} bytes follow the last tensor")
    return tensors


def list_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a checkpoint directory: of its one file, or of those that
    its index names.

    Raises:
      UserError: a file is missing or broken, the index and the files disagree, or the
        weights are pickled.
    """
    index = directory / INDEX
    if not index.is_file():
        file = directory / "model.safetensors"
        if not file.is_file():
            raise _no_weights(directory)
        return read_header(file)
    try:
        file_of = json.loads(index.read_text())["weight_map"]
        names = sorted(set(file_of.values()))
        if not all(Path(n).name == n for n in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{index}: must be a JSON object whose 'weight_map' names the file of "
            "every tensor"
        ) from None
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        if not (directory / name).is_file():
            first = min(t for t, n in file_of.items() if n == name)
            raise UserError(
                f"{directory}: weights file {name} is missing, where {INDEX} has "
                f"tensor {first}"
            )
        for key, tensor in read_header(directory / name).items():
            if key in tensors:
                raise UserError(
                    f"{tensor.file}: tensor {key} is stored twice, in "
                    f"{tensors[key].file.name} too"
                )
            if key not in file_of:
                raise UserError(f"{index}: has no entry for tensor {key} of {name}")
            tensors[key] = tensor
    for key, name in file_of.items():
        if key not in tensors or tensors[key].file.name != name:
            raise UserError(f"{index}: tensor {key} is not in {name} as it says")
    return tensors


def read(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Return rows [start, stop) of a tensor, by default all; read no byte more.

    Raises:
      UserError: the file ends too early, or cannot be read.
    """
    shape = tensor.shape
    if shape:
        start, stop, _ = slice(start, stop).indices(shape[0])
        shape = (max(0, stop - start), *shape[1:])
    out = np.empty(shape, tensor.dtype)
    view = memoryview(out.reshape(-1).view(np.uint8))
    at = tensor.offset + start * (out.nbytes // max(1, len(out)) if shape else 0)
    try:
        with open(tensor.file, "rb", buffering=0) as f:
            while len(view):
                count = os.preadv(f.fileno(), [view[:MAX_READ]], at)
                if not count:
                    raise UserError(
                        f"{tensor.file}: ends inside tensor {tensor.name}, at byte {at}"
                    )
                view, at = view[count:], at + count
    except OSError as e:
        raise UserError(f"{tensor.file}: tensor {tensor.name}: {e.strerror}") from e
    return out


# -- writing ---------------------------------------------------------------------------


def write(file: Path, pending: Iterable[PendingTensor]) -> None:
    """Write a safetensors file, one tensor in memory at a time. All processes of a run
    compute the tensors, the first one writes."""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header, end, pending = {"__metadata__": {"format": "pt"}}, 0, list(pending)
    for t in pending:
        offsets = (end, end := end + t.nbytes)
        header[t.name] = dict(dtype=kinds[t.dtype], shape=t.shape, data_offsets=offsets)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = jax.process_index() == 0
    with open(file if first else os.devnull, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in pending:
            array = np.ascontiguousarray(t.compute())
            f.write(array.reshape(-1).view(np.uint8))


def natural_order(tensor: PendingTensor):
    """Return a sort key of names that has layer 2 before layer 10."""
    parts = tensor.name.split(".")
    return [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in parts]


def shards(
    pending: Iterable[PendingTensor], size: int
) -> list[tuple[str, list[PendingTensor]]]:
    """Return (file name, tensors) of a checkpoint in files of at most `size` bytes,
    named and filled in order as upstream does; a larger tensor has a file of its own.
    """
    parts, total = [[]], 0
    for t in pending:
        if total + t.nbytes > size and parts[-1]:
            parts.append([])
            total = 0
        parts[-1].append(t)
        total += t.nbytes
    n = len(parts)
    if n == 1:
        return [("model.safetensors", parts[0])]
    return [(f"model-{i + 1:05d}-of-{n:05d}.safetensors", p)
            for i, p in enumerate(parts)]  # fmt: skip


def index_json(parts: list[tuple[str, list[PendingTensor]]]) -> str:
    """Return the text of INDEX."""
    pending = [(t, file) for file, part in parts for t in part]
    document = {
        "metadata": {
            "total_parameters": sum(math.prod(t.shape) for t, _ in pending),
            "total_size": sum(t.nbytes for t, _ in pending),
        },
        "weight_map": {t.name: file for t, file in pending},
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


# -- pickled weights -------------------------------------------------------------------


def has_weights(directory: Path) -> bool:
    """Return whether a directory has weights, in files that are read or pickled."""
    return any(directory.glob("*.safetensors")) or bool(_pickled(directory))


def _pickled(directory: Path) -> list[Path]:
    endings = (".bin", ".pt", ".pth", ".ckpt")
    return sorted(f for f in directory.iterdir() if f.suffix in endings)


def _no_weights(directory: Path) -> UserError:
    """Return the error for a directory without safetensors."""
    pickled = _pickled(directory)
    if not pickled:
        return UserError(
            f"{directory}: weights file model.safetensors is missing, and there is no "
            f"{INDEX}"
        )
    try:
        config = json.loads((directory / "config.json").read_text())
        head = "ImageTextToText" if "vision_config" in config else "CausalLM"
        kind = (config.get("architectures") or [f"AutoModelFor{head}"])[0]
    except (OSError, ValueError, TypeError, AttributeError):
        kind = "AutoModel"
    return UserError(
        f"{pickled[0]}: pickled weights can run code when they are read, so they never "
        "are; where you trust them and have torch, convert them: "
        f'python -c "from transformers import {kind} as M; M.from_pretrained('
        f"'{directory}', dtype='auto').save_pretrained('{directory}-safetensors')\""
    )
