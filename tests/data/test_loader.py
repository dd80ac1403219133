import itertools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest
from grain.python import ReadOptions
from tensorflow_datasets.proto import tf_example_pb2

from tests.data import published
from vlmrl.data import build, features, images, loader, scenes, sets
from vlmrl.types import Example, UserError

ODD = Example(
    id="ödd/1",
    images=(b"\x00\xff\x00not an image", b""),
    question="Wo? \n\t\x00",
    options=(),
    answer=-1,
    suggested=-1,
    source="odd",
    task="",
    cluster="c",
    meta='{"a": "β"}',
    condition="no_cot",
    direct=True,
    abstain=2**31 - 1,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return loader.prepare("scenes", {"train": 40, "test": 12}, root)


def test_a_record_is_the_one_that_tfds_would_write():
    for whole in (ODD, *scenes.suite("train", 2)):
        record = features.serialised(whole)
        plain = features.FEATURES.encode_example(whole._asdict())
        theirs = features.FEATURES.serialize_example(plain)
        one, other = map(tf_example_pb2.Example.FromString, (record, theirs))
        assert one == other and features.example(record) == whole
        assert features.serialised(whole) == record  # to the byte, every time


def test_examples_come_back_as_they_went_in(stored):
    train = loader.load(stored, "train")
    assert len(train) == 40 and len(loader.load(stored, "test")) == 12
    assert [train[i] for i in range(40)] == scenes.suite("train", 40)
    assert [type(v) for v in train[0]] == [type(v) for v in scenes.suite("train", 1)[0]]
    assert images.decode(train[0].images[0], "0").size == (112, 112)
    assert pickle.loads(pickle.dumps(train))[7] == train[7]


def test_any_example_goes_round(tmp_path, monkeypatch):
    monkeypatch.setitem(loader.SOURCES, "odd", lambda split, n: [ODD] * n)
    source = loader.load(loader.prepare("odd", {"only": 1}, tmp_path), "only")
    assert list(source) == [ODD]


def test_prepare_twice_writes_once(stored):
    before = {p: p.stat().st_mtime_ns for p in stored.iterdir()}
    root = stored.parent.parent
    assert loader.prepare("scenes", {"train": 40, "test": 12}, root) == stored
    assert before == {p: p.stat().st_mtime_ns for p in stored.iterdir()}
    assert os.listdir(stored.parent) == [stored.name]


def test_other_sizes_and_another_source_are_other_data(tmp_path, monkeypatch):
    first = loader.prepare("scenes", {"test": 2}, tmp_path)
    assert loader.prepare("scenes", {"test": 3}, tmp_path) != first
    changed = lambda split, n: [  # noqa: E731
        e._replace(question="Why?") for e in scenes.suite(split, n)
    ]
    monkeypatch.setitem(loader.SOURCES, "scenes", changed)
    assert loader.prepare("scenes", {"test": 2}, tmp_path) != first


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def breaks(split, n):
        for i, example in enumerate(scenes.suite(split, n)):
            if i == 15:
                raise RuntimeError("cut off")
            yield example

    monkeypatch.setitem(
        loader.SOURCES, "scenes", lambda s, n: itertools.islice(breaks(s, 30), n)
    )
    with pytest.raises(Exception, match="cut off"):
        loader.prepare("scenes", {"train": 20}, tmp_path)
    assert os.listdir(tmp_path / "scenes") == []


def test_bad_requests_are_named(tmp_path, stored, monkeypatch):
    with pytest.raises(UserError, match="'cenes' is not one of scenes"):
        loader.prepare("cenes", {"train": 1}, tmp_path)
    with pytest.raises(UserError, match="size of train: expected at least 1, got 0"):
        loader.prepare("scenes", {"train": 0}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable"):
        loader.prepare("scenes", {"train": 1}, tmp_path / "file")
    with pytest.raises(UserError, match="holds no data set"):
        loader.load(tmp_path / "nothing", "train")
    with pytest.raises(UserError, match="'dev' is not one of"):
        loader.load(stored, "dev")
    monkeypatch.setitem(loader.SOURCES, "odd", lambda split, n: [ODD] * n)
    with pytest.raises(UserError, match="the id ödd/1 occurs twice"):
        loader.prepare("odd", {"only": 2}, tmp_path)


def _take(n, source, **settings):
    return list(itertools.islice(loader.batches(source, **settings), n))


def test_batches_follow_the_seed_and_reshuffle_every_epoch():
    a = _take(20, range(12), seed=0, batch=4)
    assert a == _take(20, range(12), seed=0, batch=4)
    assert a != _take(20, range(12), seed=1, batch=4)
    assert [position for position, _ in a] == [4 * (i + 1) for i in range(20)]
    flat = [x for _, part in a for x in part]
    epochs = [flat[i : i + 12] for i in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_position_continues_the_stream(processes):
    settings = dict(seed=5, batch=8)
    for index in range(processes):
        whole = _take(9, range(21), part=(index, processes), **settings)
        for cut in (1, 4):
            start = whole[cut - 1][0]
            rest = _take(
                9 - cut, range(21), part=(index, processes), start=start, **settings
            )
            assert rest == whole[cut:]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_partition_every_batch(processes):
    whole = _take(9, range(21), seed=5, batch=8)
    parts = [
        _take(9, range(21), seed=5, batch=8, part=(i, processes))
        for i in range(processes)
    ]
    for step, (position, batch) in enumerate(whole):
        assert all(part[step][0] == position for part in parts)
        assert [x for part in parts for x in part[step][1]] == batch


def test_a_process_reads_its_own_examples_alone():
    for index in range(2):
        source = Read(range(21))
        mode = dict(part=(index, 2))
        given = [
            x for _, part in _take(5, source, seed=5, batch=8, **mode) for x in part
        ]
        assert len(given) == 20 and source.seen[:20] == given
        assert len(source.seen) <= 20 + 4 * (AHEAD + 1)


class Read(Sequence):
    """A source that remembers what was read of it, in order."""

    def __init__(self, holder):
        self.held, self.seen = holder, []

    def __len__(self):
        return len(self.held)

    def __getitem__(self, index):
        self.seen.append(self.held[index])
        return self.held[index]


AHEAD = 2  # batches that wait, at most; one more is being read


def test_no_more_is_read_ahead_than_asked_and_the_rest_comes_again():
    """The position to save is what was given out, not what was read."""
    source = Read(range(1000))
    stream = loader.batches(source, seed=0, batch=8, read=ReadOptions(1, AHEAD))
    for _ in range(3):
        position, _ = next(stream)
    for _ in range(100):  # the reader goes on until its room is full
        time.sleep(0.01)
        if len(source.seen) >= position + 8 * (AHEAD + 1):
            break
    time.sleep(0.05)
    read = len(source.seen)
    assert position == 24 < read <= position + 8 * (AHEAD + 1)
    again = loader.batches(Read(range(1000)), seed=0, batch=8, start=position)
    assert next(again) == next(stream)


def test_a_finite_stream_ends_and_drops_its_remainder():
    actual = list(loader.batches(range(10), seed=0, batch=4, epochs=2))
    assert [position for position, _ in actual] == [4, 8, 12, 16, 20]
    flat = [x for _, part in actual for x in part]
    assert sorted(flat) == sorted([*range(10)] * 2)
    assert len(list(loader.batches(range(10), seed=0, batch=4, epochs=1))) == 2
    halves = dict(seed=0, batch=2, epochs=1)
    two = [
        len(list(loader.batches(range(11), part=(i, 2), **halves))) for i in range(2)
    ]
    assert two == [5, 5]


def test_batches_of_stored_examples(stored):
    source = loader.load(stored, "train")
    ids = [
        e.id
        for _, part in loader.batches(source, seed=0, batch=8, epochs=1)
        for e in part
    ]
    assert sorted(ids) == sorted(e.id for e in source) and ids != [e.id for e in source]


@pytest.mark.parametrize(
    "settings, why",
    [
        (
            dict(batch=3, part=(0, 2)),
            "expected a multiple of the 2 processes, got 3",
        ),
        (dict(batch=0), "batch: expected a multiple"),
        (dict(batch=2, part=(1, 1)), "process_index: expected 0 to 0, got 1"),
        (dict(batch=2, start=-1), "start: expected at least 0, got -1"),
        (dict(batch=30, epochs=2), "at most the 10 examples × 2 epochs"),
    ],
)
def test_sizes_that_do_not_fit(settings, why):
    with pytest.raises(UserError, match=why):
        next(loader.batches(range(10), seed=0, **settings))


def test_a_mixture_follows_its_weights_and_continues():
    parts = [range(50), range(100, 107)]
    settings = dict(seed=3, batch=4, weights=[3, 1])
    whole = _take(50, parts, **settings)
    flat = [x for _, part in whole for x in part]
    assert sum(x < 100 for x in flat) == 150
    assert {x for x in flat if x >= 100} == set(parts[1])
    assert _take(20, parts, start=whole[29][0], **settings) == whole[30:]
    halves = [_take(50, parts, part=(i, 2), **settings) for i in (0, 1)]
    for step, (_, batch) in enumerate(whole):
        assert [x for half in halves for x in half[step][1]] == batch
    for wrong, why in [
        (dict(weights=[1]), "expected 2 numbers above 0"),
        (dict(weights=[1, 0]), "expected 2 numbers above 0"),
        (dict(weights=[1, 1], epochs=1), "epochs: expected None"),
    ]:
        with pytest.raises(UserError, match=why):
            next(loader.batches(parts, seed=0, batch=2, **wrong))


def test_prefetch_changes_nothing():
    plain = _take(9, range(21), seed=5, batch=8)
    assert plain == _take(9, range(21), seed=5, batch=8, read=ReadOptions(4, 8))


def test_time_waited_is_counted():
    waited = loader.TimedIterator(iter([1, 2]))
    assert list(waited) == [1, 2] and 0 < waited.seconds < 5
    assert waited.taken() > 0 and waited.taken() == 0


def test_prepared_sets_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = published.write("cv_bench", tmp_path / "in")
    build.build(sets.SETS["cv_bench"], "3D", root, tmp_path / "shared")
    with pytest.raises(UserError, match="run `vlmrl data prepare cv_bench` first"):
        loader.examples_of("cv_bench", "3D", 0, tmp_path / "data")
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(tmp_path / "shared"))
    assert len(loader.examples_of("cv_bench", "3D", 0, tmp_path / "data")) == 2
    (one,) = loader.examples_of("cv_bench", "3D", 1, tmp_path / "data")
    assert one.id == "3D/0" and loader.splits_of("cv_bench", tmp_path) == ["3D"]
    with pytest.raises(UserError, match="split 3D has 2 examples, not 3"):
        loader.examples_of("cv_bench", "3D", 3, tmp_path / "data")
    assert len(loader.examples_of("scenes", "test", 2, tmp_path / "data")) == 2


def test_nothing_imports_tensorflow(stored):
    code = (
        "import sys; from vlmrl.data import loader; "
        f"s = loader.load({str(stored)!r}, 'test'); "
        "next(loader.batches(s, seed=0, batch=2)); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_sample_has_every_category_in_proportion():
    base = next(iter(scenes.suite("test", 1)))
    tasks = ["count"] * 342 + ["depth"] * 150 + ["rare"] * 8
    items = [base._replace(id=str(i), task=t) for i, t in enumerate(tasks)]
    for n, expected in ((50, (34, 15, 1)), (3, (1, 1, 1)), (500, (342, 150, 8))):
        chosen = loader.stratified(items, n)
        assert chosen == sorted(set(chosen)) and len(chosen) == n
        counts = [
            sum(tasks[i] == t for i in chosen) for t in ("count", "depth", "rare")
        ]
        assert np.abs(np.array(counts) - expected).max() <= 1
    assert loader.stratified(items, 50) != list(range(50))
    back = [items[i] for i in reversed(range(500))]
    same = {back[i].id for i in loader.stratified(back, 50)}
    assert same == {items[i].id for i in loader.stratified(items, 50)}
    assert len(loader.stratified(items, 2)) == 2
