"""A training stream that several processes read together, each its own share.

Every process needs the text of a whole batch: rewards, advantages and metrics are of
all of it. Images are cut by the process whose rows they are. So each reads its own run
of every batch, tells the others all but the images, and holds theirs by number alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from vlmrl.types import Example


class RemoteImages(Sequence):
    """Images that another process reads. Their number is known; who asks for one after
    all, as for a group that took another's place, has them read here, once."""

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
      stream: the share.
      at: the example at a position of the whole stream.
      index: which run of every batch the share is.
      exchange: what every run says, once each and in their order (`hosts.whole`); all
        processes come to it together.
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
