"""The training loop: prompts → rollouts → rewards → advantages → one update.

A generator: every step yields, so that who drives it evaluates, saves and stops when it
wants. All that a step depends on is in its `Carry` and in (seed, step, example ids).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import prompts, sharding, tokens
from vlmrl.engine.chain import prefill
from vlmrl.engine.generate import Sampling, branch_keys, generate
from vlmrl.engine.policy import Policy, prefixes
from vlmrl.engine.score import completions, score
from vlmrl.judges import rule
from vlmrl.rl import advantages, augment, losses, rewards, update
from vlmrl.types import Example, Group, Mean, Prompt, Rollout, UserError


class Carry(NamedTuple):
    """What a checkpoint holds: restored, the run goes on as if never stopped."""

    state: update.State
    position: Any  # int: examples trained on so far (the data frontier)


class Sample(NamedTuple):
    """One rollout on the host, for logs."""

    example: str
    condition: str
    text: str  # completion
    reward: rewards.Reward
    verdict: str


class Step(NamedTuple):
    step: int
    carry: Carry
    metrics: dict
    samples: list[Sample]


def make_sampler(policy: Policy, *, max_tokens: int, sampling: Sampling) -> Callable:
    """sample(params, group, keys) -> Rollout, jitted."""

    @functools.partial(jax.jit, out_shardings=sharding.batch_sharding(policy.mesh))
    def sample(params, group: Group, keys) -> Rollout:
        chain = prefill(policy.model, params, group)
        return generate(
            policy.model,
            params,
            chain,
            keys,
            policy.stops,
            max_tokens=max_tokens,
            sampling=sampling,
        )[0]

    return sample


def judged(
    policy: Policy, written: Sequence[Prompt], rollout: Rollout, reward: Callable
) -> list[Sample]:
    """Decode, parse, judge and reward every rollout, in branch order."""
    ids, mask = sharding.fetch((rollout.tokens, rollout.mask))
    each = len(ids) // len(written)
    out = []
    for i, (row, keep) in enumerate(zip(ids, mask, strict=True)):
        example = written[i // each].example
        text = tokens.decode(policy.processor, row[keep])
        parsed = prompts.read(example.prefill + text, example, policy.style)
        applies = rule.applicable(example.condition)
        verdict = rule.verdict(
            parsed.think or "",
            parsed.option,
            example.question,
            example.options,
            applies,
        )
        value = reward(parsed, example.answer, verdict)
        out.append(Sample(example.id, example.condition, text, value, verdict))
    return out


def train(
    policy: Policy,
    batches: Iterator[tuple[int, list[Example]]],
    tx,
    carry: Carry,
    *,
    seed: int,
    steps: int,
    group_size: int,
    max_tokens: int,
    reward: str,
    advantage: str,
    mix: dict[str, float],
    loss: dict,
    temperature: float = 1.0,
    microbatches: int = 1,
    unroll: bool = False,
    remat: str | None = None,
    phase: Callable[..., None] = lambda name, step=None: None,
) -> Iterator[Step]:
    """Train until `steps` updates are behind `carry`.

    Args:
      batches: (data position after it, examples) per step, from carry.position on.
      group_size: G completions per prompt.
      reward: a key of `rewards.REWARDS`; advantage: a key of `advantages.ADVANTAGES`.
      mix: augmentation, share per condition (`augment.choose`).
      loss: settings of `losses.policy_objective`.
      temperature: sampled and scored at.
      phase: told where a phase begins (`phases.Phases`); may raise to stop the run, and
        nothing that `carry` needs is under way then.
    """
    if group_size < 2:
        raise UserError(
            f"group_size is {group_size}, but advantage '{advantage}' compares the "
            "completions of a group: at least 2"
        )
    augment.check(mix)
    sample = make_sampler(policy, max_tokens=max_tokens, sampling=Sampling(temperature))
    reward_of, advantage_of = rewards.REWARDS[reward], advantages.ADVANTAGES[advantage]
    options = {"unroll": unroll, "remat": remat}

    def objective(logp, entropy, mask, extra):
        return losses.policy_objective(logp, entropy, mask, extra, **loss)

    step_fn = update.jit_update(
        update.make_update(
            policy.model,
            tx,
            objective,
            microbatches=microbatches,
            temperature=temperature,
            banned=policy.stops.banned,
            **options,
        ),
        carry.state,
    )
    grow = jax.jit(completions)
    reference = None
    if loss.get("kl_weight"):
        start = jax.tree.map(jnp.copy, policy.params)
        # `start` is an argument: a program may not hold arrays of other hosts' devices.
        reference = jax.jit(
            lambda start, group: score(
                policy.model,
                start,
                group,
                temperature=temperature,
                banned=policy.stops.banned,
            )[0]
        )
    for step in range(int(carry.state.step) + 1, steps + 1):
        phase("data", step)
        position, examples = next(batches)
        names = [augment.choose(e.id, seed, mix) for e in examples]
        pairs = zip(examples, names, strict=True)
        examples = [augment.apply(e, name, seed) for e, name in pairs]
        written = policy.write(examples)
        group = policy.put(prefixes(policy, written))
        ids = [e.id for e in examples]
        keys = policy.put(branch_keys(seed, "rollout", step, ids, group_size))
        phase("rollout")
        rollout = jax.block_until_ready(sample(carry.state.params, group, keys))
        phase("reward")
        samples = judged(policy, written, rollout, reward_of)
        values = np.array([s.reward.total for s in samples], np.float32)
        values = jnp.asarray(values.reshape(len(examples), group_size))
        valid = jnp.ones(values.shape, bool)
        group = grow(group, rollout)
        extra = {
            "old_logprobs": rollout.logprobs,
            "advantages": policy.put(
                np.asarray(advantage_of(values, valid)).reshape(-1)
            ),
        }
        if reference is not None:
            phase("score")
            extra["ref_logprobs"] = jax.block_until_ready(reference(start, group))
        phase("update")
        state, metrics = step_fn(carry.state, update.Batch(group, extra))
        jax.block_until_ready(metrics)
        carry = Carry(state, position)
        metrics["reward"] = rewards.parts(s.reward for s in samples)
        metrics["degenerate"] = advantages.degenerate(values, valid)
        metrics["length"] = Mean(rollout.mask.sum(), len(samples))
        metrics["stopped"] = Mean(rollout.stopped.sum(), len(samples))
        yield Step(step, carry, metrics, samples)
