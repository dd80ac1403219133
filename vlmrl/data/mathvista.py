"""MathVista testmini: mathematics on charts, figures and photographs
(https://arxiv.org/abs/2310.02255).

Answers of multiple-choice rows are the text of a choice. Free answers are written as
the official scoring compares them: whole numbers without a fraction, other numbers
rounded to the row's `precision`.
"""

from __future__ import annotations

from vlmrl.data import reading
from vlmrl.data.reading import Items, Place, Refused, Set, SetItem

PATH = ("task", "source")  # metadata that names an example's task

# By answer_type.
KINDS = {"integer": "number", "float": "number", "list": "maths", "text": "text"}


def items(row: dict, place: Place) -> Items:
    facts = row.get("metadata") or {}
    kind = reading.text(row, "question_type")
    raw = reading.text(row, "answer")
    if kind == "multi_choice":
        texts = reading.options(row.get("choices") or ())
        answer = reading.index_of(raw, texts)
    elif kind == "free_form":
        texts, answer = (canonical(raw, row),), 0
    else:
        raise Refused(f"question_type {kind!r} is not multi_choice or free_form")
    yield SetItem(
        id=reading.text(row, "pid"),
        images=reading.one(row.get("decoded_image"), place=place),
        question=reading.text(row, "question"),
        options=texts,
        answer=answer,
        open=kind == "free_form",
        kind=KINDS.get(reading.text(row, "answer_type"), "text"),
        task="/".join(reading.text(facts, k, needed=False) or "none" for k in PATH),
        meta={
            "answer_type": reading.text(row, "answer_type"),
            "precision": _digits(row),
            "skills": list(facts.get("skills") or ()),
            "category": reading.text(facts, "category", needed=False),
            **reading.optional(row, "unit", "query"),
        },
    )


def canonical(raw: str, row: dict) -> str:
    kind = reading.text(row, "answer_type")
    try:
        if kind == "integer":
            return str(int(float(raw)))
        if kind == "float":
            return f"{float(raw):.{_digits(row)}f}"
    except ValueError:
        raise Refused(f"answer {raw!r} is not a number, answer_type {kind}") from None
    return raw


def _digits(row: dict) -> int:
    """Return the decimals that a row's answers are rounded to."""
    precision = row.get("precision")
    return 0 if reading.missing(precision) else int(precision)


SET = Set(
    name="mathvista",
    about="mathematics on charts, figures and photographs",
    splits={"testmini": 1000},
    tasks=(
        "figure question answering",
        "geometry problem solving",
        "math word problem",
        "textbook question answering",
        "visual question answering",
    ),
    files={"testmini": ("data/testmini-*.parquet",)},
    items=items,
    pool="answer",
)
