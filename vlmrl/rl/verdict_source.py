"""Who gives the verdict on a completion: does its chain of thought give its answer?

'rule' reads the chain of thought; a `judges.Judge` does what it does; 'blind' and
'shuffle' ask the policy itself (`consistency.py`), with the parameters being trained.

A judge with a time limit works beside the sampling: completions are submitted as they
are sampled, and one without a verdict in time is undecided, and counted. Of several
hosts the first asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.client import http
from vlmrl.judges import async_judge, rule
from vlmrl.judges import judge as judging
from vlmrl.policy import Policy
from vlmrl.rl import consistency, cot_probe
from vlmrl.rl.recipe import Recipe
from vlmrl.run import hosts
from vlmrl.types import Mean, Parsed, Prompt, UserError


class VerdictSource(NamedTuple):
    """Takes completions part by part, then returns their verdicts."""

    submit: Callable  # (prompt of every completion, their Parsed) -> None
    collect: Callable  # (params) -> (verdicts in the order of submission, metrics)


def make_source(policy: Policy, recipe: Recipe, *, seed: int) -> VerdictSource:
    """Return the verdicts that a recipe asks for; each is None where it has no judge.

    Raises, by `collect`:
      UserError: the budget is spent, or the judge raised what would hit every item.
    """
    if isinstance(recipe.judge.name, judging.Judge) and recipe.judge.seconds:
        return _beside_sampling(recipe.judge.name, recipe.judge.seconds)
    ask, waiting = _at_once(policy, recipe, seed=seed), []

    def submit(prompt_of, parsed):
        waiting.append((prompt_of, parsed))

    def collect(params):
        prompt_of, parsed = (
            list(itertools.chain(*parts)) for parts in zip(*waiting, strict=True)
        )
        waiting.clear()
        return ask(params, prompt_of, parsed), {}

    return VerdictSource(submit, collect)


def items(
    prompt_of: Sequence[Prompt], parsed: Sequence[Parsed], first: int = 0
) -> list[judging.JudgeItem]:
    """Return what a judge reads of completions, numbered from `first`."""
    return [
        judging.JudgeItem(
            f"{p.example.id}#{i}",
            p.example.question,
            p.example.options,
            q.think or "",
            q.option,
            rule.applicable(p.example.condition),
        )
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True), first)
    ]


def _beside_sampling(judge: judging.Judge, seconds: float) -> VerdictSource:
    """Verdicts of a judge that works beside the sampling.

    Metrics: judge/late, the share undecided for lack of time; judge/waited, seconds
    that a step waited.
    """
    first = hosts.first()
    worker = async_judge.AsyncJudge(judge, seconds) if first else None
    submitted = 0

    def submit(prompt_of, parsed):
        nonlocal submitted
        if first:
            worker.submit(items(prompt_of, parsed, submitted))
        submitted += len(parsed)

    def collect(params):
        nonlocal submitted
        count, submitted = submitted, 0
        result = problem = None
        if first:
            try:
                done = worker.collect()
                spent = sum(v.reason == http.SPENT for v in done.verdicts)
                if spent:
                    problem = f"{spent} completions were not judged: {http.SPENT}"
                result = ([v.label for v in done.verdicts], done.late, done.waited)
            except UserError as error:
                problem = str(error)
        # Every host learns of the problem, so that all stop together.
        result, problem = hosts.gather((result, problem))[0]
        if problem:
            raise UserError(problem)
        labels, late, waited = result
        metrics = {"late": Mean(float(late), count), "waited": Mean(waited, 1.0)}
        return labels, {"judge": metrics}

    return VerdictSource(submit, collect)


def _at_once(policy: Policy, recipe: Recipe, *, seed: int) -> Callable:
    """Return ask(params, prompt_of, parsed) -> the verdict of every completion."""
    judge = recipe.judge.name
    if not judge:
        return lambda params, prompt_of, parsed: [None] * len(parsed)
    if judge in ("blind", "shuffle"):
        letters = cot_probe.reader(policy, recipe.sampling.max_tokens)

        def probe(params, readings):
            groups = cot_probe.in_groups(readings, recipe.sampling.group_size)
            return letters(params, groups).reshape(len(readings), -1)

        if judge == "blind":
            return lambda params, *asked: _by_blind(probe, params, *asked)
        size = recipe.sampling.group_size
        return lambda params, *asked: _by_shuffle(
            policy, probe, params, *asked, size=size, seed=seed
        )
    if judge == "rule":
        return lambda params, *asked: [
            rule.verdict(i.think, i.predicted, i.question, i.options, i.applicable)
            for i in items(*asked)
        ]
    return lambda params, *asked: [v.label for v in judging.ask(judge, items(*asked))]


def _by_blind(probe: Callable, params, prompt_of, parsed) -> list[str]:
    """Ask the policy for the answer after its own chain of thought, without the image
    and the conclusion (`consistency.blind_verdict`)."""
    letters = probe(
        params,
        [
            cot_probe.blind(p, q.think or "")
            for p, q in zip(prompt_of, parsed, strict=True)
        ],
    )
    return [
        consistency.blind_verdict(
            list(cot_probe.implied(row, len(p.example.options))),
            q.option,
            rule.applicable(p.example.condition),
        )
        for p, q, row in zip(prompt_of, parsed, letters, strict=True)
    ]


def _by_shuffle(
    policy: Policy, probe: Callable, params, prompt_of, parsed, *, size: int, seed: int
) -> list[str]:
    """Ask the policy for the answer after its own chain of thought, with the options
    in another order (`consistency.shuffle_verdict`). Of an item without two options to
    shuffle it is undecided."""
    shuffled = [
        consistency.shuffle(e, seed) if len(e.options) - (e.abstain >= 0) > 1 else None
        for e in (p.example for p in prompt_of[::size])
    ]
    readings = []
    for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True)):
        other, images = shuffled[i // size], p.example.images
        if other is None:
            readings.append(cot_probe.ProbePrompt(p.text, images, False, p.example))
            continue
        again = consistency.reread(other, q.think or "", p.example.options)
        blank = other.example._replace(prefill="<think>-" + consistency.OPENING)
        (shown,) = policy.write([again or blank])
        readings.append(
            cot_probe.ProbePrompt(shown.text, images, again is not None, shown.example)
        )
    letters = probe(params, readings)
    out = []
    for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True)):
        own = cot_probe.implied(letters[i], len(p.example.options))
        again = int(np.argmax(own)) if own.sum() > 0 else -1
        applies = rule.applicable(p.example.condition)
        other = shuffled[i // size]
        order, again = (other.order, again) if other else ((), -1)
        out.append(consistency.shuffle_verdict(q.option, again, order, applies))
    return out
