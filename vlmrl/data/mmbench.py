"""MMBench (English): twenty abilities, each question in every rotation of its options
(https://arxiv.org/abs/2307.06281).

Ids are the published indices: rotation k of question b is k · 10⁶ + b, and the question
counts as right if all of its rotations are. Answers of the test split are hidden, so
its rows are refused.
"""

from __future__ import annotations

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

ROTATION = 1_000_000


def items(row: dict, place: Place) -> Items:
    index = reading.text(row, "index")
    if not index.isdecimal():
        raise Refused(f"index {index!r} is not a number")
    texts, repairs = reading.columns(row, "ABCD")
    hint = reading.text(row, "hint", needed=False)
    group = str(int(index) % ROTATION)
    level = reading.text(row, "l2-category", "L2-category", needed=False)
    yield SetItem(
        id=str(int(index)),
        **reading.multiple_choice(row, texts, place),
        task="/".join(filter(None, [level, reading.text(row, "category")])),
        group=group,
        meta={"hint": hint} if hint else {},
        repairs=repairs,
    )


SET = Set(
    name="mmbench",
    about="twenty abilities, with every rotation of the options",
    splits={"dev": None},
    tasks=(
        "coarse_perception",
        "finegrained_perception (instance-level)",
        "finegrained_perception (cross-instance)",
        "logic_reasoning",
        "relation_reasoning",
        "attribute_reasoning",
    ),
    files={
        "dev": (
            "en/dev-*.parquet",
            "data/dev-*.parquet",
            "data/validation-*.parquet",
            "MMBench_DEV_EN.tsv",
        )
    },
    items=items,
)
