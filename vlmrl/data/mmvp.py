"""MMVP: pairs of photographs that CLIP takes for the same
(https://arxiv.org/abs/2401.06209).

Rows 2i − 1 and 2i are a pair, right if both are. The header of the csv file is
misspelt, so its columns are read by position; the answers of rows 99, 100, 279 and 280
are known to be swapped upstream (`lmms-lab-eval/MMVP` swaps them back), and `SWAPPED`
is what puts the csv right.
"""

from __future__ import annotations

import re

from vlmrl.data.reading import (
    Items,
    Place,
    Refused,
    Set,
    SetItem,
    beside,
    letter,
    one,
    text,
)

_TWO = re.compile(r"\(a\)\s*(.*?)\s*\(b\)\s*(.*)", re.DOTALL)
SWAPPED = (99, 100, 279, 280)


def items(row: dict, place: Place) -> Items:
    published = "Options" not in row  # the csv, by position
    names = ("0", "1", "2", "3")
    if not published:
        names = ("Index", "Question", "Options", "Correct Answer")
    number, question, both, raw = (text(row, name) for name in names)
    if not number.isdecimal() or not 1 <= int(number) <= 300:
        raise Refused(f"index {number!r} is not a number from 1 to 300")
    match = _TWO.fullmatch(both)
    if not match:
        raise Refused(f"options {both!r} are not '(a) … (b) …'")
    texts = (match[1].rstrip(" ,;"), match[2].strip())
    if not all(texts):
        raise Refused("one of its options is missing")
    answer, repairs = letter(raw, 2), ()
    if published and int(number) in SWAPPED:
        answer, repairs = 1 - answer, ("answer swapped back",)
    if published:
        images = (beside(f"{number}.jpg", place, "MMVP Images"),)
    else:
        images = one(row.get("image"), place=place)
    pair = (int(number) + 1) // 2
    yield SetItem(
        id=number,
        images=images,
        question=question,
        options=texts,
        answer=answer,
        task="pairs",
        group=f"pair {pair}",
        cluster=f"pair {pair}",
        repairs=repairs,
    )


SET = Set(
    name="mmvp",
    about="pairs of photographs that look the same to CLIP",
    splits={"test": 300},
    tasks=("pairs",),
    files={"test": ("Questions.csv", "data/train-*.parquet", "data/test-*.parquet")},
    beside=("MMVP Images/*",),
    items=items,
)
