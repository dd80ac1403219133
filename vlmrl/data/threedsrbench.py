"""3DSRBench: which is higher, closer, facing what, asked of photographs
(https://arxiv.org/abs/2412.07825).

Ids are the published `qid`s: eight characters, `-flip` if the image is mirrored, `-N`
for the N-th rotation of the options. All copies of a question share their group.
Only files that hold the images are read: of the parquet file with addresses alone it is
not known whether its flipped rows are to be mirrored by the reader.
"""

from __future__ import annotations

import re

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

TYPES = ("height", "location", "orientation", "multi_object")
_QID = re.compile(r"([^-]{8})(-flip)?(-\d+)?")


def items(row: dict, place: Place) -> Items:
    qid = reading.text(row, "qid", "index")
    match = _QID.fullmatch(qid)
    if not match:
        raise Refused(f"qid {qid!r} is not 8 characters, then -flip or -N")
    category = reading.text(row, "category")
    kind = next((t for t in TYPES if category.startswith(t)), None)
    if kind is None:
        raise Refused(f"category {category!r} is of none of {', '.join(TYPES)}")
    texts, repairs = reading.columns(row, "ABCD")
    url = reading.text(row, "image_url", needed=False)
    yield SetItem(
        id=qid,
        **reading.multiple_choice(row, texts, place),
        task=f"{kind}/{category}",
        group=match[1] + (match[2] or ""),
        cluster=url.rsplit("/", 1)[-1] or match[1],
        meta={"image_url": url},
        repairs=repairs,
    )


SET = Set(
    name="3dsrbench",
    about="3D relations in photographs, with mirrored and rotated copies",
    splits={"flip": None, "circular": None},
    tasks=TYPES,
    files={
        "flip": (
            "3dsrbench_v1_vlmevalkit.tsv",
            "3dsr/*.parquet",
            "data/test-*.parquet",
        ),
        "circular": (
            "3dsrbench_v1_vlmevalkit_circular.tsv",
            "3dsr_circular/*.parquet",
        ),
    },
    items=items,
)
