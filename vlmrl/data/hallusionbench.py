"""HallusionBench: yes-or-no questions about charts, maps, tables and illusions, each
asked of the image and of altered ones (https://arxiv.org/abs/2310.14566).

Ids are category_subcategory_set_figure_question; a figure's questions and a question's
figures are scored together. `non_image` rows have no image.
"""

from __future__ import annotations

from vlmrl.data.reading import (
    Items,
    Place,
    Refused,
    Set,
    SetItem,
    missing,
    pictures,
    text,
)

SUBCATEGORIES = (
    "chart",
    "figure",
    "illusion",
    "map",
    "math",
    "ocr",
    "table",
    "video",
)


def items(row: dict, place: Place) -> Items:
    kind, part = text(row, "category"), text(row, "subcategory")
    if kind not in ("VD", "VS") or part not in SUBCATEGORIES:
        raise Refused(f"category {kind}/{part} is unknown")
    raw = text(row, "gt_answer", "answer").casefold()
    if raw not in ("0", "1", "no", "yes"):
        raise Refused(f"answer {raw!r} is not 0 or 1")
    places = [text(row, f"{x}_id") for x in ("set", "figure", "question")]
    sighted = text(row, "visual_input", needed=False) != "0"
    cell = row.get("image", row.get("filename"))
    if sighted and missing(cell):
        raise Refused("visual_input says that it has an image, filename is missing")
    if sighted != (place.split == "image"):
        return  # a row of the other split, where one file holds both
    yield SetItem(
        id="_".join([kind, part, *places]),
        images=pictures(cell, place=place) if sighted else (),
        question=text(row, "question"),
        options=("Yes", "No"),
        answer=int(raw in ("0", "no")),
        task=f"{kind}/{part}",
        group="_".join([kind, part, places[0], places[2]]),
        cluster="_".join([kind, part, places[0]]),
        meta={"details": text(row, "gt_answer_details", needed=False)},
    )


SET = Set(
    name="hallusionbench",
    about="yes-or-no questions about charts, maps and illusions, some of them altered",
    splits={"image": 951, "non_image": 178},
    tasks=("VD", "VS"),
    files={
        split: ("HallusionBench.json", f"data/{split}-*.parquet")
        for split in ("image", "non_image")
    },
    beside=("VS/*", "VD/*", "hallusion_bench/*"),
    items=items,
)
