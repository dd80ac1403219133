"""Examples on disk as a TFDS data set (array_record, no TensorFlow), read by grain.

Every field of `Example` is a feature, so a data set round-trips what its source made,
image files byte for byte. `prepare` writes, `load` reads, `batches` is the training
stream.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import grain.python as grain
import tensorflow_datasets as tfds

from vlmrl import user_code
from vlmrl.data import build, features, scenes, texts
from vlmrl.types import Example, UserError

# Procedural source → a function (split, n) → its first n examples. A user's own,
# path/to/file.py:name, has the same signature; n = 0 asks for all that it has.
SOURCES: dict[str, Callable[[str, int], Iterable[Example]]] = {"scenes": scenes.suite}

# Where prepared sets are searched after a run's own directory: in the root that this
# variable names, then in the default one of `vlmrl data prepare`.
ROOT_VARIABLE = "VLMRL_DATA"
ROOT = Path("runs/data/data")

READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
RAW = tfds.decode.DeserializeMethod.RAW_BYTES
_HASHED = 12  # examples whose hash identifies a data set


def is_procedural(source: str) -> bool:
    """Return whether a source's examples are made on the spot, by one of SOURCES or by
    a user's own function."""
    return source in SOURCES or user_code.is_own(source)


def source_of(name: str, field: str = "") -> Callable[[str, int], Iterable[Example]]:
    """Return the function (split, n) → examples of a procedural source.

    Raises:
      UserError: an unknown name, a file without the function or with another one.
    """
    kind = "" if field else "data source"
    function = user_code.lookup(name, SOURCES, field, ("split", "n"), kind=kind)
    if not user_code.is_own(name):
        return function
    return lambda split, n: _own(function, split, n)


def _own(function: Callable, split: str, n: int) -> Iterator[Example]:
    """Yield the first n examples of a user's source, all of them for n = 0."""
    place, index = f"split {split!r}", -1
    try:
        stream = itertools.islice(function(split, n), n or None)
        for index, e in enumerate(stream):
            place = f"split {split!r}, example {index}"
            if not isinstance(e, Example):
                kind = type(e).__name__
                raise user_code.failure(
                    function, place, f"expected an Example, got {kind}"
                )
            if not 0 <= e.answer < len(e.options):
                raise user_code.failure(
                    function,
                    f"{place} ({e.id!r})",
                    f"answer: expected the index of one of {len(e.options)} options "
                    f"(of an open item, its gold answers), got {e.answer}",
                )
            if e.suggested == -1:
                wrong = build.suggested(e.options, e.answer, 0, e.source, e.id)
                e = e._replace(suggested=wrong)
            yield e
    except UserError:
        raise
    except Exception as error:
        raise user_code.raised(function, place, error) from error
    if index + 1 < max(n, 1):
        raise user_code.failure(
            function, f"split {split!r}", f"has {index + 1} examples, not {n or 'any'}"
        )


def _key(source: str, sizes: dict[str, int]) -> str:
    """Return the directory name of one request: split sizes, and a hash of every
    split's first examples, so that what an older source wrote is not taken for
    today's."""
    make = source_of(source)
    firsts = [
        tuple(itertools.islice(make(split, min(n, _HASHED)), _HASHED))
        for split, n in sizes.items()
    ]
    own = user_code.hash_of(source) if user_code.is_own(source) else ""
    text = repr((Example._fields, firsts)) + own
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return "-".join([f"{split}{n}" for split, n in sizes.items()] + [digest])


def prepare(source: str, sizes: dict[str, int], data_dir: str | os.PathLike) -> Path:
    """Write the first examples of a source and return their directory, for `load`.

    Existing data is left alone. The directory gets its final name once it is complete,
    so that an interrupted run, or two at once, leave nothing half-written.

    Args:
      source: a name in `SOURCES`, or path/to/file.py:name.
      sizes: split → number of examples, at least 1; of a user's own also 0, for all.
      data_dir: the root of prepared data sets.

    Raises UserError on an unknown source, a size below 1, an id that occurs twice, or a
    root that can't be written.
    """
    if not is_procedural(source):
        raise UserError(f"data source {source!r} is not one of {', '.join(SOURCES)}")
    for split, n in sizes.items():
        if n < (0 if user_code.is_own(source) else 1):
            raise UserError(
                f"data source {source}: size of {split}: expected at least 1, got {n}"
            )
    name = user_code.short(source)
    final = Path(data_dir) / name / _key(source, sizes)
    if final.exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=final.parent))
    except OSError as error:
        raise UserError(
            f"data_dir {data_dir}: not writable: {error.strerror}"
        ) from error
    try:
        folder = work / "data"  # with the permissions of any new directory
        folder.mkdir()
        shards = {
            split: [features.write_shard(folder / split, source_of(source)(split, n))]
            for split, n in sizes.items()
        }
        features.write_metadata(folder, name, "1.0.0", shards)
        try:
            os.rename(folder, final)
        except OSError:
            if not final.exists():  # another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


class StoredExamples(Sequence):
    """Random access to the Examples of a stored split; picklable."""

    def __init__(self, records, directory: Path, split: str):
        self._records, self.directory, self.split = records, directory, split

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return features.example(self._records[range(len(self))[index]])

    def __repr__(self) -> str:
        return f"StoredExamples({self.directory} {self.split}, {len(self)} examples)"


def load(directory: str | os.PathLike, split: str) -> StoredExamples:
    """Return the stored examples of a split, in the order of their source.

    Raises UserError where the directory holds no data set or no such split.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(directory))
    except (OSError, tfds.core.DatasetNotFoundError) as error:
        raise UserError(f"{directory}: holds no data set; prepare it first") from error
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{directory}: split {split!r} is not one of {known}")
    missing = sorted(set(features.FIELDS) ^ {*builder.info.features, "kind"})
    if missing:
        raise UserError(
            f"{directory}: fields {', '.join(missing)} differ from today's Example; "
            "prepare it again"
        )
    records = builder.as_data_source(split=split, deserialize_method=RAW)
    return StoredExamples(records, Path(directory), split)


def examples_of(
    source: str, split: str, n: int, data_dir: str | os.PathLike, texts_file: str = ""
) -> Sequence[Example]:
    """Return n examples of a source's split, all of them for n = 0: the first of a
    procedural source, a sample of a prepared set (`stratified`).

    A procedural source is written under `data_dir` if it is missing. Any other source
    was prepared by `vlmrl data prepare` under `data_dir`, $VLMRL_DATA or
    runs/data/data; under its name there may be a published set or one of your own.
    `texts_file` holds texts that take the place of the examples' own (`texts.py`).
    """
    examples = _examples(source, split, n, data_dir)
    return (
        texts.WithTexts(examples, texts.read(Path(texts_file)))
        if texts_file
        else examples
    )


def _examples(source, split, n, data_dir) -> Sequence[Example]:
    if is_procedural(source):
        return load(prepare(source, {split: n}, data_dir), split)
    stored = load(where(source, split, data_dir), split)
    if not 0 <= n <= len(stored):
        raise UserError(
            f"data source {source}: split {split} has {len(stored)} examples, not {n}"
        )
    return stored if n == 0 else Subset(stored, stratified(stored, n))


def stratified(examples: Sequence[Example], n: int) -> list[int]:
    """Return the indices, ascending, of n examples drawn by category: from each task in
    proportion to its share, by largest remainder, and from each at least one where n
    allows it. Which ones, a hash of their ids decides, the same on every machine."""
    by_task: dict[str, list[tuple[int, int]]] = {}
    for i, e in enumerate(examples):
        by_task.setdefault(e.task, []).append((build.draw("sample", e.source, e.id), i))
    least = 1 if n >= len(by_task) else 0
    rest = n - least * len(by_task)
    left = sum(len(part) for part in by_task.values()) - least * len(by_task)
    exact = {t: rest * (len(p) - least) / max(1, left) for t, p in by_task.items()}
    counts = {t: least + int(x) for t, x in exact.items()}
    order = sorted(by_task, key=lambda t: (int(exact[t]) - exact[t], t))
    for task in order[: n - sum(counts.values())]:
        counts[task] += 1
    return sorted(i for t, p in by_task.items() for _, i in sorted(p)[: counts[t]])


def names_of(source: str) -> list[str]:
    """Return the sources that a config names: one, or several separated by commas."""
    return [name.strip() for name in source.split(",") if name.strip()]


def mixture(
    source: str,
    split: str,
    n: int,
    data_dir: str | os.PathLike,
    weights: Sequence[float] = (),
    texts_file: str = "",
) -> tuple[Sequence, list[float] | None]:
    """Return (source, weights) as `batches` takes them: one source by name, or several
    mixed by weight, equal ones unless given; each the first n as `examples_of` finds
    them."""
    names = names_of(source)
    if not names or (weights and len(weights) != len(names)):
        raise UserError(
            f"data source {source!r}: names {len(names)} sources, weights are "
            f"{list(weights)}; needs one or more, and a weight for each"
        )
    parts = [examples_of(name, split, n, data_dir, texts_file) for name in names]
    if len(parts) == 1:
        return parts[0], None
    return parts, list(weights or [1] * len(parts))


def where(source: str, split: str, data_dir: str | os.PathLike) -> Path:
    """Return the directory of a prepared split. Raises UserError where there is
    none."""
    for root in _roots(data_dir):
        if (path := build.directory(root, source, split)).exists():
            return path
    raise UserError(
        f"data source {source!r} is not one of {', '.join(SOURCES)}, no"
        f" {user_code.FORM}, and no prepared"
        f" {source}/{split} lies under {data_dir}, ${ROOT_VARIABLE} or {ROOT}: run"
        f" `vlmrl data prepare {source}` first"
    )


def splits_of(source: str, data_dir: str | os.PathLike) -> list[str]:
    """Return the prepared splits of a source, by name."""
    return sorted(
        {
            path.parent.name
            for root in _roots(data_dir)
            for path in (root / source).glob(f"*/{build.VERSION}")
        }
    )


def _roots(data_dir: str | os.PathLike) -> list[Path]:
    named = os.environ.get(ROOT_VARIABLE)
    return [Path(data_dir), *([Path(named)] if named else []), ROOT]


class Subset(Sequence):
    """Some items of a stored split, read on access."""

    def __init__(self, whole: StoredExamples, indices: Sequence[int]):
        self._whole, self.indices = whole, list(indices)
        self.directory, self.split = whole.directory, whole.split

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self._whole[self.indices[index]]


class Chosen(Sequence):
    """Some items of any sequence, read on access."""

    def __init__(self, whole: Sequence, indices: Sequence[int]):
        self._whole, self._indices = whole, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._whole[self._indices[index]]


class TimedIterator(Iterator):
    """An iterator that sums the seconds its caller has waited for it."""

    def __init__(self, stream: Iterator):
        self._stream, self.seconds = stream, 0.0

    def __next__(self):
        began = time.monotonic()
        try:
            return next(self._stream)
        finally:
            self.seconds += time.monotonic() - began

    def taken(self) -> float:
        """Return and reset the seconds waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def batches(
    source: Sequence[Example] | Sequence[Sequence[Example]],
    *,
    seed: int,
    batch: int,
    epochs: int | None = None,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
    read: grain.ReadOptions = READ,
    weights: Sequence[float] | None = None,
) -> Iterator[tuple[int, list[Example]]]:
    """Yield (position, this process's part of one global batch).

    The stream of all processes together is `source` shuffled anew by `seed` in every
    epoch; it and its cutting into batches depend on neither `start` nor the number of
    processes. `position` counts the examples of the stream yielded so far, this batch
    included: the one number to save, and the `start` that continues after it.

    Args:
      source: examples by index; with `weights` several such, mixed.
      seed: of the order.
      batch: examples of the global batch.
      epochs: passes over the source, None for no end. Examples left over at the
        end, too few for a whole batch, are dropped.
      start: position to continue from.
      part: (index, count): a batch is cut into `count` equal runs, of which this
        process reads number `index` (`sharding.part`).
      read: threads that read, and the batches they prefetch at most.
      weights: share of each source in the stream, in any unit. Each is shuffled and
        repeated by itself, without end.

    Raises UserError where the sizes are inconsistent.
    """
    process_index, process_count = part
    if batch < 1 or batch % process_count:
        raise UserError(
            f"batch: expected a multiple of the {process_count} processes, got {batch}"
        )
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process_index: expected 0 to {process_count - 1}, got {process_index}"
        )
    if start < 0:
        raise UserError(f"start: expected at least 0, got {start}")
    if weights is not None:
        _check_mixture(source, weights, epochs)
    elif not len(source) or (epochs is not None and epochs * len(source) < batch):
        raise UserError(
            f"batch: expected at most the {len(source)} examples"
            + (
                f" × {epochs} epochs, got {batch}"
                if epochs is not None
                else f", got {batch}"
            )
        )
    stream = stream_of(source, seed=seed, epochs=epochs, weights=weights)
    size = batch // process_count
    count = max(0, len(stream) - start) // batch * size
    first = start + process_index * size
    mine = grain.MapDataset.range(count).map(
        lambda i: stream[first + i // size * batch + i % size]
    )
    runs = mine.batch(size, drop_remainder=True, batch_fn=list)
    for i, examples in enumerate(runs.to_iter_dataset(read)):
        yield start + (i + 1) * batch, examples


def stream_of(source, *, seed: int, epochs: int | None = None, weights=None):
    """Return the stream that `batches` cuts: the example at a position, by index."""
    if weights is None:
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    parts = [
        grain.MapDataset.source(part).seed(seed + i).shuffle().repeat()
        for i, part in enumerate(source)
    ]
    return grain.MapDataset.mix(parts, [w / sum(weights) for w in weights])


def _check_mixture(sources, weights, epochs) -> None:
    if len(sources) != len(weights) or not all(w > 0 for w in weights):
        raise UserError(
            f"weights: expected {len(sources)} numbers above 0, one per source, got"
            f" {list(weights)}"
        )
    if epochs is not None:
        raise UserError(
            f"epochs: expected None for a mixture, which has no end, got {epochs}"
        )
    if not all(len(part) for part in sources):
        raise UserError("a source of the mixture is empty")
