"""A policy: model, parameters, tokenizer, prompt style and mesh; what `vlmrl.load`
returns, and what is sampled from and scored."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import sharding
from vlmrl.answers import reading
from vlmrl.engine import attention, memory
from vlmrl.engine.generate import Stops, make_stops
from vlmrl.models import registry, weights
from vlmrl.models.api import Model
from vlmrl.prompts import shapes, styles, tag_tokens, tokens
from vlmrl.prompts.processor import Processor
from vlmrl.run import hosts
from vlmrl.types import Example, Group, Prompt, UserError


class Policy(NamedTuple):
    """A model with its parameters, how text is written for it, and where it runs."""

    model: Model
    params: Any
    processor: tokens.Processor
    stops: Stops
    style: str  # prompt style
    shapes: tuple[tokens.Buckets, ...]  # static sizes, chosen from the data; where none
    # of them is large enough, sizes are rounded up
    mesh: Any
    source: str  # directory or name it was loaded from
    compute: Any = None  # dtype of activations; None: that of the parameters

    @property
    def attend(self):
        """The attention back end for this policy's mesh."""
        return attention.choose("auto", self.mesh)

    def cast(self, params):
        """Within jit: return the parameters in the dtype of activations."""
        return cast_params(params, self.compute, self.model.table)

    def sampling_params(self, gather_params: bool) -> SamplingParams:
        """Return what reads parameters in programs that sample."""
        return SamplingParams(self.model, self.mesh, self.compute, gather_params)

    def write(self, examples: Sequence[Example]) -> list[Prompt]:
        """Return the prompts of examples in this policy's style."""
        render = self.processor.render
        return [styles.build(e, self.style, render) for e in examples]

    def put(self, tree):
        """Put host arrays of a whole batch on the mesh, split over the data axes."""
        return sharding.shard_batch(self.mesh, tree)

    def own(self, x):
        """Return this process's part of something with a row per group or branch."""
        index, count = sharding.part(self.mesh)
        size = len(x) // count
        return x[index * size : (index + 1) * size]

    def group(self, rows: Sequence[Sequence[tokens.Encoded]]) -> Group:
        """Apply `tokens.group` at sizes that all processes agree on."""
        geometry = self.processor.geometry
        needs = hosts.most(tokens.needs(rows, geometry)).tolist()
        return tokens.group(rows, geometry, shapes.smallest(self.shapes, needs))


def cast_params(params, dtype, table):
    """Cast parameters to the dtype of activations as the update does where it reads
    them: rows with `Param.float32` stay as they are; None casts nothing."""
    if dtype is None:
        return params
    return {n: w if table[n].float32 else w.astype(dtype) for n, w in params.items()}


class SamplingParams:
    """Parameters as the programs that sample or evaluate read them: cast once to the
    dtype of activations and, with `gather_params`, gathered over fsdp once, at the
    program's start. Otherwise every token would gather every layer.

    Call `prepare` or `check_memory` with the stored parameters first, then the object
    itself within jit. Both take arrays or, to plan, shapes with shardings.
    """

    def __init__(self, model: Model, mesh, compute, gather_params: bool):
        self._model, self._mesh, self._compute = model, mesh, compute
        self._gather = gather_params and mesh.shape["fsdp"] > 1
        self._shardings: Any = None  # of the stored parameters

    def prepare(self, params) -> int:
        """Take the parameters' shardings; return the bytes per device of the copy."""
        self._shardings = jax.tree.map(lambda x: x.sharding, params)
        if not self._gather and self._compute is None:
            return 0
        shardings = self._shardings
        if self._gather:
            shardings = sharding.gathered_shardings(shardings)
        return sharding.bytes_per_device(jax.eval_shape(self._cast, params), shardings)

    def __call__(self, params):
        """Within jit: cast first, so that no more is sent than is read, then gather."""
        params = self._cast(params)
        if not self._gather:
            return params
        constrain = jax.lax.with_sharding_constraint
        params = constrain(params, self._shardings)
        return constrain(params, sharding.gathered_shardings(self._shardings))

    def check_memory(self, field: str, params, request: memory.RolloutRequest):
        """Check before the first call that a rollout fits beside the copy of the
        parameters (`memory.check`); later calls have the same shapes."""
        if self._shardings is not None:
            return
        copy = self.prepare(params)
        cast = jax.eval_shape(self._cast, params)
        memory.check(field, self._model, cast, request, mesh=self._mesh, copy=copy)

    def _cast(self, params):
        return cast_params(params, self._compute, self._model.table)


class Storage(NamedTuple):
    """In which types a model is held."""

    dtype: str = "float32"  # of the parameters, or 'bfloat16'; '' as they are stored
    compute: str = ""  # of activations, and of the parameters where they are read; ''
    # as `dtype`. Training in bfloat16 stores float32 and computes in bfloat16.
    quantize: str = ""  # 'int8': linear layers in 8 bits, to be read or adapted only


def load(
    name: str | os.PathLike = "tiny",
    *,
    style: str | None = None,
    tags: str = "auto",
    mesh=None,
    pixels: Sequence[int] = (),
    **storage: str,
) -> Policy:
    """Load a checkpoint onto a mesh (all devices on the data axis by default).

    Args:
      name: 'tiny', a directory in Hugging Face format, a hub id, or a run.
      style: prompt style (`prompts.styles.STYLES`, or path/to/file.py:name); by
        default 'tiny' for the tiny tokenizer, else 'r1v'.
      tags: how <think> and its like become tokens: 'added', 'plain' or 'auto', see
        `prompts.tag_tokens`; `processor.about_tags()` says what came of it.
      pixels: (min, max) pixels of an image, instead of the checkpoint's own.
      storage: fields of `Storage`: dtype, compute, quantize.
    Raises:
      UserError: no such model, or sizes that make no sense.
    """
    tag_tokens.check(tags)
    dtype, compute, quantize = Storage(**storage)
    if len(pixels or ()) not in (0, 2):
        raise UserError(f"pixels: expected (min, max) of an image, got {pixels}")
    for field, kind in (("dtype", dtype), ("compute", compute)):
        if kind not in ("", *weights.DTYPES):
            known = ", ".join(weights.DTYPES)
            raise UserError(f"{field}: expected {known} or '', got '{kind}'")
    if style is not None:
        reading.check(style)
    path = registry.resolve(name)
    mesh = mesh or sharding.make_mesh()
    table = registry.read_model(path).table
    model, params = weights.load(
        name,
        dtype=dtype or None,
        shardings=sharding.param_shardings(mesh, table),
        quantize=quantize or None,
    )
    low, high = pixels or (None, None)
    processor = tokens.load_processor(path, min_pixels=low, max_pixels=high)
    if style is None:
        style = "tiny" if processor.vocab_size <= 512 else "r1v"
    run = weights.run_meta(name).get("tags") if tags == "auto" else None
    processor = with_tags(processor, run or tags, model, params)
    return Policy(
        model.on(mesh),
        params,
        processor,
        make_stops(processor),
        style,
        (),
        mesh,
        str(name),
        jnp.dtype(compute) if compute and compute != dtype else None,
    )


def with_tags(processor: Processor, tags: str, model: Model, params) -> Processor:
    """Return the processor with reasoning tags as they are chosen for a model."""
    added = tag_tokens.added_ids(processor.tokenizer)
    tables = []
    if added and tags == "auto":
        others = tag_tokens.sample_ids(processor.token_bytes, list(added.values()))
        ids = [np.array(x, np.int32) for x in (list(added.values()), *others)]
        for name in ("text.embed", "text.head"):
            if name in params:
                tables.append(_rows(params[name], ids))
    template = str(processor.tokenizer.chat_template)
    choice = tag_tokens.choose(
        tags,
        list(added),
        opened=bool(processor.opening()) or "enable_thinking" in template,
        family=model.family,
        tables=tables,
    )
    return processor.with_tags(choice)


def _rows(table, ids: list[np.ndarray]) -> tag_tokens.TagRows:
    """Return rows of a parameter on the host, of each list of ids, on every process."""
    whole = sharding.replicate(table.sharding.mesh)

    @functools.partial(jax.jit, out_shardings=whole)
    def take(table):
        return [table[x].astype(jnp.float32) for x in ids]

    rows = (np.asarray(x.addressable_data(0)) for x in take(table))
    return tag_tokens.TagRows(*rows)


def prefixes(policy: Policy, written: Sequence[Prompt]) -> Group:
    """Return groups for `put` whose whole prompt is the prefix, as rollouts need them.
    With several processes each encodes its part, and the result is on the mesh."""
    many = jax.process_count() > 1
    local = policy.own(written) if many else written
    group = policy.group([[r] for r in tokens.encode_all(policy.processor, local)])
    return sharding.join_batch(policy.mesh, group) if many else group
