"""POPE: is there such a thing in the image? (https://arxiv.org/abs/2305.10355)

`question_id` restarts in each category, so ids are category/question_id. A row of the
merged TSV lists several categories and becomes one example for each of them.
"""

from __future__ import annotations

from vlmrl.data.reading import Items, Place, Refused, Set, SetItem, one, text

TASKS = ("random", "popular", "adversarial")


def items(row: dict, place: Place) -> Items:
    raw = text(row, "label", "answer").casefold()
    if raw not in ("yes", "no"):
        raise Refused(f"answer {raw!r} is not yes or no")
    named = text(row, "category", needed=False) or place.file
    categories = [c for c in TASKS if c in named.lower()]
    if not categories:
        raise Refused(f"category {named!r} is none of {', '.join(TASKS)}")
    images = one(row.get("image"), place=place)
    source = text(row, "image_source", needed=False)
    if isinstance(row.get("image"), str):
        source = row["image"].rsplit(".", 1)[0]
    number = text(row, "question_id", "index")
    for category in categories:
        yield SetItem(
            id=f"{category}/{number}",
            images=images,
            question=text(row, "question", "text"),
            options=("Yes", "No"),
            answer=int(raw == "no"),
            task=category,
            cluster=source,
        )


SET = Set(
    name="pope",
    about="is there such a thing in the image?",
    splits={"test": 9000},
    tasks=TASKS,
    files={"test": ("coco_pope_*.json", "data/test-*.parquet", "POPE.tsv")},
    beside=("*.jpg",),
    items=items,
)
