"""Example ↔ TFDS: one feature per field, image files byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np
import tensorflow_datasets as tfds

from vlmrl.types import Example

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
FIELDS = {field: _KINDS[kind] for field, kind in get_type_hints(Example).items()}
FEATURES = tfds.features.FeaturesDict(
    {f: feature for f, (feature, _) in FIELDS.items()}
)


def example(row: Mapping[str, Any]) -> Example:
    """The Example of a row as TFDS reads it."""
    return Example(**{f: read(row[f]) for f, (_, read) in FIELDS.items()})


def serialised(example: Example) -> bytes:
    """The record TFDS stores."""
    return FEATURES.serialize_example(FEATURES.encode_example(example._asdict()))
