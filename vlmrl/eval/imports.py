"""Results of VLMEvalKit and lmms-eval as records, so that their runs get the same
tables, figures and judgement of chains of thought as ours.

What counts as correct is what the tool said (`hit`, or a sample's metric); our own
reading of the answer is kept only where it agrees, so that accuracy is the tool's to
the row. `stated` is the accuracy the tool wrote down, to hold it against.

  VLMEvalKit   MODEL_DATASET.xlsx (or .tsv, .csv, .json): index, question, A, B, …,
               answer, category, l2-category, split, prediction; after its evaluation
               MODEL_DATASET_JUDGE_result.xlsx with hit and log, MODEL_DATASET_acc.csv
  lmms-eval    DATE_samples_TASK.jsonl of --log_samples: doc_id, target, input,
               filtered_resps (or resps), and a metric per sample; DATE_results.json

Formats as of github.com/open-compass/VLMEvalKit (vlmeval/dataset/image_mcq.py) and
github.com/EvolvingLMMs-Lab/lmms-eval (lmms_eval/loggers/evaluation_tracker.py).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from vlmrl import perturb
from vlmrl.answers import kinds, reading
from vlmrl.eval.record_builder import build_record
from vlmrl.eval.spreadsheets import read_xlsx
from vlmrl.files import read_lines
from vlmrl.prompts import styles
from vlmrl.types import Example, Prompt, Record, UserError


class Imported(NamedTuple):
    records: list[Record]
    stated: float | None  # accuracy that the tool wrote down, None if it did not
    where: str  # file the stated accuracy is from


class LoggedSample(NamedTuple):
    """A sample as either tool logs it."""

    id: str
    cluster: str
    task: str
    split: str
    question: str
    options: tuple[str, ...]
    answer: int
    completion: str  # what the model wrote
    correct: bool | None  # None where the file does not say: our parser does
    asked: str  # the prompt as logged


def as_records(
    rows: Iterable[LoggedSample],
    *,
    source: str,
    model: str,
    condition: str,
    style: str,
    tool: str,
    seed: int = 0,
) -> list[Record]:
    """Return records of logged samples, their thinks judged by rule.

    The suggested option is drawn as for any example (`perturb.suggest`), so that logs
    of several conditions of one set share it.
    """
    perturb.check(condition)
    return [_record(r, source, model, condition, style, tool, seed) for r in rows]


def _record(row: LoggedSample, source, model, condition, style, tool, seed) -> Record:
    is_open = len(row.options) < 2
    e = Example(
        row.id, (), row.question, row.options, row.answer, -1, source, row.task,
        row.cluster, open=is_open, condition=condition,
        kind=kinds.infer(row.options[0]) if is_open and row.options else "option",
    )  # fmt: skip
    if not e.open and row.answer >= 0:
        e = perturb.suggest(e, seed)
    read = reading.read(row.completion, e, style)
    option, correct = read.parsed.option, row.correct
    if correct is None:
        correct = option >= 0 and option == row.answer
    elif correct:
        option = row.answer
        read = read._replace(lenient=option, lenient_correct=True)
    elif option == row.answer:  # read otherwise there
        option = -1
    prompt = Prompt(e, row.asked, "", (), style, styles.text_hash(row.asked))
    record = build_record(
        prompt,
        row.completion,
        finish="stop",
        engine=tool,
        read=read._replace(parsed=read.parsed._replace(option=option)),
    )
    if not record.think.strip():  # a model that isn't asked to reason aloud
        nothing = "not_applicable"
        record = record._replace(verdict=nothing, verdict_sampled=nothing)
    return record._replace(recipe=model, split=row.split, correct=bool(correct))


# -- VLMEvalKit ------------------------------------------------------------------------


def vlmevalkit(path: Path) -> tuple[list[LoggedSample], float | None, str]:
    """Return the rows of a prediction or result file, and the accuracy in `…_acc.csv`
    beside it.

    A result file of a circular benchmark holds the unrotated rows, whose `hit` is that
    of the whole circle: so is our `correct`.
    """
    table = _table(path)
    need = ("index", "question", "prediction", "answer")
    rows, splits = [], set()
    for number, cells in enumerate(table, 2):
        cells = {k if len(k) == 1 else k.lower(): v for k, v in cells.items()}
        if missing := [n for n in need if cells.get(n) in ("", None)]:
            if missing == ["prediction"] and "prediction" in cells:
                cells["prediction"] = ""
            else:
                raise UserError(f"{path}: row {number}: has no {missing[0]}")
        options = _options(cells)
        answer = str(cells["answer"]).strip()
        index = _whole(cells["index"])
        letter = styles.LETTERS.find(answer) if len(answer) == 1 else -1
        if not options:
            options, letter = (answer,), 0
        if not 0 <= letter < len(options):
            raise UserError(
                f"{path}: row {number} (index {index}): answer '{answer}' is not the "
                f"letter of one of its {len(options)} options"
            )
        hit = str(cells.get("hit", "")).strip()
        splits.add(str(cells.get("split", "") or "none"))
        parts = (cells.get("l2-category"), cells.get("category"))
        group = int(index) % 1_000_000 if index.isdigit() else index
        listed = "\n".join(f"{styles.LETTERS[i]}. {o}" for i, o in enumerate(options))
        rows.append(
            LoggedSample(
                index,
                f"{group}",
                "/".join(str(p) for p in parts if p) or "all",
                str(cells.get("split", "") or "none"),
                str(cells["question"]),
                options,
                letter,
                str(cells["prediction"]),
                None if hit == "" else float(hit) > 0.5,
                f"{cells['question']}\n{listed}",
            )
        )
    where = _beside(path)
    return rows, _overall(where, splits) if where else None, str(where or "")


def _options(cells: dict) -> tuple[str, ...]:
    out = []
    for letter in styles.LETTERS:
        cell = cells.get(letter)
        text = "" if cell is None else str(cell)
        if text in ("", "nan"):
            break
        out.append(text)
    return tuple(out)


def _whole(value) -> str:
    """Return a spreadsheet's number of a row: 17.0 is 17."""
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def _beside(path: Path) -> Path | None:
    """Return the score file of a prediction or result file."""
    stems = [path.stem, re.sub(r"_[^_]+_result$", "", path.stem)]
    for stem in stems:
        for name in (f"{stem}_acc.csv", f"{stem}_acc.json"):
            if (path.parent / name).is_file():
                return path.parent / name
    return None


def _overall(path: Path, splits: set[str]) -> float | None:
    """Return `Overall` of the one split that the rows are of, as a share."""
    rows = _table(path)
    rows = [r for r in rows if "Overall" in r]
    if len(rows) > 1:
        rows = [r for r in rows if str(r.get("split", "none")) in splits]
    if len(rows) != 1:
        return None
    value = float(rows[0]["Overall"])
    return value / 100 if value > 1 else value


def _table(path: Path) -> list[dict]:
    """Return the rows of a spreadsheet by column name, in the formats VLMEvalKit
    writes."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".xlsx":
            return read_xlsx(path)
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):  # pandas: column → {row: value}
                keys = list(next(iter(content.values())))
                return [{c: v[k] for c, v in content.items()} for k in keys]
            return content
        if path.suffix in (".tsv", ".csv"):
            csv.field_size_limit(1 << 30)  # images as base64
            mark = "\t" if path.suffix == ".tsv" else ","
            with open(path, newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file, delimiter=mark))
    except (ValueError, KeyError, csv.Error, AttributeError, StopIteration) as error:
        raise UserError(f"{path}: does not read as {path.suffix} ({error})") from None
    raise UserError(f"{path}: expected .xlsx, .tsv, .csv or .json")


# -- lmms-eval -------------------------------------------------------------------------

_LINE = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_INLINE = re.compile(r"\(([A-Z])\)\s*(.*?)(?=\s*\([A-Z]\)|\s*$)", re.DOTALL)


def lmms_eval(
    path: Path, metric: str = ""
) -> tuple[list[LoggedSample], float | None, str]:
    """Return the rows of a samples file, and the accuracy in the results file beside
    it.

    Args:
      metric: the one that tells right from wrong; by default the results' first that
        every sample has.
    """
    samples = []
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    for number, sample in read_lines(path):
        try:
            _ = sample["doc_id"], sample["target"]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: is no sample ({error!r})"
            ) from None
        samples.append(sample)
    if not samples:
        raise UserError(f"{path}: holds no samples")
    task = path.stem.partition("_samples_")[2] or path.stem
    results, where = _results(path)
    scores = results.get("results", {}).get(task, {})
    names = [k.partition(",")[0] for k in scores if "stderr" not in k]
    names += [k for k in samples[0] if k not in _NOT_METRICS]
    present = [n for n in dict.fromkeys(names) if any(n in s for s in samples)]
    if metric and metric not in present:
        raise UserError(f"{path}: no metric '{metric}'; it has {', '.join(present)}")
    if not metric:
        everywhere = [n for n in present if all(n in s for s in samples)]
        if not everywhere:
            raise UserError(
                f"{path}: no metric that every sample has; name one of "
                f"{', '.join(present) or 'none'} with --metric"
            )
        metric = everywhere[0]
    samples = [s for s in samples if metric in s]
    rows = [_sample(s, task, metric, path) for s in samples]
    ours = sum(bool(r.correct) for r in rows) / len(rows)
    return rows, _stated(results, task, metric, ours), where


_NOT_METRICS = (
    "doc_id doc target input arguments resps filtered_resps doc_hash prompt_hash "
    "target_hash input_media token_counts"
).split()


def _results(path: Path) -> tuple[dict, str]:
    date = path.name.partition("_samples_")[0]
    for place in (path.parent / f"{date}_results.json", path.parent / "results.json"):
        if place.is_file():
            try:
                return json.loads(place.read_text(encoding="utf-8")), str(place)
            except ValueError as error:
                raise UserError(f"{place}: not JSON ({error})") from None
    return {}, ""


def _sample(s: dict, task: str, metric: str, path: Path) -> LoggedSample:
    value = s[metric]
    about = value if isinstance(value, dict) else {}
    asked = _first_text(s.get("input", s.get("arguments", "")))
    completion = _first_text(s.get("resps", s.get("filtered_resps", "")))
    question, options = _choices(asked)
    target = str(s["target"]).strip()
    letter = re.fullmatch(r"\(?([A-Z])\)?\.?", target)
    answer = styles.LETTERS.index(letter[1]) if letter else -1
    if target in options:
        answer = options.index(target)
    if not options or not 0 <= answer < len(options):
        question, options, answer = asked, (target,), 0
    media = s.get("input_media") or [about.get("image") or s["doc_id"]]
    kind = [about.get(k) for k in ("category", "type", "task", "l2_category")]
    return LoggedSample(
        str(s["doc_id"]),
        str(media[0] if isinstance(media, list) else media),
        "/".join(str(k) for k in kind if k) or task,
        task,
        question,
        options,
        answer,
        completion,
        _right(value, target, f"{path}: doc_id {s['doc_id']}: {metric}"),
        asked,
    )


def _first_text(value) -> str:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def _choices(asked: str) -> tuple[str, tuple[str, ...]]:
    """Return (question, options) of a prompt that lists them: `A. text` or `(A) text`,
    a line each, or `(A) text (B) text` in one; no options where letters don't run from
    A."""
    for pattern in (_LINE, _INLINE):
        listed = list(pattern.finditer(asked))
        letters = "".join(m[1] for m in listed)
        if len(listed) > 1 and styles.LETTERS.startswith(letters):
            options = [m[2].strip() for m in listed]
            options[-1] = options[-1].partition("\n")[0].strip()
            return asked[: listed[0].start()].strip(), tuple(options)
    return asked.strip(), ()


def _right(value, target: str, where: str) -> bool:
    """Whether a sample's metric says it is right: a number, or an object that says so
    or holds what was read and what is right."""
    if isinstance(value, bool | int | float):
        return float(value) > 0.5
    if isinstance(value, dict):
        for key in ("is_correct", "correct", "hit", "score", "acc", "accuracy"):
            if isinstance(value.get(key), bool | int | float):
                return float(value[key]) > 0.5
        read = [value[k] for k in ("pred_parsed", "parsed_pred", "pred", "prediction")
                if k in value]  # fmt: skip
        right = [value[k] for k in ("gt_content", "ground_truth", "answer", "gt")
                 if k in value]  # fmt: skip
        if read:
            wanted = str(right[0]) if right else target
            return str(read[0]).strip().lower() == wanted.strip().lower()
    raise UserError(f"{where}: does not say whether the sample is right")


def _stated(results: dict, task: str, metric: str, ours: float) -> float | None:
    """Return the accuracy the tool states: the metric, as a share or in per cent, where
    it is a mean of the samples; otherwise the count of correct ones it keeps
    besides."""
    scores = results.get("results", {}).get(task, {})
    values = [v for k, v in scores.items() if k.partition(",")[0] == metric]
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    for value in numbers:
        for share in (value, value / 100):
            if math.isclose(share, ours, abs_tol=5e-5):
                return share
    counts = results.get("efficiency", {}).get("by_task", {}).get(task, {})
    if counts.get("docs"):
        return counts["total_correct_score"] / counts["docs"]
    if not numbers:
        return None
    return numbers[0] / 100 if numbers[0] > 1 else numbers[0]


READERS: dict[str, Callable] = {"vlmevalkit": vlmevalkit, "lmms-eval": lmms_eval}
