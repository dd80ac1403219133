"""The update step: gradients of any objective over groups, in microbatches.

An objective is a pure function of (log-probs, entropy, batch) that returns `Mean`s; it
knows no model. Gradients are summed over microbatches and divided by the global count
before clipping, so the split changes nothing but memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vlmrl import metrics as metrics_
from vlmrl.engine.score import score
from vlmrl.models.api import Model, Param
from vlmrl.sharding import (
    batch_shards,
    is_on_host,
    like_params,
    on_host,
    replicate,
    to_devices,
)
from vlmrl.types import Group, Mean, UserError


class TrainState(NamedTuple):
    """What training changes; a plain pytree, saved and restored whole."""

    params: Any
    opt_state: Any  # of the parameters that are not frozen
    step: Any  # int32[]
    ema: Any = None  # running average of the parameters that are not frozen


class Batch(NamedTuple):
    """Groups with their branches, and what the objective wants to know of every row.

    `extra` is a dict of arrays whose leading axis is N * G: advantages, masks, ...
    `second` has the same branches behind other prefixes (PAPO's masked images); the
    objective finds their log-probs, with gradients, as extra['masked_logprobs'].
    """

    group: Group
    extra: dict[str, Any]
    second: Group | None = None


def schedule(*, peak: float, warmup: int, steps: int, decay: str = "constant"):
    """Learning rate by step: linear warm-up from 0, then constant, cosine or linear.

    Raises:
      UserError: `decay` is none of these.
    """
    tails = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, max(1, steps - warmup)),
        "linear": optax.linear_schedule(peak, 0.0, max(1, steps - warmup)),
    }
    if decay not in tails:
        raise UserError(f"optimizer.decay: '{decay}' is not one of {', '.join(tails)}")
    ramp = optax.linear_schedule(0.0, peak, max(1, warmup))
    return optax.join_schedules([ramp, tails[decay]], [warmup])


def matrices(table: dict[str, Param]) -> dict[str, Any]:
    """Which axes of every parameter a linear map reads from and writes to; None for
    what is no matrix (embeddings, norms, biases)."""

    def axes(p: Param):
        if p.layout == "... -> ...":
            return None
        left, right = p.layout.split("->")
        outputs = re.match(r"\s*(\([^)]*\)|\S+)", left)[1]  # rows of the stored matrix
        lead = 1 if "{}" in p.name else 0  # stacked layers
        writes, reads = [], []
        for i, axis in enumerate(re.findall(r"\([^)]*\)|\S+", right), lead):
            (writes if axis in outputs.strip("()").split() else reads).append(i)
        if not reads:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(reads), tuple(writes))

    return {name: axes(p) for name, p in table.items()}


def optimizer(
    rate,
    table: dict[str, Param],
    *,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
    freeze: tuple[str, ...] = (),
    muon: float = 0.0,
    embed: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW after clipping by global norm; a parameter's row of the family's `table`
    says whether it decays.

    With `muon` > 0 matrices are stepped along their orthogonalised momentum at `muon`
    times the rate (https://kellerjordan.github.io/posts/muon), the rest by Adam.
    The embedding is stepped at `embed` times the rate.

    Raises:
      UserError: Muon with frozen parameters.
    """

    def decays(params):
        return {name: table[name].decay for name in params}

    if muon:
        if freeze:
            raise UserError(f"optimizer.muon: expected freeze=(), got {freeze}")
        fast = rate if callable(rate) else optax.constant_schedule(rate)
        inner = optax.contrib.muon(
            lambda step: muon * fast(step),
            adam_learning_rate=rate,
            adam_b1=b1,
            adam_b2=b2,
            weight_decay=weight_decay,
            muon_weight_dimension_numbers=lambda _: matrices(table),
        )
    else:
        inner = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays)
    whole = optax.chain(optax.clip_by_global_norm(clip), inner)
    if embed != 1:

        def faster(updates, params):
            return {
                n: u * embed if table[n].role == "embedding" else u
                for n, u in updates.items()
            }

        whole = optax.chain(whole, optax.stateless(faster))
    if not freeze:
        return whole

    def labels(params):
        return {n: "frozen" if n.startswith(freeze) else "live" for n in params}

    return optax.multi_transform({"live": whole, "frozen": optax.set_to_zero()}, labels)


def make_update(
    model: Model,
    tx: optax.GradientTransformation,
    objective: Callable,
    *,
    microbatches: int = 1,
    token_budget: int = 0,
    mesh=None,
    freeze: tuple[str, ...] = (),
    ema: float = 0.0,
    temperature: float = 1.0,
    banned=None,
    **options,
):
    """update(state, batch) -> (state, metrics: dict name → Mean).

    objective(logprobs float32[B, T], entropy float32[B, T], mask bool[B, T], extra)
    returns (loss: Mean, metrics: dict name → Mean).

    Args:
      tx: of the live parameters alone.
      microbatches: into how many parts the groups of a batch are split, one after the
        other; it must divide the number of groups.
      token_budget: split further until a part holds at most so many tokens, see
        `parts_of`; 0 for no budget.
      mesh: over which batch and parameters are split, if they are.
      freeze: prefixes of parameters that take no gradient and stay as they are.
      ema: decay of `TrainState.ema`, 0 for none.
      temperature, banned: of the scored distribution, as it was sampled.
      options: dtype, remat, unroll and float32_residual of the forward pass.
    """
    how = {"temperature": temperature, "banned": banned, "mesh": mesh, **options}

    def loss(live, params, batch: Batch):
        params, group, extra = {**params, **live}, batch.group, batch.extra
        logp, ent = score(model, params, group, **how)
        if batch.second is not None:
            masked, _ = score(model, params, batch.second, **how)
            extra = extra | {"masked_logprobs": masked}
        total, metrics = objective(logp, ent, group.branches.mask, extra)
        return total.sum, (total, metrics)

    def part(params, batch):
        live = live_of(params, freeze)
        grads, (total, metrics) = jax.grad(loss, has_aux=True)(live, params, batch)
        return grads, total, metrics

    def update(state: TrainState, batch: Batch):
        count = max(microbatches, parts_of(batch, token_budget, batch_shards(mesh)))
        if count == 1:
            grads, total, metrics = part(state.params, batch)
        else:
            parts = split(batch, count)
            first = jax.tree.map(lambda x: x[0], parts)
            none = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(part, state.params, first),
            )

            def body(carry, one):
                return metrics_.add(carry, part(state.params, one)), None

            (grads, total, metrics), _ = jax.lax.scan(body, none, parts)
        count = jnp.maximum(total.count, 1)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        live = live_of(state.params, freeze)
        changes, opt_state = tx.update(grads, state.opt_state, live)
        live = optax.apply_updates(live, changes)
        average = state.ema
        if ema:
            average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, live)
        one = jnp.float32(1)
        metrics = {
            **metrics,
            "loss": total,
            "grad_norm": Mean(optax.tree.norm(grads), one),
            "update_norm": Mean(optax.tree.norm(changes), one),
        }
        params = {**state.params, **live}
        return TrainState(params, opt_state, state.step + 1, average), metrics

    return update


def live_of(params: dict, freeze: tuple[str, ...] = ()) -> dict:
    """The parameters that are not frozen."""
    return {n: p for n, p in params.items() if not n.startswith(tuple(freeze))}


def averaged(state: TrainState) -> dict:
    """The parameters to measure and export: the running average where there is one."""
    return {**state.params, **(state.ema or {})}


def parts_of(batch: Batch, token_budget: int, shards: int = 1) -> int:
    """Into how few parts a batch is split so that each has at most `token_budget`
    tokens, padding included: groups · (S + G · T). A part holds a multiple of `shards`
    groups, and never less, whatever the budget; 0 is no budget."""
    groups, prefix = batch.group.prefix.ids.shape
    rows, length = batch.group.branches.ids.shape
    each = prefix + rows // groups * length
    if not token_budget:
        return 1
    for parts in range(1, groups // shards + 1):
        fits = groups // parts * each <= token_budget
        if groups % (parts * shards) == 0 and fits:
            return parts
    return max(1, groups // shards)


def split(batch: Batch, parts: int) -> Batch:
    """Every array cut along its batch axis into a leading axis of `parts`: the first
    has groups 0, parts, 2 · parts, ..., so that each of many devices, which hold groups
    in a row, has its share of every part and sends nothing."""
    groups = batch.group.prefix.ids.shape[0]

    def split_rows(x):
        each = x.shape[0] // groups  # rows of a group
        x = x.reshape(groups // parts, parts, each, *x.shape[1:])
        x = jnp.moveaxis(x, 1, 0)
        return x.reshape(parts, groups // parts * each, *x.shape[3:])

    return jax.tree.map(split_rows, batch)


def init_state(
    params,
    tx,
    *,
    freeze: tuple[str, ...] = (),
    ema: bool = False,
    offload: bool = False,
) -> TrainState:
    """A fresh state whose optimizer moments lie like the parameters; with `offload` in
    the memory of their devices' hosts (`sharding.on_host`)."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    live = live_of(params, freeze)
    places = {name: p.sharding for name, p in live.items()}
    moments = jax.eval_shape(tx.init, live)
    shards = like_params(mesh, moments, places)
    if offload:
        shards = on_host(shards, moments)
    opt_state = jax.jit(tx.init, out_shardings=shards)(live)
    average = {n: p.copy() for n, p in live.items()} if ema else None
    zero = jax.device_put(jnp.int32(0), replicate(mesh))
    return TrainState(params, opt_state, zero, average)


def jit_update(update, state: TrainState):
    """The update compiled once: its state comes out placed as it went in, and takes
    the old one's memory."""
    places = jax.tree.map(lambda x: x.sharding, state)
    update = fetching(update, state)
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def fetching(update, state: TrainState):
    """The update of a state like this one: moments that lie on the host are brought in
    for it."""
    if not any(map(is_on_host, jax.tree.leaves(state.opt_state))):
        return update

    def run(state: TrainState, batch: Batch):
        here = to_devices(state.opt_state)
        return update(state._replace(opt_state=here), batch)

    return run
