"""One device = eight devices = two processes with four each: rollouts, evaluation
records and ten steps of training.

As a script, `python tests/test_layouts.py DIRECTORY PORT PROCESS _`, this file is one
of the two processes.
"""

import functools
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

STEPS, GROUPS, BRANCHES, LENGTH, RATE = 10, 8, 4, 16, 0.02
CONDITIONS = ("base", "wrong_think")
SPLIT = dict(data=2, fsdp=2, tensor=2)  # what eight devices are
EVERYWHERE = ("eight devices", "two processes")


def sampled(policy):
    """(group, Rollout) of the first prompts, on the policy's mesh."""
    from vlmrl.data import scenes
    from vlmrl.engine.generate import Sampling, branch_keys
    from vlmrl.policy import prefixes
    from vlmrl.rl.sampling import make_sampler

    examples = scenes.suite("test", GROUPS)
    group = policy.put(prefixes(policy, policy.write(examples)))
    keys = branch_keys(0, "rollout", 1, [e.id for e in examples], BRANCHES)
    run = make_sampler(policy, max_tokens=LENGTH, sampling=Sampling(1.0))
    return group, run(policy.params, group, policy.put(keys))


def trained(policy, group, fixed):
    """[(log-probs of the step's parameters, its gradients)] and the last parameters, of
    SGD on fixed rollouts."""
    import jax
    import jax.numpy as jnp
    import optax

    from vlmrl import sharding
    from vlmrl.engine.score import completions
    from vlmrl.rl import losses, update
    from vlmrl.types import Mean

    def objective(logp, entropy, mask, extra):
        loss, _ = losses.policy_objective(
            logp, entropy, mask, extra, clip_low=0.2, clip_high=0.2, aggregation="token"
        )
        return loss, {"logp": Mean(jnp.where(mask, logp, 0), jnp.ones_like(logp))}

    def remaining(grads, state, params=None):
        return grads, grads

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    tx = optax.chain(optax.GradientTransformation(zeros, remaining), optax.sgd(RATE))
    state = update.init_state(jax.tree.map(jnp.copy, policy.params), tx)
    step = update.jit_update(
        update.make_update(policy.model, tx, objective, attend=policy.attend), state
    )
    whole = jax.jit(lambda x: x, out_shardings=sharding.replicate(policy.mesh))
    rng = np.random.default_rng(0)
    extra = {
        "old_logprobs": policy.put(fixed.logprobs),
        "advantages": policy.put(rng.normal(size=GROUPS * BRANCHES).astype(np.float32)),
    }
    grown = jax.jit(completions)(group, policy.put(fixed))
    actual = []
    for _ in range(STEPS):
        state, metrics = step(state, update.Batch(grown, extra))
        actual.append(jax.device_get(whole((metrics["logp"].sum, state.opt_state[0]))))
    return actual, jax.device_get(whole(state.params))


def numbers(mesh, fixed=None):
    """Everything that is compared, on the host; `fixed` are the rollouts to learn from,
    by default its own."""
    from vlmrl import policy as policies
    from vlmrl import sharding
    from vlmrl.data import scenes
    from vlmrl.loops.evaluate import evaluate

    policy = policies.load("tiny", mesh=mesh)
    group, rollout = sampled(policy)
    rollout = sharding.fetch(rollout)
    fixed = rollout if fixed is None else fixed
    records = evaluate(
        policy, scenes.suite("validation", GROUPS), CONDITIONS, max_tokens=LENGTH
    )
    return rollout, records, trained(policy, group, fixed)


def main(directory: str, port: str, process: str, _: str) -> None:
    from vlmrl import sharding
    from vlmrl.run import hosts

    top = Path(directory)
    hosts.start(f"127.0.0.1:{port}", 2, int(process))
    fixed = pickle.loads((top / "fixed").read_bytes())
    actual = numbers(sharding.make_mesh(**SPLIT), fixed)
    if hosts.first():
        (top / "found").write_bytes(pickle.dumps(actual))


@pytest.fixture(scope="module")
def actual(tmp_path_factory):
    """{layout: numbers}"""
    import jax

    from tests.run.test_hosts import both, free_port
    from vlmrl import sharding

    top = tmp_path_factory.mktemp("layouts")
    one = numbers(sharding.make_mesh(devices=jax.devices()[:1]))
    eight = numbers(sharding.make_mesh(**SPLIT, devices=jax.devices()[:8]), one[0])
    (top / "fixed").write_bytes(pickle.dumps(one[0]))
    for status, output in both(__file__, [top, free_port()], ["", ""], devices=4):
        assert status == 0, output
    two = pickle.loads((top / "found").read_bytes())
    return {"one device": one, "eight devices": eight, "two processes": two}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYWHERE)
def test_rollouts(actual, name):
    rollout, one = actual[name][0], actual["one device"][0]
    assert one.mask.sum() > GROUPS * BRANCHES * 4
    for a, b in zip(rollout, one, strict=True):
        if a.dtype == np.float32:
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)
        else:  # stricter than the gap rule: none of these gaps is small
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYWHERE)
def test_records(actual, name):
    records, one = actual[name][1], actual["one device"][1]
    assert len(one) == GROUPS * len(CONDITIONS) == len(records)
    for a, b in zip(records, one, strict=True):
        for field, x, y in zip(a._fields, a, b, strict=True):
            if isinstance(y, float) or (isinstance(y, list) and field != "options"):
                np.testing.assert_allclose(
                    np.ravel(x), np.ravel(y), atol=1e-5, rtol=0, err_msg=field
                )
            else:
                assert x == y, (a.example, a.condition, field)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYWHERE)
def test_ten_steps(actual, name):
    """Log-probs to 1e-5 (and 1e-6 of large ones, which float32 rounds as coarsely) and
    gradients to 1e-5 of their norm for the same parameters, to twice that along ten
    steps, and the parameters that they lead to."""
    from tests import kit
    from vlmrl.models import weights

    steps, params = actual[name][2]
    one, last = actual["one device"][2]
    assert len(steps) == len(one) == STEPS
    for i, ((logp, grads), (expected, target)) in enumerate(
        zip(steps, one, strict=True)
    ):
        bound = 1e-5 if i == 0 else 2e-5  # then the parameters differ, too
        np.testing.assert_allclose(
            logp, expected, atol=bound, rtol=1e-6, err_msg=f"step {i}"
        )
        far = {n: kit.normwise(grads[n], target[n]) for n in target}
        worst = max(far.items(), key=lambda x: x[1])
        assert worst[1] < 5e-5, (i, worst)  # a leaf's own norm may be small
        whole = [
            np.concatenate([g[n].ravel() for n in target]) for g in (grads, target)
        ]
        assert kit.normwise(*whole) < bound, i
    assert np.abs(one[0][0] - one[-1][0]).max() > 1e-3, "it learnt something"
    start = weights.load("tiny")[1]
    for key, value in last.items():
        np.testing.assert_allclose(params[key], value, atol=1e-6, err_msg=key)
    assert any((last[n] != start[n]).any() for n in last)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(*sys.argv[1:])
