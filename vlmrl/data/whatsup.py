"""What'sUp: the same household objects photographed in every relation, and captions of
COCO and GQA images that differ in a preposition (https://arxiv.org/abs/2310.19785).

Captions become options in an order drawn per row: the published files put the right one
first. The photographs of one pair of objects are a set: they share their group and
cluster, and the id ends in the preposition that holds.
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
    options,
    shuffled,
)

QUESTION = "Which caption best describes the image?"
PREPOSITIONS = {
    "controlled_a": ("on", "under", "left_of", "right_of"),
    "controlled_b": ("left_of", "right_of", "in-front_of", "behind"),
}
_NAME = re.compile(r"(.+)_(on|under|left_of|right_of|in-front_of|behind)_(.+)\.\w+")
_TWO = ("left of", "right of", "above", "below", "in front of", "front", "behind")


def items(row: dict, place: Place) -> Items:
    kind = place.split
    if kind in PREPOSITIONS:
        name = str(row.get("image_path") or "")
        captions = row.get("caption_options")
        match = _NAME.fullmatch(name.rsplit("/", 1)[-1])
        if not match or match[2] not in PREPOSITIONS[kind]:
            raise Refused(
                f"image_path {name!r} is not OBJECT_RELATION_OBJECT, the relation one"
                f" of {', '.join(PREPOSITIONS[kind])}"
            )
        relation = match[2]
        scene = f"{kind}/{match[1]}_{match[3]}"
        id, group, cluster = f"{scene}/{relation}", scene, scene
        image = beside(name.removeprefix("data/"), place, "data")
    else:
        if not {"0", "1", "2"} <= set(row):
            raise Refused("it is not [image id, right caption, wrong caption]")
        number, captions = row["0"], [row["1"], row["2"]]
        coco = kind.startswith("coco")
        if coco and not str(number).isdecimal():
            raise Refused(f"image id {number!r} is not a number")
        name = f"val2017/{int(number):012d}.jpg" if coco else f"vg_images/{number}.jpg"
        image = beside(name, place, "data", "data/coco")
        id, group, cluster = f"{kind}/{place.row}", "", name
        relation = preposition(str(captions[0]), kind.endswith("one"))
    texts = options(captions if isinstance(captions, list) else ())
    texts, answer = shuffled(texts, 0, place.seed, id)
    yield SetItem(
        id=id,
        images=(image,),
        question=QUESTION,
        options=texts,
        answer=answer,
        task=f"{kind}/{relation}",
        group=group,
        cluster=cluster,
    )


def preposition(caption: str, one: bool) -> str:
    """Return the caption's last word for one object, the phrase between them for
    two."""
    if one:
        return caption.strip().rstrip(".").rsplit(" ", 1)[-1].lower()
    return next((p for p in _TWO if p in caption), "other").replace(" ", "_")


# Split → (file, examples).
FILES = {
    "controlled_a": ("controlled_images_dataset", 412),
    "controlled_b": ("controlled_clevr_dataset", 408),
    "coco_one": ("coco_qa_one_obj", 2247),
    "coco_two": ("coco_qa_two_obj", 440),
    "gqa_one": ("vg_qa_one_obj", 1160),
    "gqa_two": ("vg_qa_two_obj", 291),
}
SET = Set(
    name="whatsup",
    about="captions that differ in a preposition",
    splits={split: count for split, (_, count) in FILES.items()},
    tasks=tuple(FILES),
    files={split: (f"**/{name}.json",) for split, (name, _) in FILES.items()},
    items=items,
)
