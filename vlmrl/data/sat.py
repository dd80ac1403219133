"""SAT: spatial questions about simulated rooms, static and in motion, and a test on
photographs (https://arxiv.org/abs/2412.07755). Versions 1 and 2 are both read.

The published order of the answers may give the right one away, so it is drawn per row.
`test_circular` is the test with, after each row, the same row reversed (id ending in
-1), as the authors evaluate it. `train_rl` is the pack of static and dynamic rows that
training uses; the train file is ordered, static rows first, so shuffle it as a whole.
"""

from __future__ import annotations

import re

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

TASKS = (
    "other",
    "action_sequence",
    "obj_movement",
    "goal_aim",
    "action_consequence",
    "perspective",
)
_SLIP = re.compile(r"\s*\bin the first frame\b")  # the authors call it a small bug


def items(row: dict, place: Place) -> Items:
    answers = list(row.get("answers") or ())
    right = reading.text(row, "correct_answer")
    cleaned = [_SLIP.sub("", a) if isinstance(a, str) else a for a in answers]
    repairs = ("'in the first frame' taken out of an answer",) * (cleaned != answers)
    texts = reading.options(cleaned)
    if len({reading.normal(t) for t in texts}) < len(texts):
        raise Refused("its answers repeat one another")
    right = reading.index_of(_SLIP.sub("", right), texts)
    question = reading.text(row, "question").replace("<image>", "").strip()
    task = reading.text(row, "question_type", needed=False) or kind(question)
    id = f"{'test' if place.split == 'test_circular' else place.split}/{place.row}"
    texts, right = reading.shuffled(texts, right, place.seed, id)
    item = SetItem(
        id=id,
        images=reading.one(row.get("images", row.get("image_bytes")), place=place),
        question=question,
        options=texts,
        answer=right,
        task=task,
        group=id,
        repairs=repairs,
    )
    yield item
    if place.split == "test_circular":
        last = len(texts) - 1
        yield item._replace(id=f"{id}-1", options=texts[::-1], answer=last - right)


def kind(question: str) -> str:
    """Return the task by the authors' rule on wording; later rules win."""
    low, task = question.lower(), "other"
    if "how did the camera" in low or "is the camera moving" in low:
        task = "action_sequence"
    if "need to go" in low:
        task = "goal_aim"
    if "any of the objects in the initial" in low:
        task = "obj_movement"
    if "if i" in low:
        task = "action_consequence"
    if "if i move to the" in low or "for someone at the" in low:
        task = "perspective"
    return task


_TEST = ("data/test-*.parquet", "SAT_test.parquet")

SET = Set(
    name="sat",
    about="spatial questions about simulated rooms; a test on photographs",
    splits={
        "train": 172384,
        "static": 127405,
        "train_rl": None,
        "val": 4001,
        "test": 150,
        "test_circular": 300,
    },
    tasks=TASKS,
    files={
        "train": ("data/train-*.parquet", "SAT_train.parquet"),
        "static": ("data/static-*.parquet", "SAT_static.parquet"),
        "train_rl": ("rl/*.parquet", "*32k*.parquet", "SAT2_rl*.parquet"),
        "val": ("data/val-*.parquet", "SAT_val.parquet"),
        "test": _TEST,
        "test_circular": _TEST,
    },
    items=items,
)
