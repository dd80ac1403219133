"""The update step: what is split, clipped, frozen and decayed, and by how much."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import kit
from vlmrl import sharding
from vlmrl.engine.score import completions
from vlmrl.plan import compiled, programs
from vlmrl.rl import update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.run import checkpoint
from vlmrl.types import Mean, Rollout, Tokens, UserError

GROUPS, BRANCHES, LENGTH = 4, 2, 8


@functools.cache
def batch() -> update.Batch:
    """Four groups of two completions of very different lengths, one of them empty."""
    rng = np.random.default_rng(0)
    rows = GROUPS * BRANCHES
    ids = rng.integers(0, 480, (rows, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < np.array([8, 1, 3, 0, 5, 8, 2, 7])[:, None]
    nothing = np.zeros(ids.shape, np.float32)
    rollout = Rollout(ids, nothing, nothing, mask, np.ones(rows, bool))
    group = jax.device_get(completions(kit.group(GROUPS), rollout))
    return update.Batch(group, {"weight": rng.normal(size=rows).astype(np.float32)})


def objective(logp, entropy, mask, extra):
    """−Σ weight · log p over tokens, a mean over all tokens of the batch."""
    loss = -jnp.where(mask, logp * extra["weight"][:, None], 0).sum()
    count = mask.sum().astype(jnp.float32)
    spread = Mean(jnp.where(mask, entropy, 0).sum(), count)
    return Mean(loss, count), {"entropy": spread}


def fresh(tx, **how) -> update.TrainState:
    """A state on a mesh of one device; its arrays are its own, an update takes them."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    places = sharding.param_shardings(mesh, kit.model().table)
    params = {
        n: jax.device_put(np.array(p), places[n]) for n, p in kit.params().items()
    }
    return update.init_state(params, tx, **how)


@functools.cache
def stepped(microbatches: int):
    """(parameters, metrics) after one SGD step at rate 1."""
    step = update.make_update(
        kit.model(), optax.sgd(1.0), objective, microbatches=microbatches
    )
    state = fresh(optax.sgd(1.0))
    state, metrics = update.jit_update(step, state)(state, batch())
    assert state.step == 1
    return jax.device_get((state.params, metrics))


def test_the_step_is_the_gradient_of_the_global_mean():
    params, metrics = stepped(1)
    count = batch().group.branches.mask.sum()
    assert metrics["loss"].count == count and metrics["entropy"].count == count

    @jax.jit
    def plain(params, rows):
        def loss(params):
            logp = kit.branch_logprobs(
                kit.row_logits(kit.model(), params, rows), batch().group
            )
            return -(logp * batch().extra["weight"][:, None]).sum() / count

        return jax.value_and_grad(loss)(params)

    rows = kit.ordinary(batch().group)
    loss, wanted = jax.device_get(plain(kit.params(), rows))
    np.testing.assert_allclose(metrics["loss"].value, loss, atol=1e-5)
    before = jax.device_get(kit.params())
    for name, want in wanted.items():
        # A difference of parameters of size 20 keeps six digits of them.
        noise = 1e-6 * np.linalg.norm(before[name])
        found = before[name] - params[name]
        assert np.linalg.norm(found - want) < 1e-5 * np.linalg.norm(want) + noise, name
    norm = np.sqrt(sum((g**2).sum() for g in wanted.values()))
    np.testing.assert_allclose(metrics["grad_norm"].value, norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"].value, norm, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_change_nothing(microbatches):
    """Also where the parts hold different numbers of tokens."""
    params, metrics = stepped(microbatches)
    wanted, wanted_metrics = stepped(1)
    for name in wanted:
        np.testing.assert_allclose(
            params[name], wanted[name], atol=1e-5, rtol=1e-6, err_msg=name
        )
    for name in wanted_metrics:
        np.testing.assert_allclose(
            metrics[name].value, wanted_metrics[name].value, rtol=1e-5, err_msg=name
        )


def test_split_keeps_groups_with_their_branches():
    made = update.split(batch(), 2)
    part = jax.tree.map(lambda x: np.asarray(x[1]), made)
    whole, rows = batch(), GROUPS * BRANCHES
    tops = np.asarray(part.group.prefix.ids)
    at = [  # which of the groups the second part holds
        int(np.flatnonzero((whole.group.prefix.ids == ids).all(1))[0]) for ids in tops
    ]
    assert len(set(at)) == 2
    own = np.arange(rows).reshape(GROUPS, BRANCHES)[at].reshape(-1)
    for name in Tokens._fields:
        for part_of, index in (("prefix", at), ("branches", own)):
            found = getattr(getattr(part.group, part_of), name)
            wanted = getattr(getattr(whole.group, part_of), name)[index]
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        part.group.vision.patches, whole.group.vision.patches[at]
    )
    np.testing.assert_array_equal(part.extra["weight"], whole.extra["weight"][own])


def test_every_device_has_its_share_of_every_part():
    """Of four groups on two devices in two parts, a device has one in each, and none is
    sent."""
    mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
    shapes = programs.shapes(mesh, batch())
    made = jax.jit(lambda x: update.split(x, 2)).lower(shapes).compile()
    assert not compiled.collectives(made.as_text())
    ids = batch().group.branches.ids
    place = made.output_shardings.group.branches.ids
    assert place.shard_shape((2, len(ids) // 2, LENGTH)) == (2, len(ids) // 4, LENGTH)


# -- the optimizer, on a few numbers ---------------------------------------------------

PARAMS = {
    "vision.patch": jnp.full((2, 2), 2.0),
    "text.embed": jnp.full((2, 3), 2.0),
    "text.layers.q_bias": jnp.full((2, 3), 2.0),
    "text.layers.norm1": jnp.full((2, 3), 2.0),
    "text.norm": jnp.full((3,), 2.0),
}


ROWS = {n: kit.model().table[n] for n in PARAMS}


def change(grads, **settings):
    tx = update.optimizer(OptimizerOptions(peak=0.1, **settings), ROWS)
    return tx.update(grads, tx.init(PARAMS), PARAMS)[0]


def test_decay_leaves_out_norms_biases_and_vectors():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    moved = change(zero, weight_decay=0.5)
    for name, found in moved.items():
        wanted = -0.1 * 0.5 * 2 if name in ("vision.patch", "text.embed") else 0
        np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=name)


def test_clipping_is_by_the_global_norm():
    """After the first Adam step clipping leaves no trace in the sign, but it does in
    the moments: they are those of g · clip / |g|."""
    grads = jax.tree.map(lambda p: jnp.full_like(p, 3.0), PARAMS)
    tx = update.optimizer(OptimizerOptions(peak=0.1, clip=0.5, b1=0.9, b2=0.99), ROWS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    norm = 3 * np.sqrt(sum(p.size for p in PARAMS.values()))
    (moments,) = [
        s
        for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    ]
    for name in PARAMS:
        clipped = 3 * 0.5 / norm
        np.testing.assert_allclose(moments.mu[name], 0.1 * clipped, rtol=1e-5)
        np.testing.assert_allclose(moments.nu[name], 0.01 * clipped**2, rtol=1e-5)


def test_schedules():
    rates = {
        kind: update.schedule(OptimizerOptions(peak=2.0, warmup=4, decay=kind), 12)
        for kind in ("constant", "cosine", "linear")
    }
    for rate in rates.values():
        np.testing.assert_allclose([rate(t) for t in range(5)], [0, 0.5, 1, 1.5, 2])
    assert float(rates["constant"](1000)) == 2
    for kind, middle in (("cosine", 1.0), ("linear", 1.0)):
        found = [float(rates[kind](t)) for t in (8, 12, 50)]
        np.testing.assert_allclose(found, [middle, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rates["cosine"](6), 1 + np.cos(np.pi / 4), rtol=1e-6)
    assert float(update.schedule(OptimizerOptions(peak=2.0), 5)(0)) == 2


@pytest.mark.slow
def test_a_frozen_tower_stays_as_it_is():
    """Through the whole step: it has no gradient, no moments and no average; those of
    the rest follow the parameters."""
    tx = update.optimizer(
        OptimizerOptions(peak=0.01, weight_decay=0.1), kit.model().table
    )
    how = {"freeze": ("vision.",)}
    state = fresh(tx, ema=True, **how)
    before = jax.device_get(state.params)
    made = update.make_update(kit.model(), tx, objective, ema=0.75, **how)
    step, average = update.jit_update(made, state), before
    for _ in range(2):
        state, metrics = step(state, batch())
        now = jax.device_get(state.params)
        average = {n: 0.75 * average[n] + 0.25 * now[n] for n in now}
    assert state.step == 2 and metrics["grad_norm"].value > 0
    for name, was in before.items():
        same = np.array_equal(now[name], was)
        assert same == name.startswith("vision."), name
    names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    ]
    assert any("text.embed" in n for n in names)
    assert not any("vision." in n for n in names)
    assert set(state.ema) == {n for n in before if not n.startswith("vision.")}
    measured = update.averaged(state)
    for name in before:
        np.testing.assert_allclose(measured[name], average[name], rtol=1e-5)


def test_a_token_budget_says_into_how_many_parts():
    width = batch().group.prefix.ids.shape[1] + BRANCHES * LENGTH  # of one group
    for budget, shards, parts in (
        (0, 1, 1),
        (4 * width, 1, 1),
        (4 * width - 1, 1, 2),
        (2 * width, 1, 2),
        (2 * width - 1, 1, 4),
        (1, 1, 4),  # a group is never cut
        (1, 2, 2),  # nor a shard left without one
    ):
        assert update.parts_of(batch(), budget, shards) == parts, (budget, shards)


@pytest.mark.slow
def test_muon_steps_along_the_orthogonal_factor():
    """The change of a matrix has singular values near muon · rate, whatever those of
    its gradient; vectors and embeddings move as under Adam."""
    table = kit.model().table
    axes = update.matrices(table)
    assert axes["text.embed"] is axes["text.layers.norm1"] is None
    assert axes["vision.layers.qkv_bias"] is None
    assert axes["text.layers.o"].reduction_axis == (1, 2, 3)
    assert axes["text.layers.o"].output_axis == (4,)
    tx = update.optimizer(OptimizerOptions(peak=0.01, muon=5.0, clip=1e9), table)
    params = {n: jnp.zeros(p.shape) for n, p in table.items()}
    keys = jax.random.split(jax.random.key(0), len(params))
    grads = {
        n: jax.random.normal(k, p.shape)
        for k, (n, p) in zip(keys, params.items(), strict=True)
    }
    moved = tx.update(grads, tx.init(params), params)[0]
    sizes = jnp.abs(moved["text.embed"])  # Adam's first step: as long for any gradient
    np.testing.assert_allclose(sizes, sizes.max(), rtol=1e-2)
    down = np.asarray(moved["text.layers.down"])  # [L, inputs, outputs]
    for layer in down:
        spread = np.linalg.svd(layer, compute_uv=False) / (0.01 * 5)
        assert spread.min() > 0.6 and spread.max() < 1.3


def test_the_embedding_moves_at_its_own_rate():
    table = kit.model().table
    params = {n: jnp.zeros(p.shape) for n, p in table.items()}
    grads = {n: jnp.ones(p.shape) for n, p in table.items()}
    moved = []
    for factor in (1.0, 3.0):
        tx = update.optimizer(OptimizerOptions(peak=0.01, embed=factor), table)
        moved.append(tx.update(grads, tx.init(params), params)[0])
    for name in table:
        ratio = 3.0 if name == "text.embed" else 1.0
        np.testing.assert_allclose(moved[1][name], ratio * moved[0][name], rtol=1e-6)


def test_an_unknown_decay_is_refused():
    with pytest.raises(UserError, match="optimizer.decay is 'cosin', expected one of"):
        update.schedule(OptimizerOptions(warmup=1, decay="cosin"), 2)


def adam():
    return update.optimizer(OptimizerOptions(peak=1e-3), kit.model().table)


@functools.cache
def adam_step(offload: bool) -> update.TrainState:
    tx = adam()
    state = fresh(tx, offload=offload)
    step = update.jit_update(update.make_update(kit.model(), tx, objective), state)
    return step(step(state, batch())[0], batch())[0]


def test_moments_on_the_host_change_nothing(tmp_path):
    """Where they lie, what comes of it; a checkpoint brings them back there."""
    here, there = adam_step(False), adam_step(True)
    for a, b in zip(*map(jax.tree.leaves, (here, there)), strict=True):
        np.testing.assert_array_equal(a, b)
    moments = [x for x in jax.tree.leaves(there.opt_state) if x.ndim]
    assert len(moments) == 2 * len(kit.params())
    assert all(map(sharding.is_on_host, moments))
    assert not any(map(sharding.is_on_host, jax.tree.leaves(there.params)))
    assert not any(map(sharding.is_on_host, jax.tree.leaves(here)))
    checkpoint.save(tmp_path, 1, there)()
    found, _ = checkpoint.restore(
        tmp_path,
        1,
        fresh(
            update.optimizer(OptimizerOptions(peak=1e-3), kit.model().table),
            offload=True,
        ),
    )
    for a, b in zip(*map(jax.tree.leaves, (found, there)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding == b.sharding


def test_a_device_without_host_memory_is_refused(monkeypatch):
    monkeypatch.setattr(sharding, "HOST", "some_other")
    with pytest.raises(
        UserError, match="expected .* some_other memory, got cpu with device, "
    ):
        fresh(adam(), offload=True)
