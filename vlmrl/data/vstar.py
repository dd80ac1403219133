"""V*-Bench: small things in large photographs (https://arxiv.org/abs/2312.14135).

Options and the sentence that asks for a letter stand inside the text: they are taken
apart, so that a prompt style does not ask twice.
"""

from __future__ import annotations

import re

from vlmrl.data import reading
from vlmrl.data.reading import LETTERS, Items, Place, Refused, Set, SetItem

TASKS = ("direct_attributes", "relative_position")
_OPTION = re.compile(r"\(([A-Z])\)\s*(.*)")
_SUFFIX = "Answer with the option's letter"


def items(row: dict, place: Place) -> Items:
    repairs: tuple[str, ...] = ()
    if "text" in row:
        question, texts = asked(reading.text(row, "text"))
    else:  # the TSV form
        question = reading.text(row, "question")
        texts, repairs = reading.columns(row, "ABCD")
    task = reading.text(row, "category")
    if task not in TASKS:
        raise Refused(f"category {task!r} is not one of {', '.join(TASKS)}")
    yield SetItem(
        id=reading.text(row, "question_id", "index"),
        images=reading.one(row.get("image"), place=place),
        question=question,
        options=texts,
        answer=reading.letter(row.get("label", row.get("answer")), len(texts)),
        task=task,
        repairs=repairs,
    )


def asked(raw: str) -> tuple[str, tuple[str, ...]]:
    """Return (question, options) of lines `question`, `(A) …`, `(B) …`, the suffix."""
    question, texts = [], []
    for line in raw.splitlines():
        line = line.strip()
        match = _OPTION.fullmatch(line)
        if match and match[1] == LETTERS[len(texts)]:
            texts.append(match[2])
        elif not texts:
            question.append(line)
        elif line and not line.startswith(_SUFFIX):
            raise Refused(f"line {line!r} is no option ({LETTERS[len(texts)]})")
    return "\n".join(question).strip(), reading.options(texts)


SET = Set(
    name="vstar",
    about="small things in photographs of several megapixels",
    splits={"test": 191},
    tasks=TASKS,
    files={"test": ("test_questions.jsonl", "data/test-*.parquet", "VStarBench.tsv")},
    beside=("direct_attributes/*", "relative_position/*"),
    items=items,
)
