"""Where the verdict on a completion comes from: does its think give its answer?

'rule' reads the think; a `judges.Judge` does as it will; 'blind' and 'shuffle' ask the
policy itself (`consistency.py`), with the parameters that are being trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vlmrl.engine.policy import Policy
from vlmrl.judges import judge as judging
from vlmrl.judges import rule
from vlmrl.prompts import Parsed
from vlmrl.rl import consistency, reread
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Prompt


def source(policy: Policy, recipe: Recipe, *, seed: int) -> Callable:
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
        items = [
            judging.Item(
                f"{p.example.id}#{i}",
                p.example.question,
                p.example.options,
                q.think or "",
                q.option,
                rule.applicable(p.example.condition),
            )
            for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True))
        ]
        return [v.label for v in judging.ask(judge, items)]

    def by_blind(params, prompt_of, parsed):
        rows = [
            reread.blind(p, q.think or "")
            for p, q in zip(prompt_of, parsed, strict=True)
        ]
        found = letters(params, reread.in_groups(rows, each)).reshape(len(rows), -1)
        return [
            consistency.blind_verdict(
                list(reread.implied(row, len(p.example.options))),
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
            rows.append(reread.Reading(shown.text, images, again is not None))
        found = letters(params, reread.in_groups(rows, each)).reshape(len(rows), -1)
        out = []
        for i, (p, q) in enumerate(zip(prompt_of, parsed, strict=True)):
            own = reread.implied(found[i], len(p.example.options))
            again = int(np.argmax(own)) if own.sum() > 0 else -1
            applies = rule.applicable(p.example.condition)
            order = changed[i // each].order
            out.append(consistency.shuffle_verdict(q.option, again, order, applies))
        return out

    if judge is None:
        return nobody
    if judge in ("blind", "shuffle"):
        letters = reread.reader(policy, recipe.max_tokens)
        return by_blind if judge == "blind" else by_shuffle
    return by_rule if judge == "rule" else by_judge
