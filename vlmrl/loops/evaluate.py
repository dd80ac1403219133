"""From examples to records: the host's side of the one-pass kernel.

policy = load("tiny")
records = evaluate(policy, examples, ["base", "wrong_caption"])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

import vlmrl
from vlmrl import perturb, sharding
from vlmrl.engine.generate import Sampling, branch_keys
from vlmrl.eval import kernel
from vlmrl.eval.tags import make_tables
from vlmrl.judges import rule
from vlmrl.policy import Policy, Weights
from vlmrl.prompts import parsing, styles, tokens
from vlmrl.run import hosts
from vlmrl.types import Example, Prompt, Record, Rollout, Scores, UserError

OPTIONS = 6  # of an item at most, an added "I'm not sure" included


def evaluator(
    policy: Policy,
    conditions: Sequence[str],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 64,
    probe_every: int = 8,
    probes: int = 4,
    batch: int = 16,
    options: int = OPTIONS,
    slots: int = 0,
    gather: bool = True,
    unroll: bool = False,
) -> Callable[..., list[Record]]:
    """run(params, examples, *, recipe, seed, step, split, progress) -> records.

    Compiled once and used for any parameters of the policy's model, so that training
    evaluates with the very program of the final table. Records come in the order
    example, condition, sample.

    Args:
      conditions: names (`perturb.apply`); 'abstain+' composes with any.
      samples: per condition; temperature 0 (greedy) makes them equal, so it takes 1.
      probe_every, probes: a sighted probe after every k think tokens, at most R.
      batch: examples per pass.
      options: of an item at most, an added one included.
      slots: samples decoded side by side, each in the place of one that has ended; for
        answers of very unlike lengths, on one data shard. 0: all of a batch at once.
      gather: see `policy.Weights`.
    Raises:
      UserError: an unknown condition, samples of a greedy evaluation, slots on several
        shards; when run, an item with more options, a batch that can't fit.
    """
    for name in conditions:
        perturb.check(name)
    if samples > 1 and temperature == 0:
        raise UserError(
            f"samples is {samples} but temperature is 0: greedy samples are all equal"
        )
    shards = sharding.batch_shards(policy.mesh)
    batch += -batch % shards
    if slots and shards > 1:
        raise UserError(f"slots is {slots}: wants one data shard, there are {shards}")
    index, count = sharding.part(policy.mesh)
    own = batch // count  # examples of this process in a pass
    tables = make_tables(policy.processor, options)
    weights = Weights(policy, gather)

    @functools.partial(jax.jit, out_shardings=sharding.batch_sharding(policy.mesh))
    def run_kernel(params, group, blind, rows, keys):
        return kernel.evaluate(
            policy.model,
            weights(params),
            group,
            blind,
            rows,
            keys,
            tables,
            max_tokens=max_tokens,
            sampling=Sampling(temperature),
            probe_every=probe_every,
            probes=probes,
            slots=slots,
            unroll=unroll,
            attend=policy.attend,
        )

    def run(
        params,
        examples: Sequence[Example],
        *,
        recipe: str = "",
        seed: int = 0,
        step: int = 0,
        split: str = "",
        progress: Callable[[int], None] = lambda n: None,
    ) -> list[Record]:
        passes: list[list[Record]] = []
        for start in range(0, len(examples), batch):
            part = list(examples[start : start + batch])
            padded = part + [part[-1]] * (batch - len(part))
            mine = padded[index * own : (index + 1) * own]
            changed = [perturb.apply(e, c) for e in mine for c in conditions]
            written = policy.write(changed)
            inputs = _inputs(policy, written, len(conditions), options)
            names = [f"{e.source}/{e.id}/{e.condition}" for e in changed]
            keys = branch_keys(seed, "evaluate", 0, names, samples)
            # The blind reading keeps as much as the sighted one, or less.
            weights.refuse("batch", params, inputs[0], 2 * len(keys), max_tokens)
            placed = sharding.join_batch(policy.mesh, (*inputs, keys))
            found = run_kernel(params, *placed)
            rollout, scores = sharding.rows(found)
            real = min(max(0, len(part) - index * own), own)
            out: list[Record] = []
            for i in range(real * len(conditions) * samples):
                record = _record(policy, written[i // samples], rollout, scores, i)
                out.append(
                    record._replace(
                        recipe=recipe,
                        seed=seed,
                        step=step,
                        split=split,
                        sample=i % samples,
                        sighted_every=probe_every,
                    )
                )
            passes.append(out)
            progress(len(part))
        parts = hosts.whole(index, passes)
        return [r for one in zip(*parts, strict=True) for p in one for r in p]

    return run


def evaluate(
    policy: Policy, examples: Sequence[Example], conditions: Sequence[str], **settings
) -> list[Record]:
    """Records of a policy's own parameters; settings as in `evaluator` and its run."""
    run_names = ("recipe", "seed", "step", "split", "progress")
    named = {k: settings.pop(k) for k in run_names if k in settings}
    settings.setdefault("batch", min(16, len(examples)))
    return evaluator(policy, conditions, **settings)(policy.params, examples, **named)


def score_options(policy: Policy, examples: Sequence[Example]) -> list[list[float]]:
    """P(option) of each example when asked to answer at once, without a CoT."""
    records = evaluate(policy, examples, ["no_cot"], max_tokens=1, probes=1)
    return [r.letters for r in records]


def _inputs(policy: Policy, written: list[Prompt], each: int, options: int):
    """(Group, blind Group, Rows) of N examples under V conditions."""
    processor = policy.processor
    encoded = tokens.encode_all(processor, written)
    blind = [
        tokens.encode(processor, (p.blind, ()), name=p.example.id) for p in written
    ]

    def grouped(rows):
        return policy.group([rows[i : i + each] for i in range(0, len(rows), each)])

    group, reader = grouped(encoded), grouped(blind)
    for p in written:
        if len(p.example.options) > options:
            raise UserError(
                f"example {p.example.id}: {len(p.example.options)} options, but the "
                f"evaluation was made for {options}; raise `options`"
            )
    facts = kernel.Rows(
        stage=np.array([_stage(p.example) for p in written], np.int32),
        options=np.array(
            [np.arange(options) < len(p.example.options) for p in written]
        ),
        answer=np.array([p.example.answer for p in written], np.int32),
        suggested=np.array([p.example.suggested for p in written], np.int32),
        last=np.array([e.ids[-1] for e in encoded], np.int32),
    )
    return group, reader, facts


def _stage(example: Example) -> int:
    text = example.prefill
    if "<answer" in text:
        return kernel.ANSWERING
    if "</think>" in text:
        return kernel.THOUGHT
    return kernel.THINKING if "<think>" in text else kernel.NOTHING


def _record(policy: Policy, prompt: Prompt, rollout: Rollout, scores: Scores, i: int):
    e, processor = prompt.example, policy.processor
    text = tokens.decode(processor, rollout.tokens[i][rollout.mask[i]])
    parsed = parsing.read(e.prefill + text, e, policy.style)
    opened = "<think>" if _stage(e) == kernel.THINKING else ""
    own = parsing.parse(opened + text, e.options).think or ""
    applies = rule.applicable(e.condition)
    n = len(e.options)

    def listed(logp) -> list[float]:
        return [float(p) for p in np.exp(logp[:n])]

    letters, blind = scores.letters[i], scores.blind[i]
    chosen = int(np.argmax(letters[:n]))
    dtype = policy.compute or next(iter(policy.params.values())).dtype
    return Record(
        recipe="",
        seed=0,
        step=0,
        split="",
        source=e.source,
        task=e.task,
        example=e.id,
        cluster=e.cluster,
        condition=e.condition,
        sample=0,
        prompt=prompt.text,
        spans=[list(s) for s in prompt.spans],
        prompt_hash=prompt.hash,
        style=prompt.style,
        question=e.question,
        options=list(e.options),
        answer=e.answer,
        suggested=e.suggested,
        abstain=e.abstain,
        prefill=e.prefill,
        completion=text,
        think=parsed.think or "",
        think_sampled=own,
        predicted=parsed.option,
        correct=parsed.option == e.answer,
        followed=parsed.option >= 0 and parsed.option == e.suggested,
        format=parsed.strict,
        finish="stop" if rollout.stopped[i] else "length",
        judge="rule",
        conclusion=rule.conclude(parsed.think or "", e.question, e.options),
        verdict=rule.verdict(
            parsed.think or "", parsed.option, e.question, e.options, applies
        ),
        verdict_sampled=rule.verdict(
            own, parsed.option, e.question, e.options, applies
        ),
        letters=listed(letters),
        entropy=float(scores.entropy[i]),
        p_correct=float(scores.p_correct[i]),
        p_suggested=float(scores.p_suggested[i]),
        option_mass=float(scores.option_mass[i]),
        natural=bool(scores.natural[i]),
        truncated=bool(scores.truncated[i]),
        think_entropy=float(scores.think_entropy[i]),
        think_tokens=int(scores.think_tokens[i]),
        sighted=[
            listed(p)
            for p, keep in zip(scores.sighted[i], scores.sighted_mask[i], strict=True)
            if keep
        ],
        sighted_every=0,
        blind=listed(blind[0]),
        blind_stripped=listed(blind[1]),
        consistent_probe=int(np.argmax(blind[0][:n])) == chosen,
        consistent_probe_stripped=int(np.argmax(blind[1][:n])) == chosen,
        parser=styles.style(policy.style).parser,
        engine=f"vlmrl-{vlmrl.__version__} {jax.default_backend()} {dtype}",
        pixels=list(policy.processor.pixels),
    )
