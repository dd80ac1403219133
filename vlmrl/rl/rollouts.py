"""One draw: prompts → completions → verdicts → rewards, before anything is learnt.

`drawer` is made once per run. What it draws depends on the parameters, the step and the
examples alone.
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
from vlmrl.policy import Policy, Weights, prefixes
from vlmrl.prompts import parsing, tokens
from vlmrl.prompts.parsing import Parsed
from vlmrl.prompts.processor import Processor
from vlmrl.rl import (
    augment,
    completion_terms,
    cot_probe,
    replay,
    rewards,
    verdict_source,
    verify,
)
from vlmrl.rl.batch_advantages import Earned, Signal
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Example, Group, Mean, Prompt, Rollout, UserError


class Sample(NamedTuple):
    """One rollout on the host, for rewards and logs."""

    example: str
    condition: str
    text: str  # completion
    reward: rewards.Reward
    verdict: str | None  # None: nobody was asked
    prompt_hash: str = ""
    think: str = ""
    tokens: int = 0
    stopped: bool = True
    terms: dict[str, float] = {}  # measured, see `completion_terms.TERMS`


class Started(NamedTuple):
    """Rollouts under way on the device."""

    lag: int  # updates between the parameters that sample and those of that update
    position: int  # data frontier behind the examples
    written: list[Prompt]  # N, augmented
    group: Group  # N prefixes
    rollouts: list[Rollout]  # N * G rows in all, in parts


class Drawn(NamedTuple):
    """N groups of G rollouts and what they earned, rows in branch order."""

    position: int
    places: list[int]  # of the groups' examples in the data stream
    lag: int
    written: list[Prompt]
    group: Group
    rollout: Rollout
    samples: list[Sample]
    earned: Earned
    judged: dict = {}  # metrics of the judge


def make_sampler(
    policy: Policy,
    *,
    max_tokens: int,
    sampling: Sampling,
    slots: int = 0,
    gather: bool = True,
) -> Callable:
    """sample(params, group, keys) -> Rollout, jitted; its first call refuses what
    memory can't hold.

    Args:
      slots: completions decoded side by side (`engine.continuous_batching`); a prompt
        is then read when its turn comes. 0: all at once.
      gather: see `policy.Weights`.
    Raises:
      UserError: slots on several data shards; when called, too large a request.
    """
    shards = sharding.batch_shards(policy.mesh)
    if slots and shards > 1:
        raise UserError(
            f"config.slots is {slots}: wants one data shard, there are {shards}"
        )
    drawing = dict(max_tokens=max_tokens, sampling=sampling)
    weights = Weights(policy, gather)

    @functools.partial(jax.jit, out_shardings=sharding.batch_sharding(policy.mesh))
    def run(params, group: Group, keys) -> Rollout:
        params = weights(params)
        read = functools.partial(prefill, policy.model, params, attend=policy.attend)
        if not slots:
            return generate(
                policy.model, params, read(group), keys, policy.stops, **drawing
            )[0]
        return continuous_batching.generate(
            policy.model, params, continuous_batching.from_group(group, read),
            keys, policy.stops,
            slots=continuous_batching.SlotCounts(slots, slots), **drawing,
        )[0]  # fmt: skip

    def sample(params, group: Group, keys) -> Rollout:
        field = "config.slots" if slots else "config.prompts"
        request = RolloutRequest(group, len(keys), max_tokens, slots)
        weights.check_memory(field, params, request)
        return run(params, group, keys)

    return sample


class Used(NamedTuple):
    """What an update learns from: a draw, groups of it perhaps replaced, and its
    signal."""

    drawn: Drawn
    signal: Signal


def drawer(
    policy: Policy,
    recipe: Recipe,
    batches: Iterator[tuple[int, list[Example]]],
    *,
    seed: int,
    ahead: Rollout | None = None,
    phase: Callable[..., None] = lambda name: None,
) -> Callable[..., tuple[Drawn, Rollout | None]]:
    """draw(params, step, multiplier) -> (Drawn for this step, the next one's rollout).

    With lag 1 the rollouts of a step were begun, on the device, before the update of
    the step before it was; judging overlaps with sampling. Without a lag it does where
    prompts are sampled in parts (`recipe.Judging`). With dynamic sampling, groups all
    right or all wrong are drawn again, of further prompts, `rounds` times at most.

    Args:
      ahead: the rollout that a checkpoint brought back.
      phase: as in `loop`.
    """
    sample = make_sampler(
        policy,
        max_tokens=recipe.max_tokens,
        sampling=Sampling(recipe.temperature),
        slots=recipe.slots,
        gather=recipe.gather,
    )
    judge = verdict_source.source(policy, recipe, seed=seed)
    measured = [*recipe.shaping]
    measured += [recipe.ranking.by] if recipe.ranking.weight else []
    lettered = any(name in completion_terms.LETTERED for name in measured)
    letters = cot_probe.reader(policy, recipe.max_tokens) if lettered else None
    check = verify.checker(recipe.verifier) if recipe.verifier else None
    noisy = round(recipe.noise.share * recipe.group_size)
    guided = round(recipe.guide.share * recipe.group_size)

    def start(params, step, lag=0, rollout=None) -> Started:
        phase("data")
        position, examples = next(batches)
        written = policy.write([augmented(e, recipe, seed) for e in examples])
        group = policy.put(prefixes(policy, written))
        drawn = [rollout]
        if rollout is None:
            ids = [e.id for e in examples]
            keys = branch_keys(seed, "rollout", step, ids, recipe.group_size)
            phase("rollout")
            if noisy or guided:
                drawn = [partly_elsewhere(params, step, written, group, keys)]
            elif recipe.judging.parts > 1:
                drawn = by_parts(params, written, np.asarray(keys))
            else:
                drawn = [sample(params, group, policy.put(keys))]
        return Started(lag, position, written, group, drawn)

    def by_parts(params, written, keys) -> list[Rollout]:
        """All under way on the device, one after the other."""
        count = recipe.judging.parts
        each, rows = len(written) // count, len(keys) // count
        return [
            sample(
                params,
                policy.put(prefixes(policy, written[i * each : (i + 1) * each])),
                policy.put(keys[i * rows : (i + 1) * rows]),
            )
            for i in range(count)
        ]

    def partly_elsewhere(params, step, written, group, keys) -> Rollout:
        """The last rows of every group answer another prompt: a noisy image, or one
        without what misleads."""
        seen = unmisled(written) if guided else noisy_images(written, step)
        other = policy.put(prefixes(policy, policy.write(seen)))
        here = recipe.group_size - (noisy or guided)
        keys = np.asarray(keys).reshape(len(written), recipe.group_size, -1)
        first, last = (
            sample(params, g, policy.put(k.reshape(-1, k.shape[-1])))
            for g, k in ((group, keys[:, :here]), (other, keys[:, here:]))
        )
        if guided:
            last = policy.put(grafted(policy.processor, sharding.fetch(last), written))
        return jax.tree.map(lambda a, b: join(a, b, len(written)), first, last)

    def noisy_images(written, step) -> list[Example]:
        how = recipe.noise
        fade = max(0.0, 1 - (step - 1) / how.anneal) if how.anneal else 1.0
        extra = {"sigma": how.sigma * fade} if how.distortion == "noisy" else {}
        return [
            distort.distort(p.example, how.distortion, seed, **extra)._replace(
                condition=p.example.condition
            )
            for p in written
        ]

    def finish(params, started: Started, multiplier: float = 0.0) -> Drawn:
        phase("rollout")
        written, each = started.written, recipe.group_size
        prompt_of = [p for p in written for _ in range(each)]
        fetched, texts, parsed = [], [], []
        for part in started.rollouts:  # judged while the next is sampled
            fetched.append(sharding.fetch(part))
            first = len(texts)
            for row, keep in zip(fetched[-1].tokens, fetched[-1].mask, strict=True):
                texts.append(tokens.decode(policy.processor, row[keep]))
            asked = prompt_of[first : len(texts)]
            found = [
                parsing.read(p.example.prefill + text, p.example, policy.style)
                for p, text in zip(asked, texts[first:], strict=True)
            ]
            if recipe.verifier:
                found = verified(check, asked, found)
            judge.submit(asked, found)
            parsed += found
        rollout, on_device = fetched[0], started.rollouts[0]
        if len(fetched) > 1:
            rollout = jax.tree.map(lambda *x: np.concatenate(x), *fetched)
            on_device = policy.put(rollout)
        phase("reward")
        probs = [None] * len(texts)
        if letters is not None:
            rows = [
                cot_probe.sighted(p, q.think or "")
                for p, q in zip(prompt_of, parsed, strict=True)
            ]
            found = letters(params, cot_probe.in_groups(rows, each)).reshape(
                len(texts), -1
            )
            probs = [
                cot_probe.implied(row, len(p.example.options))
                for p, row in zip(prompt_of, found, strict=True)
            ]
        said, judged = judge.collect(params)
        samples = []
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True)):
            size = int(rollout.mask[i].sum())
            seen = completion_terms.Seen(q, q.think or "", p, size, probs[i])
            terms = completion_terms.terms(measured, seen, recipe)
            value = paid(q, p.example.answer, said[i], size, terms, multiplier)
            e, stopped = p.example, bool(rollout.stopped[i])
            about = (p.hash, q.think or "", size, stopped, terms)
            samples.append(Sample(e.id, e.condition, texts[i], value, said[i], *about))
        return Drawn(
            started.position,
            list(range(started.position - len(written), started.position)),
            started.lag,
            written,
            started.group,
            on_device,
            samples,
            earned(samples, each, recipe),
            judged,
        )

    def paid(parsed, answer, verdict, size, terms, multiplier) -> rewards.Reward:
        options = dict(recipe.reward_options)
        if recipe.reward == "lagrangian":
            options["multiplier"] = multiplier
        value = rewards.REWARDS[recipe.reward](parsed, answer, verdict, **options)
        if recipe.shaping:
            value = rewards.shaped(value, terms, recipe.shaping)
        if recipe.overlong.limit:
            how = recipe.overlong
            cost = rewards.overlong_penalty(size, how.limit, how.buffer)
            value = value._replace(total=value.total + how.weight * cost)
        return value

    def draw(params, step: int, multiplier: float):
        nonlocal begun
        if not recipe.lag:
            found = finish(params, start(params, step), multiplier)
            for _ in range(recipe.rounds - 1):
                if is_mixed(found.earned).all():
                    break
                more = finish(params, start(params, step), multiplier)
                found = refilled(policy, found, more)
            return found, None
        if begun is None:  # the first step of a run, or of a resumed one
            known = step > 1 and ahead is not None
            given = policy.put(ahead) if known else None
            begun = start(params, step, lag=int(known), rollout=given)
        now, begun = begun, start(params, step + 1, lag=1)
        return finish(params, now, multiplier), begun.rollouts[0]

    begun: Started | None = None
    return draw


def replayed(
    policy: Policy,
    recipe: Recipe,
    used: Used,
    buffer: replay.Buffer,
    at: Callable[[int], Example],
    *,
    seed: int,
    step: int,
) -> tuple[Used, replay.Buffer]:
    """Groups without an advantage replaced by ones of the buffer, which then takes in
    what was drawn. `at` gives the example at a place of the data stream."""
    drawn, found = used
    advantages, keep = np.array(found.advantages), np.array(found.keep)
    idle = np.flatnonzero(np.abs(advantages).max(-1) == 0)
    rng = np.random.default_rng([seed, step])
    rows = replay.chosen(buffer, len(idle), power=recipe.replay_groups.power, rng=rng)
    rollout = sharding.fetch(drawn.rollout)
    grown = replay.added(buffer, drawn.places, rollout, advantages)
    if len(rows):
        examples = [at(int(buffer.places[r])) for r in rows]
        again = policy.write([augmented(e, recipe, seed) for e in examples])
        written, (count, each) = list(drawn.written), advantages.shape
        whole = Rollout(*(x.reshape(count, each, *x.shape[1:]).copy() for x in rollout))
        for i, r, prompt in zip(idle, rows, again, strict=False):
            written[i], advantages[i], keep[i] = prompt, buffer.advantages[r], True
            for mine, theirs in zip(whole, buffer.rollout, strict=True):
                mine[i] = theirs[r]
        flat = Rollout(*(x.reshape(count * each, *x.shape[2:]) for x in whole))
        group = policy.put(prefixes(policy, written))
        drawn = drawn._replace(written=written, group=group, rollout=policy.put(flat))
    share = {"replayed": Mean(float(len(rows)), len(advantages))}
    return Used(drawn, Signal(advantages, keep, found.metrics | share)), grown


def verified(
    check: Callable, prompt_of: Sequence[Prompt], parsed: Sequence[Parsed]
) -> list[Parsed]:
    """Answers of open items, told right by what they mean and not by their wording:
    `option` is the right one where `check` accepts the answer, and no longer is where
    it doesn't."""
    out = list(parsed)
    asked = [
        i
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True))
        if p.example.open and q.answer
    ]
    gold = [prompt_of[i].example for i in asked]
    pairs = [
        (parsed[i].answer, e.options[e.answer])
        for i, e in zip(asked, gold, strict=True)
    ]
    for i, e, right in zip(asked, gold, check(pairs), strict=True):
        wrong = -1 if out[i].option == e.answer else out[i].option
        out[i] = out[i]._replace(option=e.answer if right else wrong)
    return out


def augmented(example: Example, recipe: Recipe, seed: int) -> Example:
    name = augment.choose(example.id, seed, recipe.mix)
    return augment.apply(example, name, seed)


def unmisled(written: Sequence[Prompt]) -> list[Example]:
    return [perturb.unmisled(p.example) for p in written]


def grafted(
    processor: Processor, rollout: Rollout, written: Sequence[Prompt]
) -> Rollout:
    """Rollouts of prompts that are unmisled, as they go on after what misleads.

    Where the prompt opens a think, a completion's own opening tag is left out and its
    text follows after a space. Log-probs and entropies stay with the tokens they are
    of, counted from the end, and are 0 where the text now begins otherwise; what no
    longer fits is cut. A completion without a think stays as it is, and earns nothing.

    Args:
      rollout: on the host, N * G rows; written: the N prompts to graft onto.
    """
    out = Rollout(*(np.array(x) for x in rollout))
    each, length = len(out.tokens) // len(written), out.tokens.shape[1]
    for i, (tokens_, keep) in enumerate(zip(rollout.tokens, rollout.mask, strict=True)):
        old = tokens_[keep]
        head, tag, rest = tokens.decode(processor, old).partition("<think>")
        if not (perturb.is_open(written[i // each].example.prefill) and tag):
            continue
        text = head + " " + rest.lstrip()
        ids = list(processor.tokenizer.encode(text, add_special_tokens=False))
        ids += [t for t in old[-1:] if t in processor.end_ids]
        same, size = min(len(ids), len(old)), min(len(ids), length)
        for values, was in (
            (out.logprobs, rollout.logprobs),
            (out.entropy, rollout.entropy),
        ):
            row = np.zeros(len(ids), np.float32)
            row[len(ids) - same :] = was[i][keep][len(old) - same :]
            values[i] = 0
            values[i, :size] = row[:size]
        out.tokens[i] = 0
        out.tokens[i, :size] = ids[:size]
        out.mask[i] = np.arange(length) < size
        out.stopped[i] &= size == len(ids)
    return out


def masked(written: Sequence[Prompt], seed: int) -> list[Example]:
    """The examples with most patches of their images in black, for the perception term
    (`losses.perception`)."""
    return [
        distort.distort(p.example, "masked", seed)._replace(
            condition=p.example.condition
        )
        for p in written
    ]


def earned(samples: Sequence[Sample], each: int, recipe: Recipe) -> Earned:
    """The samples' rewards as [N,G] arrays."""

    def table(values, kind=np.float32):
        return np.array(list(values), kind).reshape(-1, each)

    agree = (s.reward.consistent for s in samples)
    by = recipe.ranking.by
    return Earned(
        table(s.reward.total for s in samples),
        table(s.reward.correct for s in samples),
        table(np.nan if c is None else c for c in agree),
        table((s.stopped for s in samples), bool),
        table(s.terms[by] for s in samples) if recipe.ranking.weight else None,
    )


def is_mixed(earned: Earned) -> np.ndarray:
    """bool[N]: the group holds a right completion and a wrong one."""
    return (earned.correct.max(-1) > 0) & (earned.correct.min(-1) <= 0)


def refilled(policy: Policy, old: Drawn, new: Drawn) -> Drawn:
    """The old groups, those that aren't mixed replaced by mixed ones of the new."""
    count = len(old.written)
    spare = [count + i for i in np.flatnonzero(is_mixed(new.earned))]
    order = [
        i if good or not spare else spare.pop(0)
        for i, good in enumerate(is_mixed(old.earned))
    ]
    return picked(policy, old, new, order)._replace(position=new.position)


def picked(policy: Policy, old: Drawn, new: Drawn, order: Sequence[int]) -> Drawn:
    """Groups `order` of old and new, the new ones numbered after the old."""
    count, rows = len(old.written), len(old.samples)
    if list(order) == list(range(count)):
        return old
    each = rows // count
    index = [i * each + k for i in order for k in range(each)]
    written = [(old.written + new.written)[i] for i in order]
    a, b = sharding.fetch((old.rollout, new.rollout))
    both = [old.samples, new.samples]
    return old._replace(
        places=[(old.places + new.places)[i] for i in order],
        written=written,
        group=policy.put(prefixes(policy, written)),
        rollout=policy.put(
            jax.tree.map(lambda x, y: np.concatenate([x, y])[index], a, b)
        ),
        samples=[(both[0] + both[1])[i] for i in index],
        earned=jax.tree.map(
            lambda x, y: np.concatenate([x, y])[list(order)], old.earned, new.earned
        ),
    )


@jax.jit
def _joined(a, b):
    return jnp.concatenate([a, b], axis=1)


def join(a, b, groups: int):
    """[N * G1, ...] and [N * G2, ...] as [N * (G1 + G2), ...], group by group."""
    rows = a.shape[0] + b.shape[0]
    parts = (x.reshape(groups, -1, *x.shape[1:]) for x in (a, b))
    return _joined(*parts).reshape(rows, *a.shape[1:])
