"""The published scores of each set, from records of one condition.

A score is a function rows → {name: number}. 'accuracy' is the share of rows that are
right as records say it; what a set's own script makes of the answers has other names,
'official' above all. Groups (rotations, mirrored copies, pairs,
figures) are read from ids and category paths, whose grammar the set's own file under
`data/` documents, so records alone suffice. A group of several samples counts sample
by sample. Where a set leaves open how to average, every way has a name of its own.

>>> score("3dsrbench", records)["official"]
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from vlmrl.answers import equality, maths, strict
from vlmrl.answers.numbers import spelled
from vlmrl.answers.values import boxes, distance, iou
from vlmrl.types import Record, UserError


class Row(NamedTuple):
    """What a score needs of a record."""

    example: str
    task: str
    sample: int
    options: Sequence[str]
    answer: int
    predicted: int
    correct: bool
    prefill: str
    completion: str

    @property
    def parts(self) -> list[str]:
        return self.task.split("/")

    @property
    def right(self) -> str:
        return self.options[self.answer]

    @property
    def written(self) -> str:
        """Text of the answer block; without one, all that was written."""
        whole = self.prefill + self.completion
        block = strict.parse(whole, tuple(self.options), "text").answer
        return (whole if block is None else block).strip()


_CELL = ("split", "recipe", "seed", "step", "condition")


def rows_of(source: str, records: Iterable[Record] | pa.Table) -> list[Row]:
    """Return the rows of a source. Raises UserError where they mix conditions or
    models."""
    names = [*Row._fields, "source", *_CELL]
    if isinstance(records, pa.Table):
        fields = records.select(names).to_pylist()
    else:
        fields = [{name: getattr(r, name) for name in names} for r in records]
    fields = [r for r in fields if r["source"] == source]
    if not fields:
        raise UserError(f"scoring: no records of {source}")
    for name in _CELL[1:]:
        if len(kinds := {r[name] for r in fields}) > 1:
            listed = ", ".join(sorted(map(str, kinds)))
            raise UserError(f"scoring {source}: records of one {name} wanted: {listed}")
    return [Row(*(r[name] for name in Row._fields)) for r in fields]


def score(source: str, records: Iterable[Record] | pa.Table, **more) -> dict:
    """Return every score of a set; plain accuracy by task for one that has no rule."""
    return SCORES.get(source, by_task)(rows_of(source, records), **more)


def by_condition(source: str, records: Iterable[Record], **more) -> dict[str, dict]:
    """Return, by condition, the scores under it; a number that does not exist is
    None."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(record.condition, []).append(record)
    return {
        name: {
            k: None if np.isnan(v) else v
            for k, v in score(source, some, **more).items()
        }
        for name, some in parts.items()
    }


# -- means -----------------------------------------------------------------------------


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def accuracy(rows: Iterable[Row]) -> float:
    return mean(r.correct for r in rows)


def groups(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    out = defaultdict(list)
    for row in rows:
        out[key(row)].append(row)
    return dict(out)


def all_right(
    rows: Iterable[Row], key: Callable[[Row], str], size: int | None = None
) -> list[float]:
    """1 or 0 per group and sample: are all of its rows right? Groups of fewer rows than
    `size`, their others refused, are left out."""
    out = []
    for part in groups(rows, lambda r: f"{key(r)}#{r.sample}").values():
        if size is None or len(part) == size:
            out.append(float(all(r.correct for r in part)))
    return out


def by_task(rows: list[Row], depth: int = 1) -> dict[str, float]:
    """Return the micro accuracy, and that of every category path down to `depth`."""
    out = {"accuracy": accuracy(rows)}
    for level in range(1, depth + 1):
        parts = groups(rows, lambda r, n=level: "/".join(r.parts[:n]))
        out |= {task: accuracy(part) for task, part in sorted(parts.items())}
    return out


# -- one per set -----------------------------------------------------------------------


def threedsrbench(rows: list[Row]) -> dict[str, float]:
    """Return the published score ("official": rotations together, the mirrored
    question apart), VLMEvalKit's four, and the official score by type."""

    def unrotated(row):
        return re.sub(r"-\d+$", "", row.example)

    def circular(row):
        return row.example[: 13 if "flip" in row.example else 8]

    out = {
        "official": mean(all_right(rows, unrotated)),
        "vanilla": accuracy(rows),
        "flip": mean(all_right(rows, lambda r: r.example.replace("-flip", ""))),
        "circular": mean(all_right(rows, circular)),
        "flip_circular": mean(all_right(rows, lambda r: r.example[:8])),
    }
    for kind, part in sorted(groups(rows, lambda r: r.parts[0]).items()):
        out[kind] = mean(all_right(part, unrotated))
    return out


def cv_bench(rows: list[Row]) -> dict[str, float]:
    """Return the micro average; the mean of 2D and 3D; and the official ½·((ADE20K +
    COCO)/2 + Omni3D)."""
    kinds = groups(rows, lambda r: r.parts[0])
    sources = groups(rows, lambda r: r.parts[-1])
    out = {"micro": accuracy(rows)}
    out |= {kind: accuracy(kinds.get(kind, [])) for kind in ("2D", "3D")}
    out |= {s: accuracy(sources.get(s, [])) for s in ("ADE20K", "COCO", "Omni3D")}
    out["mean_2D_3D"] = (out["2D"] + out["3D"]) / 2
    out["official"] = ((out["ADE20K"] + out["COCO"]) / 2 + out["Omni3D"]) / 2
    for task, part in groups(rows, lambda r: r.parts[1]).items():
        out[task] = accuracy(part)
    return out


def mmbench(rows: list[Row]) -> dict[str, float]:
    """Circular: a question counts if every rotation is right. Vanilla: rotation 0."""

    def base(row):
        return str(int(row.example) % 1_000_000)

    out = {
        "circular": mean(all_right(rows, base)),
        "vanilla": accuracy(r for r in rows if int(r.example) < 1_000_000),
    }
    for level, part in sorted(groups(rows, lambda r: r.parts[0]).items()):
        out[level] = mean(all_right(part, base))
    return out


def mmvp(rows: list[Row]) -> dict[str, float]:
    pairs = all_right(rows, lambda r: str((int(r.example) + 1) // 2), 2)
    return {"pairs": mean(pairs), "rows": accuracy(rows)}


def hallusionbench(rows: list[Row]) -> dict[str, float]:
    """Return aAcc by question; fAcc: all questions of a figure, VS figure 0 (no image)
    left out; qAcc: a question on all of its figures."""

    def figure(row):
        return row.example.rsplit("_", 1)[0]

    def question(row):
        *scene, _, asked = row.example.split("_")
        return "_".join([*scene, asked])

    figures = [r for r in rows if not (r.task.startswith("VS") and _blank(r))]
    return {
        "aAcc": accuracy(rows),
        "fAcc": mean(all_right(figures, figure)),
        "qAcc": mean(all_right(rows, question)),
    }


def _blank(row: Row) -> bool:
    return row.example.split("_")[-2] == "0"


def pope(rows: list[Row]) -> dict[str, float]:
    """Per category and averaged over them; option 0 is yes, the positive class. An
    answer that can't be read is wrong and no yes."""
    out: dict[str, float] = {}
    parts = groups(rows, lambda r: r.task)
    for category, part in sorted(parts.items()):
        yes = np.array([r.predicted == 0 for r in part])
        true = np.array([r.answer == 0 for r in part])
        hit = float((yes & true).sum())
        precision = hit / yes.sum() if yes.any() else 0.0
        recall = hit / true.sum() if true.any() else 0.0
        both = precision + recall
        out |= {
            f"{category}/accuracy": accuracy(part),
            f"{category}/precision": float(precision),
            f"{category}/recall": float(recall),
            f"{category}/f1": float(2 * precision * recall / both) if both else 0.0,
            f"{category}/yes": float(yes.mean()),
        }
    for name in ("accuracy", "precision", "recall", "f1", "yes"):
        out[name] = mean(v for k, v in out.items() if k.endswith(f"/{name}"))
    return out


def blink(rows: list[Row]) -> dict[str, float]:
    """Macro: the mean over tasks."""
    out = by_task(rows)
    return {"macro": mean(v for k, v in out.items() if k != "accuracy"), **out}


def sat(rows: list[Row]) -> dict[str, float]:
    """Return `average` over rows, which the authors report on the test with its
    reversed copies; `circular`: both of a row right."""

    def both(row):
        return re.sub(r"-1$", "", row.example)

    return {"average": accuracy(rows), "circular": mean(all_right(rows, both))} | {
        task: accuracy(part)
        for task, part in sorted(groups(rows, lambda r: r.task).items())
    }


def whatsup(rows: list[Row]) -> dict[str, float]:
    """Caption accuracy; for the controlled photographs also pairs of opposite relations
    and whole sets of four; COCO and GQA as the mean of one and two objects."""
    out = {}
    kinds = groups(rows, lambda r: r.parts[0])
    for kind, part in kinds.items():
        out[kind] = accuracy(part)
        if kind.startswith("controlled"):
            out[f"{kind}/pairs"] = mean(all_right(part, _opposite, 2))
            scene = lambda r: r.example.rsplit("/", 1)[0]  # noqa: E731
            out[f"{kind}/sets"] = mean(all_right(part, scene, 4))
    for name in ("coco", "gqa"):
        if {f"{name}_one", f"{name}_two"} <= set(kinds):
            out[name] = (out[f"{name}_one"] + out[f"{name}_two"]) / 2
    return out


def _opposite(row: Row) -> str:
    scene, relation = row.example.rsplit("/", 1)
    return f"{scene}/{'sides' if relation in ('left_of', 'right_of') else 'other'}"


def spatial_mm(rows: list[Row]) -> dict[str, float]:
    """Return scores by file and by perspective or hop; free answers of the multihop
    file are compared as text (`answers.equality`)."""
    judged = [
        r._replace(correct=equality.equal(r.written, r.right, "text"))
        if r.parts[0] == "multihop"
        else r
        for r in rows
    ]
    return _with_accuracy(rows, by_task(judged, depth=2))


def _with_accuracy(rows: list[Row], scores: dict[str, float]) -> dict[str, float]:
    """Return a script's own scores, its overall one called 'official': 'accuracy' is
    that of the records everywhere."""
    official = {"official": scores["accuracy"]} if "accuracy" in scores else {}
    return {**scores, **official, "accuracy": accuracy(rows)}


def mme_realworld_lite(rows: list[Row]) -> dict[str, float]:
    """Over rows, by Task and Subtask; `macro` is the mean over subtasks."""
    out = by_task(rows, depth=2)
    out["macro"] = mean(v for k, v in out.items() if "/" in k)
    return out


def pixmo_count(rows: list[Row]) -> dict[str, float]:
    """Exact, at most one off, and the mean absolute error of the answers that hold a
    number. The first whole number of an answer counts."""
    off = [(first_number(r.written), int(r.right)) for r in rows]
    scores = {
        "exact": mean(n == right for n, right in off),
        "off_by_one": mean(n is not None and abs(n - right) <= 1 for n, right in off),
        "absolute_error": mean(abs(n - right) for n, right in off if n is not None),
        "answered": mean(n is not None for n, _ in off),
    }
    return _with_accuracy(rows, scores)


def first_number(text: str, whole: bool = True) -> float | None:
    """Return the first number of a text, thousands commas dropped, number words
    included; None if there is none or it has more than 15 digits."""
    text = spelled(re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text))
    match = re.search(
        r"-?[0-9]+" if whole else r"-?[0-9]+(?:\.[0-9]{1,15})?|-?\.[0-9]{1,15}", text
    )
    if not match or len(match[0]) > 32 or len(match[0].partition(".")[0]) > 16:
        return None
    return int(match[0]) if whole else float(match[0])


def geometry3k(rows: list[Row]) -> dict[str, float]:
    """Return the share right: a letter that was read, an equal answer, or a value
    within 1 % of the right one."""
    right = mean(r.correct or _within(r, 1e-2) for r in rows)
    return _with_accuracy(rows, {"accuracy": right})


def _within(row: Row, tolerance: float) -> bool:
    if equality.equal(row.written, row.right, "maths"):
        return True
    pair = maths.number(row.right), maths.number(row.written)
    return None not in pair and math.isclose(*pair, rel_tol=tolerance, abs_tol=1e-9)


def mathvista(rows: list[Row]) -> dict[str, float]:
    """Return the share right by answer equality: multiple choice takes the option read,
    else the nearest by edit distance; whole numbers and numbers of the row's precision
    by value; lists as text."""
    judged = [r._replace(correct=_mathvista(r)) for r in rows]
    return _with_accuracy(rows, by_task(judged))


def _mathvista(row: Row) -> bool:
    if row.correct:
        return True
    written, right = row.written, row.right
    if re.fullmatch(r"-?\d+(\.\d+)?", right):
        digits = len(right.partition(".")[2])
        value = first_number(written, whole=False)
        return value is not None and round(value, digits) == float(right)
    if row.predicted >= 0 or not written:
        return False
    near = min(row.options, key=lambda o: distance(o.casefold(), written.casefold()))
    return near == right and not right.startswith("[")


def refcoco(
    rows: list[Row],
    sizes: Mapping[str, tuple[int, int]] | None = None,
    scale: float | None = None,
) -> dict[str, float]:
    """Return Acc@0.5 and others of the first `[x1, y1, x2, y2]` of an answer; without
    one the box is empty.

    Args:
      found: rows.
      sizes: example → (width, height) in pixels; needed with `scale`.
      scale: what the image's sides measure in the model's answers: 1, 1000; None if it
        answers in pixels.
    """
    over, centre = [], []
    for row in rows:
        right, answer = (
            next(iter(boxes(t)), (0.0,) * 4) for t in (row.right, row.written)
        )
        if scale is not None:
            if sizes is None or row.example not in sizes:
                raise UserError(f"scoring refcoco: no image size of {row.example}")
            width, height = sizes[row.example]
            sides = (width, height, width, height)
            answer = tuple(v / scale * s for v, s in zip(answer, sides, strict=True))
        over.append(iou(right, answer))
        x, y = (answer[0] + answer[2]) / 2, (answer[1] + answer[3]) / 2
        centre.append(right[0] <= x <= right[2] and right[1] <= y <= right[3])
    at = {f"acc@{t}": mean(o >= t for o in over) for t in (0.1, 0.3, 0.5, 0.7, 0.9)}
    return _with_accuracy(rows, {**at, "iou": mean(over), "centre": mean(centre)})


SCORES: dict[str, Callable[..., dict[str, float]]] = {
    "3dsrbench": threedsrbench,
    "cv_bench": cv_bench,
    "spatial_mm": spatial_mm,
    "whatsup": whatsup,
    "vstar": by_task,
    "mme_realworld_lite": mme_realworld_lite,
    "mmbench": mmbench,
    "sat": sat,
    "pixmo_count": pixmo_count,
    "geometry3k": geometry3k,
    "blink": blink,
    "mmvp": mmvp,
    "pope": pope,
    "hallusionbench": hallusionbench,
    "mathvista": mathvista,
    "refcoco": refcoco,
}
