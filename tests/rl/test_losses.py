"""Losses: hand-computed numbers, gradients against plain autodiff, masks, sums."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmrl.metrics import add
from vlmrl.rl import losses
from vlmrl.rl.losses import (
    aggregate,
    clipped,
    cross_entropy,
    kl,
    kl_loss,
    policy_objective,
    supervised_objective,
    total,
)
from vlmrl.types import Mean, UserError

HOW = [
    {"aggregation": "token"},
    {"aggregation": "sequence"},
    {"aggregation": "constant", "length": 10},
]


def batch(seed=0, rows=4, length=6, scale=0.3):
    """Random log-probs, old ones near them, advantages of both signs, a ragged mask."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(rows, length)).astype(np.float32)
    new = old + scale * rng.normal(size=old.shape).astype(np.float32)
    advantages = rng.normal(size=rows).astype(np.float32)
    lengths = rng.integers(1, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    return new, old, advantages, mask


# -- aggregation


def test_aggregations_by_hand():
    values = jnp.array([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    assert aggregate(values, mask, "token") == Mean(16, 4)
    assert aggregate(values, mask, "sequence") == Mean(2 + 10, 2)
    assert aggregate(values, mask, "constant", 4) == Mean(4, 2)


def test_aggregations_coincide_for_equal_lengths():
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    mask = np.tile(np.arange(5) < 4, (3, 1))
    token, sequence = aggregate(values, mask), aggregate(values, mask, "sequence")
    constant = aggregate(values, mask, "constant", 4)
    np.testing.assert_allclose(token.value, sequence.value, rtol=1e-6)
    np.testing.assert_allclose(token.value, constant.value, rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "length", "named"),
    [
        ("mean", None, "aggregation: expected one of .*, got 'mean'"),
        ("constant", None, "aggregation='constant' and length=None"),
        ("token", 5, "aggregation='token' and length=5"),
        ("constant", 0, "length: expected .*, got 0"),
    ],
)
def test_bad_aggregations_are_named(how, length, named):
    with pytest.raises(UserError, match=named):
        aggregate(jnp.zeros((1, 1)), jnp.ones((1, 1), bool), how, length)


# -- the clipped surrogate


def test_clipped_by_hand():
    # Ratios 1.5, 0.5, 1.0 with A = 2: clipped above, not below (min), free.
    # Ratios 1.5, 0.5, 1.0 with A = −1: not above, clipped below, free.
    ratios = jnp.array([[1.5, 0.5, 1.0], [1.5, 0.5, 1.0]])
    old = jnp.full((2, 3), -1.0)
    got = clipped(
        old + jnp.log(ratios),
        old,
        jnp.array([2.0, -1.0]),
        jnp.ones((2, 3), bool),
        clip_low=0.2,
        clip_high=0.28,
    )
    row_0 = 2 * (1.28 + 0.5 + 1.0)
    row_1 = -1 * (1.5 + 0.8 + 1.0)
    np.testing.assert_allclose(got.loss.sum, -(row_0 + row_1), rtol=1e-6)
    assert got.loss.count == 6
    assert got.clipped_high == Mean(1, 6)
    assert got.clipped_low == Mean(1, 6)
    np.testing.assert_allclose(got.ratio.value, 6 / 6, rtol=1e-6)
    np.testing.assert_allclose(got.ratio_max.value, 1.5, rtol=1e-6)
    assert got.outside == Mean(4, 6)
    k3 = [r - 1 - math.log(r) for r in (1.5, 0.5, 1.0)]
    np.testing.assert_allclose(got.kl_old.sum, 2 * sum(k3), rtol=1e-5)


def test_outside_by_hand():
    ratios = jnp.array([[0.89, 0.91, 1.0, 1.09, 1.11]])
    got = clipped(
        jnp.log(ratios), jnp.zeros((1, 5)), jnp.ones(1), jnp.ones((1, 5), bool)
    )
    assert got.outside == Mean(2, 5)


def test_at_ratio_one_the_gradient_is_minus_a_times_grad_logp():
    """Plain REINFORCE, through a softmax policy, at three aggregations."""
    rng = np.random.default_rng(1)
    theta = jnp.array(rng.normal(size=(4, 6, 5)), jnp.float32)
    tokens = rng.integers(0, 5, (4, 6))
    _, _, advantages, mask = batch(2)

    def logp(theta):
        rows = jax.nn.log_softmax(theta)
        return jnp.take_along_axis(rows, tokens[..., None], -1)[..., 0]

    old = logp(theta)
    weights = {
        "token": mask / mask.sum(),
        "sequence": mask / mask.sum(-1, keepdims=True) / len(mask),
        "constant": mask / 10 / len(mask),
    }
    for how in HOW:

        def surrogate(theta, how=how):
            return clipped(logp(theta), old, advantages, mask, **how).loss.value

        def reinforce(theta, weight=weights[how["aggregation"]]):
            return -(logp(theta) * advantages[:, None] * weight).sum()

        np.testing.assert_allclose(
            jax.grad(surrogate)(theta), jax.grad(reinforce)(theta), atol=1e-6
        )


def test_gradient_against_the_min_formula():
    """The textbook −min(rA, clip(r)A), differentiated as written."""
    new, old, advantages, mask = batch(3, scale=0.5)

    def textbook(new):
        ratio = jnp.exp(new - old)
        a = advantages[:, None]
        value = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.28) * a)
        return (value * mask).sum()

    def ours(new):
        return clipped(new, old, advantages, mask, clip_high=0.28).loss.sum

    np.testing.assert_allclose(ours(new), textbook(new), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(new), jax.grad(textbook)(new), rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_clipping_zeroes_the_gradient_exactly_where_it_should(sign):
    ratios = np.array([[0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0]], np.float32)
    new, old = np.log(ratios), np.zeros_like(ratios)
    mask = np.ones(ratios.shape, bool)
    a = jnp.array([2.0 * sign])
    grad = jax.grad(lambda new: clipped(new, old, a, mask).loss.sum)(new)
    gone = ratios > 1.2 if sign > 0 else ratios < 0.8
    assert not np.asarray(grad)[gone].any()
    np.testing.assert_allclose(grad[~gone], -2 * sign * ratios[~gone], rtol=1e-5)


def test_zero_advantage_is_never_clipped_and_has_no_gradient():
    new, old, _, mask = batch(4, scale=2)

    def f(new):
        return clipped(new, old, jnp.zeros(4), mask)

    got = f(new)
    assert got.clipped_low.sum == got.clipped_high.sum == got.loss.sum == 0
    assert not jax.grad(lambda new: f(new).loss.sum)(new).any()


def test_old_logprobs_and_advantages_get_no_gradient():
    new, old, advantages, mask = batch(5)

    def f(old, a):
        return clipped(new, old, a, mask).loss.sum

    for g in jax.grad(f, (0, 1))(old, advantages):
        assert not g.any()


def test_extreme_ratios_stay_finite():
    new = jnp.array([[-1e4, 0.0, -200.0]])
    old = jnp.array([[0.0, -1e4, -200.0]])

    @jax.jit
    @jax.value_and_grad
    def f(new, a):
        return clipped(new, old, a[None], jnp.ones((1, 3), bool)).loss.sum

    for a in (1.0, -1.0, 0.0):
        value, grad = f(new, jnp.float32(a))
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad).all()


@pytest.mark.parametrize(
    "bad", [{"clip_low": -0.1}, {"clip_low": 1.5}, {"clip_high": float("nan")}]
)
def test_bad_clips_are_named(bad):
    new, old, advantages, mask = batch()
    with pytest.raises(UserError, match=next(iter(bad))):
        clipped(new, old, advantages, mask, **bad)


def test_shapes_are_checked():
    new, old, advantages, mask = batch()
    for wrong in [
        (new, old[:, 1:], advantages, mask),
        (new, old, advantages[:, None], mask),
        (new, old, advantages, mask[:1]),
    ]:
        with pytest.raises(AssertionError):
            clipped(*wrong)


# -- KL


def test_kl_estimators_by_hand():
    new, ref = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
    on = jnp.ones((1, 1), bool)
    got = [float(kl(new, ref, on, e)[0, 0]) for e in ("k1", "k2", "k3")]
    d = math.log(0.5)  # log ref − log new
    np.testing.assert_allclose(got, [-d, d * d / 2, 0.5 - 1 - d], rtol=1e-6)


def test_kl_values_are_estimates_of_the_kl():
    """E over π of k1 and k3 is KL(π ‖ ref) exactly; k2 is close when π is near."""
    p = jax.nn.softmax(jnp.array([0.0, 0.5, 1.0]))
    q = jax.nn.softmax(jnp.array([0.1, 0.4, 0.9]))
    exact = (p * jnp.log(p / q)).sum()
    new, ref, on = jnp.log(p)[None], jnp.log(q)[None], jnp.ones((1, 3), bool)
    for estimator, rtol in (("k1", 1e-3), ("k3", 1e-3), ("k2", 0.1)):
        expected = (p * kl(new, ref, on, estimator)[0]).sum()
        np.testing.assert_allclose(expected, exact, rtol=rtol)


def test_k1_as_a_loss_is_refused_and_unknown_ones_too():
    new, ref, _, mask = batch()
    with pytest.raises(UserError, match="k1 has zero expected gradient"):
        kl_loss(new, ref, mask, estimator="k1")
    with pytest.raises(UserError, match="kl estimator: expected .*, got 'k4'"):
        kl_loss(new, ref, mask, estimator="k4")


def test_k1_has_zero_expected_gradient():
    """Why it is refused: its gradient on tokens that π samples averages to 0."""
    theta = jnp.array([0.3, -0.2, 1.0])
    ref = jax.nn.log_softmax(jnp.array([1.0, 0.0, 0.0]))[None]
    p = jax.nn.softmax(theta)

    def expected(theta, estimator):
        logp = jax.nn.log_softmax(theta)[None]
        return (p * kl(logp, ref, jnp.ones((1, 3), bool), estimator)[0]).sum()

    np.testing.assert_allclose(jax.grad(expected)(theta, "k1"), 0, atol=1e-6)
    for estimator in ("k2", "k3"):
        assert jnp.abs(jax.grad(expected)(theta, estimator)).max() > 0.05


def test_kl_gradient_by_hand():
    new, ref, _, mask = batch(6)
    d = ref - new
    for estimator, want in (("k2", -d), ("k3", 1 - np.exp(d))):

        def f(new, estimator=estimator):
            return kl_loss(new, ref, mask, estimator=estimator).sum

        np.testing.assert_allclose(jax.grad(f)(new), want * mask, atol=1e-6)


def test_reference_gets_no_gradient():
    new, ref, _, mask = batch(7)
    grad = jax.grad(lambda ref: kl_loss(new, ref, mask).sum)(ref)
    assert not grad.any()


# -- supervised


def test_cross_entropy_by_hand():
    logprobs = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.8, 0.1, 0.1]]))
    mask = jnp.array([[1, 1, 0], [1, 0, 0]], bool)
    got = cross_entropy(logprobs, mask)
    np.testing.assert_allclose(got.loss.sum, -math.log(0.5 * 0.25 * 0.8), rtol=1e-6)
    assert got.loss.count == 3
    assert got.sure == Mean(1, 3)  # 0.5 itself is not more than a half
    by_row = cross_entropy(logprobs, mask, aggregation="sequence").loss
    np.testing.assert_allclose(
        by_row.value, -(math.log(0.5 * 0.25) / 2 + math.log(0.8)) / 2, rtol=1e-6
    )


def test_cross_entropy_gradient():
    new, _, _, mask = batch(8)
    grad = jax.grad(lambda x: cross_entropy(x, mask).loss.sum)(new)
    np.testing.assert_array_equal(grad, np.where(mask, -1, 0))


# -- what holds for all of them


def objectives():
    """name → f(new, old, advantages, mask) -> loss and metrics, for every loss."""

    def policy(new, old, advantages, mask, **settings):
        extra = {"old_logprobs": old, "advantages": advantages, "ref_logprobs": old}
        return policy_objective(new, -new, mask, extra, **settings)

    def supervised(new, old, advantages, mask, **settings):
        return supervised_objective(new, -new, mask, {}, **settings)

    out = {}
    for how in HOW:
        name = how["aggregation"]
        out[f"clipped {name}"] = partial(policy, **how)
        out[f"composed {name}"] = partial(
            policy, kl_weight=0.5, kl_estimator="k2", entropy_weight=0.25, **how
        )
        out[f"supervised {name}"] = partial(supervised, **how)
    return out


OBJECTIVES = objectives()
every = pytest.mark.parametrize("f", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@every
def test_masked_tokens_change_nothing_and_have_zero_gradient(f):
    new, old, advantages, mask = batch(9)
    mask[3] = False  # a padding row, whose advantage is garbage
    advantages[3] = np.nan

    def value(new, old):
        loss, metrics = f(new, old, advantages, mask)
        return loss.sum, metrics

    step = jax.jit(jax.value_and_grad(value, has_aux=True))
    (clean, _), grad = step(new, old)
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        dirty = np.where(mask, new, junk).astype(np.float32)
        dirty_old = np.where(mask, old, junk).astype(np.float32)
        (got, metrics), dirty_grad = step(dirty, dirty_old)
        assert got == clean
        np.testing.assert_array_equal(dirty_grad, grad)
        for metric in metrics.values():
            assert jnp.isfinite(metric.value)
    assert not np.asarray(grad)[~mask].any()
    assert np.asarray(grad)[mask].any()


@every
def test_sums_and_counts_add_over_microbatches(f):
    # Eighths are exact in float32, ratios of 1 as well: sums must be equal, not close.
    rng = np.random.default_rng(10)
    new = -rng.integers(0, 32, (8, 6)).astype(np.float32) / 8
    advantages = rng.integers(-8, 8, 8).astype(np.float32) / 8
    # Lengths and the constant are powers of two, or a quotient is not exact.
    lengths = rng.choice([1, 2, 4], 8)
    mask = np.arange(6) < lengths[:, None]
    if "length" in f.keywords:
        f = partial(f, length=8)
    f = jax.jit(f)
    whole = f(new, new, advantages, mask)
    parts = [
        f(new[s], new[s], advantages[s], mask[s]) for s in (slice(0, 4), slice(4, 8))
    ]
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, add(*parts), whole))


@every
def test_gradients_add_over_microbatches(f):
    new, old, advantages, mask = batch(11, rows=8)
    grad = jax.jit(jax.grad(lambda x, o, a, m: f(x, o, a, m)[0].sum))
    whole = grad(new, old, advantages, mask)
    parts = [
        grad(new[s], old[s], advantages[s], mask[s]) for s in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)


@every
def test_jit_equals_no_jit(f):
    args = batch(12)
    plain, jitted = f(*args), jax.jit(f)(*args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        plain,
        jitted,
    )


@every
def test_float64_in_float64_out(f):
    with jax.enable_x64(True):
        new, old, advantages, mask = batch(13)
        args = [jnp.asarray(x, jnp.float64) for x in (new, old, advantages)]
        check = jax.jit(lambda x: f(x, args[1], args[2], jnp.asarray(mask))[0].sum)
        grad = jax.grad(check)(args[0])
        assert check(args[0]).dtype == grad.dtype == jnp.float64
        step = 1e-6
        for at in [(0, 0), (2, 0)]:
            up, down = (args[0].at[at].add(s) for s in (step, -step))
            slope = (check(up) - check(down)) / (2 * step)
            np.testing.assert_allclose(grad[at], slope, rtol=1e-6, atol=1e-8)


def test_settings_are_checked_without_arrays():
    """`jax.eval_shape` tells a bad config before anything is loaded."""
    real = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((2, 3), bool)
    extra = {
        "old_logprobs": real,
        "advantages": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    f = partial(policy_objective, kl_weight=0.1)
    with pytest.raises(UserError, match=r"kl_weight=0\.1: expected ref_logprobs"):
        jax.eval_shape(f, real, real, mask, extra)


def test_objective_is_the_sum_of_its_terms():
    new, old, advantages, mask = batch(14)
    ref, entropy = old - 0.1, -new
    extra = {"old_logprobs": old, "advantages": advantages, "ref_logprobs": ref}
    loss, metrics = policy_objective(
        new, entropy, mask, extra, kl_weight=0.5, entropy_weight=0.25, clip_high=0.28
    )
    want = total(
        clipped(new, old, advantages, mask, clip_high=0.28).loss,
        (0.5, kl_loss(new, ref, mask)),
        (-0.25, aggregate(entropy, mask)),
    )
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    assert set(metrics) == set(losses.PolicyLoss._fields) - {"loss"} | {
        "kl_ref",
        "entropy",
    }


def test_a_new_loss_is_one_function():
    """REINFORCE in five lines, through the same objective."""

    def reinforce(logprobs, old_logprobs, advantages, mask, *, aggregation, length):
        value = jnp.where(mask, -logprobs * advantages[:, None], 0)
        kind = clipped(logprobs, old_logprobs, advantages, mask)
        return kind._replace(loss=aggregate(value, mask, aggregation, length))

    new, _, advantages, mask = batch(15)
    extra = {"old_logprobs": new, "advantages": advantages}

    def grad(surrogate):
        def f(x):
            return policy_objective(x, -x, mask, extra, surrogate=surrogate)[0].sum

        return jax.grad(f)(new)

    np.testing.assert_allclose(grad(reinforce), grad(clipped), rtol=1e-6)
