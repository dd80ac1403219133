"""Choose static shapes for items of known sizes (`scan.scan`), so that few programs are
compiled and little is padding.

Sizes are rows of six numbers (`scan.AXES`). All is a function of the sizes alone, so
that every host chooses the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.prompts.processor import Geometry
from vlmrl.prompts.tokens import Buckets
from vlmrl.types import Array

PROGRAMS, PADDING = 12, 0.2  # at most, and the share of padding that is aimed at
VISION = 1 / 3  # cost of a merged image token in its tower, in tokens of text: four
# patches through 0.7 B parameters beside one token through 7 B
BATCHES = 8  # that are worth a program


class BatchShape(NamedTuple):
    """A static shape of programs."""

    size: tuple[int, ...]  # see AXES
    batch: int  # items

    def fits(self, size: Sequence[int]) -> bool:
        return _fits(np.asarray(size)[None], np.array([self.size]))[0, 0]

    @property
    def sighted(self) -> Buckets:
        return Buckets(*((max(1, n),) for n in self.size[:4]))

    @property
    def blind(self) -> Buckets:
        return Buckets(*((max(1, n),) for n in self.size[4:]))


class Costs(NamedTuple):
    """What a padded item costs, in tokens of text."""

    branches: int  # of an item
    window: float  # a vision window

    def of(self, sizes: Array) -> Array:
        """Return the cost of sizes [..., 6], float64[...]."""
        prefix, branch, images_, windows, *blind = np.moveaxis(sizes, -1, 0)
        text = prefix + blind[0] + self.branches * (branch + blind[1])
        return text + self.window * images_ * windows


def costs(geometry: Geometry, branches: int) -> Costs:
    return Costs(branches, VISION * geometry.side**2)


def rounded(sizes, bits: int = 6):
    """Return sizes rounded up to `bits` + 1 significant binary digits, and from 16 on
    to multiples of 4: at most 1/2^bits more, and fewer different sizes."""
    n = np.asarray(sizes, np.int64)
    exponent = np.floor(np.log2(np.maximum(n, 1))).astype(np.int64)
    step = np.maximum(2 ** np.maximum(exponent - bits, 0), np.where(n >= 16, 4, 1))
    return -(-n // step) * step


def choose(
    sizes: Array, cost: Costs, batch: int, *, programs: int = PROGRAMS, multiple=1
) -> list[BatchShape]:
    """Return the fewest shapes with at most `PADDING`, or else those of the least cost.

    From one class that holds all items, classes are split where that saves most; with
    `programs` of them their shapes are then moved, one by one, to where all cost least.
    An item belongs to the cheapest shape that fits. Items without images never share a
    shape with others, whose programs read images.

    Compiling a program takes as long as some batches do: where one would serve for less
    than `BATCHES`, half may be padding.

    Args:
      sizes: int[n, 6], n of 1 or more.
      cost: of a size.
      batch: items of a batch at most, a multiple of `multiple`.
    """
    items, counts = _coarse(sizes)
    needed = cost.of(np.asarray(sizes)).sum()
    best = None
    for classes in _partitions(items, counts, cost, programs):
        shapes = classes.shapes[np.argsort(-cost.of(classes.shapes), kind="stable")]
        filled = _with_batches(shapes, sizes, cost, batch, multiple)
        total = sum(n * cost.of(np.array(s.size)) for s, n in filled)
        if best is None or total < best[0]:
            best = total, [s for s, _ in filled]
        worth = len(sizes) >= len(filled) * BATCHES * batch
        if needed >= (1 - (PADDING if worth else 0.5)) * total:
            return [s for s, _ in filled]
    return best[1]


def _with_batches(shapes, sizes, cost, batch, multiple) -> list[tuple[BatchShape, int]]:
    """Return shapes with batches of about equal size, and the items, filling included,
    that each computes."""
    counts = np.bincount(_assign(sizes, shapes, cost), minlength=len(shapes))
    out = []
    for size, n in zip(shapes.tolist(), counts.tolist(), strict=True):
        if n:
            passes = -(-n // batch)
            each = -(-n // passes)
            each += -each % multiple
            out.append((BatchShape(tuple(size), each), passes * each))
    return out


def assign(sizes: Array, shapes: Sequence[BatchShape], cost: Costs) -> Array:
    """Return the index of the cheapest shape that fits each item, int[n]."""
    return _assign(sizes, np.array([s.size for s in shapes]), cost)


def batches(
    sizes: Array, indices: Sequence[int], shapes: Sequence[BatchShape], cost: Costs
) -> list[tuple[BatchShape, list[int]]]:
    """Return (shape, indices of items) of every batch; costly shapes come first, so
    that what memory can't hold shows at once.

    Args:
      sizes: int[n, 6], of all items.
      indices: those that are cut into batches.
    """
    indices = np.asarray(indices)
    chosen = assign(sizes[indices], shapes, cost)
    out = []
    for i, shape in enumerate(shapes):
        part, each = indices[chosen == i].tolist(), shape.batch
        out += [(shape, part[at : at + each]) for at in range(0, len(part), each)]
    return out


def padding(
    sizes: Array, plan: Sequence[tuple[BatchShape, list[int]]], cost: Costs
) -> float:
    """Return the share of padding in all tokens that a plan computes, the rows that
    fill its last batches included; those of vision towers by their cost."""
    needed = sum(cost.of(sizes[part]).sum() for _, part in plan)
    total = sum(s.batch * cost.of(np.array(s.size)) for s, _ in plan)
    return float(1 - needed / total) if total else 0.0


def training_shapes(sizes: Array, cost: Costs, batch: int) -> tuple[Buckets, ...]:
    """Return shapes for batches of items in random order, the largest of which holds
    any batch: few, since a batch is as large as its largest item.

    Args:
      sizes: int[n, 6]; branch and blind sizes are not used.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(sizes), (256, batch))
    most = np.concatenate([sizes[drawn].max(1), sizes.max(0)[None]])
    return tuple(s.sighted for s in choose(most, cost, 1, programs=4))


def smallest(families: Sequence[Buckets], needs: Sequence[int]) -> Buckets:
    """Return one size per axis that holds `needs` (in order of `Buckets`): of the
    families the cheapest, or `needs` rounded up where none holds them."""
    fitting = []
    for family in families:
        sizes = [
            min((s for s in axis if s >= need), default=0)
            for axis, need in zip(family, needs, strict=True)
        ]
        if all(sizes):
            fitting.append(sizes)
    if not fitting:
        fitting = [rounded(needs, bits=2).tolist()]
    best = min(fitting, key=lambda s: (s[0] + s[1], s[2] * s[3]))
    return Buckets(*((size,) for size in best))


class _Classes(NamedTuple):
    shapes: Array  # int64[k, 6]
    labels: Array  # int64[n]
    total: float  # cost


def _fits(sizes: Array, shapes: Array) -> Array:
    """Return bool[n, k]: shape k holds item n, and both have images or neither has."""
    large = (sizes[:, None] <= shapes[None]).all(-1)
    return large & ((sizes[:, None, 2] > 0) == (shapes[None, :, 2] > 0))


def _assign(sizes: Array, shapes: Array, cost: Costs) -> Array:
    fits = _fits(np.asarray(sizes), shapes)
    return np.where(fits, cost.of(shapes)[None], np.inf).argmin(1)


def _partitions(items: Array, weights: Array, cost: Costs, most: int):
    """Yield _Classes of 1 (or 2, where some items have no images) to `most` shapes."""
    classes = _settled(items, weights, cost, (items[:, 2] > 0).astype(np.int64))
    while classes is not None and len(classes.shapes) < most:
        yield classes
        classes = _split(items, weights, cost, classes)
    if classes is not None:
        yield _improved(items, weights, cost, classes)


def _settled(items, weights, cost: Costs, labels) -> _Classes:
    """Shrink every shape to its items and move items to cheaper shapes, in turn."""
    last = np.inf
    while True:
        names = np.unique(labels)
        shapes = np.stack([items[labels == c].max(0) for c in names])
        labels = _assign(items, shapes, cost)
        total = float((weights * cost.of(shapes)[labels]).sum())
        if total >= last:
            return _Classes(shapes, labels, total)
        last = total


def _split(items, weights, cost: Costs, classes: _Classes) -> _Classes | None:
    """Return the classes with one of them cut in two along an axis, where that saves
    most; None where no class has two different items."""
    best, chosen = 0.0, None
    for c in range(len(classes.shapes)):
        index = np.flatnonzero(classes.labels == c)
        whole = weights[index].sum() * cost.of(classes.shapes[c])
        for axis in range(items.shape[1]):
            order = index[np.argsort(items[index, axis], kind="stable")]
            below = np.cumsum(weights[order])
            low = np.maximum.accumulate(items[order])[:-1]
            high = np.maximum.accumulate(items[order][::-1])[::-1][1:]
            cut = below[:-1] * cost.of(low) + (below[-1] - below[:-1]) * cost.of(high)
            if len(cut) and whole - cut.min() > best:
                best, chosen = whole - cut.min(), order[: cut.argmin() + 1]
    if chosen is None:
        return None
    labels = classes.labels.copy()
    labels[chosen] = len(classes.shapes)
    return _settled(items, weights, cost, labels)


def _improved(items, weights, cost: Costs, classes: _Classes) -> _Classes:
    """Grow or shrink one shape after the other to where the whole costs least, until a
    round saves less than 0.05 %."""
    shapes = classes.shapes.copy()
    values = np.where(_fits(items, shapes), cost.of(shapes)[None], np.inf)
    order = np.argsort(cost.of(items), kind="stable")
    step = max(1, len(items) // 64)
    total, last = classes.total, np.inf
    for shift in range(8):
        if total > 0.9995 * last:
            break
        last = total
        for c in range(len(shapes)):
            sample = items[order[(7 * shift + c) % step :: step]]
            tried = _variants(
                shapes[c], sample[(sample[:, 2] > 0) == (shapes[c, 2] > 0)]
            )
            each = np.where(_fits(items, tried), cost.of(tried)[None], np.inf)
            rest = np.delete(values, c, axis=1).min(1, initial=np.inf)
            totals = weights @ np.minimum(rest[:, None], each)
            best = int(totals.argmin())
            if totals[best] < total:
                shapes[c], values[:, c] = tried[best], each[:, best]
                total = totals[best]
    return _settled(items, weights, cost, _assign(items, shapes, cost))


def _variants(shape: Array, sample: Array) -> Array:
    """Return the shape itself, grown to hold each of some items, shrunk to it, and with
    one axis of it."""
    out = [shape[None], np.maximum(shape, sample), np.minimum(shape, sample)]
    for axis in (0, 1, 3, 4, 5):
        one = np.repeat(shape[None], len(sample), 0)
        one[:, axis] = sample[:, axis]
        out.append(one)
    return np.unique(np.concatenate(out), axis=0)


def _coarse(sizes: Array, most: int = 1500) -> tuple[Array, Array]:
    """Return about `most` different sizes that stand for all, none of them below those
    it stands for, and how many each stands for."""
    sizes = rounded(sizes)
    for bits in range(6, 0, -1):
        keys, index = np.unique(rounded(sizes, bits), axis=0, return_inverse=True)
        if len(keys) <= most:
            break
    largest = np.zeros_like(keys)
    np.maximum.at(largest, index.ravel(), sizes)
    return largest, np.bincount(index.ravel()).astype(float)
