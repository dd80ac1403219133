"""Describe the programs of a training run by shapes and shardings, without arrays:
rollout, update, reference pass and evaluation. `vlmrl plan` compiles them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import sharding
from vlmrl.engine.generate import Sampling, Stops, generate
from vlmrl.engine.options import OptionRows, Spellings
from vlmrl.engine.prefix_cache import prefill
from vlmrl.engine.score import completions
from vlmrl.eval import kernel
from vlmrl.eval.tags import Tag, TagTables
from vlmrl.models import registry
from vlmrl.models.api import Model
from vlmrl.policy import SamplingParams
from vlmrl.rl import losses, update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.types import Group, Rollout, Tokens, UserError, Vision

OPTIONS = 8  # of an item that is evaluated, measured by their letters


class Program(NamedTuple):
    """A jittable function with the shapes it is called with.

    `parts` labels each argument for the table of memory; `donated` are the indices of
    donated arguments; `trips` is the most iterations of the sampling loop.
    """

    name: str
    function: Callable
    args: tuple
    parts: tuple[str, ...]
    donated: tuple[int, ...] = ()
    trips: int = 1
    out: Any = None  # shardings


class PlannedJob(NamedTuple):
    """The settings of a run that decide its programs; fields as in the config files."""

    model: Model
    raw: dict  # its config.json
    prompts: int
    group_size: int
    max_tokens: int
    buckets: dict[str, int]  # prefix, images, windows: the largest of each
    microbatches: int
    dtype: Any  # of the parameters that are trained
    compute: Any  # of activations, and of weights as they are read; None: as `dtype`
    remat: str | None
    float32_residual: bool  # the sum over layers in float32 when scoring
    loss: dict
    optimizer: OptimizerOptions
    conditions: int
    eval_batch: int
    eval_tokens: int
    eval_texts: int  # tokens of a condition's text
    gather_params: bool = True  # weights over fsdp before sampling


def read_model(name: str) -> tuple[Model, dict]:
    """Return (Model, config.json) of a directory, or of a published model by name."""
    known = registry.published()
    if name in known:
        return registry.build_model(known[name], name), known[name]
    path = registry.resolve(name)
    return registry.read_model(path), json.loads((path / "config.json").read_text())


def shapes(mesh, tree):
    """Return arrays of a batch as shapes with their shardings."""
    placed = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), tree
    )


def params(job: PlannedJob, mesh, dtype) -> dict:
    shardings = sharding.param_shardings(mesh, job.model.table)
    return {
        name: jax.ShapeDtypeStruct(p.shape, dtype, sharding=shardings[name])
        for name, p in job.model.table.items()
    }


def state(
    job: PlannedJob, mesh, tx, freeze: tuple[str, ...] = (), offload: bool = False
) -> update.TrainState:
    """Return the training state: parameters, moments of the trained ones, the step."""
    train_state = params(job, mesh, job.dtype)
    shardings = {n: p.sharding for n, p in train_state.items()}
    moments = jax.eval_shape(tx.init, update.live_of(train_state, freeze))
    shardings = sharding.like_params(mesh, moments, shardings)
    if offload:
        shardings = sharding.on_host(shardings, moments)
    moments = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        moments,
        shardings,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicate(mesh))
    return update.TrainState(train_state, moments, step)


def group(job: PlannedJob, mesh, n: int, *, texts: int = 0, length: int = 0) -> Group:
    """Return N prefixes with images, each followed by `texts` branches of `length`."""
    f32, i32 = jnp.float32, jnp.int32
    shape = jax.ShapeDtypeStruct

    def tokens(rows, width):
        return Tokens(
            shape((rows, width), i32),
            shape((rows, 3, width), i32),
            shape((rows, width), bool),
            shape((rows, width), i32),
        )

    images, windows = job.buckets["images"], job.buckets["windows"]
    vision = None
    if images:
        look = job.raw["vision_config"]
        if "patch_size" not in look or "spatial_merge_size" not in look:
            raise UserError(
                f"plan: the vision tower of family {job.model.family} is not known; "
                "families of Qwen are"
            )
        patch, merge = look["patch_size"], look["spatial_merge_size"]
        side = look.get("window_size", 4 * merge * patch) // merge // patch
        dim = 3 * look["temporal_patch_size"] * patch**2
        lead = (n, images, windows, (side * merge) ** 2)
        merged = windows * side**2
        vision = Vision(
            shape((*lead, dim), f32),
            shape((*lead, 2), i32),
            shape(lead, bool),
            shape((n, images, merged), i32),
        )
    branches = tokens(n * texts, length) if texts else None
    group_shapes = Group(tokens(n, job.buckets["prefix"]), vision, branches)
    return shapes(mesh, group_shapes)


def rollout_shapes(rows: int, length: int) -> Rollout:
    def shape(kind):
        return jax.ShapeDtypeStruct((rows, length), kind)

    done = jax.ShapeDtypeStruct((rows,), bool)
    return Rollout(
        shape(jnp.int32), shape(jnp.float32), shape(jnp.float32), shape(bool), done
    )


def stops(job: PlannedJob, mesh) -> Stops:
    vocab = job.model.table["text.embed"].shape[0]
    states = len("</answer>")

    def shape(kind, *more):
        place = sharding.replicate(mesh)
        return jax.ShapeDtypeStruct((vocab, *more), kind, sharding=place)

    return Stops(
        shape(jnp.int16, states), shape(jnp.uint8, states), shape(bool), shape(bool)
    )


def tables(job: PlannedJob, mesh) -> TagTables:
    """Return tag tables of a tokenizer such as Qwen's; small beside everything else."""
    vocab = job.model.table["text.embed"].shape[0]
    place = sharding.replicate(mesh)

    def shape(kind, *dims):
        return jax.ShapeDtypeStruct(dims, kind, sharding=place)

    def tag(text):
        n = len(text)
        return Tag(
            shape(jnp.int16, vocab, n),
            shape(jnp.uint8, vocab, n),
            shape(jnp.uint8, vocab, n),
        )

    i32 = jnp.int32
    letters = Spellings(shape(i32, 26, 1), shape(i32, 5), shape(i32, 26, 3))
    return TagTables(
        stops=stops(job, mesh),
        think=tag("<think>"),
        close=tag("</think>"),
        answer=tag("<answer"),
        size=shape(i32, vocab),
        sentence=shape(bool, vocab),
        word=shape(bool, vocab),
        end=shape(bool, vocab),
        closing=shape(i32, 6),
        opening=shape(i32, 2),
        letters=letters,
    )


def keys(mesh, rows: int):
    return shapes(mesh, jax.ShapeDtypeStruct((rows, 2), jnp.uint32))


def sampling_params(job: PlannedJob, mesh) -> SamplingParams:
    """Return what reads the parameters in a job's sampling programs."""
    compute = None if job.compute == job.dtype else job.compute
    return SamplingParams(job.model, mesh, compute, job.gather_params)


def rollout(job: PlannedJob, mesh, **options) -> Program:
    """Prefill each prompt once and sample G completions to their full length."""
    weights = params(job, mesh, job.dtype)
    read = sampling_params(job, mesh)
    read.prepare(weights)

    def sample(params, group, keys, stops):
        params = read(params)
        cache = prefill(job.model, params, group, **options)
        return generate(
            job.model, params, cache, keys, stops,
            max_tokens=job.max_tokens, sampling=Sampling(1.0), **drawing(options),
        )[0]  # fmt: skip

    rows = job.prompts * job.group_size
    args = (
        weights,
        group(job, mesh, job.prompts),
        keys(mesh, rows),
        stops(job, mesh),
    )
    return Program(
        "rollout", sample, args, ("parameters", "batch", "batch", "batch"),
        trips=job.max_tokens, out=sharding.batch_sharding(mesh),
    )  # fmt: skip


def learning(job: PlannedJob, mesh):
    """Return (optimizer, frozen prefixes, training state as shapes) of a job."""
    options = job.optimizer
    freeze = tuple(options.freeze)
    table = update.live_of(job.model.table, freeze)
    tx = update.optimizer(options, table, steps=1000)
    return tx, freeze, state(job, mesh, tx, freeze, options.offload)


def resident(job: PlannedJob, mesh) -> float:
    """Return the bytes per device that stay allocated throughout a run: the training
    state and, with a KL term, the reference parameters."""
    _, _, own = learning(job, mesh)
    start = params(job, mesh, job.compute or job.dtype)
    return device_bytes(own) + (device_bytes(start) if job.loss.get("kl_weight") else 0)


def step(job: PlannedJob, mesh, **options) -> Program:
    """Update on a batch of rollouts at their full length."""
    tx, freeze, train_state = learning(job, mesh)

    def objective(logp, entropy, mask, extra):
        return losses.policy_objective(logp, entropy, mask, extra, **job.loss)

    function = update.make_update(
        job.model, tx, objective, microbatches=job.microbatches, freeze=freeze,
        dtype=job.compute, remat=job.remat, float32_residual=job.float32_residual,
        **options,
    )  # fmt: skip
    rows = job.prompts * job.group_size
    drawn = rollout_shapes(rows, job.max_tokens)
    grown = jax.eval_shape(completions, group(job, mesh, job.prompts), drawn)
    extra = {
        "old_logprobs": drawn.logprobs,
        "advantages": jax.ShapeDtypeStruct((rows,), jnp.float32),
    }
    if job.loss.get("kl_weight"):
        extra["ref_logprobs"] = drawn.logprobs
    batch = shapes(mesh, update.Batch(grown, extra))
    shardings = jax.tree.map(lambda x: x.sharding, train_state)
    return Program(
        "update",
        update.fetching(function, train_state),
        (train_state, batch),
        ("state", "batch"),
        donated=(0,),
        out=(shardings, None),
    )


def reference(job: PlannedJob, mesh, **options) -> Program:
    """Score completions under the reference parameters, for the KL term."""

    of = update.make_logprobs(
        job.model, microbatches=job.microbatches, dtype=job.compute, remat=job.remat,
        float32_residual=job.float32_residual, **options,
    )  # fmt: skip
    rows = job.prompts * job.group_size
    drawn = rollout_shapes(rows, job.max_tokens)
    grown = jax.eval_shape(completions, group(job, mesh, job.prompts), drawn)
    args = (params(job, mesh, job.compute or job.dtype), shapes(mesh, grown))
    return Program("reference", of, args, ("parameters", "batch"))


def evaluation(job: PlannedJob, mesh, **options) -> Program:
    """Evaluate a batch of examples under every condition in one pass."""
    n, v = job.eval_batch, job.conditions
    i32 = jnp.int32
    rows = n * v

    weights = params(job, mesh, job.dtype)
    read = sampling_params(job, mesh)
    read.prepare(weights)

    def run(params, group, blind, facts, keys, tables):
        params = read(params)
        return kernel.evaluate(
            job.model, params, kernel.EvalBatch(group, blind, facts, keys), tables,
            kernel.KernelSettings(job.eval_tokens, Sampling(0.0), 64, 4), **options,
        )  # fmt: skip

    shape = jax.ShapeDtypeStruct
    facts = kernel.ConditionRows(
        shape((rows,), i32),
        OptionRows(shape((rows, OPTIONS), bool)),
        *(shape((rows,), i32) for _ in range(3)),
    )
    sightless = job._replace(buckets={**job.buckets, "images": 0})
    args = (
        weights,
        group(job, mesh, n, texts=v, length=job.eval_texts),
        group(sightless, mesh, n, texts=v, length=job.eval_texts),
        shapes(mesh, facts),
        keys(mesh, rows),
        tables(job, mesh),
    )
    return Program(
        "evaluation", run, args, ("parameters", *["batch"] * 5),
        trips=job.eval_tokens, out=sharding.batch_sharding(mesh),
    )  # fmt: skip


def drawing(options: dict) -> dict:
    """Return the prefill options that sampling takes, too."""
    return {k: v for k, v in options.items() if k not in ("dtype", "attend")}


def device_bytes(tree, on_host: bool = False) -> float:
    """Return the bytes of a tree's arrays on one device, or in its host's memory."""
    total = 0.0
    for x in jax.tree.leaves(tree):
        if sharding.is_on_host(x) != on_host:
            continue
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        total += math.prod(shape) * np.dtype(x.dtype).itemsize
    return total


def cache(
    job: PlannedJob, mesh, *, groups: int, length: int, rows: int, segments=()
) -> float:
    """Return the bytes per device of keys and values: prefixes, `segments` of
    (rows, tokens), and `rows` rows of `length` sampled tokens."""
    c = job.model.config.text
    width = 2 * c.layers * c.kv_heads * c.head_dim
    shards = sharding.batch_shards(mesh)
    heads = mesh.shape["tensor"] if c.kv_heads % mesh.shape["tensor"] == 0 else 1
    tokens = groups * job.buckets["prefix"] + rows * length
    tokens += sum(n * t for n, t in segments)
    size = np.dtype(job.compute or job.dtype).itemsize
    return tokens / shards * width / heads * size
