"""Example ↔ TFDS: one feature per field, image files byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vlmrl.types import Example

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
    return Example(**{field: kind.read(raw[field]) for field, kind in FIELDS.items()})


def serialised(example: Example) -> bytes:
    """Return the record that TFDS stores: what `FEATURES` would write, field by
    field."""
    record = tf_example_pb2.Example()
    raw = record.features.feature
    for field, kind in FIELDS.items():
        kind.write(raw[field], getattr(example, field))
    return record.SerializeToString(deterministic=True)
