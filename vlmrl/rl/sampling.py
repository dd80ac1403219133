"""Prompts → rollouts on the device: the sampler, and who samples from which prompt.

Axes: N prompts, G completions of each, T tokens. Rows are in branch order: group by
group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import perturb, sharding
from vlmrl.data import distort
from vlmrl.engine import continuous_batching
from vlmrl.engine.generate import Sampling, branch_keys, generate
from vlmrl.engine.memory import RolloutRequest
from vlmrl.engine.prefix_cache import prefill
from vlmrl.policy import Policy, prefixes
from vlmrl.prompts import tokens
from vlmrl.prompts.processor import Processor
from vlmrl.rl import augment
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Example, Group, Prompt, Rollout, UserError


class PromptBatch(NamedTuple):
    """The N prompts of a step."""

    position: int  # in the data stream, after the last of them
    prompts: list[Prompt]  # N, augmented
    group: Group  # N prefixes, on the mesh


class PromptStream(Iterator):
    """Prompt batches of a run, in order; `peek` encodes the next one early.

    Args:
      batches: (data position after it, examples) per step.
      phase: called with 'data' before examples are read.
    """

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        batches: Iterator[tuple[int, list[Example]]],
        *,
        seed: int,
        phase: Callable[..., None],
    ):
        self._policy, self._mix, self._seed = policy, recipe.mix, seed
        self._batches, self._phase = batches, phase
        self._next: PromptBatch | None = None

    def peek(self) -> PromptBatch:
        if self._next is None:
            self._phase("data")
            position, examples = next(self._batches)
            augmented = [augment.augmented(e, self._mix, self._seed) for e in examples]
            prompts = self._policy.write(augmented)
            group = self._policy.put(prefixes(self._policy, prompts))
            self._next = PromptBatch(position, prompts, group)
        return self._next

    def __next__(self) -> PromptBatch:
        batch, self._next = self.peek(), None
        return batch


def make_sampler(
    policy: Policy,
    *,
    max_tokens: int,
    sampling: Sampling,
    slots: int = 0,
    gather_params: bool = True,
) -> Callable:
    """Return sample(params, group, keys) -> Rollout, jitted. Its first call refuses
    what memory can't hold.

    Args:
      slots: completions decoded side by side (`engine.continuous_batching`); a prompt
        is then read when its turn comes. 0: all at once.
      gather_params: see `policy.SamplingParams`.
    Raises:
      UserError: slots on several data shards; when called, too large a request.
    """
    shards = sharding.batch_shards(policy.mesh)
    if slots and shards > 1:
        raise UserError(
            f"config.slots is {slots}: expected one data shard, got {shards}"
        )
    options = dict(max_tokens=max_tokens, sampling=sampling)
    weights = policy.sampling_params(gather_params)

    @functools.partial(jax.jit, out_shardings=sharding.batch_sharding(policy.mesh))
    def run(params, group: Group, keys) -> Rollout:
        params = weights(params)
        read = functools.partial(prefill, policy.model, params, attend=policy.attend)
        if not slots:
            return generate(
                policy.model, params, read(group), keys, policy.stops, **options
            )[0]
        return continuous_batching.generate(
            policy.model, params, continuous_batching.from_group(group, read),
            keys, policy.stops,
            slots=continuous_batching.SlotCounts(slots, slots), **options,
        )[0]  # fmt: skip

    def sample(params, group: Group, keys) -> Rollout:
        field = "config.slots" if slots else "config.prompts"
        request = RolloutRequest(group, len(keys), max_tokens, slots)
        weights.check_memory(field, params, request)
        return run(params, group, keys)

    return sample


class Sampler(NamedTuple):
    """What sampling depends on, beside parameters, step and prompts."""

    policy: Policy
    recipe: Recipe
    seed: int
    sample: Callable  # (params, group, keys) -> Rollout, see `make_sampler`


def sampler(policy: Policy, recipe: Recipe, *, seed: int) -> Sampler:
    sample = make_sampler(
        policy,
        max_tokens=recipe.sampling.max_tokens,
        sampling=Sampling(recipe.sampling.temperature),
        slots=recipe.slots,
        gather_params=recipe.sampling.gather_params,
    )
    return Sampler(policy, recipe, seed, sample)


def sample_batch(sampler: Sampler, params, step: int, batch: PromptBatch):
    """Start sampling G completions of every prompt.

    Returns:
      list of Rollouts, on the device and perhaps still being computed, whose rows are
      the N * G of the batch in order: one, or `judging.parts`.
    """
    policy, recipe = sampler.policy, sampler.recipe
    ids = [p.example.id for p in batch.prompts]
    keys = branch_keys(sampler.seed, "rollout", step, ids, recipe.sampling.group_size)
    if recipe.distillation.share:
        return [_with_distillation(sampler, params, batch, np.asarray(keys))]
    if recipe.noise.share:
        return [_with_noise(sampler, params, step, batch, np.asarray(keys))]
    if recipe.judge.parts > 1:
        return _in_parts(sampler, params, batch, np.asarray(keys))
    return [sampler.sample(params, batch.group, policy.put(keys))]


def _in_parts(sampler: Sampler, params, batch: PromptBatch, keys) -> list[Rollout]:
    """Queue the prompts on the device part by part, so that one is judged while the
    next is sampled."""
    policy, count = sampler.policy, sampler.recipe.judge.parts
    prompts, rows = len(batch.prompts) // count, len(keys) // count
    return [
        sampler.sample(
            params,
            policy.put(
                prefixes(policy, batch.prompts[i * prompts : (i + 1) * prompts])
            ),
            policy.put(keys[i * rows : (i + 1) * rows]),
        )
        for i in range(count)
    ]


def _with_noise(sampler: Sampler, params, step: int, batch: PromptBatch, keys):
    """The last rows of every group are sampled from a distorted image."""
    noise = sampler.recipe.noise
    fade = max(0.0, 1 - (step - 1) / noise.anneal) if noise.anneal else 1.0
    extra = {"sigma": noise.sigma * fade} if noise.distortion == "noisy" else {}
    examples = distorted(batch.prompts, noise.distortion, sampler.seed, **extra)
    others = sampler.policy.write(examples)
    first, last = _split(sampler, params, batch, others, noise.share, keys)
    return _join(first, last, len(batch.prompts))


def _with_distillation(sampler: Sampler, params, batch: PromptBatch, keys):
    """The last rows of every group are sampled without what misleads, and moved behind
    the prompt that does (`grafted`)."""
    policy, share = sampler.policy, sampler.recipe.distillation.share
    others = policy.write([perturb.unmisled(p.example) for p in batch.prompts])
    first, last = _split(sampler, params, batch, others, share, keys)
    moved = grafted(policy.processor, sharding.fetch(last), batch.prompts, others)
    last = policy.put(moved)
    return _join(first, last, len(batch.prompts))


def _split(sampler: Sampler, params, batch, others: list[Prompt], share: float, keys):
    """(rollouts of the batch's prompts, rollouts of the others, a share of each
    group)."""
    policy, size = sampler.policy, sampler.recipe.sampling.group_size
    other = policy.put(prefixes(policy, others))
    own = size - round(share * size)
    keys = keys.reshape(len(batch.prompts), size, -1)
    return [
        sampler.sample(params, group, policy.put(part.reshape(-1, part.shape[-1])))
        for group, part in ((batch.group, keys[:, :own]), (other, keys[:, own:]))
    ]


def distorted(prompts: Sequence[Prompt], name: str, seed: int, **options):
    """Examples of the prompts with their images distorted (`data.distort`), under the
    same condition."""
    return [
        distort.distort(p.example, name, seed, **options)._replace(
            condition=p.example.condition
        )
        for p in prompts
    ]


def grafted(
    processor: Processor,
    rollout: Rollout,
    prompts: Sequence[Prompt],
    others: Sequence[Prompt],
) -> Rollout:
    """Move rollouts of prompts without misleading text behind the prompts with it.

    Where the condition opens a chain of thought, the completion's own opening tag is
    left out and its text follows after a space. Log-probs and entropies stay with their
    tokens, counted from the end, and are 0 where the text begins differently now; what
    no longer fits is cut. A completion without a chain of thought stays as it is.

    Args:
      rollout: on the host, N * G rows.
      prompts: the N prompts to move behind.
      others: the N prompts that were sampled from.
    """
    out = Rollout(*(np.array(x) for x in rollout))
    each, length = len(out.tokens) // len(prompts), out.tokens.shape[1]
    for i, (row, valid) in enumerate(zip(rollout.tokens, rollout.mask, strict=True)):
        old = row[valid]
        onto, turn = prompts[i // each].example, others[i // each].turn
        text = tokens.decode(processor, old)
        head, tag, rest = text.partition("<think>")
        if not tag and perturb.is_open(turn):  # by the chat template
            head, tag, rest = "", turn, text
        if not (perturb.is_open(onto.prefill) and tag):
            continue
        text = head + " " + rest.lstrip()
        ids = processor.encode_plain(text)
        ids += [t for t in old[-1:] if t in processor.end_ids]
        same, size = min(len(ids), len(old)), min(len(ids), length)
        for values, before in (
            (out.logprobs, rollout.logprobs),
            (out.entropy, rollout.entropy),
        ):
            moved = np.zeros(len(ids), np.float32)
            moved[len(ids) - same :] = before[i][valid][len(old) - same :]
            values[i] = 0
            values[i, :size] = moved[:size]
        out.tokens[i] = 0
        out.tokens[i, :size] = ids[:size]
        out.mask[i] = np.arange(length) < size
        out.stopped[i] &= size == len(ids)
    return out


@jax.jit
def _concatenated(a, b):
    return jnp.concatenate([a, b], axis=1)


def _join(a: Rollout, b: Rollout, groups: int) -> Rollout:
    """[N * G1, ...] and [N * G2, ...] as [N * (G1 + G2), ...], group by group."""

    def join(x, y):
        parts = (z.reshape(groups, -1, *z.shape[1:]) for z in (x, y))
        return _concatenated(*parts).reshape(-1, *x.shape[1:])

    return jax.tree.map(join, a, b)
