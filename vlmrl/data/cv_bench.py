"""CV-Bench: counting and relations in 2D, depth and distance in 3D
(https://arxiv.org/abs/2406.16860).

The last part of a task is the photographs' source, which the official score averages
over. Letters follow the order of `choices`.
"""

from __future__ import annotations

from vlmrl.data import reading
from vlmrl.data.reading import Place, Refused, Set, SetItem

SOURCES = ("ADE20K", "COCO", "Omni3D")


def items(row: dict, place: Place) -> list[SetItem]:
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
    return [
        SetItem(
            id=f"{kind}/{number}",
            images=reading.one(row.get("image"), place=place),
            question=reading.text(row, "question"),
            options=texts,
            answer=reading.letter(row.get("answer"), len(texts)),
            task=f"{kind}/{task}/{source}",
            meta={
                "prompt": reading.text(row, "prompt", needed=False),
                "filename": reading.text(row, "filename", needed=False),
                "source_filename": reading.text(row, "source_filename", needed=False),
            },
            repairs=repairs,
        )
    ]


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
