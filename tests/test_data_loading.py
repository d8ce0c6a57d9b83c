"""Batches: the same from any start and for any number of processes; preparation of pictures."""

import io

import numpy as np
import pytest
from data_source import picture, prepared
from PIL import Image

from train.data import loader
from train.data.batch_plan import BatchPlan
from train.data.characters import held_out
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.hashing import is_held_out
from train.data.loader import HostBatch, SkipCounter, batches
from train.data.pictures import CENTRED, Augment, decode_pixels, prepare_reference, prepare_target
from train.data.records import Record

SIDE = 32
TRAINING = Augment(flip=0.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return Dataset(prepared(tmp_path_factory.mktemp("loading")))


def make_plan(dataset: Dataset, **changes) -> BatchPlan:
    return BatchPlan(
        dataset, **({"batch": 4, "resolution": 64, "paired": 0.5, "seed": 1} | changes)
    )


def read(
    dataset: Dataset, start: int, stop: int, augment: Augment = TRAINING, **how
) -> list[HostBatch]:
    plan = make_plan(dataset)
    return list(batches(dataset, plan, augment, start=start, stop=stop, side=SIDE, **how))


def equal(a: HostBatch, b: HostBatch) -> None:
    for name, x, y in zip(HostBatch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def record(image: Image.Image, mask: np.ndarray | None = None) -> Record:
    files = [io.BytesIO(), io.BytesIO()]
    image.save(files[0], "PNG")
    if mask is not None:
        Image.fromarray(mask).save(files[1], "PNG")
    return Record(files[0].getvalue(), files[1].getvalue(), "", "", "", "", "", *image.size)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_resumes_at_any_step(dataset):
    expected = read(dataset, 0, 20)
    assert len(expected) == 20
    for start in (1, 7, 19):
        for a, b in zip(read(dataset, start, 20, threads=3), expected[start:], strict=True):
            equal(a, b)


def test_batches_hold_what_the_plan_says(dataset):
    for step, batch in enumerate(read(dataset, 0, 20)):
        rows = make_plan(dataset).rows(step)
        np.testing.assert_array_equal(batch.record, rows.target)
        np.testing.assert_array_equal(batch.reference, rows.reference)
        np.testing.assert_array_equal(batch.paired, rows.paired)
        assert batch.target.shape == (4, *rows.size, 3)
        assert batch.low.shape == (4, SIDE, SIDE, 3)
        assert batch.high.shape == (4, 4, SIDE, SIDE, 3)
        assert all(x.dtype == np.uint8 for x in (batch.target, batch.low, batch.high))
        stored = [dataset.read(number) for number in rows.target]
        assert batch.caption == [item.caption for item in stored]
        assert batch.character == [item.character for item in stored]
        assert batch.skipped == []


def test_four_processes_read_what_one_reads_and_no_more(dataset, monkeypatch):
    expected = read(dataset, 0, 12)
    read_by: dict[int, set[int]] = {}
    original = Dataset.read

    def spy(self, number):
        read_by[process].add(int(number))
        return original(self, number)

    monkeypatch.setattr(Dataset, "read", spy)
    parts = []
    for process in range(4):
        read_by[process] = set()
        parts.append(read(dataset, 0, 12, rows=[process]))
    for step, batch in enumerate(expected):
        joined = [part[step] for part in parts]
        for name in ("target", "low", "high", "record", "mirrored"):
            together = np.concatenate([getattr(part, name) for part in joined])
            np.testing.assert_array_equal(together, getattr(batch, name))
        assert [text for part in joined for text in part.caption] == batch.caption
    for process, numbers in read_by.items():
        rows = [batch.record[process] for batch in expected] + [
            b.reference[process] for b in expected
        ]
        assert numbers == {int(number) for number in rows}


def test_a_run_resumes_with_another_number_of_processes(dataset):
    """Two processes up to step 5, then four: together the batches that one process reads."""
    expected = read(dataset, 0, 9)
    for start, stop, processes in ((0, 5, 2), (5, 9, 4)):
        rows = np.split(np.arange(4), processes)
        parts = [read(dataset, start, stop, rows=part.tolist()) for part in rows]
        for batch, *joined in zip(expected[start:stop], *parts, strict=True):
            for name in ("target", "low", "high", "record", "reference", "mirrored", "epoch"):
                together = np.concatenate([getattr(part, name) for part in joined])
                np.testing.assert_array_equal(together, getattr(batch, name))


def test_held_out_characters_are_told_without_their_names(dataset, monkeypatch):
    expected = [is_held_out(name, 0.4) for name in dataset.characters]
    assert 0 < sum(expected) < len(expected)
    opened = Dataset(dataset.path)
    np.testing.assert_array_equal(held_out(opened, 0.4), expected)
    assert "characters" not in vars(opened)  # the names were not read
    monkeypatch.setattr("train.data.dataset.CHARACTER_HASH", "none.npy")  # of an earlier version
    np.testing.assert_array_equal(held_out(Dataset(dataset.path), 0.4), expected)


def test_worker_processes_change_nothing(dataset):
    for a, b in zip(read(dataset, 2, 8, workers=2, threads=2), read(dataset, 2, 8), strict=True):
        equal(a, b)


def test_damaged_record_is_replaced_by_the_next_row_and_reported(dataset, monkeypatch):
    expected = read(dataset, 0, 20, CENTRED)
    broken, after = expected[0].record[1:3]
    original = Dataset.read

    def damaged(self, number):
        record = original(self, number)
        return record._replace(image=record.image[:200]) if number == broken else record

    monkeypatch.setattr(Dataset, "read", damaged)
    with pytest.warns(UserWarning, match="skipped: step 0 row 1"):
        result = read(dataset, 0, 1, CENTRED)
    assert result[0].record[1] == result[0].record[2] == after != broken
    assert "damaged" in result[0].skipped[0]
    np.testing.assert_array_equal(result[0].target[2:], expected[0].target[2:])


@pytest.mark.filterwarnings("ignore:skipped")
def test_too_many_damaged_records_stop(dataset, monkeypatch):
    original = Dataset.read

    def damage(numbers) -> None:
        monkeypatch.setattr(
            Dataset,
            "read",
            lambda self, n: original(self, n)._replace(**{"image": b"x"} if n in numbers else {}),
        )

    damage([5])
    assert len(read(dataset, 0, 50)) == 50
    monkeypatch.setattr(loader, "FREE", 3)
    with pytest.raises(DataError, match=r"4 of .* samples could not be read"):
        read(dataset, 0, 50)
    counter = SkipCounter(seen=10_000, skipped=90)  # by the part of the run before this one
    read(dataset, 0, 10, skips=counter)
    assert counter.seen == 10_000 + 40
    with pytest.raises(DataError, match=r"10\d of 10\d\d\d samples could not be read"):
        read(dataset, 10, 200, skips=counter)
    damage(range(30))
    with pytest.raises(DataError, match="no sample of a batch can be read; step 0 row 0") as caught:
        read(dataset, 0, 50)
    assert "\n" not in str(caught.value)


def test_flipped_bit_in_a_shard_never_passes_silently(tmp_path):
    folder = prepared(tmp_path)
    shard = sorted(folder.glob("characters-train*"))[0]
    data = shard.read_bytes()
    stored = Dataset(folder).read(3)
    at = data.index(stored.image) + len(stored.image) // 2
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(DataError, match="record 3 cannot be read"):
        Dataset(folder).read(3)
    assert Dataset(folder).read(4).caption


def test_target_covers_its_bucket_and_is_cut_at_the_middle():
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    wide = record(Image.fromarray(pixels))
    target = prepare_target(decode_pixels(wide), (40, 40), CENTRED, rng())
    assert target.shape == (40, 40, 3)
    assert (target == 200).all()
    moved = {
        prepare_target(decode_pixels(wide), (40, 40), Augment(), rng(n)).sum() for n in range(8)
    }
    assert len(moved) > 3
    assert prepare_target(decode_pixels(record(picture(1))), (80, 48), CENTRED, rng()).shape == (
        80,
        48,
        3,
    )


@pytest.mark.parametrize("by", ["alpha", "mask"])
def test_reference_is_cut_out_cropped_and_padded(by):
    """A red figure of 20 x 40 on green: on white, in the middle of a square of 40."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:] = (0, 255, 0)
    pixels[10:50, 60:80] = (255, 0, 0)
    mask = np.zeros((64, 96), np.uint8)
    mask[10:50, 60:80] = 255
    image = Image.fromarray(pixels)
    if by == "alpha":
        image.putalpha(Image.fromarray(mask))
    stored = record(image, mask if by == "mask" else None)
    low, high, mirrored = prepare_reference(decode_pixels(stored), 40, CENTRED, rng())
    assert not mirrored
    assert (low[:, 10:30] == (255, 0, 0)).all()
    assert (low[:, :10] == 255).all()
    assert (low[:, 30:] == 255).all()
    assert high.shape == (4, 40, 40, 3)
    assert (high[0, :, 22:] == (255, 0, 0)).all()  # top left
    assert (high[3, :, :18] == (255, 0, 0)).all()  # bottom right

    starts = set()
    for n in range(20):
        low, _, _ = prepare_reference(decode_pixels(stored), 40, Augment(flip=0), rng(n))
        columns = np.flatnonzero((low[20] != 255).any(axis=1))
        assert len(columns) == 20
        starts.add(int(columns[0]))
    assert len(starts) > 5


def test_reference_without_a_mask_is_the_whole_picture_mirrored_as_told():
    image = picture(3)
    same, _, mirrored = prepare_reference(decode_pixels(record(image)), 64, CENTRED, rng())
    np.testing.assert_array_equal(same, np.asarray(image))
    assert not mirrored
    always = Augment(flip=1.0)
    flipped, _, mirrored = prepare_reference(decode_pixels(record(image)), 64, always, rng())
    np.testing.assert_array_equal(flipped, np.asarray(image)[:, ::-1])
    assert mirrored
    with pytest.raises(ValueError, match="flip 2"):
        Augment(flip=2)
