"""From prompts to groups: everything that happens on the host before the device.

A prompt is tokenised whole, its images are cut into patches, its M-RoPE positions are
built once (`mrope`) and sliced ever after. `group` then finds what the rows of a group
share, pads the shared prefix, the branches and the vision windows to a few static
shapes, and says with masks what is real.

Axis letters as in `types.py`; M merged image tokens (one per merge × merge patches).
All functions are pure numpy; the only state is the bounded cache of cut images.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmrl.data.images import decode as decode_image
from vlmrl.types import Group, Prompt, Tokens, UserError, Vision

# Special tokens that only a prompt may hold: sampled, they would ask for image
# features that do not exist. Families that lack one simply do not have it.
NEVER_SAMPLED = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
)


class Facts(NamedTuple):
    """What the host must know of a vision tower (sizes in pixels, merge in patches)."""

    patch: int
    merge: int
    temporal: int
    window: int

    @property
    def side(self) -> int:
        """Merge units along one side of a window."""
        return self.window // self.merge // self.patch


class Picture(NamedTuple):
    """One image, resized, normalised and cut.

    `patches` float32[grid_h * grid_w, patch_dim], merge units contiguous, in raster
    order; `grid` (1, rows, columns) in patches; `tokens` merged tokens; `key` the
    sha256 of the file's bytes.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    tokens: int
    key: str


class Processor(NamedTuple):
    """All a model's directory says about text and images, loaded by `load_processor`.

    `banned` bool[V] is True where a token must never be sampled: vision tokens, and
    ids beyond the tokenizer's (vocabularies are padded). `token_bytes` has one entry
    per id of the model's vocabulary: its decoded bytes, a special token's own text,
    b"" beyond the tokenizer.
    """

    tokenizer: Any
    cut: Callable[[bytes, str], Picture]  # (file's bytes, its name in errors) → Picture
    facts: Facts
    pixels: tuple[int, int]  # (min, max) pixels an image is resized into
    image_id: int
    end_ids: tuple[int, ...]  # the first is the one that closes an assistant turn
    banned: np.ndarray
    token_bytes: tuple[bytes, ...]

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)


class Encoded(NamedTuple):
    """One row of tokens with its images.

    ids int32[S]; positions int32[3, S]; image int32[S]: running index over the merged
    tokens of all images of the row in raster order, -1 on text.
    """

    ids: np.ndarray
    positions: np.ndarray
    image: np.ndarray
    pictures: tuple[Picture, ...]
    name: str  # the example's id, for error lines


class Buckets(NamedTuple):
    """Allowed sizes per axis, ascending. The product is the number of programs."""

    prefix: tuple[int, ...]  # S
    branch: tuple[int, ...] = (1,)  # T
    images: tuple[int, ...] = (1,)  # I
    windows: tuple[int, ...] = (1,)  # W, of each image


class Windows(NamedTuple):
    """Where each patch of an image goes when it is cut into attention windows.

    `index` int32[W, P] patch of the raster order (0 on padding), `mask` bool[W, P]
    (valid patches come first in a window), `positions` int32[W, P, 2] row and column,
    `order` int32[M] row of each raster merged token among the window-ordered ones.
    """

    index: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    order: np.ndarray


# -- loading ---------------------------------------------------------------------------


def load_processor(
    directory: str | Path,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    cache_bytes: int = 256 * 2**20,
) -> Processor:
    """Reads tokenizer, image settings and vision facts of a Hugging Face directory.

    Args:
      directory: holds config.json, tokenizer.json, preprocessor_config.json and,
        usually, generation_config.json. Nothing is fetched.
      min_pixels, max_pixels: replace the directory's limits.
      cache_bytes: memory for cut images, least recently used out first.

    Raises:
      UserError: a file is missing or does not parse.
    """
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    directory = Path(directory)
    config = _read_json(directory / "config.json")
    for needed in ("tokenizer_config.json", "preprocessor_config.json"):
        _read_json(directory / needed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        resizer = Qwen2VLImageProcessorPil.from_pretrained(
            str(directory), **{k: v for k, v in limits.items() if v is not None}
        )
        vision = config["vision_config"]
        facts = Facts(
            patch=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            temporal=vision["temporal_patch_size"],
            window=vision["window_size"],
        )
        text = config.get("text_config") or config
        vocab_size = text["vocab_size"]
        image_id = config["image_token_id"]
    except KeyError as e:
        raise UserError(f"{directory}/config.json: field {e} is missing") from e
    except (ValueError, OSError) as e:
        line = str(e).strip().splitlines()[0]
        raise UserError(f"{directory}: cannot load the tokenizer: {line}") from e
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"{directory}: tokenizer has {len(tokenizer)} ids but config.json's "
            f"vocab_size is {vocab_size}; they belong to different models"
        )
    if (resizer.patch_size, resizer.merge_size) != (facts.patch, facts.merge):
        raise UserError(
            f"{directory}/preprocessor_config.json: patch_size, merge_size are "
            f"{resizer.patch_size}, {resizer.merge_size}; config.json says "
            f"{facts.patch}, {facts.merge}"
        )
    token_bytes = _token_bytes(tokenizer, vocab_size)
    generation = directory / "generation_config.json"
    end = (_read_json(generation) if generation.exists() else config).get(
        "eos_token_id", text.get("eos_token_id")
    )
    ends = end if isinstance(end, list) else [end]
    end_ids = dict.fromkeys([tokenizer.eos_token_id, *(e for e in ends if e)])
    banned = np.array([not b for b in token_bytes])
    known = tokenizer.get_vocab()
    banned[[known[t] for t in NEVER_SAMPLED if t in known]] = True
    return Processor(
        tokenizer=tokenizer,
        cut=_cutter(resizer, facts, cache_bytes),
        facts=facts,
        pixels=(resizer.size["shortest_edge"], resizer.size["longest_edge"]),
        image_id=image_id,
        end_ids=tuple(end_ids),
        banned=banned,
        token_bytes=token_bytes,
    )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror}); a model directory in Hugging "
            "Face format is needed"
        ) from e
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: is not JSON ({e})") from e


def _token_bytes(tokenizer, vocab_size: int) -> tuple[bytes, ...]:
    """Decoded bytes of every id of a byte-level BPE vocabulary."""
    # Byte-level BPE writes each byte as one printable character: printable Latin-1
    # stands for itself, the rest for code points from 256 on, in order.
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in same]
    byte_of = {chr(b): b for b in same}
    byte_of |= {chr(256 + i): b for i, b in enumerate(rest)}
    added = {i: t.content.encode() for i, t in tokenizer.added_tokens_decoder.items()}
    out = [b""] * vocab_size
    for token, i in tokenizer.get_vocab().items():
        if i not in added:
            added[i] = bytes(byte_of[c] for c in token)
    for i, b in added.items():
        out[i] = b
    return tuple(out)


def _cutter(resizer, facts: Facts, cache_bytes: int) -> Callable[[bytes, str], Picture]:
    """The image pipeline of one processor behind a bounded LRU keyed by content."""
    cache: OrderedDict[str, Picture] = OrderedDict()
    lock = threading.Lock()
    held = 0

    def cut(data: bytes, where: str) -> Picture:
        nonlocal held
        key = hashlib.sha256(data).hexdigest()
        with lock:
            if key in cache:
                cache.move_to_end(key)
                return cache[key]
        image = decode_image(data, where)
        try:
            out = resizer(images=[image], return_tensors="np")
        except ValueError as e:
            raise UserError(f"{where}: the image cannot be resized: {e}") from e
        patches = np.asarray(out["pixel_values"], np.float32)
        patches.flags.writeable = False
        grid = tuple(int(g) for g in out["image_grid_thw"][0])
        picture = Picture(patches, grid, len(patches) // facts.merge**2, key)
        with lock:
            if key not in cache:
                cache[key] = picture
                held += patches.nbytes
            while held > cache_bytes and len(cache) > 1:
                held -= cache.popitem(last=False)[1].patches.nbytes
        return picture

    return cut


# -- one prompt ------------------------------------------------------------------------


def mrope(texts: Sequence[int], grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """M-RoPE positions of text runs with images between them: the one builder.

    Text advances all three axes together. An image starts where the text would go on;
    its time stays there, its height and width run over the merged grid. What follows
    starts at 1 + the maximum so far. https://arxiv.org/abs/2409.12191, section 2.1.

    Args:
      texts: tokens before, between and after the images: len(grids) + 1 numbers.
      grids: (rows, columns) of merged tokens per image.

    Returns:
      int32[3, S]: time, height, width.
    """
    parts, start = [], 0
    for i, length in enumerate(texts):
        parts.append(np.broadcast_to(start + np.arange(length), (3, length)))
        start += length
        if i < len(grids):
            parts.append(start + np.indices((1, *grids[i])).reshape(3, -1))
            start += max(grids[i])
    return np.concatenate(parts, axis=1).astype(np.int32)


def encode(
    processor: Processor,
    prompt: Prompt | tuple[str, Sequence[bytes]],
    *,
    name: str = "",
) -> Encoded:
    """Tokenises a prompt whole and puts its images in.

    Each image placeholder becomes one token per merged patch of its image.

    Args:
      prompt: a Prompt, or (text, encoded images).
      name: example id for errors; a Prompt brings its own.

    Raises:
      UserError: placeholders and images differ in number, or an image is bad.
    """
    if isinstance(prompt, Prompt):
        text, images, name = prompt.text, prompt.example.images, prompt.example.id
    else:
        text, images = prompt
    ids = np.array(processor.tokenizer.encode(text, add_special_tokens=False), np.int32)
    spots = np.flatnonzero(ids == processor.image_id)
    if len(spots) != len(images):
        raise UserError(
            f"example {name}: prompt text has {len(spots)} image placeholders but "
            f"there are {len(images)} images; one placeholder per image is needed"
        )
    pictures = tuple(
        processor.cut(data, f"example {name} image {i}")
        for i, data in enumerate(images)
    )
    merge = processor.facts.merge
    grids = [(p.grid[1] // merge, p.grid[2] // merge) for p in pictures]
    repeats = np.ones(len(ids), np.int64)
    repeats[spots] = [p.tokens for p in pictures]
    texts = np.diff(np.concatenate([[-1], spots, [len(ids)]])) - 1
    ids = np.repeat(ids, repeats)
    image = np.full(len(ids), -1, np.int32)
    here = ids == processor.image_id
    image[here] = np.arange(here.sum())
    return Encoded(ids, mrope(texts.tolist(), grids), image, pictures, name)


def decode(processor: Processor, ids: Sequence[int]) -> str:
    """Text of token ids, end tokens left out, broken UTF-8 shown as U+FFFD."""
    parts = (processor.token_bytes[i] for i in ids if i not in processor.end_ids)
    return b"".join(parts).decode("utf-8", errors="replace")


@functools.lru_cache(maxsize=512)
def windows(grid: tuple[int, int, int], facts: Facts) -> Windows:
    """Cuts a grid of patches into Qwen2.5-VL's attention windows.

    A window holds side × side merge units (fewer at the right and lower edge), a unit
    its merge² patches in a row, so that patches of a unit stay neighbours and W * P
    patches reshape to W * P / merge² merged tokens.
    """
    t, rows, cols = grid
    if t != 1:
        raise UserError(f"image grid {grid}: only still images (time 1) are supported")
    side, unit = facts.side, facts.merge**2
    h, w = rows // facts.merge, cols // facts.merge
    padded = np.full((-(-h // side) * side, -(-w // side) * side), -1)
    padded[:h, :w] = np.arange(h * w).reshape(h, w)
    cut = padded.reshape(padded.shape[0] // side, side, -1, side)
    units = cut.transpose(0, 2, 1, 3).reshape(-1, side * side)
    first = np.argsort(units < 0, axis=1, kind="stable")
    units = np.take_along_axis(units, first, axis=1)
    mask = np.repeat(units >= 0, unit, axis=1)
    units0 = np.maximum(units, 0)[:, :, None]
    inside = np.arange(unit)
    index = (units0 * unit + inside).reshape(mask.shape) * mask
    row = units0 // w * facts.merge + inside // facts.merge
    col = units0 % w * facts.merge + inside % facts.merge
    positions = np.stack([row, col], -1).reshape(*mask.shape, 2) * mask[..., None]
    flat = units.ravel()
    order = np.empty(h * w, np.int32)
    order[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return Windows(index.astype(np.int32), mask, positions.astype(np.int32), order)


# -- many prompts ----------------------------------------------------------------------


def bucket(length: int, sizes: Sequence[int], what: str) -> int:
    """The smallest of `sizes` that holds `length`; UserError names `what` otherwise."""
    fits = [s for s in sizes if s >= length]
    if not fits:
        raise UserError(
            f"{what} is {length} but the largest bucket is {max(sizes)}; raise the "
            "bucket or shorten the prompt (prompts are never cut)"
        )
    return min(fits)


def shared_length(rows: Sequence[Encoded], *, leave: int = 0) -> int:
    """Length of the longest common run of ids from the start, at most `leave` short
    of the shortest row, moved back to before any image (with the token that opens it)
    that it would end in, or right after."""
    shortest = min(len(r.ids) for r in rows)
    same = np.all([r.ids[:shortest] == rows[0].ids[:shortest] for r in rows], axis=0)
    cut = shortest if same.all() else int(np.argmin(same))
    cut = min(cut, shortest - leave)
    for row in rows:  # image[cut - 1] or image[cut] real: in it, or between its tags
        while cut > 0 and (row.image[cut - 1 : cut + 1] >= 0).any():
            cut -= 1
    return cut


def group(rows: Sequence[Sequence[Encoded]], facts: Facts, buckets: Buckets) -> Group:
    """Shared prefixes, their branches and their images at static shapes.

    Args:
      rows: N lists of G rows; the rows of a list hold the same images. With G > 1 the
        prefix is what the rows share and every branch keeps at least one token; with
        G = 1 the whole row is the prefix and there are no branches.

    Returns:
      Group of [N, S], [N * G, T] and [N, I, W, P, ...]. Raster token m of image i of a
      group has index i * M + m, with M = W * P / merge² (the length of `order`).

    Raises:
      UserError: a group is empty, row counts or images differ, or nothing fits.
    """
    single = all(len(r) == 1 for r in rows)
    cuts = [
        len(r[0].ids) if single else shared_length(r, leave=1) for r in _checked(rows)
    ]
    return _assemble(rows, cuts, facts, buckets, branches=not single)


def completion_rows(
    processor: Processor,
    rows: Sequence[Sequence[tuple[Encoded, str]]],
    buckets: Buckets,
) -> tuple[Group, np.ndarray]:
    """Groups for supervised training: prompts with the text to learn after them.

    Prompt and completion are tokenised apart and their ids joined: the sampler starts
    at the prompt's token boundary, so a merge across it is a token it can never write.
    The completion ends with the first end token. The prefix is what the prompts of a
    group share (the whole prompt if G = 1), so every token to learn is in a branch.

    Returns:
      The Group, and bool[N * G, T]: True on completion tokens (end token included).
    """
    full = [[_append(processor, e, text) for e, text in r] for r in rows]
    prompts = [[e for e, _ in r] for r in rows]
    cuts = [shared_length(r) for r in _checked(prompts)]
    out = _assemble(full, cuts, processor.facts, buckets, branches=True)
    mask = np.array(out.branches.mask)
    starts = [len(e.ids) - c for r, c in zip(prompts, cuts, strict=True) for e in r]
    mask &= np.arange(mask.shape[1]) >= np.array(starts)[:, None]
    return out, mask


def _append(processor: Processor, prompt: Encoded, text: str) -> Encoded:
    new = processor.tokenizer.encode(text, add_special_tokens=False)
    new = np.array([*new, processor.end_ids[0]], np.int32)
    if (new == processor.image_id).any():
        raise UserError(f"example {prompt.name}: completion holds an image placeholder")
    start = prompt.positions.max(initial=-1) + 1
    ahead = np.broadcast_to(start + np.arange(len(new), dtype=np.int32), (3, len(new)))
    return prompt._replace(
        ids=np.concatenate([prompt.ids, new]),
        positions=np.concatenate([prompt.positions, ahead], axis=1, dtype=np.int32),
        image=np.concatenate([prompt.image, np.full(len(new), -1, np.int32)]),
    )


def _checked(rows: Sequence[Sequence[Encoded]]) -> Sequence[Sequence[Encoded]]:
    """Refuses groups that cannot be one array; returns `rows`."""
    if not rows or not all(rows):
        raise UserError("group: needs at least one group and one row in each")
    for r in rows:
        if len(r) != len(rows[0]):
            raise UserError(
                f"group of example {r[0].name}: {len(r)} rows but the first group has "
                f"{len(rows[0])}; all groups of a batch need the same number"
            )
        images = [p.key for p in r[0].pictures]
        for row in r:
            if [p.key for p in row.pictures] != images:
                raise UserError(
                    f"group of example {r[0].name}: row of example {row.name} has "
                    "other images; rows of a group share their images"
                )
    return rows


def _assemble(
    rows: Sequence[Sequence[Encoded]],
    cuts: Sequence[int],
    facts: Facts,
    buckets: Buckets,
    *,
    branches: bool,
) -> Group:
    vision = _vision([r[0] for r in rows], facts, buckets)
    merged = 0 if vision is None else vision.order.shape[-1]
    cut_rows = list(zip(rows, cuts, strict=True))
    prefix = _tokens([(r[0], 0, c) for r, c in cut_rows], buckets.prefix, merged)
    if not branches:
        return Group(prefix, vision, None)
    tails = [(e, c, len(e.ids)) for r, c in cut_rows for e in r]
    return Group(prefix, vision, _tokens(tails, buckets.branch, merged))


def _tokens(
    slices: Sequence[tuple[Encoded, int, int]], sizes: Sequence[int], merged: int
) -> Tokens:
    """Pads slices [start, stop) of rows to one bucket."""
    longest, start, stop = max(slices, key=lambda s: s[2] - s[1])
    kind = "prefix" if not start else "branch"
    size = bucket(stop - start, sizes, f"example {longest.name}: {kind} length")
    b = len(slices)
    out = Tokens(
        ids=np.zeros((b, size), np.int32),
        positions=np.zeros((3, b, size), np.int32),
        mask=np.zeros((b, size), bool),
        image=np.full((b, size), -1, np.int32),
    )
    for i, (row, start, stop) in enumerate(slices):
        n = stop - start
        out.ids[i, :n] = row.ids[start:stop]
        out.positions[:, i, :n] = row.positions[:, start:stop]
        out.mask[i, :n] = True
        out.image[i, :n] = _local(row, start, stop, merged)
    return out


def _local(row: Encoded, start: int, stop: int, merged: int) -> np.ndarray:
    """Image indices of a slice with every image padded to `merged` tokens."""
    image = row.image[start:stop]
    if not row.pictures:
        return image
    moved = [i * merged + np.arange(p.tokens) for i, p in enumerate(row.pictures)]
    return np.where(image < 0, -1, np.concatenate(moved)[image])


def _vision(rows: Sequence[Encoded], facts: Facts, buckets: Buckets) -> Vision | None:
    """Windows of every image of every group; None if no group has one."""
    most = max(rows, key=lambda r: len(r.pictures))
    if not most.pictures:
        return None
    cut = [[windows(p.grid, facts) for p in r.pictures] for r in rows]
    images = bucket(
        len(most.pictures), buckets.images, f"example {most.name}: number of images"
    )
    count, name = max(
        (len(w.mask), r.name) for r, c in zip(rows, cut, strict=True) for w in c
    )
    size = bucket(count, buckets.windows, f"example {name}: windows of an image")
    patches = facts.side**2 * facts.merge**2
    shape = (len(rows), images, size, patches)
    out = Vision(
        patches=np.zeros((*shape, most.pictures[0].patches.shape[1]), np.float32),
        positions=np.zeros((*shape, 2), np.int32),
        mask=np.zeros(shape, bool),
        order=np.zeros((*shape[:2], size * facts.side**2), np.int32),
    )
    for n, row in enumerate(rows):
        for i, (picture, w) in enumerate(zip(row.pictures, cut[n], strict=True)):
            out.patches[n, i, : len(w.mask)][w.mask] = picture.patches[w.index[w.mask]]
            out.positions[n, i, : len(w.mask)] = w.positions
            out.mask[n, i, : len(w.mask)] = w.mask
            out.order[n, i, : len(w.order)] = w.order
    return out
