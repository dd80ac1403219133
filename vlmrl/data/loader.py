"""Examples on disk as a TFDS data set (array_record, no TensorFlow), read by grain.

Every field of `Example` is a feature, so a data set comes back as what its source made,
image files byte for byte. `prepare` writes, `load` reads, `batches` is the training
stream.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_type_hints

import grain.python as grain
import numpy as np
import tensorflow_datasets as tfds

from vlmrl.data import scenes
from vlmrl.types import Example, UserError

# Source → (split, n) → its first n examples.
SOURCES: dict[str, Callable[[str, int], Iterable[Example]]] = {"scenes": scenes.suite}

_HASHED = 12  # examples that a data set is recognised by

_text = tfds.features.Text
# Type of a field of Example → (feature, how it reads back).
_KINDS = {
    str: (_text(), lambda v: v.decode()),
    int: (tfds.features.Scalar(np.int32), int),
    bool: (tfds.features.Scalar(np.bool_), bool),
    tuple[str, ...]: (
        tfds.features.Sequence(_text()),
        lambda v: tuple(item.decode() for item in v),
    ),
    tuple[bytes, ...]: (
        tfds.features.Sequence(_text()),
        lambda v: tuple(bytes(item) for item in v),
    ),
}
_FIELDS = {field: _KINDS[kind] for field, kind in get_type_hints(Example).items()}


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of Examples in the order given."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # found through importlib_resources otherwise, a missing package

    def __init__(self, *, name: str, splits: dict[str, Iterable[Example]], **kwargs):
        self.name, self._splits = name, splits
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {field: feature for field, (feature, _) in _FIELDS.items()}
            ),
        )

    def _split_generators(self, dl_manager):
        return {s: self._generate_examples(e) for s, e in self._splits.items()}

    def _generate_examples(self, examples):
        ids = set()  # TFDS accepts duplicate keys where it does not shuffle
        for i, example in enumerate(examples):
            if example.id in ids:
                raise UserError(f"{self.name}: the id {example.id} occurs twice")
            ids.add(example.id)
            yield i, example._asdict()


def _key(source: str, sizes: dict[str, int]) -> str:
    """Directory name of one request: split sizes, and a hash of every split's first
    examples, so that what an older source wrote is not taken for today's."""
    firsts = [
        tuple(SOURCES[source](split, min(n, _HASHED))) for split, n in sizes.items()
    ]
    digest = hashlib.sha256(repr((Example._fields, firsts)).encode()).hexdigest()[:8]
    return "-".join([f"{split}{n}" for split, n in sizes.items()] + [digest])


def prepare(source: str, sizes: dict[str, int], data_dir: str | os.PathLike) -> Path:
    """Writes the first examples of a source and returns their directory, for `load`.

    What is there already stays. A directory appears under its final name when it is
    whole, so a run that is cut off, or two at once, leave nothing half-written there.

    Args:
      source: a name in `SOURCES`.
      sizes: split → number of examples, at least 1.
      data_dir: the root under which data sets lie.

    Raises UserError on an unknown source, a size below 1, an id that occurs twice, or a
    root that can't be written.
    """
    if source not in SOURCES:
        raise UserError(f"data source {source!r} is not one of {', '.join(SOURCES)}")
    for split, n in sizes.items():
        if n < 1:
            raise UserError(f"data source {source}: size of {split} is {n}, needs >= 1")
    final = Path(data_dir) / source / _key(source, sizes)
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
        splits = {split: SOURCES[source](split, n) for split, n in sizes.items()}
        builder = _Builder(
            name=source, splits=splits, data_dir=work, file_format="array_record"
        )
        with contextlib.redirect_stdout(None):  # it says that it downloads
            tfds.disable_progress_bar()
            builder.download_and_prepare()
        try:
            os.rename(builder.data_path, final)
        except OSError:
            if not final.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


class Source(Sequence):
    """Random access to the Examples of a stored split; picklable."""

    def __init__(self, records, where: str):
        self._records, self._where = records, where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        row = self._records[range(len(self))[index]]
        return Example(**{f: read(row[f]) for f, (_, read) in _FIELDS.items()})

    def __repr__(self) -> str:
        return f"Source({self._where}, {len(self)} examples)"


def load(directory: str | os.PathLike, split: str) -> Source:
    """The stored examples of a split, in the order of their source.

    Raises UserError where the directory holds no data set or no such split.
    """
    try:
        builder = tfds.builder_from_directory(os.fspath(directory))
    except (OSError, tfds.core.DatasetNotFoundError) as error:
        raise UserError(f"{directory}: holds no data set; prepare it first") from error
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise UserError(f"{directory}: split {split!r} is not one of {known}")
    missing = sorted(set(_FIELDS) ^ set(builder.info.features))
    if missing:
        raise UserError(
            f"{directory}: fields {', '.join(missing)} differ from today's Example; "
            "prepare it again"
        )
    return Source(builder.as_data_source(split=split), f"{directory} {split}")


def batches(
    source: Sequence[Example],
    *,
    seed: int,
    batch: int,
    epochs: int | None = None,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[int, list[Example]]]:
    """Yields (position, this process's part of one global batch).

    The stream of all processes together is `source` shuffled anew by `seed` in every
    epoch; it and its cutting into batches depend on neither `start` nor the number of
    processes. `position` is how many examples of the stream have been given out, this
    batch included: the one number to save, and the `start` that continues after it.

    Args:
      source: examples by index.
      seed: of the order.
      batch: examples of the global batch.
      epochs: passes over the source, None for no end. The examples left over at the
        very end, too few for a whole batch, are dropped.
      start: position to continue from.
      process_index, process_count: this process takes every `process_count`-th example
        of a batch, from `process_index` on.

    Raises UserError where the sizes don't fit each other.
    """
    if batch < 1 or batch % process_count:
        raise UserError(
            f"batch is {batch}, needs a multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process_index is {process_index}, needs 0 to {process_count - 1}"
        )
    if start < 0:
        raise UserError(f"start is {start}, needs >= 0")
    if not len(source) or (epochs is not None and epochs * len(source) < batch):
        raise UserError(
            f"batch is {batch}, more than the {len(source)} examples"
            + (f" × {epochs} epochs" if epochs is not None else "")
        )
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    end = start + max(0, len(stream) - start) // batch * batch
    mine = stream[start + process_index : end : process_count]
    part = mine.batch(batch // process_count, drop_remainder=True, batch_fn=list)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    for i, examples in enumerate(part.to_iter_dataset(reading)):
        yield start + (i + 1) * batch, examples
