"""Your own data, with no code: a directory with one file per split.

SPLIT.jsonl (one JSON object per line, images beside it) or SPLIT.parquet, with

  question    text, without options
  answer      index from 0, letter, or text of the right option; of a question without
              options the answer itself
  options     list of texts; leave it out for an open question
  image(s)    file name below the directory, base64, bytes, the {bytes, path} of a
              Hugging Face image, or a list of these; leave it out for none
  id          unique text; the row number by default
  kind        of the answer to an open question, how replies are compared with it:
              number, maths, box, text; inferred from the answer by default
  task        category path, 'level1/level2'; 'own' by default
  group       of copies of one question (rotated, mirrored)
  cluster     of rows that are not independent; those with the same first image, by
              default
  statements  a sentence per option, without a full stop; by template by default
  thinks      a chain of thought per option
  suggested   index of the wrong option that misleading texts suggest; drawn by default
  trace       a reference chain of thought
  hint        a line put before the question
  meta        anything else, as an object

or SPLIT.tsv in VLMEvalKit's layout (index, image, question, hint, A, B, …, answer,
category, l2-category). Unknown names are refused, since they may be misspelt.
"""

from __future__ import annotations

from pathlib import Path

from vlmrl.answers import kinds
from vlmrl.data import reading
from vlmrl.data.reading import LETTERS, Items, Place, Refused, Set, SetItem
from vlmrl.types import UserError

KNOWN = (
    *"question answer options image images id kind task group cluster".split(),
    *"statements thinks suggested trace hint meta".split(),
)


def bench(name: str, root: Path) -> Set:
    """Return the set that a directory holds. Raises UserError where it holds none."""
    splits = sorted(
        {
            path.stem
            for suffix in (".jsonl", ".parquet", ".tsv")
            for path in root.glob(f"*{suffix}")
        }
    )
    if not splits:
        raise UserError(
            f"{root}: holds no SPLIT.jsonl, SPLIT.parquet or SPLIT.tsv; see"
            " vlmrl/data/own.py for what is in them"
        )
    return Set(
        name=name,
        about=f"your own, from {root.name}/",
        splits=dict.fromkeys(splits),
        tasks=(),
        files={s: (f"{s}.jsonl", f"{s}.parquet", f"{s}.tsv") for s in splits},
        items=items,
    )


def items(row: dict, place: Place) -> Items:
    yield (_tsv if place.file.endswith(".tsv") else _own)(row, place)


def _own(row: dict, place: Place) -> SetItem:
    row = {k: v for k, v in row.items() if v is not None}
    if unknown := [k for k in row if k not in KNOWN]:
        raise Refused(f"field {unknown[0]!r} is not one of {', '.join(KNOWN)}")
    shown = row.get("options")
    if shown is not None and not isinstance(shown, list | tuple):
        raise Refused("options are not a list")
    raw = row.get("answer")
    if shown:
        texts = reading.options(shown)
        answer = _index(raw, texts)
    elif reading.missing(raw):
        raise Refused("answer is missing")
    else:
        texts, answer = (str(raw).strip(),), 0
    lists = {}
    for name in ("statements", "thinks"):
        lists[name] = tuple(row.get(name) or ())
        if lists[name] and len(lists[name]) != len(texts):
            raise Refused(f"{len(lists[name])} {name} for {len(texts)} options")
    suggested = row.get("suggested", -1)
    if not isinstance(suggested, int) or not -1 <= suggested < len(texts):
        raise Refused(f"suggested {suggested!r} is not the index of an option")
    if suggested == answer:
        raise Refused("suggested is the right option")
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise Refused("meta is not an object")
    hint = reading.text(row, "hint", needed=False)
    return SetItem(
        id=reading.text(row, "id", needed=False) or f"{place.split}/{place.row}",
        images=reading.pictures(row.get("images", row.get("image")), place=place),
        question=reading.text(row, "question"),
        options=texts,
        answer=answer,
        task=reading.text(row, "task", needed=False) or "own",
        group=reading.text(row, "group", needed=False),
        cluster=reading.text(row, "cluster", needed=False),
        open=not shown,
        kind=_kind(row, is_open=not shown),
        suggested=suggested,
        trace=reading.text(row, "trace", needed=False),
        meta={**meta, **({"hint": hint} if hint else {})},
        **lists,
    )


def _kind(row: dict, is_open: bool) -> str:
    kind = reading.text(row, "kind", needed=False)
    if kind and kind not in (kinds.OPEN if is_open else ("option",)):
        expected = f"one of {', '.join(kinds.OPEN)}" if is_open else "option or none"
        raise Refused(f"kind: expected {expected}, got {kind!r}")
    return kind


def _index(raw, texts: tuple[str, ...]) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if not 0 <= raw < len(texts):
            raise Refused(f"answer {raw} is not an index of its {len(texts)} options")
        return raw
    if isinstance(raw, str) and raw.strip() not in texts and len(raw.strip()) == 1:
        return reading.letter(raw, len(texts))
    if reading.missing(raw):
        raise Refused("answer is missing")
    return reading.index_of(str(raw).strip(), texts)


def _tsv(row: dict, place: Place) -> SetItem:
    letters = [name for name in LETTERS if name in row]
    raw = reading.text(row, "answer")
    hint = reading.text(row, "hint", needed=False)
    level = reading.text(row, "l2-category", "L2-category", needed=False)
    category = reading.text(row, "category", needed=False)
    repairs: tuple[str, ...] = ()
    if letters and not all(reading.missing(row[name]) for name in letters):
        texts, repairs = reading.columns(row, letters)
        answer, is_open = reading.letter(raw, len(texts)), False
    elif raw.casefold() in ("yes", "no"):
        texts, answer, is_open = (
            ("Yes", "No"),
            int(raw.casefold() == "no"),
            False,
        )
    else:
        texts, answer, is_open = (raw,), 0, True
    used = {
        "index",
        "question",
        "hint",
        "answer",
        "image",
        "category",
        "kind",
        *letters,
    }
    rest = {k: v for k, v in row.items() if k not in used and not reading.missing(v)}
    return SetItem(
        id=reading.text(row, "index"),
        images=reading.pictures(row.get("image"), place=place),
        question=reading.text(row, "question"),
        options=texts,
        answer=answer,
        task="/".join(filter(None, [level, category])) or "own",
        open=is_open,
        kind=_kind(row, is_open),
        meta={**rest, **({"hint": hint} if hint else {})},
        repairs=repairs,
    )
