"""One step's rollouts in stages, before anything is learned from them.

    prompts (sampling.PromptStream) → sample → read → judge → rewards (`collect`)
            → resample groups without a contrast (`resample`)

Each stage is a function of the run's `Context` and of records. What comes out depends
on the parameters, the step and the examples alone. A rollout is fetched to the host
once, and its host copy travels with it.

Axes: N prompts, G completions of each, T tokens; rows are in branch order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from vlmrl import sharding, user_code
from vlmrl.answers import reading
from vlmrl.answers.reading import Reading
from vlmrl.policy import Policy, prefixes
from vlmrl.prompts import tokens
from vlmrl.rl import (
    completion_terms,
    cot_probe,
    rewards,
    sampling,
    verdict_source,
)
from vlmrl.rl.batch_advantages import Advantages, Rewards
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.sampling import PromptBatch, PromptStream
from vlmrl.rl.verdict_source import VerdictSource
from vlmrl.types import Array, Completion, Example, Group, Prompt, Rollout


class Sample(NamedTuple):
    """One completion on the host, for rewards and logs."""

    example: str
    condition: str
    text: str  # completion
    reward: rewards.Reward
    verdict: str | None  # None: no judge was asked
    prompt_hash: str = ""
    think: str = ""
    tokens: int = 0
    stopped: bool = True
    terms: dict[str, float] = {}  # see `completion_terms.TERMS`


class RolloutBatch(NamedTuple):
    """N groups of G completions and their rewards."""

    position: int  # in the data stream, after the last example read
    positions: list[int]  # N: of each group's example in the data stream
    off_policy_steps: int  # updates between the sampling parameters and the learning
    prompts: list[Prompt]  # N, augmented
    group: Group  # N prefixes, on the mesh
    rollout: Rollout  # on the mesh
    host: Rollout  # the same on the host
    samples: list[Sample]  # N * G
    rewards: Rewards
    judge_metrics: dict = {}


class TrainingBatch(NamedTuple):
    """What an update learns from: a rollout batch, some of its groups perhaps replaced
    by replay, and its advantages."""

    batch: RolloutBatch
    advantages: Advantages


class Context(NamedTuple):
    """What the stages of a run share; its programs are compiled once."""

    policy: Policy
    recipe: Recipe
    seed: int
    prompts: PromptStream
    sampler: sampling.Sampler
    verdicts: VerdictSource
    terms: tuple[str, ...]  # measured of every completion
    letters: Callable | None  # see `cot_probe.reader`; None: no term needs it
    phase: Callable[..., None]  # see `make_context`


def make_context(
    policy: Policy,
    recipe: Recipe,
    batches: Iterator[tuple[int, list[Example]]],
    *,
    seed: int,
    phase: Callable[..., None] = lambda name, step=None: None,
) -> Context:
    """Return the Context of a run.

    Args:
      batches: (data position after it, examples) per step, from the run's position on.
      phase: called where a phase begins (`phases.Phases`); may raise to stop the run,
        and no work that its `Carry` needs is in progress then.
    """
    terms = [*recipe.reward.shaping]
    terms += [recipe.ranking.by] if recipe.ranking.weight else []
    needs_letters = recipe.reward.measure_options or any(
        name in completion_terms.LETTERED for name in terms
    )
    return Context(
        policy,
        recipe,
        seed,
        PromptStream(policy, recipe, batches, seed=seed, phase=phase),
        sampling.sampler(policy, recipe, seed=seed),
        verdict_source.make_source(policy, recipe, seed=seed),
        tuple(terms),
        cot_probe.reader(policy, recipe.sampling.max_tokens) if needs_letters else None,
        phase,
    )


def rollout_batch(
    context: Context,
    params,
    step: int,
    *,
    pending: Rollout | None = None,
    multiplier: float = 0.0,
) -> tuple[RolloutBatch, Rollout | None]:
    """Return the rollout batch of a step, and the rollout sampled for the next one.

    On policy (`lag` 0) the second is None. With `lag` 1 the rollout of a step is
    sampled before the update of the step before it, so that judging overlaps with
    sampling: `pending` is that rollout, and the prompts it answers are the stream's
    next. The first step has none and samples its own.

    Args:
      pending: what this returned for this step; a checkpoint keeps it.
      multiplier: λ of the constraint, for reward 'lagrangian'.
    """
    recipe = context.recipe
    if not recipe.sampling.off_policy_steps:
        batch = _sample_and_collect(context, params, step, multiplier)
        for _ in range(recipe.sampling.resampling_rounds - 1):
            if is_mixed(batch.rewards).all():
                break
            more = _sample_and_collect(context, params, step, multiplier)
            batch = resample(context.policy, batch, more)
        return batch, None
    prompts = next(context.prompts)
    if step > 1 and pending is not None:
        parts, off_policy_steps = [context.policy.put(pending)], 1
    else:
        parts, off_policy_steps = sample(context, params, step, prompts), 0
    (following,) = sample(context, params, step + 1, context.prompts.peek())
    batch = collect(context, params, prompts, parts, multiplier)
    return batch._replace(off_policy_steps=off_policy_steps), following


def _sample_and_collect(context, params, step, multiplier) -> RolloutBatch:
    prompts = next(context.prompts)
    parts = sample(context, params, step, prompts)
    return collect(context, params, prompts, parts, multiplier)


def sample(context: Context, params, step: int, prompts: PromptBatch) -> list[Rollout]:
    """Start sampling; see `sampling.sample_batch`."""
    context.phase("rollout")
    return sampling.sample_batch(context.sampler, params, step, prompts)


def collect(
    context: Context,
    params,
    prompts: PromptBatch,
    parts: Sequence[Rollout],
    multiplier: float = 0.0,
) -> RolloutBatch:
    """Wait for rollouts, read and judge the completions, and compute their rewards.

    Args:
      parts: rollouts on the device, as `sample` returns them.
    """
    policy, recipe, size = (
        context.policy,
        context.recipe,
        context.recipe.sampling.group_size,
    )
    context.phase("rollout")
    prompt_of = [p for p in prompts.prompts for _ in range(size)]
    hosts, texts, readings = [], [], []
    for part in parts:  # a part is judged while the next one is sampled
        hosts.append(sharding.fetch(part))
        asked = prompt_of[len(texts) : len(texts) + len(hosts[-1].tokens)]
        new_texts, new_readings = read(context, asked, hosts[-1])
        context.verdicts.submit(asked, [r.parsed for r in new_readings])
        texts += new_texts
        readings += new_readings
    rollout, host = parts[0], hosts[0]
    if len(parts) > 1:
        host = jax.tree.map(lambda *x: np.concatenate(x), *hosts)
        rollout = policy.put(host)
    context.phase("reward")
    options = option_probabilities(context, params, prompt_of, host)
    verdicts, judge_metrics = context.verdicts.collect(params)
    samples = []
    for i, (p, r) in enumerate(zip(prompt_of, readings, strict=True)):
        completion = Completion(
            p.example,
            p.text,
            p.whole(texts[i]),
            r.parsed,
            r.correct,
            verdicts[i],
            int(host.mask[i].sum()),
            options[i],
            r.lenient,
        )
        terms = completion_terms.terms(context.terms, completion, recipe.reward)
        samples.append(
            Sample(
                p.example.id,
                p.example.condition,
                texts[i],
                compute_reward(recipe, completion, terms, multiplier),
                verdicts[i],
                p.hash,
                completion.think,
                completion.tokens,
                bool(host.stopped[i]),
                terms,
            )
        )
    first = prompts.position - len(prompts.prompts)
    return RolloutBatch(
        prompts.position,
        list(range(first, prompts.position)),
        0,
        prompts.prompts,
        prompts.group,
        rollout,
        host,
        samples,
        rewards_of(samples, recipe),
        judge_metrics,
    )


def read(
    context: Context, prompt_of: Sequence[Prompt], host: Rollout
) -> tuple[list[str], list[Reading]]:
    """Return the texts of completions and how their turns read.

    Args:
      prompt_of: the prompt of every row of `host`.
    """
    policy = context.policy
    texts = [
        tokens.decode(policy.processor, row[valid])
        for row, valid in zip(host.tokens, host.mask, strict=True)
    ]
    turns = [p.whole(text) for p, text in zip(prompt_of, texts, strict=True)]
    examples = [p.example for p in prompt_of]
    return texts, reading.read_all(turns, examples, policy.style)


def option_probabilities(
    context: Context, params, prompt_of: Sequence[Prompt], host: Rollout
) -> list[Array | None]:
    """Return P(option) after each completion's own chain of thought, float[C] each;
    None for each where no term needs them, or nothing is measured of its item."""
    if context.letters is None:
        return [None] * len(prompt_of)
    rows = zip(prompt_of, host.tokens, host.mask, strict=True)
    processor = context.policy.processor
    readings = [cot_probe.sighted(p, row[m], processor) for p, row, m in rows]
    groups = cot_probe.in_groups(readings, context.recipe.sampling.group_size)
    probs = context.letters(params, groups).reshape(len(readings), -1)
    own = [
        cot_probe.implied(row, len(p.example.options))
        for p, row in zip(prompt_of, probs, strict=True)
    ]
    return [p if p.any() else None for p in own]


def compute_reward(
    recipe: Recipe,
    completion: Completion,
    terms: dict[str, float],
    multiplier: float = 0.0,
) -> rewards.Reward:
    """Return the reward of a completion: the recipe's function of it, plus shaping
    terms and the penalty for (nearly) running out of length.

    Raises:
      UserCodeError: a user's own function raised, or returned no finite number.
    """
    options = dict(recipe.reward.options)
    if recipe.reward.name == "lagrangian":
        options["multiplier"] = multiplier
    function = rewards.reward_of(recipe.reward.name)
    about = f"example {completion.example.id!r}"
    value = user_code.call(function, completion, about=about, **options)
    reward = rewards.as_reward(value, completion, function)
    if recipe.reward.shaping:
        weights = {user_code.short(n): w for n, w in recipe.reward.shaping.items()}
        reward = rewards.shaped(reward, terms, weights)
    overlong = recipe.overlong
    if overlong.limit:
        penalty = rewards.overlong_penalty(
            completion.tokens, overlong.limit, overlong.buffer
        )
        reward = reward._replace(total=reward.total + overlong.weight * penalty)
    return reward


def rewards_of(samples: Sequence[Sample], recipe: Recipe) -> Rewards:
    """Return the rewards of N * G samples as [N,G] arrays."""

    def table(values, kind=np.float32):
        return np.array(list(values), kind).reshape(-1, recipe.sampling.group_size)

    agree = (s.reward.consistent for s in samples)
    by = user_code.short(recipe.ranking.by)
    return Rewards(
        table(s.reward.total for s in samples),
        table(s.reward.correct for s in samples),
        table(np.nan if c is None else c for c in agree),
        table((s.stopped for s in samples), bool),
        table(s.terms[by] for s in samples) if recipe.ranking.weight else None,
    )


def is_mixed(rewards: Rewards) -> np.ndarray:
    """Return bool[N]: the group has a right completion and a wrong one."""
    return (rewards.correct.max(-1) > 0) & (rewards.correct.min(-1) <= 0)


def resample(policy: Policy, old: RolloutBatch, new: RolloutBatch) -> RolloutBatch:
    """Replace groups of `old` that aren't mixed by mixed ones of `new`, in order, while
    there are any. Dynamic sampling, DAPO: https://arxiv.org/abs/2503.14476"""
    count = len(old.prompts)
    spare = [count + int(i) for i in np.flatnonzero(is_mixed(new.rewards))]
    order = [
        i if good or not spare else spare.pop(0)
        for i, good in enumerate(is_mixed(old.rewards))
    ]
    return select(policy, old, new, order)._replace(position=new.position)


def select(
    policy: Policy, old: RolloutBatch, new: RolloutBatch, order: Sequence[int]
) -> RolloutBatch:
    """Return groups `order` of two batches, those of `new` numbered after `old`'s."""
    count, rows = len(old.prompts), len(old.samples)
    if list(order) == list(range(count)):
        return old
    each = rows // count
    index = [i * each + k for i in order for k in range(each)]
    prompts = [(old.prompts + new.prompts)[i] for i in order]
    host = jax.tree.map(lambda x, y: np.concatenate([x, y])[index], old.host, new.host)
    return old._replace(
        positions=[(old.positions + new.positions)[i] for i in order],
        prompts=prompts,
        group=policy.put(prefixes(policy, prompts)),
        rollout=policy.put(host),
        host=host,
        samples=[(old.samples + new.samples)[i] for i in index],
        rewards=jax.tree.map(
            lambda x, y: np.concatenate([x, y])[list(order)], old.rewards, new.rewards
        ),
    )
