"""One device equals eight: the same scores, samples and steps on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests import kit
from vlmrl import sharding
from vlmrl.engine import prefix_cache
from vlmrl.engine.generate import Sampling, branch_keys, generate, make_stops
from vlmrl.engine.score import completions, score
from vlmrl.rl import update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.run import checkpoint
from vlmrl.types import Mean, Rollout, UserError

GAP, LENGTH, GROUPS, BRANCHES = 1e-4, 8, 4, 2
MESHES = {
    "one device": dict(data=1, fsdp=1, tensor=1),
    "data 4, tensor 2": dict(data=4, tensor=2),
    "data 2, fsdp 2, tensor 2": dict(data=2, fsdp=2, tensor=2),
}
EIGHT = list(MESHES)[1:]

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8,
    reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8, as conftest sets",
)


def mesh_of(name):
    sizes = MESHES[name]
    return sharding.make_mesh(
        **sizes, devices=jax.devices()[: np.prod([*sizes.values()])]
    )


def placed(mesh):
    shardings = sharding.param_shardings(mesh, kit.model().table)
    return {
        n: jax.device_put(np.array(p), shardings[n]) for n, p in kit.params().items()
    }


@functools.cache
def run(name):
    """(Rollout, log-probs by score, logits of the first token) on a mesh."""
    mesh = mesh_of(name)
    keys = branch_keys(0, "rollout", 0, list("abcd"), BRANCHES)
    group, keys = sharding.shard_batch(mesh, (kit.group(GROUPS), keys))
    stops, model = make_stops(kit.processor()), kit.model().on(mesh)

    @jax.jit
    def both(params, group, keys):
        cache = prefix_cache.prefill(model, params, group)
        rollout, _ = generate(
            model,
            params,
            cache,
            keys,
            stops,
            max_tokens=LENGTH,
            sampling=Sampling(0.0),
        )
        found = score(model, params, completions(group, rollout))
        return rollout, found

    return jax.device_get(both(placed(mesh), group, keys))


@pytest.mark.parametrize("name", EIGHT)
def test_samples_and_scores_do_not_depend_on_the_mesh(name):
    """Greedy tokens equal up to the first place where two candidates are closer than
    the gap (a row is not compared beyond it), log-probs and entropies to 1e-5."""
    (rollout, (logp, entropy)), (one, (one_logp, one_entropy)) = (
        run(name),
        run("one device"),
    )
    compared = 0
    for r in range(GROUPS * BRANCHES):
        differs = np.flatnonzero(rollout.tokens[r] != one.tokens[r])
        end = differs[0] if len(differs) else LENGTH
        if len(differs):  # only for two candidates that are nearly equal
            gap = abs(rollout.logprobs[r, end] - one.logprobs[r, end])
            assert gap < GAP, (r, end, gap)
        for found, wanted in (
            (rollout.logprobs, one.logprobs),
            (rollout.entropy, one.entropy),
            (logp, one_logp),
            (entropy, one_entropy),
        ):
            np.testing.assert_allclose(
                found[r, :end], wanted[r, :end], atol=1e-5, rtol=0
            )
        compared += end
    assert compared > 0.9 * GROUPS * BRANCHES * LENGTH


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    rows = GROUPS * BRANCHES
    ids = rng.integers(0, 480, (rows, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, rows)[:, None]
    nothing = np.zeros(ids.shape, np.float32)
    rollout = Rollout(ids, nothing, nothing, mask, np.ones(rows, bool))
    group = jax.device_get(completions(kit.group(GROUPS), rollout))
    return update.Batch(group, {"weight": rng.normal(size=rows).astype(np.float32)})


def objective(logp, entropy, mask, extra):
    loss = -jnp.where(mask, logp * extra["weight"][:, None], 0).sum()
    return Mean(loss, mask.sum().astype(jnp.float32)), {}


@functools.cache
def stepped(name, microbatches=1, remat=None, dtype=None):
    mesh, tx = mesh_of(name), optax.sgd(1.0)
    state = update.init_state(placed(mesh), tx)
    how = {"microbatches": microbatches, "remat": remat, "dtype": dtype}
    step = update.make_update(kit.model().on(mesh), tx, objective, **how)
    made = sharding.shard_batch(mesh, batch())
    state, metrics = update.jit_update(step, state)(state, made)
    for name_, p in state.params.items():
        want = sharding.param_shardings(mesh, kit.model().table)[name_]
        assert p.sharding.is_equivalent_to(want, p.ndim), name_
    return jax.device_get((state.params, metrics))


@pytest.mark.slow
@pytest.mark.parametrize("how", [(1, None), (2, "nothing_saveable")])
@pytest.mark.parametrize("name", EIGHT)
def test_a_step_does_not_depend_on_the_mesh(name, how):
    (params, metrics), (one, one_metrics) = (
        stepped(name, *how),
        stepped("one device"),
    )
    for key in one:
        np.testing.assert_allclose(
            params[key], one[key], atol=1e-5, rtol=1e-6, err_msg=key
        )
    for key in one_metrics:
        np.testing.assert_allclose(
            metrics[key].value, one_metrics[key].value, rtol=1e-5
        )


def test_a_step_in_bfloat16_does_not_depend_on_the_mesh():
    """Up to rounding, which differs with the order of sums."""
    (_, metrics), (_, one) = (
        stepped(name, 2, "nothing_saveable", jnp.bfloat16)
        for name in ("data 2, fsdp 2, tensor 2", "one device")
    )
    for key, value in one.items():
        np.testing.assert_allclose(metrics[key].value, value.value, rtol=0.02)


def test_moments_lie_like_their_parameters():
    mesh = mesh_of("data 2, fsdp 2, tensor 2")
    tx = update.optimizer(
        OptimizerOptions(peak=1e-3, weight_decay=0.1), kit.model().table
    )
    state = update.init_state(placed(mesh), tx, freeze=("vision.",))
    kinds = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        names = [getattr(k, "key", None) for k in path]
        (owner,) = [n for n in names if n in state.params] or [None]
        want = state.params[owner].sharding if owner else sharding.replicate(mesh)
        assert leaf.sharding.is_equivalent_to(want, leaf.ndim), path
        kinds.add(owner is not None)
        assert not (owner or "").startswith("vision.")  # no memory for frozen ones
    assert kinds == {True, False}
    assert state.params["text.layers.q"].sharding.spec == PartitionSpec(
        None, "fsdp", "tensor", None, None
    )
    assert len(state.params["text.layers.q"].addressable_shards[0].data) == 2
    shard = state.params["text.embed"].addressable_shards[0].data
    assert shard.shape == (256, 24)


def test_rows_of_a_group_stay_on_its_shard():
    mesh = mesh_of("data 4, tensor 2")
    made = sharding.shard_batch(mesh, batch())
    assert sharding.batch_shards(mesh) == 4
    whole = batch().group

    def held(x):
        return {s.index[0].start or 0: s.data.shape[0] for s in x.addressable_shards}

    assert held(made.group.prefix.ids) == dict.fromkeys(range(4), 1)
    assert held(made.group.prefix.positions) == dict.fromkeys(range(4), 1)
    assert held(made.group.vision.positions) == dict.fromkeys(range(4), 1)
    assert held(made.group.branches.ids) == {2 * i: 2 for i in range(4)}
    assert held(made.group.branches.positions) == {2 * i: 2 for i in range(4)}
    assert held(made.extra["weight"]) == {2 * i: 2 for i in range(4)}
    back = jax.device_get(made.group)
    jax.tree.map(np.testing.assert_array_equal, back, whole)


def test_axes_that_do_not_divide_are_replicated():
    mesh = mesh_of("data 2, fsdp 2, tensor 2")
    spec = sharding.spec(("vocab", "embed"), (511, 96), mesh)
    assert spec == PartitionSpec(None, "fsdp")
    assert sharding.spec((None, "mlp"), (3, 8), mesh) == PartitionSpec(None, "tensor")


def test_meshes_that_do_not_fit():
    assert dict(sharding.make_mesh(data=-1, tensor=2).shape) == {
        "data": jax.device_count() // 2,
        "fsdp": 1,
        "tensor": 2,
    }
    wrong = [(3, 1, 1), (3, 1, -1), (-1, 1, 0), (-1, 16, 1), (-2, 1, -4), (-1, -1, 8)]
    for sizes in wrong:
        with pytest.raises(UserError, match="expected sizes that multiply to"):
            sharding.make_mesh(*sizes, devices=jax.devices()[:8])


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_is_read_by_fewer(tmp_path):
    """Logits of parameters saved on 8 devices and restored on 4, 2 and 1."""
    eight = sharding.make_mesh(data=1, fsdp=4, tensor=2, devices=jax.devices()[:8])
    shardings = sharding.param_shardings(eight, kit.model().table)
    params = {
        n: jax.device_put(np.array(p), shardings[n]) for n, p in kit.params().items()
    }
    checkpoint.save(tmp_path, 1, params)()
    group = kit.group(1)
    wanted = jax.device_get(kit.row_logits(kit.model(), kit.params(), group))
    for count, sizes in ((4, (1, 2, 2)), (2, (1, 2, 1)), (1, (1, 1, 1))):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:count])
        shardings = sharding.param_shardings(mesh, kit.model().table)
        like = {
            n: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=shardings[n])
            for n, p in params.items()
        }
        found, _ = checkpoint.restore(tmp_path, 1, like)
        for name, p in found.items():
            assert p.sharding == shardings[name]
            np.testing.assert_array_equal(p, kit.params()[name])
        logits = jax.device_get(
            jax.jit(lambda p: kit.row_logits(kit.model(), p, group))(found)
        )
        np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=1e-5)
