"""One record of a data set: a picture as encoded bytes, and what is known of it."""

from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from train.data.focus import Box


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
    focus: tuple[Box, ...] = ()  # what counts most, such as faces


# Bytes and not tfds' Image: that one wants a single format and number of channels, and decodes.
FEATURES = tfds.features.FeaturesDict(
    {
        name: np.int32 if kind is int else tfds.features.Scalar(np.bytes_)
        for name, kind in Record.__annotations__.items()
        if name != "focus"
    }
    | {"focus": tfds.features.Tensor(shape=(None, 4), dtype=np.float32)}
)


def encode(record: Record) -> bytes:
    """The record as tensorflow-datasets stores it, the same bytes in every process."""
    values = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in record._asdict().items()
    }
    values["focus"] = np.array(record.focus, np.float32).reshape(-1, 4)
    data = FEATURES.serialize_example(FEATURES.encode_example(values))
    # Its fields are a map, which protobuf writes in an order that differs from run to run.
    return tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """The inverse of `encode`."""
    values = FEATURES.deserialize_example_np(data)
    boxes = values.pop("focus")  # None in data sets that were made before there were any
    kinds = Record.__annotations__
    return Record(
        **{
            name: value.decode() if kinds[name] is str else kinds[name](value)
            for name, value in values.items()
        },
        focus=() if boxes is None else tuple(map(tuple, boxes.tolist())),
    )
