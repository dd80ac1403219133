"""Scan items before anything is compiled: how large they are, and which can't be asked
(`types.Skip`).

Images are read as far as their headers, texts are tokenised. The result is a function
of the data alone, so that every host computes the same.

An item's size is a row of six numbers (`AXES`): tokens of the prefix and of its longest
branch, images, windows of its largest image, and prefix and longest branch of the
prompts without images that an evaluation reads as well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

import vlmrl
from vlmrl.data import images
from vlmrl.files import write_json
from vlmrl.prompts import styles
from vlmrl.prompts.processor import Processor
from vlmrl.prompts.tokens import Encoded, shared_length
from vlmrl.types import Array, Example, Skip, UserError

AXES = ("prefix", "branch", "images", "windows", "blind_prefix", "blind_branch")
CHUNK = 32  # items whose texts are encoded together


class Limits(NamedTuple):
    """What is not asked."""

    max_prompt: int = 0  # tokens, those of images included; 0: no limit
    max_images: int = 0  # of an item; 0: no limit


NO_LIMITS = Limits()


class Scan(NamedTuple):
    """Sizes of n items, in their order."""

    sizes: Array  # int64[n, 6], see AXES; 0 where skipped
    longest: Array  # int64[n]: tokens of the longest whole prompt of each
    skips: dict[int, Skip]  # by index

    @property
    def indices(self) -> list[int]:
        """The items that can be asked."""
        return [i for i in range(len(self.sizes)) if i not in self.skips]


# -- scan ------------------------------------------------------------------------------


def scan(
    examples: Sequence[Example],
    processor: Processor,
    style: str,
    rows: Callable[[Example], Iterable[Example]],
    limits: Limits = NO_LIMITS,
) -> Scan:
    """Return the sizes of items, read from image headers and counted in tokens.

    What is counted is kept beside a prepared set (`loader.StoredExamples`), for the
    same tokenizer, style and rows; pixels and limits may change.

    Args:
      rows: an item → the rows of its group, conditions applied.
    """
    counts = _counted(examples, processor, style, rows)
    n = len(counts)
    sizes, longest = np.zeros((n, len(AXES)), np.int64), np.zeros(n, np.int64)
    skips = {}
    for i, item in enumerate(counts):
        try:
            sizes[i], longest[i] = _size(item, processor, limits)
        except _Unusable as fault:
            sizes[i] = longest[i] = 0
            skips[i] = skip(examples[i], i, *fault.args)
    return Scan(sizes, longest, skips)


class _Unusable(Exception):
    """Arguments: reason, remedy, detail."""


def skip(example: Example, index: int, reason: str, remedy: str, detail="") -> Skip:
    """Return the Skip of an example that stands at `index` of its split."""
    place = {}
    with suppress(ValueError):
        place = json.loads(example.meta or "{}")
    known = isinstance(place, dict) and "file" in place
    file, row = (place["file"], place.get("row", index)) if known else ("", index)
    return Skip(example.source, file, row, reason, remedy, example.id, detail)


UNREADABLE = ("an image can't be read", "replace the file and prepare the set again")


def _size(item: dict, processor: Processor, limits: Limits):
    """Return (the six sizes, tokens of the longest prompt) of a counted item."""
    if item["fault"]:
        raise _Unusable(*item["fault"])
    count = len(item["images"])
    if limits.max_images and count > limits.max_images:
        raise _Unusable(
            f"more than {limits.max_images} images", "raise max_images", f"{count}"
        )
    geometry, grid, tokens, windows = processor.geometry, processor.grid, 0, 0
    for size in item["images"]:
        if grid is None:
            remedy = "choose a model that reads images"
            raise _Unusable("the model reads text alone", remedy)
        try:
            t, h, w = grid(tuple(size), processor.pixels)
        except ValueError as error:
            remedy = "crop the image, or pad it to another shape"
            detail = f"{size[0]} × {size[1]}: {error}"
            raise _Unusable(
                "an image's shape is beyond the model's limit", remedy, detail
            ) from None
        h, w = h // geometry.merge, w // geometry.merge
        tokens += t * h * w - 1  # one was counted
        windows = max(windows, t * -(-h // geometry.side) * -(-w // geometry.side))
    longest = item["longest"] + tokens
    if limits.max_prompt and longest > limits.max_prompt:
        raise _Unusable(
            f"a prompt of more than {limits.max_prompt} tokens",
            "lower config.pixels or raise max_prompt",
            f"{longest} tokens",
        )
    branch = item["longest"] - item["shared"]
    blind = item["blind_longest"] - item["blind_shared"]
    shared = item["shared"] + tokens
    return (shared, branch, count, windows, item["blind_shared"], blind), longest


def _counted(examples, processor, style, rows) -> list[dict]:
    """Return image sizes and text lengths of every item, from the file beside its set
    where there is one."""
    path = None
    if (folder := getattr(examples, "directory", None)) and len(examples):
        key = _key(examples, processor, style, rows)
        path = Path(folder) / "sizes" / f"{key}.json"
        with suppress(OSError, ValueError):
            return json.loads(path.read_text())
    counts = []
    for start in range(0, len(examples), CHUNK):
        part = range(start, min(start + CHUNK, len(examples)))
        counts += _count([examples[i] for i in part], processor, style, rows)
    if path:
        with suppress(OSError):  # a set that others prepared, read-only
            path.parent.mkdir(exist_ok=True)
            write_json(path, counts)
    return counts


def _key(examples, processor: Processor, style: str, rows) -> str:
    """Return a hash of what decides the counts: the items, the tokenizer, and how the
    first few of them are written."""
    tokenizer = processor.tokenizer
    parts = [vlmrl.__version__, len(examples), repr(getattr(examples, "indices", ""))]
    parts += [examples.split, processor.brackets, processor.tags, style]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts += [backend.to_str() if backend else repr(tokenizer.get_vocab())]
    for i in range(min(8, len(examples))):
        with suppress(UserError):
            for row in rows(examples[i]):
                parts.append(styles.build(row, style, processor.render).text)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _count(part: list[Example], processor: Processor, style: str, rows) -> list[dict]:
    out, texts = [], {}
    for e in part:
        item = {"images": [], "fault": None}
        try:
            item["images"] = _image_sizes(e)
            prompts = [styles.build(x, style, processor.render) for x in rows(e)]
            item["texts"] = [p.text for p in prompts], [p.blind for p in prompts]
            texts.update(dict.fromkeys(item["texts"][0] + item["texts"][1]))
        except _Unusable as fault:
            item["fault"] = list(fault.args)
        except UserError as error:
            item["fault"] = _text_fault(str(error))
        out.append(item)
    if texts:
        ids = processor.encode_many(list(texts))
        rows_of = {t: _row(processor, i) for t, i in zip(texts, ids, strict=True)}
    for item in out:
        for name, written in zip(("", "blind_"), item.pop("texts", ()), strict=False):
            group = [rows_of[t] for t in written]
            item[f"{name}longest"] = longest = max(len(r.ids) for r in group)
            whole = len(group) == 1  # a row alone is all prefix
            item[f"{name}shared"] = longest if whole else shared_length(group, leave=1)
    return out


def _image_sizes(example: Example) -> list[tuple[int, int]]:
    try:
        return [
            images.size_of(data, f"image {i}") for i, data in enumerate(example.images)
        ]
    except UserError as error:
        raise _Unusable(*UNREADABLE, str(error)) from None


def _text_fault(message: str) -> list[str]:
    if "control token" in message:
        return ["a control token in its text", "remove it from the data", message]
    return [message.partition(": ")[2] or message, "mend the item", message]


def _row(processor: Processor, ids: list[int]) -> Encoded:
    """Return a row whose images are one token each, between their brackets."""
    row, brackets = np.array(ids, np.int32), processor.brackets
    if brackets:
        counts = np.where(row == processor.image_id, 1 + len(brackets), 1)
        ends = np.cumsum(counts)[row == processor.image_id]
        row = np.repeat(row, counts)
        row[ends - 3], row[ends - 1] = brackets
    image = np.where(row == processor.image_id, 0, -1)
    return Encoded(row, None, image, (), "")


def describe(skips: Iterable[Skip], total: int) -> str:
    """Return '3 of 100 items skipped: 2 × a, 1 × b', '' if none is."""
    skips = list(skips)
    reasons = Counter(s.reason for s in skips).most_common()
    listed = ", ".join(f"{n} × {reason}" for reason, n in reasons)
    return f"{len(skips):,} of {total:,} items skipped: {listed}" if skips else ""
