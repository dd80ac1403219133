"""Checkpoints of a run: `<directory>/<step>/`, whole or absent, bit-exact.

The state is any pytree. Its leaves are written under their path in the tree
(`params/layers/q`, `opt/0/mu/layers/q`), so a checkpoint can be read without the code
that made its records, and a mismatch names the leaf. Arrays go through Orbax
(https://orbax.readthedocs.io), each process writing its own shards; Python numbers,
shapes, dtypes and the caller's `meta` go into one JSON document beside them.

A step directory appears under its final name only when complete. Every function here
is called by all processes alike, and every process sees the same directory.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from vlmrl.run import hosts
from vlmrl.types import UserError

# What a directory has when Orbax has finished it: our JSON document, written by Orbax
# under this name, and its own table of arrays.
_META, _ARRAYS = "meta/metadata", "state/_METADATA"
_TRASH = ".deleted"
_FORMAT = 1


class Leaf(NamedTuple):
    """Description of a leaf, known without reading it.

    kind: 'array', 'number' (a Python bool, int or float) or 'key:<impl>' (typed PRNG
    keys; shape and dtype are then those of their uint32 data).
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str


def save(
    directory,
    step: int,
    state,
    meta: dict | None = None,
    *,
    keep: int = 0,
    score: float | None = None,
) -> Callable[[], None]:
    """Start writing `<directory>/<step>`; return a function that waits for its end.

    The state's values are copied before this returns, so the caller may go on (and
    donate its buffers). A caller that wants to wait writes `save(...)()`.

    Args:
      directory: where the run's checkpoints are; made if missing.
      step: int ≥ 0, the name of the checkpoint.
      state: pytree of jax arrays, typed PRNG keys, numpy arrays and scalars, and Python
        numbers.
      meta: JSON-able dict: data position, config, whatever else a resume needs.
      keep: after this one is complete, older steps beyond the newest `keep` are
        deleted; 0 keeps all.
      score: how good this state is. The best of those that have a score stays,
        whatever `keep` says; of equals the newest.

    Raises:
      UserError: the step is already there, the directory is not writable, a leaf is of
        a kind that cannot be stored, or there is no array among them. The returned
        function: the disk is full, or the write failed otherwise; the checkpoints
        before are still there.
    """
    directory = _directory(directory)
    if step < 0:
        raise UserError(f"checkpoint step is {step}, expected 0 or more")
    arrays, document = _packed(state)
    if not arrays:  # Orbax stores none, and a step without arrays is nobody's state
        raise UserError(
            f"{directory / str(step)}: the state has no array with elements"
        )
    document |= {"meta": meta or {}, "score": score}
    json.dumps(document)  # a meta that is not JSON fails here, before anything is made
    if step in steps(directory):
        raise UserError(f"{directory / str(step)}: this checkpoint exists already")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _sweep(directory, step)
        writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(document)
        )
        writer.save(directory / str(step), args=items)
    except (OSError, ValueError) as error:
        raise _unwritten(directory, step, error) from error

    def wait() -> None:
        try:
            with writer:
                writer.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore have their own kinds
            raise _unwritten(directory, step, error) from error
        if not keep or not hosts.first():
            return
        there = steps(directory)
        spared = {step, *there[-keep:], best(directory)}
        for old in there:
            if old not in spared:
                _delete(directory / str(old))

    return wait


def steps(directory) -> list[int]:
    """Return the steps of the complete checkpoints below `directory`, ascending;
    anything else there (torn writes, other files) is ignored."""
    directory = _directory(directory)
    if not directory.is_dir():
        return []
    names = [p.name for p in directory.iterdir()]
    numbers = {int(n) for n in names if n.isascii() and n.isdigit()}
    return sorted(s for s in numbers if _complete(directory / str(s)))


def latest(directory) -> int | None:
    """Return the newest complete step below `directory`, None if there is none."""
    return (steps(directory) or [None])[-1]


def best(directory) -> int | None:
    """Return the complete step with the highest score, the newest of equals; None if
    none has one."""
    directory = _directory(directory)
    scores = {s: _document(directory, s).get("score") for s in steps(directory)}
    scored = [(score, s) for s, score in scores.items() if score is not None]
    return max(scored)[1] if scored else None


def leaves(directory, step: int) -> dict[str, Leaf]:
    """Return names, shapes and dtypes of a checkpoint's leaves; read no array."""
    return _leaves(_document(_directory(directory), step))


def meta(directory, step: int) -> dict:
    """Return the `meta` that was saved beside the state; read no array."""
    return _document(_directory(directory), step)["meta"]


def restore(
    directory, step: int, like: Any = None, *, partial: bool = False
) -> tuple[Any, dict]:
    """Read a checkpoint: return (state, meta), bit-equal to what was saved.

    Args:
      directory, step: which checkpoint.
      like: pytree of what to return. A leaf is a `jax.ShapeDtypeStruct` or
        `jax.Array` (restored as a jax array with its sharding; on the first local
        device if it has none), a numpy array or scalar (restored as a numpy array), or
        a Python number. None: a flat dict name → numpy array or number.
      partial: the checkpoint may hold leaves that `like` lacks (parameters out of a
        whole training state); what `like` has must still be there.

    Raises:
      UserError: no such checkpoint, a damaged one, or leaves that are missing,
        unexpected, of another shape or another dtype; each list is named.
    """
    directory = _directory(directory)
    document = _document(directory, step)
    table, where = _leaves(document), directory / str(step)
    as_is = like is None
    if as_is:
        like = {n: _empty(leaf) for n, leaf in table.items()}
    wanted = _named(like)
    if not as_is:
        _check(where, table, {n: _describe(n, x) for n, x in wanted.items()}, partial)

    stored = {n: _key_data_like(x) if _is_key(x) else x for n, x in wanted.items()}
    arrays = _read(where, {n: x for n, x in stored.items() if _stored(table[n])})

    def value(name, target):
        leaf = table[name]
        if leaf.kind == "number":
            return document["numbers"][name]
        data = arrays[name] if name in arrays else _allocate(stored[name])
        is_key = _is_key(target)
        return jax.random.wrap_key_data(data, impl=leaf.kind[4:]) if is_key else data

    values = [value(n, x) for n, x in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values), document["meta"]


class Saver:
    """Save where the run asks for it, and when `minutes` have passed since the last
    time (0: only where asked); writing goes on beside the next steps.

    Args:
      directory, keep, meta: as for `save`.
      saved: the step that was restored, 0 for none: it is not saved again.
    """

    def __init__(
        self,
        directory,
        *,
        keep: int,
        minutes: float,
        saved: int,
        meta: dict | None = None,
    ):
        self._directory, self._keep, self._seconds = directory, keep, 60 * minutes
        self._meta = meta
        self._saved, self._at = saved, time.monotonic()
        self._pending = None

    def __call__(self, step: int, state, score: float | None, *, now: bool) -> None:
        """Start saving if it is time; all hosts call this alike."""
        late = self._seconds and time.monotonic() - self._at > self._seconds
        # The hosts' clocks differ; where one finds it late, all save.
        if self._seconds and not now:
            now = hosts.agree(bool(late))
        if not now or step == self._saved:
            return
        self.finish()
        self._pending = save(
            self._directory, step, state, self._meta, keep=self._keep, score=score
        )
        self._saved, self._at = step, time.monotonic()

    def finish(self) -> None:
        """Wait until what was saved is on disk."""
        if self._pending is not None:
            wait, self._pending = self._pending, None
            wait()


# -- leaves ----------------------------------------------------------------------------


def _named(tree) -> dict[str, Any]:
    """Return the leaves by path, in flattening order."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in pairs]
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"checkpoint: two leaves have the path {', '.join(twice)}")
    return dict(zip(names, (leaf for _, leaf in pairs), strict=True))


def _packed(state) -> tuple[dict[str, Any], dict]:
    """Return a state's arrays by path and the JSON document beside them."""
    arrays, table, numbers = {}, {}, {}
    for name, leaf in _named(state).items():
        table[name], value = _pack(name, leaf)
        if table[name].kind == "number":
            numbers[name] = value
        elif value.size:  # arrays without elements have nothing to store
            arrays[name] = value
    leaves = {name: list(leaf) for name, leaf in table.items()}
    return arrays, {"format": _FORMAT, "leaves": leaves, "numbers": numbers}


def _is_key(x) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_impl(x) -> str:
    """Return the name of a typed key's generator, also of an abstract key (inside a
    trace every key has one)."""
    names = []
    jax.eval_shape(lambda k: names.append(str(jax.random.key_impl(k))), x)
    return names[0]


def _key_data_like(x) -> jax.ShapeDtypeStruct:
    data = jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_sharding(x))


def _describe(name: str, x) -> Leaf:
    if isinstance(x, bool | int | float) and not isinstance(x, np.generic):
        return Leaf("number", (), type(x).__name__)
    if _is_key(x):
        return Leaf(f"key:{_key_impl(x)}", _key_data_like(x).shape, "uint32")
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise UserError(f"checkpoint leaf {name}: cannot store a {type(x).__name__}")
    dtype = np.dtype(x.dtype)
    if dtype.hasobject or dtype.kind in "SUMm" or dtype.names:
        raise UserError(f"checkpoint leaf {name}: cannot store dtype {dtype}")
    return Leaf("array", tuple(x.shape), dtype.name)


def _pack(name: str, x) -> tuple[Leaf, Any]:
    leaf = _describe(name, x)
    if leaf.kind == "number":
        return leaf, x
    if leaf.kind.startswith("key:"):
        return leaf, jax.random.key_data(x)
    return leaf, x if isinstance(x, jax.Array) else np.asarray(x)


def _stored(leaf: Leaf) -> bool:
    return leaf.kind != "number" and 0 not in leaf.shape


def _empty(leaf: Leaf):
    return 0 if leaf.kind == "number" else np.empty(leaf.shape, np.dtype(leaf.dtype))


def _check(
    where, have: dict[str, Leaf], expected: dict[str, Leaf], partial: bool
) -> None:
    """Raise with one list of names per way to disagree, strict in both directions."""
    both = [n for n in expected if n in have]
    shapes = [n for n in both if have[n].shape != expected[n].shape]
    kinds = [n for n in both if n not in shapes and have[n] != expected[n]]
    faults = {
        "missing in the checkpoint": [n for n in expected if n not in have],
        "not expected": [] if partial else [n for n in have if n not in expected],
        "of another shape": [
            f"{n} (saved {have[n].shape}, expected {expected[n].shape})" for n in shapes
        ],
        "of another type": [
            f"{n} (saved {_type(have[n])}, expected {_type(expected[n])})"
            for n in kinds
        ],
    }
    text = "; ".join(
        f"{what}: {_some(names)}" for what, names in faults.items() if names
    )
    if text:
        raise UserError(f"{where}: leaves do not match: {text}")


def _type(leaf: Leaf) -> str:
    return leaf.dtype if leaf.kind == "array" else f"{leaf.kind} {leaf.dtype}"


def _some(names: list[str], at_most: int = 8) -> str:
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


# -- files -----------------------------------------------------------------------------


def _directory(directory) -> epath.Path:
    # Orbax wants absolute paths; epath also serves gs://, as runs on a TPU pod need.
    return epath.Path(directory).absolute()


def _complete(path: epath.Path) -> bool:
    return (path / _ARRAYS).is_file() and (path / _META).is_file()


def _document(directory: epath.Path, step: int) -> dict:
    path = directory / str(step)
    if not _complete(path):
        there = ", ".join(map(str, steps(directory))) or "none"
        raise UserError(f"{path}: no complete checkpoint; steps there: {there}")
    try:
        document = json.loads((path / _META).read_text())
        form = document["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if form != _FORMAT:
        raise UserError(f"{path}: checkpoint format is {form}, expected {_FORMAT}")
    return document


def _leaves(document: dict) -> dict[str, Leaf]:
    return {n: Leaf(k, tuple(s), d) for n, (k, s, d) in document["leaves"].items()}


def _sharding(target):
    return getattr(target, "sharding", None) or SingleDeviceSharding(
        jax.local_devices()[0]
    )


def _allocate(target):
    if isinstance(target, np.ndarray | np.generic):
        return np.empty(target.shape, target.dtype)
    return jax.device_put(np.empty(target.shape, target.dtype), _sharding(target))


def _read(path: epath.Path, targets: dict[str, Any]) -> dict[str, Any]:
    def restore_args(target):
        if isinstance(target, np.ndarray | np.generic):
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(
            sharding=_sharding(target), global_shape=target.shape, dtype=target.dtype
        )

    items = ocp.args.PyTreeRestore(
        item=targets,
        restore_args={n: restore_args(x) for n, x in targets.items()},
        partial_restore=True,
    )
    if not targets:
        return {}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(path, args=ocp.args.Composite(state=items)).state
    except (ValueError, OSError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path, error) -> UserError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return UserError(
        f"{path}: damaged checkpoint ({reason}); delete it to go on from the one before"
    )


def _unwritten(directory, step: int, error: Exception) -> UserError:
    """Return the error of a write that failed, in one line."""
    chain, reasons = error, []
    while chain is not None:
        reasons.append(f"{type(chain).__name__}: {chain}")
        chain = chain.__cause__ or chain.__context__
    text = " ".join(reasons)
    full = "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text
    reason = "the disk is full" if full else " ".join(str(error).split())[:200]
    good = latest(directory)
    last = (
        f"step {good}, the last good one, is kept" if good is not None else "none yet"
    )
    return UserError(f"{directory}: cannot write a checkpoint: {reason}; {last}")


def _sweep(directory: epath.Path, step: int) -> None:
    """Remove what an interrupted run left: half-deleted checkpoints, and unfinished
    writes and a torn directory of this very step."""
    if jax.process_index() == 0:
        for path in directory.iterdir():
            # Unfinished writes of other steps stay: one may be under way.
            if path.name.startswith(f"{step}.") or path.name.endswith(_TRASH):
                path.rmtree(missing_ok=True)
    if (directory / str(step)).exists():
        _delete(directory / str(step))


def _delete(path: epath.Path) -> None:
    """Delete under another name, so that an interrupted deletion leaves no torn
    checkpoint."""
    if jax.process_index() == 0:
        trash = path.parent / (path.name + _TRASH)
        path.rename(trash)
        trash.rmtree() if trash.is_dir() else trash.unlink()
