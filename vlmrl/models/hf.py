"""Hugging Face checkpoints ⇄ parameters, by the family's parameter table.

A model is named by 'tiny' or 'tiny_judge', which ship with the project, a directory, a
hub id ('org/name', 'org/name@revision'), or a directory with checkpoints/ (a run of
this package, or what `vlmrl convert` makes).

Safetensors only, and no code of a checkpoint is ever run. Strict in both directions:
every tensor of the files must belong to the table and the table must be filled, else
one error lists the names; this is known before the first weight is read.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmrl.models import files, internvl, quant, qwen2_5_vl, qwen3_vl, text
from vlmrl.models.api import Model, Param, linear
from vlmrl.models.assemble import assemble
from vlmrl.run import checkpoint
from vlmrl.types import UserError

# model_type → module: `model(raw, where)`, and RENAMES from other names to the hub's
FAMILIES = {
    qwen2_5_vl.FAMILY: qwen2_5_vl,
    qwen3_vl.FAMILY: qwen3_vl,
    internvl.FAMILY: internvl,
    **dict.fromkeys(text.FAMILIES, text),
}
TINY = Path(__file__).parents[1] / "tiny" / "model"  # what ships with the project
SHIPPED = {"tiny": TINY, "tiny_judge": TINY.with_name("judge")}
FACTS = Path(__file__).parent / "facts"
SHARD = 5 * 10**9  # bytes per file on export, as on the hub
POINTS = "checkpoints"  # where a directory holds parameters in Orbax's format
# Where checkpoints hold parameters: those of RL, of the supervised warm start, and
# those that `vlmrl convert` made.
PLACES = (("state", "params"), ("params",))
# What a model directory holds beside weights; copied on export.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


# -- which model -----------------------------------------------------------------------


def resolve(name: str | os.PathLike) -> Path:
    """The directory with a model's config.json and tokenizer; for a run of this
    package, that of the model it began with.

    Raises:
      UserError: there is no such directory, or no config.json in it.
    """
    path = _directory(name, weights=False)
    return _start(path) if (path / POINTS).is_dir() else path


def has_weights(name: str | os.PathLike) -> bool:
    """Whether weights come with a model, in whatever format; a config and a tokenizer
    may stand alone."""
    path = _directory(name, weights=True)
    return (path / POINTS).is_dir() or files.any_weights(path)


def read_model(name: str | os.PathLike) -> Model:
    """The `api.Model` of a checkpoint, found from its config.json."""
    return _family(resolve(name))[1]


def hub_id(name: str | os.PathLike) -> tuple[str, str | None] | None:
    """(repository, revision) of 'org/name' or 'org/name@revision'; None of any other
    name."""
    hub = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", str(name))
    return hub and (hub[1], hub[2])


def _directory(name: str | os.PathLike, weights: bool) -> Path:
    """Where a model lies; from the hub, with its weights or without."""
    path = SHIPPED.get(str(name)) or Path(name).expanduser()
    if not path.is_dir() and (hub := hub_id(name)):
        path = _download(*hub, weights)
    if not path.is_dir():
        raise UserError(
            f"model '{name}': no such directory (or use 'tiny', or a hub id 'org/name')"
        )
    if not (path / "config.json").is_file() and not (path / POINTS).is_dir():
        raise UserError(f"model '{name}': {path} holds no config.json")
    return path


def _download(repo: str, revision: str | None, weights: bool) -> Path:
    """A hub id's files in huggingface_hub's cache; only its side files, or safetensors
    too."""
    import huggingface_hub

    wanted = [*SIDE_FILES, *(["*.safetensors", files.INDEX] if weights else [])]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=wanted
            )
        )
    except Exception as e:  # its errors have no common class, and many lines
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        raise UserError(
            f"model '{repo}': no such directory, and not from the hub: {reason}"
        ) from e


def _start(run: Path) -> Path:
    """The model directory a run began with: its config.json and tokenizer are those of
    every checkpoint of the run."""
    if (run / "start").is_dir():  # a supervised run from random weights made its own
        return resolve(run / "start")
    for directory in (run, *run.absolute().parents[:2]):
        path = directory / "config.json"
        config = read_json(path) if path.is_file() else {}
        if "model_type" in config and directory == run:
            return run  # parameters that were converted, with their side files
        if config.get("model"):
            return resolve(config["model"])
    raise UserError(
        f"{run}: no config.json of the run here or above says what model it began with"
    )


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


def _family(path: Path):
    """(module, Model) of a directory's config.json."""
    path = path / "config.json"
    return family_of(read_json(path), str(path))


def family_of(raw: dict, where: str):
    """(module, Model) of a parsed config.json."""
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(
            f"{where}: model_type '{kind}' is not supported; "
            "supported: " + ", ".join(sorted(FAMILIES))
        )
    return FAMILIES[kind], FAMILIES[kind].model(raw, where)


def published() -> dict[str, dict]:
    """Hub id → what shapes the model in its config.json, of models that are known
    without the hub (`facts/*.json`)."""

    def over(base, top):
        both = {k: over(base[k], v) if isinstance(v, dict) and k in base else v
                for k, v in top.items()}  # fmt: skip
        return base | both

    found = {}
    for path in sorted(FACTS.glob("*.json")):
        facts = json.loads(path.read_text())
        for name, own in facts["models"].items():
            found[name] = over(facts["shared"], own)
    return found


# -- loading ---------------------------------------------------------------------------


def load(
    name: str | os.PathLike,
    *,
    dtype=jnp.float32,
    shardings=None,
    quantize: str | None = None,
    step: int = 0,
):
    """(Model, params) of a checkpoint; called by all processes alike.

    Args:
      name: see the module's docstring.
      dtype: of the parameters; None: as they are stored.
      shardings: name → Sharding; None keeps everything on the default device.
      quantize: 'int8' holds the linear layers in 8 bits (`quant.Int8`), each rounded
        as it is read; needs qwix.
      step: which of a run's checkpoints; 0: its newest.
    Raises:
      UserError: tensors are missing, unknown, of the wrong shape, or a file is broken.
    """
    if quantize is not None:
        quant.check(quantize)
    path = _directory(name, weights=True)
    module, model = _family(resolve(path))
    table = model.table
    places = {key: shardings and shardings[key] for key in table}
    small = {key for key, p in table.items() if quantize and linear(p)}
    if (path / POINTS).is_dir():
        params = read_params(path / POINTS, model, step, places)
        for key, x in params.items():
            if isinstance(x, quant.Int8):
                if key in small:
                    continue
                x = x.astype(jnp.float32)
            params[key] = x if dtype is None else x.astype(dtype)
            if key in small:
                axes = quant.outputs(table[key], layers=True)
                params[key] = quant.quantize(params[key], axes)
        return model, params
    if step:
        raise UserError(f"step {step}: {name} has no {POINTS}/ to choose from")
    found = _find(path, module, model)
    return model, {
        key: assemble(p, found[key], dtype, places[key], key in small)
        for key, p in table.items()
    }


def _find(path: Path, module, model: Model) -> dict[str, list[files.Stored]]:
    """Where the tensors of every parameter of a checkpoint directory lie."""
    stored: dict[str, files.Stored] = {}
    for name, tensor in files.tensors(path).items():
        plain = _plain(name, module)
        if plain in stored:
            raise UserError(
                f"{tensor.file}: tensor {name} is stored twice, as "
                f"{stored[plain].name} too"
            )
        stored[plain] = tensor
    again = None
    if "text.head" not in model.table:  # a tied head may be stored again
        tied = [n for n in stored if n.endswith("lm_head.weight")]
        again = stored.pop(tied[0]) if tied else None
    found = match(path, model.family, model.table, stored)
    if again is not None:
        _check_tied(again, found["text.embed"][0])
    return found


def match(path: Path, what: str, table: dict[str, Param], stored) -> dict:
    """Where the tensors of every row lie, checked both ways from the headers alone.

    Args:
      path, what: for errors: where the tensors are, and what they should be.
      stored: name → `files.Stored`.
    """
    wanted = {n for p in table.values() for n in names_of(p)}
    extra, missing = set(stored) - wanted, wanted - set(stored)
    if extra or missing:
        raise UserError(
            f"{path}: tensors do not match {what}; "
            f"missing: {_list(missing)}; unknown: {_list(extra)}"
        )
    for key, p in table.items():
        shape = stored_shape(p)
        for t in (stored[name] for name in names_of(p)):
            if list(t.shape) != shape:
                raise UserError(
                    f"{t.file}: tensor {t.name} has shape {list(t.shape)}; {key} of "
                    f"{what}, as its config says, needs {shape}"
                )
            if t.kind not in files.DTYPES:
                raise UserError(
                    f"{t.file}: tensor {t.name} is stored as {t.kind}, want "
                    f"{', '.join(files.DTYPES)}"
                )
    return {k: [stored[n] for n in names_of(p)] for k, p in table.items()}


def _check_tied(head: files.Stored, embed: files.Stored) -> None:
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


def read_params(points: Path, model: Model, step: int = 0, shardings=None) -> dict:
    """Parameters alone out of a checkpoint of a whole training state, as stored: of a
    run with an adapter the two merged."""
    step = step or checkpoint.latest(points)
    if step is None:
        raise UserError(f"{points}: holds no complete checkpoint")
    held = checkpoint.leaves(points, step)
    first = next(iter(model.table))
    path = next((p for p in PLACES if "/".join([*p, first]) in held), PLACES[0])
    prefix = "/".join(path)
    adapter, added = _adapter(points, step, model, held, prefix)

    def like(name, p):
        leaf = held.get(f"{prefix}/{name}")
        place = shardings and shardings[name]
        if f"{prefix}/{name}/values" in held:  # a base in 8 bits
            parts = zip(quant.like(p), quant.place(p, place), strict=True)
            return quant.Int8(*(_like(x.shape, x.dtype, s) for x, s in parts))
        return _like(p.shape, leaf.dtype if leaf else "float32", place)

    tree = {name: like(name, p) for name, p in model.table.items()}
    tree |= {name: np.empty(p.shape, np.float32) for name, p in added.items()}
    for part in reversed(path):
        tree = {part: tree}
    tree, _ = checkpoint.restore(points, step, tree, partial=True)
    for part in path:
        tree = tree[part]
    return adapter(tree) if adapter else tree


def _like(shape, dtype, place) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _adapter(points: Path, step: int, model: Model, held, prefix: str):
    """(params with an adapter → params, rows of the adapter) of a run that trained one,
    else (None, {})."""
    from vlmrl.models import lora  # which is written on top of this module

    how = checkpoint.meta(points, step).get("lora")
    if how is None:
        if any(name.startswith(f"{prefix}/{lora.PREFIX}") for name in held):
            raise UserError(
                f"{points / str(step)}: holds an adapter, but not its alpha: use the "
                "directory model/ that the run exported"
            )
        return None, {}
    adapter = lora.Adapter(how["rank"], how["alpha"], tuple(how["targets"]))
    rows = lora.rows(model, adapter)

    def merged(params):
        base = {n: params[n] for n in model.table}
        both = base | lora.placed(base, rows, {n: params[n] for n in rows})
        return lora.merge(model, adapter, both)

    return merged, rows


# -- export ----------------------------------------------------------------------------


def save(
    directory: str | os.PathLike, model: Model, params, source, dtype=None
) -> Path:
    """Write a directory that transformers loads; side files come from `source`.

    Everything goes to a temporary directory that is renamed at the end. Tensors are
    taken from the devices one by one. All processes call this; the first one writes.

    Args:
      dtype: of the weights; None: that of the parameters. config.json says it.
    Raises:
      UserError: the directory exists already, or `source` is no model.
    """
    target = Path(directory)
    if target.exists():
        raise UserError(f"{target}: exists already; export to a new directory")
    source = resolve(source)
    plans = [x for k, p in model.table.items() for x in plans_of(p, params[k], dtype)]
    parts = files.shards(sorted(plans, key=natural), SHARD)
    with renamed(target) as beside:
        for file, part in parts:
            files.write(beside / file, part)
        if jax.process_index() == 0:
            if len(parts) > 1:
                (beside / files.INDEX).write_text(files.index_of(parts))
            copy_side_files(source, beside, dtype)
    return target


def copy_side_files(source: Path, target: Path, dtype=None) -> None:
    """What a directory holds beside weights; config.json with the dtype written."""
    for side in SIDE_FILES:
        if (source / side).is_file():
            shutil.copyfile(source / side, target / side)
    if dtype is not None:
        config = read_json(target / "config.json")
        config.pop("torch_dtype", None)  # what older transformers called it
        config["dtype"] = np.dtype(dtype).name
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")


@contextmanager
def renamed(target: Path) -> Iterator[Path]:
    """A directory under a temporary name beside `target`, renamed at the end, removed
    if something fails. Only the first process makes it."""
    beside = target.with_name(target.name + ".partial")
    mine = jax.process_index() == 0
    if mine:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    try:
        yield beside
        if mine:
            beside.rename(target)
    finally:
        if mine:
            shutil.rmtree(beside, ignore_errors=True)


def plans_of(p: Param, array, dtype=None) -> list[files.Plan]:
    """The tensors that a parameter is stored as, to be made when they are written."""
    left, right = p.layout.split(" -> ")
    kind, shape = np.dtype(dtype or array.dtype), tuple(stored_shape(p))

    def make(i):
        part = _take(array, i) if "{}" in p.name else array
        if not isinstance(part, jax.Array | np.ndarray):  # 8 bits, a base and adapter
            part = _formed(part, kind)
        if isinstance(part, jax.Array) and not part.is_fully_addressable:
            part = _gather(part)
        part = np.asarray(part)
        return einops.rearrange(part, f"{right} -> {left}", **p.sizes).astype(kind)

    return [
        files.Plan(name, kind, shape, functools.partial(make, i))
        for i, name in enumerate(names_of(p))
    ]


@jax.jit
def _take(weight, i):
    take = jax.lax.dynamic_index_in_dim
    return jax.tree.map(lambda x: take(x, i, 0, keepdims=False), weight)


@functools.partial(jax.jit, static_argnames="kind")
def _formed(weight, kind):
    return weight.astype(kind)


def _gather(array):
    everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)(array)


# -- names and shapes ------------------------------------------------------------------


def _plain(name: str, module) -> str:
    return plain(name, getattr(module, "RENAMES", ()))


def plain(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """The hub's name of a tensor, whichever transformers wrote it."""
    for old, new in renames:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def renames(model: Model) -> tuple[tuple[str, str], ...]:
    """(beginning of a module's path in transformers, that of the hub's tensor name)."""
    return getattr(FAMILIES.get(model.family), "RENAMES", ())


def names_of(p: Param) -> list[str]:
    """Of the tensors that a row of the table is stored as."""
    n = p.shape[0] if "{}" in p.name else 1
    return [p.name.format(i) for i in range(n)]


def stored_shape(p: Param) -> list[int]:
    """Shape of each of those tensors."""
    left, right = p.layout.split(" -> ")
    shape = p.shape[1:] if "{}" in p.name else p.shape
    array = np.broadcast_to(np.int8(0), shape)
    return list(einops.rearrange(array, f"{right} -> {left}", **p.sizes).shape)


def natural(plan: files.Plan):
    """Sorts names with layer 2 before layer 10."""
    return [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in plan.name.split(".")]


def _list(names: set[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
