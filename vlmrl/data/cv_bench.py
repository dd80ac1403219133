"""CV-Bench: counting and relations in 2D, depth and distance in 3D
(https://arxiv.org/abs/2406.16860).

The last part of a task is the photographs' source, which the official score averages
over. Letters follow the order of `choices`.
"""

from __future__ import annotations

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

SOURCES = ("ADE20K", "COCO", "Omni3D")


def items(row: dict, place: Place) -> Items:
    if "choices" in row:
        texts, repairs = reading.options(row["choices"] or ()), ()
    else:  # the TSV form
        texts, repairs = reading.columns(row, "ABCDEF")
    source = reading.text(row, "source")
    if source not in SOURCES:
        raise Refused(f"source {source!r} is not one of {', '.join(SOURCES)}")
    kind = reading.text(row, "type", needed=False) or (
        "3D" if source == "Omni3D" else "2D"
    )
    task = reading.text(row, "task", "category")
    number = reading.text(row, "idx", "index")
    yield SetItem(
        id=f"{kind}/{number}",
        **reading.multiple_choice(row, texts, place),
        task=f"{kind}/{task}/{source}",
        meta=reading.optional(row, "prompt", "filename", "source_filename"),
        repairs=repairs,
    )


SET = Set(
    name="cv_bench",
    about="counting, relations, depth and distance in photographs",
    splits={"2D": 1438, "3D": 1200},
    tasks=("2D", "3D"),
    files={
        "2D": ("test_2d*.parquet", "CV-Bench-2D.tsv"),
        "3D": ("test_3d*.parquet", "CV-Bench-3D.tsv"),
    },
    items=items,
)
