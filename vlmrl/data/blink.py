"""BLINK: fourteen tasks of looking, with one to four images each
(https://arxiv.org/abs/2404.12390).

The score is the mean over the fourteen. Answers of the test split are hidden, so only
val is read.
"""

from __future__ import annotations

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

TASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)


def items(row: dict, place: Place) -> Items:
    task = reading.text(row, "sub_task")
    if task not in TASKS:
        raise Refused(f"sub_task {task!r} is not one of the {len(TASKS)}")
    cells = [row.get(f"image_{i}") for i in range(1, 5)]
    while cells and cells[-1] is None:
        cells.pop()
    if None in cells:
        raise Refused(f"image_{cells.index(None) + 1} is missing, a later one is not")
    texts = reading.options(row.get("choices") or ())
    yield SetItem(
        id=reading.text(row, "idx"),
        images=reading.one(*cells, place=place),
        question=reading.text(row, "question"),
        options=texts,
        answer=reading.letter(row.get("answer"), len(texts)),
        task=task,
        meta=reading.optional(row, "prompt"),
    )


SET = Set(
    name="blink",
    about="fourteen tasks of looking, on one to four images",
    splits={"val": 1901},
    tasks=TASKS,
    files={"val": ("*/val-*.parquet", "data/val-*.parquet", "val*.parquet")},
    items=items,
)
