"""Surrogates: numbers by hand, gradients against plain autodiff, where they meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlmrl.rl.losses import (
    SURROGATES,
    cispo,
    clip_cov,
    clipped,
    gspo,
    gspo_token,
    kl_cov,
    policy_objective,
)
from vlmrl.types import Mean, UserError

WIDE = {"clip_low": 1.0, "clip_high": 1e6}


def batch(seed=0, rows=4, length=6, scale=0.3):
    """Random log-probs, old ones near them, advantages of both signs, a ragged mask."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(rows, length)).astype(np.float32)
    new = old + scale * rng.normal(size=old.shape).astype(np.float32)
    advantages = rng.normal(size=rows).astype(np.float32)
    lengths = rng.integers(1, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    return new, old, advantages, mask


def settings(name, mask):
    """What a surrogate needs besides the shared arguments."""
    noise = np.random.default_rng(1).random(mask.shape).astype(np.float32)
    return {"noise": noise} if name == "clip_cov" else {}


def same(f, g, x, atol=1e-6):
    """Equal values and equal gradients at x."""
    (a, da), (b, db) = (jax.value_and_grad(h)(x) for h in (f, g))
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5)
    np.testing.assert_allclose(da, db, atol=atol, rtol=1e-5)


every = pytest.mark.parametrize("name", SURROGATES)


@pytest.mark.parametrize(
    "name, per_token",  # GSPO takes one advantage per completion
    [(n, t) for n in SURROGATES for t in (False, True) if (n, t) != ("gspo", True)],
)
def test_at_ratio_one_the_gradient_is_reinforce(name, per_token):
    """−A ∇log π, weighted as the aggregation does, whatever the surrogate."""
    _, old, advantages, mask = batch(1)
    if per_token:
        advantages = np.random.default_rng(2).normal(size=mask.shape).astype(np.float32)
    wide = advantages if per_token else advantages[:, None]

    def surrogate(new):
        more = settings(name, mask)
        if name == "clip_cov":
            more["cov_low"] = 4.9  # no token is able: those drawn have no gradient
        got = SURROGATES[name](
            new, old, advantages, mask, aggregation="sequence", **more
        )
        return got.loss.value

    weight = mask / mask.sum(-1, keepdims=True) / len(mask)
    np.testing.assert_allclose(
        jax.grad(surrogate)(old), -wide * weight, atol=1e-6, rtol=1e-5
    )


@every
def test_masked_tokens_change_nothing_and_have_zero_gradient(name):
    new, old, advantages, mask = batch(3)
    mask[3] = False  # a padding row, whose advantage is garbage
    advantages[3] = np.nan
    more = settings(name, mask)

    def loss(new, old, weights):
        return SURROGATES[name](
            new, old, advantages, mask, weights=weights, **more
        ).loss.sum

    weights = np.full(mask.shape, 0.5, np.float32)
    clean = jax.value_and_grad(loss)(new, old, weights)
    assert np.isfinite(clean[0])
    junk = [np.where(mask, x, np.nan) for x in (new, old, weights)]
    dirty = jax.value_and_grad(loss)(*junk)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert not np.asarray(dirty[1])[~mask].any()


@every
def test_weights_multiply_the_gradient_of_their_token(name):
    new, old, advantages, mask = batch(4)
    more = settings(name, mask)
    weights = np.random.default_rng(5).random(mask.shape).astype(np.float32)

    def grad(weights):
        def loss(new):
            return SURROGATES[name](
                new, old, advantages, mask, weights=weights, **more
            ).loss.sum

        return jax.grad(loss)(new)

    if name != "gspo":  # there tokens share one ratio, hence each other's weights
        np.testing.assert_allclose(
            grad(weights), weights * grad(None), atol=1e-6, rtol=1e-5
        )
    np.testing.assert_allclose(
        grad(np.full_like(weights, 0.5)), 0.5 * grad(None), atol=1e-6, rtol=1e-5
    )


@every
def test_old_logprobs_advantages_and_weights_get_no_gradient(name):
    new, old, advantages, mask = batch(6)
    more = settings(name, mask)

    def loss(old, advantages, weights):
        return SURROGATES[name](
            new, old, advantages, mask, weights=weights, **more
        ).loss.sum

    grads = jax.grad(loss, (0, 1, 2))(old, advantages, np.ones_like(old))
    assert not any(np.asarray(g).any() for g in grads)


@pytest.mark.parametrize("name", [n for n in SURROGATES if not n.endswith("_cov")])
def test_halves_add_to_the_whole(name):
    """Sums and counts, so that microbatches add exactly (covariances are centred over
    the rows given, so theirs do not)."""
    new, old, advantages, mask = batch(7)

    def part(rows):
        return SURROGATES[name](new[rows], old[rows], advantages[rows], mask[rows])

    whole, halves = part(slice(None)), (part(slice(0, 2)), part(slice(2, 4)))
    for field in whole._fields:
        a, b, c = (getattr(x, field) for x in (whole, *halves))
        joined = b + c
        np.testing.assert_allclose(a.value, joined.value, rtol=1e-5, atol=1e-7)


# -- dual clip


def test_dual_clip_by_hand():
    # A = −1: ratio 5 → loss 5, with c = 3 → 3 and no gradient; A = 2: untouched.
    ratios = jnp.array([[5.0, 2.0, 0.5], [5.0, 2.0, 0.5]])
    old, on = jnp.full((2, 3), -2.0), jnp.ones((2, 3), bool)
    a = jnp.array([-1.0, 2.0])

    def f(new):
        return clipped(new, old, a, on, clip_dual=3.0)

    new = old + jnp.log(ratios)
    got = f(new)
    want = (3 + 2 + 0.8) - 2 * (1.2 + 1.2 + 0.5)
    np.testing.assert_allclose(got.loss.sum, want, rtol=1e-6)
    assert got.clipped_dual == Mean(1, 6)
    grad = jax.grad(lambda new: f(new).loss.sum)(new)
    np.testing.assert_allclose(grad, [[0, 2, 0], [0, 0, -1]], atol=1e-5)


def test_dual_clip_against_the_max_formula():
    new, old, advantages, mask = batch(8, scale=1.5)

    def textbook(new):
        ratio, a = jnp.exp(new - old), advantages[:, None]
        least = jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.2) * a)
        return (-jnp.where(a < 0, jnp.maximum(least, 2 * a), least) * mask).sum()

    same(
        lambda new: clipped(new, old, advantages, mask, clip_dual=2.0).loss.sum,
        textbook,
        new,
        1e-5,
    )


def test_dual_clip_is_ppo_as_its_bound_grows():
    new, old, advantages, mask = batch(9, scale=2.0)

    def f(c):
        return lambda new: clipped(new, old, advantages, mask, clip_dual=c).loss.sum

    same(f(1e9), f(None), new)


@pytest.mark.parametrize("bound", [1.0, 1.2, float("nan")])
def test_a_dual_clip_below_the_clip_is_refused(bound):
    new, old, advantages, mask = batch()
    with pytest.raises(UserError, match=r"clip_dual: expected more than 1 \+ clip"):
        clipped(new, old, advantages, mask, clip_dual=bound)


# -- GSPO


def test_gspo_by_hand():
    # Row 0: ratios 4 and 1, s = 2, A = 1: clipped to 1.5. Row 1: one token, s = ½,
    # A = −1: not clipped at 1 − 0.6.
    old = jnp.zeros((2, 2))
    new = jnp.log(jnp.array([[4.0, 1.0], [0.5, 9.0]]))
    mask = jnp.array([[1, 1], [1, 0]], bool)
    got = gspo(new, old, jnp.array([1.0, -1.0]), mask, clip_low=0.6, clip_high=0.5)
    np.testing.assert_allclose(got.loss.sum, -1.5 + 0.5, rtol=1e-6)
    assert got.loss.count == 2
    assert got.clipped_high == Mean(2, 3)
    np.testing.assert_allclose(got.ratio.sum, 4 + 1 + 0.5, rtol=1e-6)  # tokens' own


def test_gspo_against_the_sequence_formula():
    new, old, advantages, mask = batch(10)

    def textbook(new):
        s = jnp.exp(((new - old) * mask).sum(-1) / mask.sum(-1))
        least = jnp.minimum(s * advantages, jnp.clip(s, 0.9, 1.1) * advantages)
        return -least.sum()

    def ours(new):
        got = gspo(new, old, advantages, mask, clip_low=0.1, clip_high=0.1)
        return got.loss.sum

    same(ours, textbook, new)


def test_gspo_of_one_token_is_ppo():
    new, old, advantages, mask = batch(11, length=1)

    def f(surrogate):
        return lambda new: (
            surrogate(
                new, old, advantages, mask, clip_low=0.2, clip_high=0.28
            ).loss.value
        )

    same(f(gspo), f(clipped), new)
    same(f(gspo_token), f(clipped), new)


def test_gspo_token_with_one_advantage_is_gspo():
    new, old, advantages, mask = batch(12)
    wide = np.where(mask, advantages[:, None], np.nan).astype(np.float32)

    def f(surrogate, a):
        return lambda new: (
            surrogate(new, old, a, mask, clip_low=0.05, clip_high=0.05).loss.sum
        )

    same(f(gspo_token, wide), f(gspo, advantages), new)
    same(f(gspo_token, advantages), f(gspo, advantages), new)


def test_gspo_token_gradient_by_hand():
    """s · A_t / |y| per token where nothing is clipped."""
    new, old, _, mask = batch(13)
    a = np.random.default_rng(14).normal(size=mask.shape).astype(np.float32)
    s = np.exp(((new - old) * mask).sum(-1) / mask.sum(-1))[:, None]

    def f(new):
        return gspo_token(new, old, a, mask, **WIDE).loss.sum

    want = -s * a * mask / mask.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.grad(f)(new), want, rtol=1e-4, atol=1e-6)


# -- CISPO


def test_cispo_by_hand():
    # −w · A · log π with w = min(ratio, 2): ratios ½, 1, 4 at log π = −1.
    ratios = jnp.array([[0.5, 1.0, 4.0]])
    new, on = jnp.full((1, 3), -1.0), jnp.ones((1, 3), bool)
    old = new - jnp.log(ratios)
    a = jnp.array([3.0])

    def f(new):
        return cispo(new, old, a, on, clip_high=1.0)

    np.testing.assert_allclose(f(new).loss.sum, 3 * (0.5 + 1 + 2), rtol=1e-6)
    assert f(new).clipped_high == Mean(1, 3)
    grad = jax.grad(lambda new: f(new).loss.sum)(new)
    np.testing.assert_allclose(grad, [[-1.5, -3, -6]], rtol=1e-5)


def test_cispo_unbounded_has_the_gradient_of_unclipped_ppo():
    new, old, advantages, mask = batch(15)

    def f(surrogate):
        def loss(new):
            return surrogate(new, old, advantages, mask, **WIDE).loss.sum

        return jax.grad(loss)(new)

    np.testing.assert_allclose(f(cispo), f(clipped), rtol=1e-5, atol=1e-6)


def test_cispo_keeps_the_gradient_that_ppo_drops():
    ratios = jnp.array([[1.0, 10.0]])
    old, on, a = jnp.zeros((1, 2)), jnp.ones((1, 2), bool), jnp.ones(1)

    def grad(surrogate):
        return jax.grad(lambda new: surrogate(new, old, a, on).loss.sum)(
            jnp.log(ratios)
        )

    assert grad(clipped)[0, 1] == 0
    assert grad(cispo)[0, 1] == -5


# -- covariance


def cov_batch():
    """One row per token: log π, advantage; means −2 and 0; covariances by hand."""
    new = jnp.array([[-1.0], [-1.0], [-3.0], [-3.0]])
    a = jnp.array([2.0, -2.0, 2.0, -2.0])  # cov: 2, −2, −2, 2
    return new, a, jnp.ones((4, 1), bool)


def test_clip_cov_by_hand():
    new, a, on = cov_batch()
    noise = jnp.array([[0.9], [0.0], [0.0], [0.1]])

    def grad(**settings):
        def f(new):
            return clip_cov(new, new, a, on, noise=noise, **settings)

        stop = jax.lax.stop_gradient(new)

        def loss(new):
            return clip_cov(new, stop, a, on, noise=noise, **settings).loss.sum

        return f(new).chosen, jax.grad(loss)(new)[:, 0]

    # Two tokens lie in (1, 5); max(1, ⌊0.25 · 4⌋) = 1 is drawn: the one of least noise.
    chosen, got = grad(cov_share=0.25)
    assert chosen == Mean(1, 4)
    np.testing.assert_allclose(got, [-2, 2, -2, 0])
    chosen, got = grad(cov_share=0.5)
    assert chosen == Mean(2, 4)
    np.testing.assert_allclose(got, [0, 2, -2, 0])
    chosen, got = grad(cov_share=1.0, cov_low=3.0)  # nobody is able
    assert chosen == Mean(0, 4)
    np.testing.assert_allclose(got, [-2, 2, -2, 2])


def test_clip_cov_without_able_tokens_is_ppo():
    new, old, advantages, mask = batch(16)
    noise = np.zeros_like(new)

    def cov(new):
        return clip_cov(
            new, old, advantages, mask, noise=noise, cov_low=1e3, cov_high=1e4
        ).loss.sum

    same(cov, lambda new: clipped(new, old, advantages, mask).loss.sum, new)


def test_kl_cov_by_hand():
    new, a, on = cov_batch()
    a = a.at[0].set(3.0)  # token 0 has the largest covariance alone
    old = new - jnp.log(2.0)  # every ratio is 2

    def f(new):
        return kl_cov(new, old, a, on, cov_share=0.25, cov_weight=0.5)

    got = f(new)
    assert got.chosen == Mean(1, 4)
    want = -2 * (3 - 2 + 2 - 2) + 0.5 * np.log(2)
    np.testing.assert_allclose(got.loss.sum, want, rtol=1e-5)
    grad = jax.grad(lambda new: f(new).loss.sum)(new)[:, 0]
    np.testing.assert_allclose(grad, [-6 + 0.5, 4, -4, 4], rtol=1e-5)


def test_kl_cov_without_weight_is_ppo_without_clip():
    new, old, advantages, mask = batch(17)

    def cov(new):
        return kl_cov(new, old, advantages, mask, cov_weight=0.0).loss.sum

    same(cov, lambda new: clipped(new, old, advantages, mask, **WIDE).loss.sum, new)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_bad_covariance_share_is_named(share):
    new, old, advantages, mask = batch()
    with pytest.raises(UserError, match="cov_share: expected"):
        kl_cov(new, old, advantages, mask, cov_share=share)


# -- by name


@every
def test_the_objective_takes_every_name(name):
    new, old, advantages, mask = batch(18)
    extra = {"old_logprobs": old, "advantages": advantages, **settings(name, mask)}
    loss, metrics = policy_objective(new, -new, mask, extra, surrogate=name)
    want = SURROGATES[name](
        new, old, advantages, mask, aggregation="token", **settings(name, mask)
    )
    assert loss == want.loss
    assert metrics["clipped_high"] == want.clipped_high


def test_a_wrong_name_and_missing_noise_are_named():
    new, old, advantages, mask = batch()
    extra = {"old_logprobs": old, "advantages": advantages}
    with pytest.raises(UserError, match="surrogate is 'ppo', expected one of clipped"):
        policy_objective(new, -new, mask, extra, surrogate="ppo")
    with pytest.raises(UserError, match="'clip_cov': expected noise"):
        policy_objective(new, -new, mask, extra, surrogate="clip_cov")
