"""Example ↔ TFDS: one feature per field, image files byte for byte."""

from __future__ import annotations

from typing import get_type_hints

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vlmrl.types import Example

_text = tfds.features.Text
# Type of a field of Example → (feature, how it reads back from a stored record, which
# takes half the time that TFDS's arrays take).
_KINDS = {
    str: (_text(), lambda v: v.bytes_list.value[0].decode()),
    int: (tfds.features.Scalar(np.int32), lambda v: v.int64_list.value[0]),
    bool: (tfds.features.Scalar(np.bool_), lambda v: bool(v.int64_list.value[0])),
    tuple[str, ...]: (
        tfds.features.Sequence(_text()),
        lambda v: tuple(item.decode() for item in v.bytes_list.value),
    ),
    tuple[bytes, ...]: (
        tfds.features.Sequence(_text()),
        lambda v: tuple(v.bytes_list.value),
    ),
}
FIELDS = {field: _KINDS[kind] for field, kind in get_type_hints(Example).items()}
FEATURES = tfds.features.FeaturesDict(
    {f: feature for f, (feature, _) in FIELDS.items()}
)


def example(record: bytes) -> Example:
    """The Example of a record that TFDS stores (`serialised`)."""
    held = tf_example_pb2.Example.FromString(record).features.feature
    return Example(**{f: read(held[f]) for f, (_, read) in FIELDS.items()})


def serialised(example: Example) -> bytes:
    """The record TFDS stores."""
    return FEATURES.serialize_example(FEATURES.encode_example(example._asdict()))
