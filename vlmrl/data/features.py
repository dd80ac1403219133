"""Example ↔ TFDS: one feature per field, image files byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from vlmrl.answers import kinds
from vlmrl.types import Example, UserError

_text = tfds.features.Text


class _Kind(NamedTuple):
    """How a field is stored in a TFDS record. Reading the record directly takes half
    the time of TFDS's arrays, writing it a ninth."""

    feature: Any
    write: Callable[[Any, Any], None]  # into a tf.train.Feature
    read: Callable[[Any], Any]  # out of one


def _write_bytes(to, values: Iterable[bytes]) -> None:
    to.bytes_list.SetInParent()  # an empty list is written as well
    to.bytes_list.value.extend(values)


def _write_int(to, value: int | bool) -> None:
    to.int64_list.value.append(int(value))


# By the type of a field of Example.
_KINDS = {
    str: _Kind(
        _text(),
        lambda to, v: _write_bytes(to, [v.encode()]),
        lambda f: f.bytes_list.value[0].decode(),
    ),
    int: _Kind(
        tfds.features.Scalar(np.int32), _write_int, lambda f: f.int64_list.value[0]
    ),
    bool: _Kind(
        tfds.features.Scalar(np.bool_),
        _write_int,
        lambda f: bool(f.int64_list.value[0]),
    ),
    tuple[str, ...]: _Kind(
        tfds.features.Sequence(_text()),
        lambda to, v: _write_bytes(to, (item.encode() for item in v)),
        lambda f: tuple(item.decode() for item in f.bytes_list.value),
    ),
    tuple[bytes, ...]: _Kind(
        tfds.features.Sequence(_text()),
        _write_bytes,
        lambda f: tuple(f.bytes_list.value),
    ),
}
FIELDS = {field: _KINDS[kind] for field, kind in get_type_hints(Example).items()}
FEATURES = tfds.features.FeaturesDict(
    {field: kind.feature for field, kind in FIELDS.items()}
)


def example(record: bytes) -> Example:
    """Return the Example of a record that TFDS stores (`serialised`)."""
    raw = tf_example_pb2.Example.FromString(record).features.feature
    e = Example(
        **{
            field: kind.read(raw[field])
            for field, kind in FIELDS.items()
            if field in raw
        }
    )
    return e._replace(kind=kinds.kind_of(e))


def serialised(example: Example) -> bytes:
    """Return the record that TFDS stores: what `FEATURES` would write, field by
    field."""
    record = tf_example_pb2.Example()
    raw = record.features.feature
    for field, kind in FIELDS.items():
        kind.write(raw[field], getattr(example, field))
    return record.SerializeToString(deterministic=True)


# -- data sets -------------------------------------------------------------------------


class Shard(NamedTuple):
    """A file of records before it has its final name."""

    path: Path
    examples: int
    bytes: int  # of the records


def writer(path: Path) -> array_record_module.ArrayRecordWriter:
    """Return a writer of records: one per group, uncompressed, as images are
    compressed already."""
    return array_record_module.ArrayRecordWriter(
        os.fspath(path), "group_size:1,uncompressed"
    )


def write_shard(path: Path, examples: Iterable[Example]) -> Shard:
    """Write examples to a file. Raises UserError where an id occurs twice."""
    ids, size, file = set(), 0, writer(path)
    try:
        for e in examples:
            if e.id in ids:
                raise UserError(f"{e.source}: the id {e.id} occurs twice")
            ids.add(e.id)
            record = serialised(e)
            size += len(record)
            file.write(record)
    finally:
        file.close()
    return Shard(path, len(ids), size)


def write_metadata(
    folder: Path,
    name: str,
    version: str,
    splits: Mapping[str, Sequence[Shard]],
    about: str = "",
) -> None:
    """Rename the shards of each split as TFDS does and describe the data set."""
    name = name if name[0].isalpha() else f"set_{name}"  # TFDS wants a letter first
    infos = []
    for split, shards in splits.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name,
            split=split,
            filetype_suffix="array_record",
            data_dir=folder,
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        count = len(shards)
        for i, shard in enumerate(shards):
            path = template.sharded_filepath(shard_index=i, num_shards=count)
            if not Path(path).exists():  # already renamed before an interruption
                os.replace(shard.path, path)
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[s.examples for s in shards],
                num_bytes=sum(s.bytes for s in shards),
                filename_template=template,
            )
        )
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=os.fspath(folder),
        module_name="",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=about,
        features=FEATURES,
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
