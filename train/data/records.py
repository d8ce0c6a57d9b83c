"""Records of a data set: an encoded picture with its metadata, and their serialization."""

from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from train.data.focus import Box


class Record(NamedTuple):
    """One picture of one character."""

    image: bytes  # an image file: JPEG, PNG or WebP
    mask: bytes  # PNG of the same size, 255 where the character is; empty if there is none
    caption: str
    character: str
    view: str
    style: str
    file: str  # path within the source
    width: int  # of the upright picture, pixels
    height: int
    focus: tuple[Box, ...] = ()  # regions of extra weight in the loss, such as faces


# Bytes, not tfds' Image, which decodes and requires one format and number of channels for all.
FEATURES = tfds.features.FeaturesDict(
    {
        name: np.int32 if kind is int else tfds.features.Scalar(np.bytes_)
        for name, kind in Record.__annotations__.items()
        if name != "focus"
    }
    | {"focus": tfds.features.Tensor(shape=(None, 4), dtype=np.float32)}
)


def serialize(record: Record) -> bytes:
    """Serialize a record as tensorflow-datasets does, to the same bytes in every process."""
    values = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in record._asdict().items()
    }
    values["focus"] = np.array(record.focus, np.float32).reshape(-1, 4)
    data = FEATURES.serialize_example(FEATURES.encode_example(values))
    # The fields are a protobuf map, whose order otherwise differs from run to run.
    return tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def deserialize(data: bytes) -> Record:
    """Return the record that `serialize` made the bytes of."""
    values = FEATURES.deserialize_example_np(data)
    boxes = values.pop("focus")  # None in data sets of versions without focus boxes
    kinds = Record.__annotations__
    return Record(
        **{
            name: value.decode() if kinds[name] is str else kinds[name](value)
            for name, value in values.items()
        },
        focus=() if boxes is None else tuple(map(tuple, boxes.tolist())),
    )
