"""From prompts to groups: everything that happens on the host before the device.

A prompt is tokenised whole, its images are cut into patches, its M-RoPE positions are
built once (`mrope`) and sliced afterwards. `group` then finds what the rows of a group
share and pads the shared prefix, the branches and the vision windows to a few static
shapes, with masks of what is valid.

Axis letters as in `types.py`; M merged image tokens (one per merge × merge patches).
All functions are pure numpy. A model's files are read by `prompts/processor.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.prompts.processor import NEVER_SAMPLED as NEVER_SAMPLED
from vlmrl.prompts.processor import Geometry, Picture, Processor, cut_all
from vlmrl.prompts.processor import load_processor as load_processor
from vlmrl.types import Group, Prompt, Tokens, UserError, Vision


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
    """How the patches of an image are arranged in windows.

    `index` int32[W, P] patch of the raster order (0 on padding), `mask` bool[W, P]
    (valid patches come first in a window), `positions` int32[W, P, 2] row and column,
    `order` int32[M] row of each raster merged token among the window-ordered ones.
    """

    index: np.ndarray
    mask: np.ndarray
    positions: np.ndarray
    order: np.ndarray


# -- one prompt ------------------------------------------------------------------------


def mrope(texts: Sequence[int], grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return M-RoPE positions of text runs with images between them.

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
    """Tokenise a prompt and insert its images.

    Each image placeholder becomes one token per merged patch of its image, between
    brackets where the family's processor writes them.

    Args:
      prompt: a Prompt, or (text, encoded images).
      name: example id for errors; a Prompt brings its own.

    Raises:
      UserError: placeholders and images differ in number, or an image is bad.
    """
    return _encode(processor, [_parts(prompt, name)])[0]


def encode_all(processor: Processor, prompts: Sequence[Prompt]) -> list[Encoded]:
    """Encode many prompts, their images cut in a pool of threads."""
    return _encode(processor, [_parts(p) for p in prompts])


def _encode(processor: Processor, parts) -> list[Encoded]:
    # The tokenizer is not thread-safe, and its errors (missing images) come first.
    ids = [_ids(processor, text, len(images), name) for text, images, name in parts]
    files = [
        (data, f"example {name} image {i}")
        for _, images, name in parts
        for i, data in enumerate(images)
    ]
    cut = cut_all(processor, files)
    return [
        _place(processor, row, tuple(cut[data] for data in images), name)
        for row, (_, images, name) in zip(ids, parts, strict=True)
    ]


def _parts(prompt, name: str = ""):
    if isinstance(prompt, Prompt):
        return prompt.text, prompt.example.images, prompt.example.id
    return *prompt, name


def _ids(processor: Processor, text: str, images: int, name: str) -> np.ndarray:
    """Return int32[S'] ids of a text with one placeholder per image."""
    ids = np.array(processor.encode_plain(text), np.int32)
    spots = int((ids == processor.image_id).sum())
    if spots != images:
        raise UserError(
            f"example {name}: expected one image placeholder per image, got {spots} "
            f"image placeholders for {images} images"
        )
    return ids


def _place(
    processor: Processor, ids: np.ndarray, pictures: tuple[Picture, ...], name: str
) -> Encoded:
    """Replace placeholders by the tokens of their images."""
    geometry, brackets = processor.geometry, processor.brackets
    spots = np.flatnonzero(ids == processor.image_id)
    texts = np.diff(np.concatenate([[-1], spots, [len(ids)]])) - 1
    counts = np.array([p.tokens for p in pictures], np.int64) + len(brackets)
    repeats = np.ones(len(ids), np.int64)
    repeats[spots] = counts
    ids = np.repeat(ids, repeats)
    if brackets:
        ends = np.cumsum(repeats)[spots]
        ids[ends - counts], ids[ends - 1] = brackets
        texts[:-1] += 1
        texts[1:] += 1
    here = ids == processor.image_id
    image = np.full(len(ids), -1, np.int32)
    image[here] = np.arange(here.sum())
    if geometry.flat:
        positions = mrope([len(ids)], [])
    else:
        grids = [
            (p.grid[1] // geometry.merge, p.grid[2] // geometry.merge) for p in pictures
        ]
        positions = mrope(texts.tolist(), grids)
    return Encoded(ids, positions, image, pictures, name)


def decode(processor: Processor, ids: Sequence[int]) -> str:
    """Return the text of token ids without end tokens; U+FFFD for broken UTF-8."""
    parts = (processor.token_bytes[i] for i in ids if i not in processor.end_ids)
    return b"".join(parts).decode("utf-8", errors="replace")


@functools.lru_cache(maxsize=512)
def windows(grid: tuple[int, int, int], geometry: Geometry) -> Windows:
    """Arrange a grid of patches in windows: rows that a vision tower attends within.

    A window holds side × side merge units (fewer at the right and lower edge), a unit
    its merge² patches in a row, so that patches of a unit stay neighbours and W * P
    patches reshape to W * P / merge² merged tokens. The t tiles of a grid are arranged
    one by one: a tile as large as a window is one window.
    """
    t, rows, cols = grid
    side, unit = geometry.side, geometry.merge**2
    h, w = rows // geometry.merge, cols // geometry.merge
    padded = np.full((t, -(-h // side) * side, -(-w // side) * side), -1)
    padded[:, :h, :w] = np.arange(t * h * w).reshape(t, h, w)
    cut = padded.reshape(t, padded.shape[1] // side, side, -1, side)
    units = cut.transpose(0, 1, 3, 2, 4).reshape(-1, side * side)
    first = np.argsort(units < 0, axis=1, kind="stable")
    units = np.take_along_axis(units, first, axis=1)
    mask = np.repeat(units >= 0, unit, axis=1)
    units0 = np.maximum(units, 0)[:, :, None]
    inside = np.arange(unit)
    index = (units0 * unit + inside).reshape(mask.shape) * mask
    row = units0 % (h * w) // w * geometry.merge + inside // geometry.merge
    col = units0 % w * geometry.merge + inside % geometry.merge
    positions = np.stack([row, col], -1).reshape(*mask.shape, 2) * mask[..., None]
    flat = units.ravel()
    order = np.empty(t * h * w, np.int32)
    order[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return Windows(index.astype(np.int32), mask, positions.astype(np.int32), order)


# -- many prompts ----------------------------------------------------------------------


def bucket(length: int, sizes: Sequence[int], what: str) -> int:
    """Return the smallest of `sizes` that is at least `length`.

    Raises:
      UserError: none is; it names `what`.
    """
    fits = [s for s in sizes if s >= length]
    if not fits:
        raise UserError(
            f"{what}: expected at most the largest bucket, {max(sizes)}, got {length}; "
            "raise the bucket or shorten the prompt (prompts are never truncated)"
        )
    return min(fits)


def shared_length(rows: Sequence[Encoded], *, leave: int = 0) -> int:
    """Return the length of the longest common prefix of ids that leaves `leave` tokens
    of each row and does not end in an image, in its tags, or right after it."""
    shortest = min(len(r.ids) for r in rows)
    same = np.all([r.ids[:shortest] == rows[0].ids[:shortest] for r in rows], axis=0)
    cut = shortest if same.all() else int(np.argmin(same))
    cut = min(cut, shortest - leave)
    for row in rows:  # image[cut - 1] or image[cut] real: in it, or between its tags
        while cut > 0 and (row.image[cut - 1 : cut + 1] >= 0).any():
            cut -= 1
    return cut


def group(
    rows: Sequence[Sequence[Encoded]], geometry: Geometry, buckets: Buckets
) -> Group:
    """Return shared prefixes, their branches and their images at static shapes.

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
    cuts, single = _prefix_lengths(rows)
    return _assemble(rows, cuts, geometry, buckets, branches=not single)


def needs(rows: Sequence[Sequence[Encoded]], geometry: Geometry) -> tuple[int, ...]:
    """Return the sizes, in order of `Buckets`, that `group` needs for these rows."""
    cuts, single = _prefix_lengths(rows)
    tails = [
        len(e.ids) - c for r, c in zip(rows, cuts, strict=True) for e in r if not single
    ]
    counts = [len(r[0].pictures) for r in rows]
    cut = [len(windows(p.grid, geometry).mask) for r in rows for p in r[0].pictures]
    return max(cuts), max(tails, default=1), max(1, *counts), max(cut, default=1)


def _prefix_lengths(rows: Sequence[Sequence[Encoded]]) -> tuple[list[int], bool]:
    """Return the prefix length of every group, and whether all are single rows."""
    if all(len(r) == 1 for r in _checked(rows)):
        return [len(r[0].ids) for r in rows], True
    return [shared_length(r, leave=1) for r in rows], False


def completion_rows(
    processor: Processor,
    rows: Sequence[Sequence[tuple[Encoded, str]]],
    buckets: Buckets,
) -> tuple[Group, np.ndarray]:
    """Return groups for supervised training: prompts and the texts to learn.

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
    out = _assemble(full, cuts, processor.geometry, buckets, branches=True)
    mask = np.array(out.branches.mask)
    starts = [len(e.ids) - c for r, c in zip(prompts, cuts, strict=True) for e in r]
    mask &= np.arange(mask.shape[1]) >= np.array(starts)[:, None]
    return out, mask


def _append(processor: Processor, prompt: Encoded, text: str) -> Encoded:
    new = processor.encode_plain(text)
    new = np.array([*new, processor.end_ids[0]], np.int32)
    if (new == processor.image_id).any():
        raise UserError(
            f"example {prompt.name}: expected a completion without image placeholder"
        )
    return behind(prompt, new)


def behind(prompt: Encoded, new: Sequence[int]) -> Encoded:
    """Return a row with ids of plain text behind it."""
    new = np.asarray(new, np.int32)
    start = prompt.positions.max(initial=-1) + 1
    ahead = np.broadcast_to(start + np.arange(len(new), dtype=np.int32), (3, len(new)))
    return prompt._replace(
        ids=np.concatenate([prompt.ids, new]),
        positions=np.concatenate([prompt.positions, ahead], axis=1, dtype=np.int32),
        image=np.concatenate([prompt.image, np.full(len(new), -1, np.int32)]),
    )


def _checked(rows: Sequence[Sequence[Encoded]]) -> Sequence[Sequence[Encoded]]:
    """Return `rows`, checked to fit one array."""
    if not rows or not all(rows):
        raise UserError("group: expected at least one group and one row in each")
    for r in rows:
        if len(r) != len(rows[0]):
            raise UserError(
                f"group of example {r[0].name}: expected {len(rows[0])} rows as in the "
                f"first group, got {len(r)}"
            )
        images = [p.key for p in r[0].pictures]
        for row in r:
            if [p.key for p in row.pictures] != images:
                raise UserError(
                    f"group of example {r[0].name}: expected the same images in each "
                    f"row, got others in that of example {row.name}"
                )
            count = int((row.image >= 0).sum())
            features = sum(p.tokens for p in row.pictures)
            if count != features:
                raise UserError(
                    f"example {row.name}: expected an image token for each of the "
                    f"{features} features of its images, got {count}"
                )
    return rows


def _assemble(
    rows: Sequence[Sequence[Encoded]],
    cuts: Sequence[int],
    geometry: Geometry,
    buckets: Buckets,
    *,
    branches: bool,
) -> Group:
    vision = _vision([r[0] for r in rows], geometry, buckets)
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
    """Pad slices [start, stop) of rows to one bucket."""
    longest, start, stop = max(slices, key=lambda s: s[2] - s[1])
    kind = "prefix" if not start else "branch"
    size = bucket(stop - start, sizes, f"example {longest.name}: {kind} length")
    b = len(slices)
    out = Tokens(
        ids=np.zeros((b, size), np.int32),
        positions=np.zeros((b, 3, size), np.int32),
        mask=np.zeros((b, size), bool),
        image=np.full((b, size), -1, np.int32),
    )
    for i, (row, start, stop) in enumerate(slices):
        n = stop - start
        out.ids[i, :n] = row.ids[start:stop]
        out.positions[i, :, :n] = row.positions[:, start:stop]
        out.mask[i, :n] = True
        out.image[i, :n] = _local(row, start, stop, merged)
    return out


def _local(row: Encoded, start: int, stop: int, merged: int) -> np.ndarray:
    """Return the image indices of a slice, every image padded to `merged` tokens."""
    image = row.image[start:stop]
    if not row.pictures:
        return image
    moved = [i * merged + np.arange(p.tokens) for i, p in enumerate(row.pictures)]
    return np.where(image < 0, -1, np.concatenate(moved)[image])


def _vision(
    rows: Sequence[Encoded], geometry: Geometry, buckets: Buckets
) -> Vision | None:
    """Return the windows of all images; None if no group has an image."""
    most = max(rows, key=lambda r: len(r.pictures))
    if not most.pictures:
        return None
    cut = [[windows(p.grid, geometry) for p in r.pictures] for r in rows]
    images = bucket(
        len(most.pictures), buckets.images, f"example {most.name}: number of images"
    )
    count, name = max(
        (len(w.mask), r.name) for r, c in zip(rows, cut, strict=True) for w in c
    )
    size = bucket(count, buckets.windows, f"example {name}: windows of an image")
    patches = geometry.side**2 * geometry.merge**2
    shape = (len(rows), images, size, patches)
    out = Vision(
        patches=np.zeros((*shape, most.pictures[0].patches.shape[1]), np.float32),
        positions=np.zeros((*shape, 2), np.int32),
        mask=np.zeros(shape, bool),
        order=np.zeros((*shape[:2], size * geometry.side**2), np.int32),
    )
    for n, row in enumerate(rows):
        for i, (picture, w) in enumerate(zip(row.pictures, cut[n], strict=True)):
            out.patches[n, i, : len(w.mask)][w.mask] = picture.patches[w.index[w.mask]]
            out.positions[n, i, : len(w.mask)] = w.positions
            out.mask[n, i, : len(w.mask)] = w.mask
            out.order[n, i, : len(w.order)] = w.order
    return out
