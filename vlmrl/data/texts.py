"""Statements and CoTs in a file, so that two labs mislead with the same words.

One line of JSON per example: its source, id, a hash of question and options (`key`),
the suggested option, a statement and optionally a chain of thought per option, and the
author (`by`: 'template' or a model, with the hash of the prompt it was given).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from vlmrl.data.statements import leaks
from vlmrl.files import json_line, read_lines, write_lines
from vlmrl.types import Example, UserError

ASK = (
    "Rewrite the question and this answer to it as one declarative sentence that states"
    " the answer as a fact. Mention no other answer and do not say whether it is right."
    " Reply with the sentence alone.\nQuestion: {question}\nAnswer: {option}\nSentence:"
)


def key(example: Example) -> str:
    """Return the hash of question and options."""
    words = json.dumps([example.question, example.options], ensure_ascii=False)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def entry(example: Example, by: str = "template", prompt_hash: str = "") -> dict:
    return {
        "source": example.source,
        "id": example.id,
        "key": key(example),
        "suggested": example.suggested,
        "statements": list(example.statements),
        "thinks": list(example.thinks),
        "by": by,
        "prompt_hash": prompt_hash,
    }


def write(path: Path, entries: Iterable[Mapping]) -> None:
    write_lines(path, entries)


def read(path: Path) -> dict[tuple[str, str], dict]:
    """Return (source, id) → entry. Raises UserError naming the line that is wrong."""
    entries: dict[tuple[str, str], dict] = {}
    try:
        rows = list(read_lines(path))
    except OSError as error:
        raise UserError(f"{path}: no such file of texts") from error
    for number, entry in rows:
        try:
            place = (entry["source"], entry["id"])
            fields = entry["key"], entry["statements"], entry["suggested"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not an entry: {error}") from error
        if not isinstance(fields[1], list) or place in entries:
            why = "given twice" if place in entries else "its statements are no list"
            raise UserError(f"{path}, line {number}: {'/'.join(place)}: {why}")
        entries[place] = entry
    return entries


def apply(
    examples: Iterable[Example], entries: Mapping[tuple[str, str], dict]
) -> Iterator[Example]:
    """Yield the examples with the file's texts and suggestions in place of their own.

    Raises UserError where an example has no entry or one about other words.
    """
    for e in examples:
        entry = entries.get((e.source, e.id))
        if entry is None:
            raise UserError(f"texts: no entry of {e.source}/{e.id}")
        if entry["key"] != key(e):
            raise UserError(
                f"texts: {e.source}/{e.id}: written for another question or options"
            )
        statements = tuple(entry["statements"])
        thinks = tuple(entry.get("thinks") or ())
        for name, listed in (("statements", statements), ("thinks", thinks)):
            if listed and len(listed) != len(e.options):
                raise UserError(
                    f"texts: {e.source}/{e.id}: expected {len(e.options)} {name}, got"
                    f" {len(listed)}"
                )
        if not -1 <= entry["suggested"] < len(e.options) or (
            entry["suggested"] == e.answer
        ):
            raise UserError(
                f"texts: {e.source}/{e.id}: suggests option {entry['suggested']}"
            )
        yield e._replace(
            statements=statements, thinks=thinks, suggested=entry["suggested"]
        )


class WithTexts(Sequence):
    """Examples by index, with the texts of a file (`read`) in place of their own."""

    def __init__(self, examples: Sequence[Example], entries: Mapping):
        self._examples, self._entries = examples, entries

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return next(apply([self._examples[index]], self._entries))


def rewrite(
    examples: Iterable[Example],
    ask: Callable[[list[str]], list[str]],
    by: str,
    path: Path,
    progress: Callable[[int], None] = lambda n: None,
    batch: int = 16,
) -> int:
    """Write a file of a model's sentences instead of templates, one per option.

    Entries already in the file, by the same model for the same words with the same
    prompt, are reused, so that an interrupted run continues. A reply that is not one
    line, or that reveals the right answer in a sentence for a wrong one, falls back to
    the template's sentence.

    Args:
      examples: with statements by template.
      ask: prompts → replies, in order.
      by: the model's name.
      path: of the file.
      batch: examples asked about at a time.

    Returns: how many of the sentences asked for now fell back.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    entries_by_id = read(path) if path.is_file() else {}
    if unfinished.is_file():
        for _, known in read_lines(unfinished, torn=True):
            entries_by_id[known["source"], known["id"]] = known
    mark = hashlib.sha256(ASK.encode()).hexdigest()[:16]

    def known(e: Example) -> dict | None:
        old = entries_by_id.get((e.source, e.id)) or {}
        same = (old.get("key"), old.get("by"), old.get("prompt_hash"))
        return old if same == (key(e), by, mark) else None

    entries, fell, rest = [], 0, iter(examples)
    with open(unfinished, "a", encoding="utf-8") as file:
        while some := list(islice(rest, batch)):
            new = [e for e in some if known(e) is None]
            prompts = [
                ASK.format(question=e.question, option=o)
                for e in new
                for o in e.options
            ]
            replies = iter(ask(prompts) if prompts else [])
            for e in new:
                sentences = []
                for i, option in enumerate(e.options):
                    reply = next(replies).strip().strip('"')
                    right = e.options[e.answer]
                    leaked = i != e.answer and leaks(reply, e.question, right, option)
                    bad = not reply or "\n" in reply or leaked
                    fell += bad
                    sentences.append(e.statements[i] if bad else reply)
                line = entry(e._replace(statements=tuple(sentences)), by, mark)
                entries_by_id[e.source, e.id] = line
                file.write(json_line(line))
            file.flush()
            entries += [known(e) for e in some]
            progress(len(some))
    write(path, entries)
    unfinished.unlink()
    return fell
