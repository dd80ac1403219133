"""BLINK: fourteen tasks of looking, with one to four images each
(https://arxiv.org/abs/2404.12390).

The score is the mean over the fourteen. Answers of the test split are hidden, so only
val is read.
"""

from __future__ import annotations

from vlmrl.data.reading import Place, Refused, Set, SetItem, letter, one, options, text

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


def items(row: dict, place: Place) -> list[SetItem]:
    task = text(row, "sub_task")
    if task not in TASKS:
        raise Refused(f"sub_task {task!r} is not one of the {len(TASKS)}")
    cells = [row.get(f"image_{i}") for i in range(1, 5)]
    while cells and cells[-1] is None:
        cells.pop()
    if None in cells:
        raise Refused(f"image_{cells.index(None) + 1} is missing, a later one is not")
    texts = options(row.get("choices") or ())
    return [
        SetItem(
            id=text(row, "idx"),
            images=one(*cells, place=place),
            question=text(row, "question"),
            options=texts,
            answer=letter(row.get("answer"), len(texts)),
            task=task,
            meta={"prompt": text(row, "prompt", needed=False)},
        )
    ]


SET = Set(
    name="blink",
    about="fourteen tasks of looking, on one to four images",
    splits={"val": 1901},
    tasks=TASKS,
    files={"val": ("*/val-*.parquet", "data/val-*.parquet", "val*.parquet")},
    items=items,
)
