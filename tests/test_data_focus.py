"""Focus boxes: through preparing and cropping, and as the density over latents."""

import json
import re

import numpy as np
import pytest
from data_source import picture, prepared
from PIL import Image

from ic_jax.config import ConfigError
from train.data.batch_plan import BatchPlan
from train.data.boxes import scale_boxes
from train.data.dataset import Dataset
from train.data.focus import density
from train.data.loader import batches
from train.data.pictures import Augment
from train.data.prepare import PrepareOptions, prepare
from train.data.records import FEATURES, Record, deserialize, serialize
from train.recipe import recipe_of
from train.stage_data import check_data

BOX = (40.0, 16.0, 56.0, 40.0)  # red in what is prepared here


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Grey pictures of 96 x 64 with a red box, halved in size; the last without focus box."""
    folder = tmp_path_factory.mktemp("focus")
    lines = []
    for n in range(4):
        pixels = np.full((64, 96, 3), 128, np.uint8)
        left, top, right, bottom = map(int, BOX)
        pixels[top:bottom, left:right] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        line = {"file": f"{n}.png", "caption": "x", "character": f"c{n}"}
        lines.append(line | ({"focus": [list(BOX)]} if n < 3 else {}))
    (folder / "pictures.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    prepare(folder / "pictures.jsonl", folder / "out", PrepareOptions((32,)), workers=1)
    return Dataset(folder / "out")


def test_density_counts_every_box_alike_and_has_mean_1():
    small, large = (0, 0, 8, 8), (8, 8, 24, 32)
    result = density([small, large], 32, 48, 8)
    assert result.shape == (4, 6)
    assert result.mean() == pytest.approx(1)
    assert result[0, 0] == pytest.approx(result[1:4, 1:3].sum())
    assert result.sum() == pytest.approx(result[0, 0] + result[1:4, 1:3].sum())


def test_density_of_parts_of_cells():
    result = density([(4, 0, 16, 8)], 16, 16, 8)
    np.testing.assert_allclose(result, [[4 / 3, 8 / 3], [0, 0]], rtol=1e-6)
    pixels = density([(4, 0, 16, 8)], 16, 16)
    np.testing.assert_allclose(pixels.reshape(2, 8, 2, 8).mean((1, 3)), result, rtol=1e-6)


def test_what_lies_outside_is_cut_and_nothing_left_is_alike():
    np.testing.assert_array_equal(density([], 16, 24, 8), np.ones((2, 3)))
    np.testing.assert_array_equal(density([(-9, 0, -1, 8)], 16, 24, 8), np.ones((2, 3)))
    inside = density([(0, 0, 4, 8)], 16, 24, 8)
    np.testing.assert_allclose(density([(-4, 0, 4, 8)], 16, 24, 8), (inside + 1) / 2, rtol=1e-6)
    sliver = density([(-60 + 1e-6, 0, 1e-6, 8)], 16, 24, 8)
    np.testing.assert_allclose(sliver, 1, atol=1e-5)


def test_scaled():
    assert scale_boxes([(2, 4, 6, 8)], 0.5, 2, left=1, top=3) == ((0, 5, 2, 13),)


def test_the_density_follows_the_targets_cut(dataset):
    plan = BatchPlan(dataset, batch=4, resolution=32, paired=0.0, seed=1)
    for batch in batches(dataset, plan, Augment(), start=0, stop=8, side=None, cell=8):
        assert batch.focus.shape[1:] == tuple(side // 8 for side in batch.size)
        for name, focus, pixels in zip(batch.character, batch.focus, batch.target, strict=True):
            if name == "c3":
                np.testing.assert_array_equal(focus, 1)
                continue
            red = pixels[..., 0].astype(float) - pixels[..., 1]
            cells = red.reshape(len(focus), 8, -1, 8).mean((1, 3))
            np.testing.assert_allclose(focus, cells / cells.mean(), atol=0.15 * focus.max())


def test_no_density_is_made_where_none_is_asked_for(dataset):
    plan = BatchPlan(dataset, batch=4, resolution=32, paired=0.0, seed=1)
    (batch,) = batches(dataset, plan, Augment(), start=0, stop=1, side=None)
    assert batch.focus is None


def test_boxes_shrink_with_their_picture_and_are_counted(dataset):
    records = [dataset.read(n) for n in range(len(dataset))]
    assert dataset.card["focused"] == 3
    for record in records[:3]:
        by = record.width / 96
        assert by < 1
        np.testing.assert_allclose(record.focus, [np.array(BOX) * by], rtol=1e-6)
    assert records[3].focus == ()


def test_a_stage_cannot_focus_on_what_no_picture_names(dataset, tmp_path):
    tables = {"model": "m", "data": "d", "out": "o", "stage1": {"steps": 1, "focus": 0.5}}
    check_data(recipe_of(tables), dataset)
    with pytest.raises(ConfigError, match=r"stage1.focus is 0.5, and .* has no focus boxes"):
        check_data(recipe_of(tables), Dataset(prepared(tmp_path)))


def test_a_box_over_the_edge_is_cut_to_the_picture(tmp_path):
    picture(0).save(tmp_path / "0.png")
    line = {"file": "0.png", "caption": "x", "character": "c", "focus": [[-0.5, 3, 20, 64.5]]}
    (tmp_path / "pictures.jsonl").write_text(json.dumps(line))
    prepare(tmp_path / "pictures.jsonl", tmp_path / "out", PrepareOptions((64,)), workers=1)
    dataset = Dataset(tmp_path / "out")
    assert dataset.read(0).focus == ((0.0, 3.0, 20.0, 64.0),)
    assert "1 have focus boxes" in (tmp_path / "out/card.md").read_text()


def test_records_from_before_there_were_boxes_are_read():
    record = Record(b"i", b"", "c", "d", "v", "s", "f", 3, 4)
    newer = ("focus", "subjects", "boxes")
    older = {name: kind for name, kind in FEATURES.items() if name not in newer}
    kind = type(FEATURES)(older)
    values = {k: v.encode() if isinstance(v, str) else v for k, v in record._asdict().items()}
    values = {name: value for name, value in values.items() if name not in newer}
    assert deserialize(kind.serialize_example(kind.encode_example(values))) == record
    assert deserialize(serialize(record._replace(focus=(BOX,)))).focus == (BOX,)


@pytest.mark.parametrize(
    ("focus", "reason"),
    [
        ("face", "focus is 'face'; expected a list of boxes"),
        ([[1, 2, 3]], r"focus has \[1, 2, 3\]; expected"),
        ([1], "focus has 1; expected"),
        ([[1, 2, "3", 4]], "focus has .*; expected"),
        ([[1, 2, float("inf"), 4]], "focus has .*inf.*; expected"),
        ([[9, 2, 3, 4]], r"focus has \[9, 2, 3, 4\], which is empty"),
        ([[64, 0, 70, 4]], r"\[64, 0, 70, 4\] lies outside the picture, 64 x 64"),
    ],
)
def test_wrong_boxes_are_named(tmp_path, focus, reason):
    lines = []
    for n in range(2):
        picture(n).save(tmp_path / f"{n}.png")
        lines.append({"file": f"{n}.png", "caption": "x", "character": "c"})
    lines[1]["focus"] = focus
    (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    prepare(
        tmp_path / "pictures.jsonl", tmp_path / "out", PrepareOptions((32,), max_bad=1), workers=1
    )
    (bad,) = [json.loads(x) for x in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    assert len(Dataset(tmp_path / "out")) == 1
    assert re.search(reason, bad["reason"])
