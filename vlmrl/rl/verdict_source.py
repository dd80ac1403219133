"""Where the verdict on a completion comes from: does its think give its answer?

'rule' reads the think; a `judges.Judge` does as it will; 'blind' and 'shuffle' ask the
policy itself (`consistency.py`), with the parameters that are being trained.

A judge with a time limit sits at a desk: completions go in as they are sampled, and
what has no verdict in time is undecided, and counted. Of several hosts the first asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.client import http
from vlmrl.judges import desk, rule
from vlmrl.judges import judge as judging
from vlmrl.policy import Policy
from vlmrl.prompts.parsing import Parsed
from vlmrl.rl import consistency, cot_probe
from vlmrl.rl.recipe import Recipe
from vlmrl.run import hosts
from vlmrl.types import Mean, Prompt, UserError


class Source(NamedTuple):
    """Takes completions part by part, then says what became of them."""

    submit: Callable  # (prompt of every completion, what was parsed of it) -> None
    collect: Callable  # (params) -> (verdicts in the order of submission, metrics)


def source(policy: Policy, recipe: Recipe, *, seed: int) -> Source:
    """The verdicts that a recipe asks for, None for each where it asks nobody.

    Raises, by `collect`:
      UserError: that no completion could fare better, or the budget is spent.
    """
    if isinstance(recipe.judge, judging.Judge) and recipe.judging.seconds:
        return at_desk(recipe.judge, recipe.judging.seconds)
    ask, waiting = at_once(policy, recipe, seed=seed), []

    def submit(prompt_of, parsed):
        waiting.append((prompt_of, parsed))

    def collect(params):
        both = [
            [x for part in parts for x in part] for parts in zip(*waiting, strict=True)
        ]
        waiting.clear()
        return ask(params, *both), {}

    return Source(submit, collect)


def at_desk(judge: judging.Judge, seconds: float) -> Source:
    """Verdicts of a judge that works beside the sampling.

    Metrics: judge/late, the share undecided for want of time; judge/waited, seconds
    that a step waited.
    """
    first = hosts.first()
    made = desk.Desk(judge, seconds) if first else None
    count = 0

    def submit(prompt_of, parsed):
        nonlocal count
        if first:
            made.submit(items(prompt_of, parsed, count))
        count += len(parsed)

    def collect(params):
        nonlocal count
        size, count = count, 0
        found = problem = None
        if first:
            try:
                found = made.collect()
                spent = sum(v.reason == http.SPENT for v in found.verdicts)
                if spent:
                    problem = f"{spent} completions were not judged: {http.SPENT}"
                found = ([v.label for v in found.verdicts], found.late, found.waited)
            except UserError as error:
                problem = str(error)
        found, problem = hosts.gather((found, problem))[0]  # so that all stop together
        if problem:
            raise UserError(problem)
        labels, late, waited = found
        return labels, {
            "judge": {"late": Mean(float(late), size), "waited": Mean(waited, 1.0)}
        }

    return Source(submit, collect)


def items(
    prompt_of: Sequence[Prompt], parsed: Sequence[Parsed], first: int = 0
) -> list[judging.Item]:
    """What a judge sees of completions, numbered from `first`."""
    return [
        judging.Item(
            f"{p.example.id}#{i}",
            p.example.question,
            p.example.options,
            q.think or "",
            q.option,
            rule.applicable(p.example.condition),
        )
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True), first)
    ]


def at_once(policy: Policy, recipe: Recipe, *, seed: int) -> Callable:
    """judge(params, prompts, parsed) -> verdict of every completion, in branch order;
    `prompts` names the prompt of every completion."""
    judge, each = recipe.judge, recipe.group_size

    def nobody(params, prompt_of, parsed):
        return [None] * len(parsed)

    def by_rule(params, prompt_of, parsed):
        return [
            rule.verdict(
                q.think or "",
                q.option,
                p.example.question,
                p.example.options,
                rule.applicable(p.example.condition),
            )
            for p, q in zip(prompt_of, parsed, strict=True)
        ]

    def by_judge(params, prompt_of: Sequence[Prompt], parsed: Sequence[Parsed]):
        return [v.label for v in judging.ask(judge, items(prompt_of, parsed))]

    def by_blind(params, prompt_of, parsed):
        rows = [
            cot_probe.blind(p, q.think or "")
            for p, q in zip(prompt_of, parsed, strict=True)
        ]
        found = letters(params, cot_probe.in_groups(rows, each)).reshape(len(rows), -1)
        return [
            consistency.blind_verdict(
                list(cot_probe.implied(row, len(p.example.options))),
                q.option,
                rule.applicable(p.example.condition),
            )
            for p, q, row in zip(prompt_of, parsed, found, strict=True)
        ]

    def by_shuffle(params, prompt_of, parsed):
        changed = [consistency.shuffle(p.example, seed) for p in prompt_of[::each]]
        rows = []
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True)):
            other = changed[i // each]
            again = consistency.reread(other, q.think or "", p.example.options)
            blank = other.example._replace(prefill="<think>-" + consistency.OPENING)
            (shown,) = policy.write([again or blank])
            images = p.example.images
            rows.append(cot_probe.Reading(shown.text, images, again is not None))
        found = letters(params, cot_probe.in_groups(rows, each)).reshape(len(rows), -1)
        out = []
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True)):
            own = cot_probe.implied(found[i], len(p.example.options))
            again = int(np.argmax(own)) if own.sum() > 0 else -1
            applies = rule.applicable(p.example.condition)
            order = changed[i // each].order
            out.append(consistency.shuffle_verdict(q.option, again, order, applies))
        return out

    if not judge:
        return nobody
    if judge in ("blind", "shuffle"):
        letters = cot_probe.reader(policy, recipe.max_tokens)
        return by_blind if judge == "blind" else by_shuffle
    return by_rule if judge == "rule" else by_judge
