"""A model with its weights and its way with text: what is sampled from and scored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlmrl import sharding
from vlmrl.engine import attention, memory
from vlmrl.engine.generate import Stops, make_stops
from vlmrl.models import registry, weights
from vlmrl.models.api import Model
from vlmrl.prompts import styles, tokens
from vlmrl.run import hosts
from vlmrl.types import Example, Group, Prompt, UserError

# Sizes for the tiny model: questions of scenes are 73 tokens at most, with the paper's
# mix beside them 99, under any condition 107. Others give their own.
BUCKETS = tokens.Buckets(prefix=(32, 80, 100, 108), branch=(76,), windows=(4,))
DTYPES = ("float32", "bfloat16")


class Policy(NamedTuple):
    model: Model
    params: Any
    processor: tokens.Processor
    stops: Stops
    style: str  # prompt style
    buckets: tokens.Buckets
    mesh: Any
    source: str  # directory or name it was loaded from
    compute: Any = None  # dtype of activations; None: that of the parameters

    @property
    def attend(self):
        """Attention as this policy's mesh wants it."""
        return attention.choose("auto", self.mesh)

    def read(self, params):
        """Within jit: the parameters in the dtype of activations."""
        return rounded(params, self.compute, self.model.table)

    def write(self, examples: Sequence[Example]) -> list[Prompt]:
        """Prompts of examples, in this policy's style."""
        render = self.processor.render
        return [styles.build(e, self.style, render) for e in examples]

    def put(self, tree):
        """Host arrays of a whole batch on the mesh, groups split along its axes."""
        return sharding.shard_batch(self.mesh, tree)

    def own(self, x):
        """This process's part of something with a row per group or per branch."""
        index, count = sharding.part(self.mesh)
        size = len(x) // count
        return x[index * size : (index + 1) * size]

    def group(self, rows: Sequence[Sequence[tokens.Encoded]]) -> Group:
        """`tokens.group` at sizes that all processes agree on."""
        buckets, facts = self.buckets, self.processor.facts
        if jax.process_count() > 1:
            buckets = buckets.least(hosts.most(tokens.needs(rows, facts)))
        return tokens.group(rows, facts, buckets)


def rounded(params, dtype, table):
    """Parameters as the update rounds them where it reads them, which leaves some as
    they are (`Param.float32`); None: all as they are."""
    if dtype is None:
        return params
    return {n: w if table[n].float32 else w.astype(dtype) for n, w in params.items()}


def gathered(params, dtype, table, lie):
    """Within jit: rounded first, then gathered over fsdp; `lie` are their places, so
    that no more travels than what is read."""
    params = jax.lax.with_sharding_constraint(rounded(params, dtype, table), lie)
    return jax.lax.with_sharding_constraint(params, sharding.gathered(lie))


class Weights:
    """The parameters of a policy as it samples: called within jit they are read in the
    dtype of activations and, with `gather`, what is split over fsdp is gathered once,
    before the first token, else for every token anew. `check_memory` comes first."""

    def __init__(self, policy: Policy, gather: bool):
        self._policy = policy
        self._gather = gather and policy.mesh.shape["fsdp"] > 1
        self._lie: Any = None
        self._unchecked = True

    def __call__(self, params):
        if not self._gather:
            return self._policy.read(params)
        policy = self._policy
        return gathered(params, policy.compute, policy.model.table, self._lie)

    def check_memory(self, field: str, params, request: memory.RolloutRequest):
        """Before the first call, whose shapes all others have: `memory.check` of what
        memory can't hold, copies of the weights included."""
        if not self._unchecked:
            return
        self._unchecked = False
        policy = self._policy
        lie = self._lie = jax.tree.map(lambda x: x.sharding, params)
        lie = sharding.gathered(lie) if self._gather else lie
        copied = self._gather or policy.compute is not None
        read = jax.eval_shape(policy.read, params)
        memory.check(
            field, policy.model, read, request, mesh=policy.mesh,
            copy=sharding.bytes_each(read, lie) if copied else 0,
        )  # fmt: skip


def load(
    name: str | os.PathLike = "tiny",
    *,
    style: str | None = None,
    dtype: str = "float32",
    compute: str = "",
    buckets: tokens.Buckets | Mapping[str, Sequence[int]] = BUCKETS,
    mesh=None,
    pixels: Sequence[int] = (),
    quantize: str = "",
) -> Policy:
    """Load a checkpoint onto a mesh (all devices on the data axis by default).

    Args:
      name: 'tiny', a directory in Hugging Face format, a hub id, or a run.
      style: prompt style; by default 'tiny' for the tiny tokenizer, else 'r1v'.
      dtype: of the parameters, 'float32' or 'bfloat16'; '' as they are stored.
      compute: of activations, and of the parameters as they are read; '' as `dtype`.
        Training in bfloat16 holds float32 and computes in bfloat16.
      buckets: static lengths; of a mapping, empty entries stand for the tiny model's.
      pixels: (min, max) pixels of an image, instead of the checkpoint's own.
      quantize: 'int8' holds the linear layers in 8 bits, to be read or adapted only;
        '' for none.
    Raises:
      UserError: no such model, or sizes that make no sense.
    """
    if not isinstance(buckets, tokens.Buckets):
        given = {k: tuple(sorted(v)) for k, v in buckets.items() if v}
        buckets = BUCKETS._replace(**given)
    if min(n for sizes in buckets for n in sizes) < 1:
        raise UserError(f"buckets: sizes must be 1 or more: {buckets._asdict()}")
    if len(pixels or ()) not in (0, 2):
        raise UserError(f"pixels is {pixels}, want the least and the most of an image")
    for field, kind in (("dtype", dtype), ("compute", compute)):
        if kind not in ("", *DTYPES):
            raise UserError(f"{field} is '{kind}', want {', '.join(DTYPES)} or ''")
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
    styles.style(style)
    return Policy(
        model,
        params,
        processor,
        make_stops(processor),
        style,
        buckets,
        mesh,
        str(name),
        jnp.dtype(compute) if compute and compute != dtype else None,
    )


def prefixes(policy: Policy, written: Sequence[Prompt]) -> Group:
    """Groups whose whole prompt is the prefix, as rollouts start from, for `put`. With
    several processes each encodes its part, and the whole lies on the mesh already."""
    many = jax.process_count() > 1
    mine = policy.own(written) if many else written
    group = policy.group([[r] for r in tokens.encode_all(policy.processor, mine)])
    return sharding.join_batch(policy.mesh, group) if many else group
