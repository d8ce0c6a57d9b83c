"""Records of a data set: an encoded picture with its metadata, and their serialization."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from train.data.boxes import Box
from train.data.subject_boxes import SubjectBox
from train.limits import MAX_SUBJECTS


class Record(NamedTuple):
    """One picture of one character, or of several."""

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
    subjects: tuple[SubjectBox, ...] = ()  # `character` first; empty: it alone, in all the picture

    @property
    def characters(self) -> list[str]:
        """The characters that the picture shows, `character` first."""
        return [subject.character for subject in self.subjects] or [self.character]

    def box_of(self, character: str) -> Box | None:
        """Return the box around a character; None where the whole picture shows it alone."""
        return next((s.box for s in self.subjects if s.character == character), None)


# Bytes, not tfds' Image, which decodes and requires one format and number of channels for all.
FEATURES = tfds.features.FeaturesDict(
    {
        name: np.int32 if kind is int else tfds.features.Scalar(np.bytes_)
        for name, kind in Record.__annotations__.items()
        if name not in ("focus", "subjects")
    }
    | {
        "focus": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        "subjects": tfds.features.Tensor(shape=(None,), dtype=np.bytes_),  # characters
        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),  # around each of them
    }
)


def serialize(record: Record) -> bytes:
    """Serialize a record as tensorflow-datasets does, to the same bytes in every process."""
    values = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in record._asdict().items()
    }
    boxes = {"focus": record.focus, "boxes": [subject.box for subject in record.subjects]}
    values |= {name: np.array(box, np.float32).reshape(-1, 4) for name, box in boxes.items()}
    names = [subject.character.encode() for subject in record.subjects]
    values["subjects"] = np.array(names, object)
    data = FEATURES.serialize_example(FEATURES.encode_example(values))
    # The fields are a protobuf map, whose order otherwise differs from run to run.
    return tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def deserialize(data: bytes) -> Record:
    """Return the record that `serialize` made the bytes of."""
    values = FEATURES.deserialize_example_np(data)
    # None in data sets of versions without them.
    focus, names, boxes = (values.pop(name) for name in ("focus", "subjects", "boxes"))
    kinds = Record.__annotations__
    return Record(
        **{
            name: value.decode() if kinds[name] is str else kinds[name](value)
            for name, value in values.items()
        },
        focus=() if focus is None else tuple(map(tuple, focus.tolist())),
        subjects=() if names is None else _subjects(names, boxes, values),
    )


def _subjects(
    names: np.ndarray, boxes: np.ndarray, values: dict[str, Any]
) -> tuple[SubjectBox, ...]:
    """Return stored subjects; ValueError where `prepare` would have stored others."""
    subjects = tuple(
        SubjectBox(name.decode(), tuple(box))
        for name, box in zip(names.tolist(), boxes.tolist(), strict=True)
    )
    named = [subject.character for subject in subjects[:1]] in ([], [values["character"].decode()])
    inside = all(
        0 <= left < right <= values["width"] + 1 and 0 <= top < bottom <= values["height"] + 1
        for _, (left, top, right, bottom) in subjects
    )
    if not named or not inside or len(subjects) > MAX_SUBJECTS:
        raise ValueError("its subjects are none of its picture")
    return subjects
