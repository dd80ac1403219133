"""MME-RealWorld-Lite: large real photographs, charts and maps
(https://arxiv.org/abs/2408.13257).

Option E means "none of these" and can be right. Tasks are Task/Subtask/L2, the L2
types that name an attribute merged as the published script does.
"""

from __future__ import annotations

import ast
import re

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

_OPTION = re.compile(r"\(?([A-Z])[).]\s*(.*)", re.DOTALL)


def items(row: dict, place: Place) -> Items:
    texts = offered(row)
    if "Subtask" in row:
        task = "/".join(reading.text(row, part) for part in ("Task", "Subtask"))
        deeper = reading.text(row, "Category", needed=False)
    else:
        task = reading.text(row, "category")
        deeper = reading.text(row, "l2-category", needed=False)
    if "attribute" in deeper.lower():
        deeper = f"{deeper.split('/')[0]}/attribute" if "/" in deeper else "attribute"
    cell = row.get("bytes", row.get("image", row.get("Image")))
    yield SetItem(
        id=reading.text(row, "index", "Question_id"),
        images=reading.one(cell, place=place),
        question=reading.text(row, "question", "Text"),
        options=texts,
        answer=reading.letter(row.get("answer", row.get("Ground truth")), len(texts)),
        task=f"{task}/{deeper.lower()}".rstrip("/"),
    )


def offered(row: dict) -> tuple[str, ...]:
    """Return the texts of `(A) …` to `(E) …`, from a list or the text of one."""
    listed = row.get("multi-choice options", row.get("Answer choices"))
    if isinstance(listed, str):
        try:
            listed = ast.literal_eval(listed)
        except (ValueError, SyntaxError):
            raise Refused("its options are not a list") from None
    texts = []
    for i, cell in enumerate(listed or ()):
        match = _OPTION.fullmatch(str(cell).strip())
        if not match or ord(match[1]) - ord("A") != i:
            raise Refused(f"option {cell!r} does not begin with ({chr(65 + i)})")
        texts.append(match[2])
    return reading.options(texts)


SET = Set(
    name="mme_realworld_lite",
    about="large real photographs, charts, maps and road scenes",
    splits={"test": 1919},
    tasks=("Perception", "Reasoning"),
    files={
        "test": (
            "data/train-*.parquet",
            "mme_realworld_lite.tsv",
            "MME_RealWorld_Lite*.json",
        )
    },
    items=items,
)
