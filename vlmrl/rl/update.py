"""The update step: gradients of any objective over groups, in microbatches.

An objective is a pure function of (log-probs, entropy, mask, extra) that returns
`Mean`s; it knows no model. Gradients are summed over microbatches and divided by the
global count before clipping, so the split changes nothing but memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vlmrl import metrics as metrics_
from vlmrl.engine.score import score
from vlmrl.models.api import Model, Param
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.sharding import (
    batch_shards,
    constrain_params,
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
    """Groups with their branches, and what the objective needs of every row.

    `extra` is a dict of arrays whose leading axis is N * G: advantages, masks, ...
    `second` has the same branches behind other prefixes (PAPO's masked images); the
    objective gets their log-probs, with gradients, as extra['masked_logprobs'].
    """

    group: Group
    extra: dict[str, Any]
    second: Group | None = None


def schedule(options: OptimizerOptions, steps: int):
    """Return the learning rate by step: linear warm-up from 0 to `peak`, then constant,
    cosine or linear decay to 0 at `horizon`, or at `steps` where that is 0.

    Raises:
      UserError: `decay` is none of these.
    """
    peak, warmup = options.peak, options.warmup
    rest = max(1, (options.horizon or steps) - warmup)
    tails = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
    }
    if options.decay not in tails:
        raise UserError(
            f"optimizer.decay is '{options.decay}', expected one of {', '.join(tails)}"
        )
    rise = optax.linear_schedule(0.0, peak, max(1, warmup))
    return optax.join_schedules([rise, tails[options.decay]], [warmup])


def matrices(table: dict[str, Param]) -> dict[str, Any]:
    """Return the axes that a linear map reads from and writes to, by parameter; None
    for what is no matrix (embeddings, norms, biases)."""

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
    options: OptimizerOptions,
    table: dict[str, Param],
    *,
    steps: int = 0,
) -> optax.GradientTransformation:
    """Return AdamW after clipping by global norm; a parameter's row of the family's
    `table` says whether it decays.

    With `muon` > 0 matrices are stepped along their orthogonalised momentum at `muon`
    times the rate (https://kellerjordan.github.io/posts/muon), the rest by Adam. The
    embedding is stepped at `embed` times the rate.

    Args:
      options: `freeze` and `offload` are matters of the state (`init_state`).
      table: of the live parameters.
      steps: of the run, for the schedule.
    """
    rate = schedule(options, steps)
    if not options.muon:
        inner = optax.adamw(
            rate,
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
            mask=lambda params: {name: table[name].decay for name in params},
        )
    else:
        inner = optax.contrib.muon(
            lambda step: options.muon * rate(step),
            adam_learning_rate=rate,
            adam_b1=options.b1,
            adam_b2=options.b2,
            weight_decay=options.weight_decay,
            muon_weight_dimension_numbers=lambda _: matrices(table),
        )
    whole = optax.chain(optax.clip_by_global_norm(options.clip), inner)
    if options.embed != 1:

        def faster(updates, params):
            return {
                n: u * options.embed if table[n].role == "embedding" else u
                for n, u in updates.items()
            }

        whole = optax.chain(whole, optax.stateless(faster))
    return whole


def make_update(
    model: Model,
    tx: optax.GradientTransformation,
    objective: Callable,
    *,
    microbatches: int = 1,
    token_budget: int = 0,
    freeze: tuple[str, ...] = (),
    ema: float = 0.0,
    **forward,
):
    """Return update(state, batch) -> (state, metrics: dict name → Mean).

    objective(logprobs float32[B, T], entropy float32[B, T], mask bool[B, T], extra)
    returns (loss: Mean, metrics: dict name → Mean).

    Args:
      tx: of the live parameters alone.
      microbatches: into how many parts the groups of a batch are split, one after the
        other; it must divide the number of groups.
      token_budget: split further until a part has at most so many tokens, see
        `parts_of`; 0 for no budget.
      freeze: prefixes of parameters that take no gradient and stay as they are.
      ema: decay of `TrainState.ema`, 0 for none.
      forward: options of `engine.score.score`: temperature, banned, dtype, remat, ….
    """
    shards = batch_shards(model.mesh)

    def loss(live, params, batch: Batch):
        params, group, extra = {**params, **live}, batch.group, batch.extra
        logp, ent = score(model, params, group, **forward)
        if batch.second is not None:
            masked, _ = score(model, params, batch.second, **forward)
            extra = extra | {"masked_logprobs": masked}
        total, metrics = objective(logp, ent, group.branches.mask, extra)
        return total.sum, (total, metrics)

    def gradients(params, batch):
        live = live_of(params, freeze)
        grads, (total, metrics) = jax.grad(loss, has_aux=True)(live, params, batch)
        return constrain_params(model.mesh, model.table, grads), total, metrics

    def update(state: TrainState, batch: Batch):
        count = max(microbatches, parts_of(batch, token_budget, shards))
        grads, total, metrics = accumulate(gradients, state.params, batch, count)
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


def make_logprobs(
    model: Model, *, microbatches: int = 1, token_budget: int = 0, **forward
):
    """Return logprobs(params, group) → float32[B, T], computed in the parts that
    `make_update` takes: what a whole batch would hold at once doesn't bound its size.

    Args: as for `make_update`; where `microbatches` don't divide the groups, the
    largest number that divides both.
    """
    shards = batch_shards(model.mesh)

    def logprobs(params, group: Group):
        batch, groups = Batch(group, {}), group.prefix.ids.shape[0]
        count = math.gcd(microbatches, groups)
        count = max(count, parts_of(batch, token_budget, shards))

        def of_part(part: Batch):
            return score(model, params, part.group, **forward)[0]

        if count == 1:
            return of_part(batch)
        return join(jax.lax.map(of_part, split(batch, count)), groups)

    return logprobs


def accumulate(function: Callable, params, batch: Batch, count: int):
    """Return the sum of function(params, part) over `count` parts of a batch, one part
    after the other."""
    if count == 1:
        return function(params, batch)
    parts = split(batch, count)
    first = jax.tree.map(lambda x: x[0], parts)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, params, first)
    )

    def body(carry, part):
        return metrics_.add(carry, function(params, part)), None

    return jax.lax.scan(body, zero, parts)[0]


def live_of(params: dict, freeze: tuple[str, ...] = ()) -> dict:
    """Return the parameters that are not frozen."""
    return {n: p for n, p in params.items() if not n.startswith(tuple(freeze))}


def averaged(state: TrainState) -> dict:
    """Return the parameters to measure and export: the average where there is one."""
    return {**state.params, **(state.ema or {})}


def parts_of(batch: Batch, token_budget: int, shards: int = 1) -> int:
    """Return the smallest number of parts with at most `token_budget` tokens each,
    padding included: groups · (S + G · T). A part has a multiple of `shards` groups,
    and never fewer, whatever the budget; 0 is no budget."""
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
    """Cut every array along its batch axis into a leading axis of `parts`. The first
    part has groups 0, parts, 2 · parts, ...: each device, which stores consecutive
    groups, has its share of every part and sends nothing."""
    groups = batch.group.prefix.ids.shape[0]

    def split_rows(x):
        each = x.shape[0] // groups  # rows of a group
        x = x.reshape(groups // parts, parts, each, *x.shape[1:])
        x = jnp.moveaxis(x, 1, 0)
        return x.reshape(parts, groups // parts * each, *x.shape[3:])

    return jax.tree.map(split_rows, batch)


def join(x, groups: int):
    """Undo `split` of an array: rows of every part, [parts, B / parts, ...]."""
    parts, each = x.shape[0], x.shape[0] * x.shape[1] // groups
    x = x.reshape(parts, groups // parts, each, *x.shape[2:])
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(groups * each, *x.shape[3:])


def init_state(
    params,
    tx,
    *,
    freeze: tuple[str, ...] = (),
    ema: bool = False,
    offload: bool = False,
) -> TrainState:
    """Return a fresh state, its moments sharded like the parameters; with `offload` in
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
    """Jit the update: the new state has the shardings of the old one and takes its
    memory."""
    places = jax.tree.map(lambda x: x.sharding, state)
    update = fetching(update, state)
    return jax.jit(update, donate_argnums=0, out_shardings=(places, None))


def fetching(update, state: TrainState):
    """Return the update of a state like this one, with moments in host memory moved to
    the devices first."""
    if not any(map(is_on_host, jax.tree.leaves(state.opt_state))):
        return update

    def run(state: TrainState, batch: Batch):
        here = to_devices(state.opt_state)
        return update(state._replace(opt_state=here), batch)

    return run
