"""RefCOCO: find what an expression refers to (https://arxiv.org/abs/1608.00272).

One example per expression. The published boxes are [x, y, w, h] in pixels; answers are
`[x1, y1, x2, y2]` in pixels of the image as it is stored, and `meta.sizes` has its
width and height for models that answer in other units.
"""

from __future__ import annotations

import math

from vlmrl.data.reading import Items, Place, Refused, Set, SetItem, missing, one, text

QUESTION = (
    'Where is "{}" in the image? Give its bounding box as [x1, y1, x2, y2] in pixels.'
)


def items(row: dict, place: Place) -> Items:
    box = list(row.get("bbox") or ())
    if len(box) != 4 or not all(math.isfinite(v) for v in box) or min(box[2:]) <= 0:
        raise Refused(f"bbox {box} is not [x, y, width, height]")
    x, y, w, h = box
    expressions = row.get("answer") or ()
    if isinstance(expressions, str):
        expressions = [expressions]
    phrases = [" ".join(str(e).split()) for e in expressions if not missing(e)]
    if not phrases:
        raise Refused("it has no referring expression")
    number, file = text(row, "question_id"), text(row, "file_name", needed=False)
    images = one(row.get("image"), place=place)
    for i, expression in enumerate(phrases):
        yield SetItem(
            id=f"{place.split}/{number}/{i}",
            images=images,
            question=QUESTION.format(expression),
            options=(written([x, y, x + w, y + h]),),
            answer=0,
            open=True,
            kind="box",
            task=place.split,
            cluster=file.rsplit("_", 1)[0],
            meta={"expression": expression},
        )


def written(box: list[float]) -> str:
    """Return `[x1, y1, x2, y2]` to a hundredth of a pixel."""
    return "[" + ", ".join(f"{v:.2f}".rstrip("0").rstrip(".") for v in box) + "]"


SET = Set(
    name="refcoco",
    about="boxes of what an expression refers to",
    splits={"val": None, "test": None, "testA": None, "testB": None},
    tasks=("val", "test", "testA", "testB"),
    files={s: (f"data/{s}-*.parquet",) for s in ("val", "test", "testA", "testB")},
    items=items,
)
