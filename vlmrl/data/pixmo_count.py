"""PixMo-Count: how many of a named thing are in a photograph
(https://arxiv.org/abs/2409.17146).

The published rows hold addresses; the photographs lie in images/, each named by the
sha256 of its bytes. A row whose file is absent or has another sum is refused.
"""

from __future__ import annotations

import hashlib

from vlmrl.data.reading import Items, Place, Refused, Set, SetItem, text


def items(row: dict, place: Place) -> Items:
    count = row.get("count")
    if count is None or int(count) != count or count < 0:
        raise Refused(f"count {count!r} is not a whole number from 0 on")
    count = int(count)
    label = " ".join(text(row, "label").split())
    sha = text(row, "image_sha256").lower()
    path = place.root / "images" / sha
    if not (len(sha) == 64 and path.is_file()):
        raise Refused(f"its image images/{sha} is not there")
    data = path.read_bytes()
    if (actual := hashlib.sha256(data).hexdigest()) != sha:
        raise Refused(f"its image has sha256 {actual[:12]}…, {sha[:12]}… is named")
    points = row.get("points") or {}
    pointed = len(points.get("x") or ())
    if pointed and pointed != count:
        raise Refused(f"count is {count}, but {pointed} points are given")
    yield SetItem(
        id=f"{place.split}/{place.row}",
        images=(data,),
        question=f"How many {label} are there in the image?",
        options=(str(count),),
        answer=0,
        open=True,
        kind="number",
        task="count",
        cluster=sha[:16],
        meta={"label": label},
    )


SET = Set(
    name="pixmo_count",
    about="how many of a named thing are in a photograph",
    splits={"train": 36916, "validation": 540, "test": 540},
    tasks=("count",),
    files={s: (f"data/{s}-*.parquet",) for s in ("train", "validation", "test")},
    beside=("images/*",),
    items=items,
)
