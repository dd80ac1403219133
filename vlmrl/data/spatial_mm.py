"""Spatial-MM: where things are in photographs, and questions of several hops
(https://arxiv.org/abs/2411.06048).

Options stand inside the question, one per line. Where the answer's text contradicts its
letter the text counts if it is an option. Multihop questions have free answers.
"""

from __future__ import annotations

import re

from vlmrl.data import reading
from vlmrl.data.reading import LETTERS, Items, Place, Refused, Set, SetItem

FOLDERS = ("images", "data", "data/images", "Spatial_MM_Obj", "Spatial_MM_CoT")
_OPTION = re.compile(r"\s*([A-Z])\s*[.)]\s*(.*)")


def items(row: dict, place: Place) -> Items:
    image = reading.text(row, "image_name")
    common = dict(
        id=f"{place.split}/{place.row}",
        images=(reading.beside(image, place, *FOLDERS),),
        cluster=image,
    )
    if place.split == "multihop":
        hop = reading.text(row, "hop")
        yield SetItem(
            **common,
            question=reading.text(row, "question"),
            options=(reading.text(row, "answer"),),
            answer=0,
            open=True,
            kind="text",
            task=f"multihop/{hop}",
            meta=reading.optional(row, "reasoning"),
        )
        return
    question, texts = asked(reading.text(row, "question"))
    answer, repairs = answered(reading.text(row, "answer"), texts)
    yield SetItem(
        **common,
        question=question,
        options=texts,
        answer=answer,
        task=f"{place.split}/{perspective(question)}",
        meta=reading.optional(row, "object1", "object2"),
        repairs=repairs,
    )


def asked(raw: str) -> tuple[str, tuple[str, ...]]:
    """Return (question, options) of lines `question`, `A. …`, `B. …`."""
    lines = raw.splitlines()
    matches = [_OPTION.fullmatch(line) for line in lines]
    first = next((i for i, m in enumerate(matches) if m and m[1] == "A"), None)
    if first is None or not "\n".join(lines[:first]).strip():
        raise Refused("its question holds no lines 'A. …', 'B. …'")
    texts = []
    for line, m in zip(lines[first:], matches[first:], strict=True):
        if m and m[1] == LETTERS[len(texts)]:
            texts.append(m[2])
        elif line.strip():
            raise Refused(f"line {line.strip()!r} is not option {LETTERS[len(texts)]}")
    return "\n".join(lines[:first]).strip(), reading.options(texts)


def answered(raw: str, texts: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """Return (answer, repairs) of `B. right`."""
    match = _OPTION.fullmatch(raw)
    if not match:
        return reading.index_of(raw, texts), ()
    index, rest = LETTERS.index(match[1]), match[2]
    if index < len(texts) and reading.normal(texts[index]) == reading.normal(rest):
        return index, ()
    if not rest.strip():
        raise Refused(f"answer {raw!r} has no text")
    right = reading.index_of(rest, texts)
    return right, (f"answer {raw!r} contradicts its letter: its text counts",)


def perspective(question: str) -> str:
    low = question.lower()
    if "camera" in low and "perspective" in low:
        return "camera"
    return "human" if "perspective" in low or "point of view" in low else "none"


SET = Set(
    name="spatial_mm",
    about="where things are in photographs, seen by the camera or by a person",
    splits={"one_obj": 502, "two_obj": 1074, "multihop": 309},
    tasks=("one_obj", "two_obj", "multihop"),
    files={
        "one_obj": ("**/spatial_mm_one_obj.json",),
        "two_obj": ("**/spatial_mm_two_obj.json",),
        "multihop": ("**/multihop_reasoning_309.json",),
    },
    items=items,
    pool="answer",
)
