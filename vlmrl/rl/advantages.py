"""Advantages: rewards of completions relative to those of their group or batch.

All take rewards float32[N,G] (N advantage groups of G completions) and a mask
bool[N,G], False on completions that take no part (padding, filtered out): they neither
shift the group's statistics nor get an advantage, whatever number or NaN they hold.
Rewards are data: nothing here is meant to be differentiated. Those that use statistics
of the batch (mean_B, std_B) need all of it, before it is split into microbatches.

A group whose valid rewards are all equal says nothing about what to prefer. Its
advantages are exactly 0 (deviations are taken from the group's minimum first: eight
times 1.1 has no exact float32 mean, and a rounding error over a rounding error is a
full-sized advantage). So are those of a group with one valid completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax.numpy as jnp

from vlmrl import user_code
from vlmrl.types import Array, Mean


def dr_grpo(rewards: Array, mask: Array) -> Array:
    """Return group-centred rewards, not scaled: A = r − mean(r).

    Without the division by the deviation, easy and hard groups (whose rewards hardly
    vary) don't weigh more than the others. Dr. GRPO: https://arxiv.org/abs/2503.20783

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].

    Returns:
      float32[N,G], in units of reward, 0 where masked.
    """
    return _centred(rewards, mask)


def grpo(rewards: Array, mask: Array, *, ddof: int = 1, eps: float = 1e-6) -> Array:
    """Return group-normalised rewards: A = (r − mean(r)) / (std(r) + eps).

    GRPO: https://arxiv.org/abs/2402.03300, which leaves the kind of std open. Here it
    is sqrt(Σ(r − mean)² / (n − ddof)) over the n valid rewards of the group; ddof = 1
    (Bessel's correction) is what verl and TRL compute, ddof = 0 divides by n.

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].
      ddof: 0 or 1.
      eps: added to the std, in units of reward.

    Returns:
      float32[N,G], without unit, 0 where masked.
    """
    centred = _centred(rewards, mask)
    n = mask.sum(-1, keepdims=True)
    variance = jnp.square(centred).sum(-1, keepdims=True) / jnp.maximum(n - ddof, 1)
    return centred / (jnp.sqrt(variance) + eps)


def rloo(rewards: Array, mask: Array) -> Array:
    """Return rewards less a leave-one-out baseline.

      A_i = r_i − mean_{j≠i}(r_j) = n/(n−1) (r_i − mean(r))

    The baseline doesn't depend on the completion it is subtracted from, hence the
    policy gradient is unbiased; `dr_grpo`'s is (n−1)/n of it.
    RLOO: https://arxiv.org/abs/2402.14740

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].

    Returns:
      float32[N,G], in units of reward, 0 where masked.
    """
    n = mask.sum(-1, keepdims=True)
    return _centred(rewards, mask) * (n / jnp.maximum(n - 1, 1))


def reinforce_pp(rewards: Array, mask: Array, *, eps: float = 1e-6) -> Array:
    """Return batch-normalised rewards: A = (r − mean_B(r)) / (std_B(r) + eps).

    No baseline per prompt, hence good for one completion per prompt; mean and std
    (divided by n − 1) are over the n valid completions of the whole batch, so that a
    prompt does not scale its own gradient. The paper puts the KL to the reference into
    the reward, see `losses.penalised`. REINFORCE++: https://arxiv.org/abs/2501.03262

    Args:
      rewards: float32[N,G], the whole batch, not a microbatch of it.
      mask: bool[N,G].
      eps: added to the std, in units of reward.

    Returns:
      float32[N,G], without unit, 0 where masked and where all rewards are equal.
    """
    chex.assert_rank(rewards, 2)
    shape = rewards.shape
    whole = _centred(rewards.reshape(1, -1), mask.reshape(1, -1)).reshape(shape)
    return _batch_scaled(whole, mask, eps)


def reinforce_pp_baseline(rewards: Array, mask: Array, *, eps: float = 1e-6) -> Array:
    """Return group-centred rewards, scaled by the batch.

      A = (r − mean(r)) / (std_B(r − mean(r)) + eps)

    Group means are 0 after centring, so subtracting the batch mean would change
    nothing but rounding. Here the paper puts the KL (k2) into the loss.
    REINFORCE++ with baseline: https://arxiv.org/abs/2501.03262

    Args:
      rewards: float32[N,G], the whole batch, not a microbatch of it.
      mask: bool[N,G].
      eps: added to the std, in units of reward.

    Returns:
      float32[N,G], without unit, 0 where masked.
    """
    return _batch_scaled(_centred(rewards, mask), mask, eps)


# By name in a config; all have the signature (rewards, mask).
ADVANTAGES = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}
GROUPED = frozenset(ADVANTAGES) - {"reinforce_pp"}  # those that need two per group


def advantage_of(name: str, field: str) -> Callable[[Array, Array], Array]:
    """Return the function of a name in ADVANTAGES; `path/to/file.py:name` names a
    user's own.

    Raises:
      UserError: an unknown name, a file without the function or with another one.
    """
    known = {**ADVANTAGES, **dict.fromkeys(("decoupled", "gdpo"))}
    function = user_code.lookup(name, known, field, ("rewards", "mask"))
    if not user_code.is_own(name):
        return function

    def checked(rewards: Array, mask: Array) -> Array:
        about = f"{mask.shape[0]} groups of {mask.shape[1]}"
        values = jnp.asarray(user_code.call(function, rewards, mask, about=about))
        finite = values.shape == mask.shape and bool(
            jnp.isfinite(jnp.where(mask, values, 0)).all()
        )
        if not finite:
            raise user_code.failure(
                function,
                about,
                f"expected finite float[{mask.shape}], got {values!r:.80}",
            )
        return jnp.where(mask, values, 0)

    return checked


def decoupled(
    parts: Array,
    mask: Array,
    weights: Sequence[float] | Array,
    *,
    normalise: Callable[[Array, Array], Array] = grpo,
) -> Array:
    """Normalise every reward separately, then sum: A = Σ_k w_k · normalise(r_k).

    Normalising a sum lets the reward that varies most drown the others, and gives
    different combinations of rewards the same advantage. With (task, consistency) this
    is CORA's A = α·A_task + β·A_cons, https://arxiv.org/abs/2606.14691; the weights are
    arguments, so that a schedule or a Lagrange multiplier can drive them.

    Args:
      parts: float32[K,N,G], K rewards.
      mask: bool[N,G], or bool[K,N,G] where a part is not known for every completion
        (no judge was asked): there that part adds 0.
      weights: K numbers.
      normalise: of one reward, with the signature of `grpo`.

    Returns:
      float32[N,G], 0 where masked.
    """
    chex.assert_rank(parts, 3)
    masks = jnp.broadcast_to(mask, parts.shape)
    weights = jnp.asarray(weights, parts.dtype)
    chex.assert_shape(weights, parts.shape[:1])
    each = [w * normalise(r, m) for w, r, m in zip(weights, parts, masks, strict=True)]
    return sum(each[1:], each[0])


def gdpo(
    parts: Array,
    mask: Array,
    weights: Sequence[float] | Array,
    *,
    eps: float = 1e-6,
) -> Array:
    """Return `decoupled` advantages, scaled by the batch.

      A = Â / (std_B(Â) + eps), Â = Σ_k w_k Â_k

    The last step keeps the size of advantages from growing with the number of rewards;
    the batch mean of Â is 0 already. GDPO: https://arxiv.org/abs/2601.05242

    Args:
      parts: float32[K,N,G], the whole batch.
      mask: bool[N,G] or bool[K,N,G].
      weights: K numbers.
      eps: added to the std.

    Returns:
      float32[N,G], without unit, 0 where masked.
    """
    summed = decoupled(parts, mask, weights)
    known = mask if mask.ndim == 2 else mask.any(0)
    return _batch_scaled(summed, known, eps)


DECOUPLED = {"decoupled": decoupled, "gdpo": gdpo}  # (parts, mask, weights)


def mixed(correct: Array, mask: Array) -> Array:
    """Return the completions of groups with a right and a wrong one (dynamic sampling).

    Groups all right or all wrong are dropped, and more are sampled until the batch is
    full. It looks at correctness, not at the reward: differences of format alone don't
    keep a group. DAPO: https://arxiv.org/abs/2503.14476

    Args:
      correct: bool[N,G] (or 0 and 1).
      mask: bool[N,G].

    Returns:
      bool[N,G]: `mask`, False for all of a dropped group.
    """
    chex.assert_equal_shape([correct, mask])
    right = (mask & (correct > 0)).any(-1, keepdims=True)
    wrong = (mask & (correct <= 0)).any(-1, keepdims=True)
    return mask & right & wrong


def ranked(scores: Array, among: Array) -> Array:
    """Rank within groups: b_i = (#{j: s_i > s_j} − #{j: s_i < s_j}) / (m − 1).

    j runs over the m ranked completions of the group, usually its correct ones: a
    zero-sum bonus in [−1, 1] that moves reward from the worse-argued right answers to
    the better-argued ones, whatever the scale of the scores. Ties share; one ranked
    completion gets 0. Add `weight · ranked(…)` to the rewards, with a weight below
    half the reward of being right, so that no wrong answer overtakes a right one.
    Ranking the completions that a verifier passed: https://arxiv.org/abs/2604.18892;
    this form of the bonus is ours.

    Args:
      scores: float32[N,G]; a judge's order, P(correct), confidence, …
      among: bool[N,G], True on the completions to rank; the rest may hold anything.

    Returns:
      float32[N,G], 0 outside `among`, sum 0 over every group.
    """
    chex.assert_rank(scores, 2)
    chex.assert_equal_shape([scores, among])
    scores = jnp.where(among, scores, 0)
    pairs = among[:, :, None] & among[:, None, :]
    mine, other = scores[:, :, None], scores[:, None, :]
    order = (mine > other).astype(jnp.float32) - (mine < other)
    m = among.sum(-1, keepdims=True)
    return jnp.where(pairs, order, 0).sum(-1) / jnp.maximum(m - 1, 1)


def degenerate(rewards: Array, mask: Array) -> Mean:
    """Count groups whose valid rewards are all equal, over groups with a valid reward.

    Such a group gives no gradient; the share is the part of the batch that is wasted.

    Args:
      rewards: float32[N,G].
      mask: bool[N,G].

    Returns:
      Mean of scalars: number of degenerate groups, number of groups.
    """
    equal = (_shifted(rewards, mask) == 0).all(-1)
    valid = mask.any(-1)
    return Mean((equal & valid).sum(), valid.sum())


def _shifted(rewards: Array, mask: Array) -> Array:
    """Subtract the smallest valid reward of each group; 0 where masked."""
    chex.assert_rank(rewards, 2)
    chex.assert_equal_shape([rewards, mask])
    lowest = jnp.where(mask, rewards, jnp.inf).min(-1, keepdims=True)
    return jnp.where(mask, rewards - lowest, 0)


def _centred(rewards: Array, mask: Array) -> Array:
    shifted = _shifted(rewards, mask)
    n = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    return jnp.where(mask, shifted - shifted.sum(-1, keepdims=True) / n, 0)


def _batch_scaled(centred: Array, mask: Array, eps: float) -> Array:
    """Divide deviations by their root mean square over the batch (n − 1)."""
    n = mask.sum()
    variance = jnp.square(centred).sum() / jnp.maximum(n - 1, 1)
    return centred / (jnp.sqrt(variance) + eps)
