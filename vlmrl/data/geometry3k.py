"""Geometry3K: find a length, an angle or an area in a drawing
(https://arxiv.org/abs/2105.04165), as problem and answer text.

Newer revisions list four choices; without them the question is open. Where
`ground_truth` names another choice than `answer`, the answer's text counts.
"""

from __future__ import annotations

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Set, SetItem


def items(row: dict, place: Place) -> Items:
    question = reading.text(row, "problem").replace("<image>", "").strip()
    raw = reading.text(row, "answer")
    repairs: tuple[str, ...] = ()
    choices = row.get("choices") or ()
    if choices:
        texts = reading.options(choices)
        answer = reading.index_of(raw, texts)
        named = row.get("ground_truth")
        if not reading.missing(named) and reading.letter(named, len(texts)) != answer:
            repairs = (f"ground_truth {named} contradicts the answer: its text counts",)
    else:
        texts, answer = (raw,), 0
    number = row.get("id")
    yield SetItem(
        id=f"{place.split}/{place.row if reading.missing(number) else number}",
        images=reading.one(row.get("images"), place=place),
        question=question,
        options=texts,
        answer=answer,
        open=not choices,
        kind="maths",
        task="geometry",
        repairs=repairs,
    )


SET = Set(
    name="geometry3k",
    about="lengths, angles and areas in drawings",
    splits={"train": 2101, "validation": 300, "test": 601},
    tasks=("geometry",),
    files={s: (f"data/{s}-*.parquet",) for s in ("train", "validation", "test")},
    items=items,
)
