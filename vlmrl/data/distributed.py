"""A training stream that several processes read together, each its own part.

Every process needs the text of a whole batch, because rewards, advantages and metrics
are computed over all of it. Images are processed only where their rows live. So each
process reads its own part of every batch, sends the others everything but the images,
and represents their images by a count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vlmrl.types import Example


class RemoteImages(Sequence):
    """Images of another process's rows. Their number is known; indexing reads them
    here, once, as for a group that replaced another."""

    def __init__(self, count: int, read: Callable[[], Sequence[bytes]]):
        self._count, self._read = count, functools.cache(read)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return self._read()[range(self._count)[index]]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._read())


def map_images(
    images: Sequence[bytes], change: Callable[[Sequence[bytes]], Iterable[bytes]]
) -> Sequence[bytes]:
    """Return change(images), of the same length; deferred for remote images."""
    if isinstance(images, RemoteImages):
        return RemoteImages(len(images), lambda: tuple(change(images)))
    return tuple(change(images))


def whole_batches(
    stream: Iterator[tuple[int, list[Example]]],
    at: Callable[[int], Example],
    index: int,
    exchange: Callable[[int, Any], list[Any]],
) -> Iterator[tuple[int, list[Example]]]:
    """Yield (position, whole batch) from this process's part of `loader.batches`.

    Args:
      stream: this process's part.
      at: the example at a position of the whole stream.
      index: the number of this process's part in every batch.
      exchange: all-gathers one value per part, in their order (`hosts.whole`); all
        processes call it together.
    """
    for position, mine in stream:
        rows = [(e._replace(images=()), len(e.images)) for e in mine]
        rows = [pair for run in exchange(index, rows) for pair in run]
        first, own = position - len(rows), index * len(mine)
        batch = [
            e._replace(images=RemoteImages(count, lambda p=first + i: at(p).images))
            for i, (e, count) in enumerate(rows)
        ]
        batch[own : own + len(mine)] = mine
        yield position, batch
