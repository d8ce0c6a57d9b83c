"""One record of a data set: a picture as encoded bytes, and what is known of it."""

from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2


class Record(NamedTuple):
    """One picture of one character."""

    image: bytes  # an image file: JPEG, PNG or WebP
    mask: bytes  # of the same size, PNG, 255 where the character is; empty: none
    caption: str
    character: str
    view: str
    style: str
    file: str  # where it came from
    width: int  # upright, pixels
    height: int


# Bytes and not tfds' Image: that one wants a single format and number of channels, and decodes.
FEATURES = tfds.features.FeaturesDict(
    {
        name: np.int32 if kind is int else tfds.features.Scalar(np.bytes_)
        for name, kind in Record.__annotations__.items()
    }
)


def encode(record: Record) -> bytes:
    """The record as tensorflow-datasets stores it, the same bytes in every process."""
    values = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in record._asdict().items()
    }
    data = FEATURES.serialize_example(FEATURES.encode_example(values))
    # Its fields are a map, which protobuf writes in an order that differs from run to run.
    return tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """The inverse of `encode`."""
    values = FEATURES.deserialize_example_np(data)
    kinds = Record.__annotations__
    return Record(
        **{
            name: value.decode() if kinds[name] is str else kinds[name](value)
            for name, value in values.items()
        }
    )
