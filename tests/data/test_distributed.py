"""Shares of a stream put together, here by threads, in `plumbing.py` by processes."""

import itertools
import threading

import pytest

from tests import kit
from vlmrl.data import distort, distributed, loader
from vlmrl.prompts import styles

BATCH, STEPS = 4, 3


class Read(list):
    """Examples that remember which of them were read."""

    def __init__(self, stored):
        super().__init__(stored)
        self.seen = []

    def __getitem__(self, index):
        self.seen.append(index)
        return super().__getitem__(index)


def both(count=2):
    """[(whole batches, what was read for the share, what by position)] of processes
    that run side by side and tell each other at a barrier."""
    output, out = [None] * count, [None] * count
    barrier = threading.Barrier(count, timeout=60)

    def tell(index, value):
        output[index] = value
        barrier.wait()
        actual = list(output)
        barrier.wait()
        return actual

    def run(index):
        source, again = (Read(kit.examples(12, "train")) for _ in range(2))
        stream = loader.batches(source, seed=1, batch=BATCH, part=(index, count))
        at = loader.stream_of(again, seed=1).__getitem__
        batches = distributed.whole_batches(stream, at, index, tell)
        out[index] = list(itertools.islice(batches, STEPS)), source.seen, again.seen

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def plain(example):
    return example._replace(images=tuple(example.images))


def test_every_process_has_the_whole_batch_and_its_own_images():
    stream = loader.batches(kit.examples(12, "train"), seed=1, batch=BATCH)
    expected = list(itertools.islice(stream, STEPS))
    places = [kit.examples(12, "train").index(e) for _, part in expected for e in part]
    for index, (batches, seen, again) in enumerate(both()):
        rows = [i for i in range(len(places)) if i % BATCH // (BATCH // 2) == index]
        assert seen[: len(rows)] == [places[i] for i in rows]
        assert [position for position, _ in batches] == [p for p, _ in expected]
        for (_, batch), (_, examples) in zip(batches, expected, strict=True):
            for i, (e, same) in enumerate(zip(batch, examples, strict=True)):
                away = isinstance(e.images, distributed.RemoteImages)
                assert away == (i // (BATCH // 2) != index)
                assert len(e.images) == 1 and e._replace(images=()) == (
                    same._replace(images=())
                )
                # Neither a prompt nor a put-off distortion reads what is away.
                assert styles.build(e, "tiny").text == styles.build(same, "tiny").text
                if away:
                    distort.distort(e, "noisy", 0)
        assert not again
        for (_, batch), (_, examples) in zip(batches, expected, strict=True):
            assert [plain(e) for e in batch] == list(examples)
        assert sorted(again) == sorted(set(places) - {places[i] for i in rows})


def test_what_is_away_is_distorted_as_it_would_be_here():
    example = kit.examples(1)[0]
    reads = []

    def read():
        reads.append(1)
        return example.images

    away = example._replace(images=distributed.RemoteImages(1, read))
    here, there = (distort.distort(e, "masked", 3) for e in (example, away))
    assert not reads and isinstance(there.images, distributed.RemoteImages)
    assert plain(there) == here
    assert there.images[0] == here.images[0] == there.images[-1] and reads == [1]
    with pytest.raises(IndexError):
        there.images[1]
