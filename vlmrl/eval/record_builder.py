"""The one place where a `Record` is built, for the kernel, served models and logs of
other tools alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlmrl.answers import lenient, reading, strict
from vlmrl.answers.kinds import kind_of
from vlmrl.answers.reading import Reading
from vlmrl.judges import rule
from vlmrl.prompts import styles
from vlmrl.types import Prompt, Record


class RunLabels(NamedTuple):
    """What records say of the parameters and the split they are of."""

    recipe: str = ""
    seed: int = 0  # of the sampler and, in records, of the training
    step: int = 0  # optimizer steps behind the parameters
    split: str = ""
    stage: str = "evaluated"  # see `types.Record`: how the parameters were trained
    augmented: bool = False
    faithful: bool = False
    code: str = ""


UNLABELLED = RunLabels()


def build_record(
    prompt: Prompt,
    completion: str,
    *,
    finish: str,
    engine: str,
    read: Reading | None = None,
) -> Record:
    """Return the record of one completion, judged by rule.

    What only the kernel measures is absent (`unmeasured`), and the labels of the run
    (recipe, seed, step, split, sample) are empty: callers `_replace` what they know.

    Args:
      prompt: what the model read; its style names the parser.
      completion: the text after the prefill.
      finish: 'stop', 'length' or 'error: …'.
      engine: the software that completed it.
      read: how the whole turn reads; by default as `answers.reading.read` does.
    """
    e, style = prompt.example, prompt.style
    text = prompt.whole(completion)
    read = reading.read(text, e, style) if read is None else read
    parsed = read.parsed
    think, option = parsed.think or "", parsed.option
    # What the model wrote itself of a CoT that the prompt opened.
    opened = prompt._replace(turn="<think>" if thinking(prompt.turn) else "")
    sampled = strict.parse(opened.whole(completion), e.options).think or ""
    applies = rule.applicable(e.condition)
    judged = [
        rule.verdict(t, option, e.question, e.options, applies)
        for t in (think, sampled)
    ]
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
        style=style,
        question=e.question,
        options=list(e.options),
        answer=e.answer,
        suggested=e.suggested,
        abstain=e.abstain,
        prefill=prompt.turn,
        kind=kind_of(e),
        open=e.open,
        not_asked=[],
        completion=completion,
        think=think,
        think_sampled=sampled,
        predicted=option,
        correct=read.correct,
        followed=option >= 0 and option == e.suggested,
        format=parsed.strict,
        lenient=read.lenient,
        lenient_correct=read.lenient_correct,
        finish=finish,
        judge=rule.JUDGE.name,
        conclusion=rule.conclude(think, e.question, e.options),
        verdict=judged[0],
        verdict_sampled=judged[1],
        natural="<answer" in text,
        truncated=finish == "length" and not parsed.closed,
        parser=styles.style(style).parser,
        lenient_parser=lenient.VERSION,
        engine=engine,
        **unmeasured(),
    )


def thinking(prefill: str) -> bool:
    """Whether a started assistant turn has opened its CoT and nothing after it."""
    return "<think>" in prefill and not ("</think>" in prefill or "<answer" in prefill)


def unmeasured() -> dict:
    """Return the fields of a record that only the kernel can fill, as absent."""
    missing = "entropy p_correct p_suggested option_mass think_entropy".split()
    empty = "letters normalised sighted blind blind_stripped pixels".split()
    return {
        **dict.fromkeys(missing, np.nan),
        **{name: [] for name in empty},
        "letters_from": "absent",
        "forced": -1,
        "scored": "",
        "think_tokens": -1,
        "sighted_every": 0,
        "consistent_probe": False,
        "consistent_probe_stripped": False,
    }
