"""Log-probs of branches, with gradients: prefix and branches in one pass over layers.

Axis letters: N groups, G branches, B = N * G rows, T tokens.
"""

from __future__ import annotations

import jax.numpy as jnp

from vlmrl.engine import attention
from vlmrl.engine.logprobs import token_logprobs
from vlmrl.engine.prefix_cache import (
    embed_group,
    last_valid,
    next_position,
    text_tokens,
)
from vlmrl.models.api import Model
from vlmrl.types import Group, Rollout


def completions(group: Group, rollout: Rollout) -> Group:
    """Return a group without branches with its rollouts as branches."""
    start = next_position(group.prefix)
    start = jnp.repeat(start, rollout.tokens.shape[0] // start.shape[0])
    return group._replace(branches=text_tokens(rollout.tokens, rollout.mask, start))


def score(
    model: Model,
    params,
    group: Group,
    *,
    temperature=1.0,
    banned=None,
    float32_residual: bool = True,
    attend=attention.attend,
    **options,
):
    """Compute log p(token | everything before it) for every branch token.

    The first token of a branch is predicted by the last valid token of the prefix, the
    others by their own branch. Vision tower and prefix run once per group, forward and
    backward.

    Args:
      temperature, banned: of the scored distribution (`logprobs.policy`).
      float32_residual: a float32 residual stream, as in sampling (see the family's
        `layers`).
      attend: the back end, as `attention.choose` gives it.
      options: dtype, remat, unroll (see the family's `layers`).
    Returns:
      (logprobs float32[B, T], entropy float32[B, T], nats); under False of
      `group.branches.mask` they are meaningless.
    """
    dtype = options.pop("dtype", None)
    new_tokens = embed_group(model, params, group, dtype=dtype, **options)
    (before, own), _ = model.layers(
        params, new_tokens, (), attend, float32_residual=float32_residual, **options
    )
    first = last_valid(before, group.prefix.mask)
    first = jnp.repeat(first, own.shape[0] // first.shape[0], axis=0)
    hidden = jnp.concatenate([first[:, None], own[:, :-1]], axis=1)
    return token_logprobs(
        hidden,
        model.head(params),
        group.branches.ids,
        temperature=temperature,
        banned=banned,
        mesh=model.mesh,
    )
