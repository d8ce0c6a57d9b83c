"""Pictures of several characters: through preparing, planning and loading."""

import json
import shutil

import numpy as np
import pytest
from data_source import prepared
from PIL import Image

from ic_jax.config import ConfigError
from train.data.batch_plan import BatchPlan
from train.data.candidates import Candidates
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.loader import batches
from train.data.pictures import CENTRED, Augment
from train.data.prepare import PrepareOptions, prepare
from train.data.records import Record, deserialize, serialize
from train.data.sources.entries import SourceOptions
from train.data.subject_boxes import SubjectBox, check_subjects
from train.recipe import recipe_of
from train.stage_data import check_data, held_out_characters, stage_data

COLOURS = {
    "ana": (255, 0, 0),
    "ben": (0, 160, 0),
    "cid": (0, 0, 255),
    "dan": (240, 200, 0),
    "eve": (0, 200, 200),  # in a group alone
}
GROUPS = (("ana", "ben"), ("cid", "ana"), ("ben", "dan"), ("cid", "eve"), ("ana", "ben", "cid"))
WIDE = [[0, 0, 32, 48], [32, 0, 64, 48], [64, 0, 96, 48]]


def write(folder, groups=GROUPS, alone=2):
    """Plain pictures of one colour alone, and of several side by side; their list."""
    lines = []
    for name, colour in COLOURS.items():
        for n in range(alone if name != "eve" else 0):
            Image.new("RGB", (64, 48), colour).save(folder / f"{name}-{n}.png")
            lines.append({"file": f"{name}-{n}.png", "caption": "x", "character": name})
    for n, group in enumerate(groups):
        picture = Image.new("RGB", (32 * len(group), 48), "white")
        for name, box in zip(group, WIDE[: len(group)], strict=True):
            picture.paste(COLOURS[name], tuple(box))
        picture.save(folder / f"group-{n}.png")
        subjects = [
            {"character": c, "box": b} for c, b in zip(group, WIDE[: len(group)], strict=True)
        ]
        lines.append({"file": f"group-{n}.png", "caption": "y", "subjects": subjects})
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("groups")
    prepare(write(folder), folder / "out", PrepareOptions((48,), shard_size=4), workers=1)
    return Dataset(folder / "out")


def recipe(**changes):
    stage = {"steps": 1, "batch": 2, "resolution": 48, **changes}
    return recipe_of({"model": "m", "data": "d", "out": "o", "stage1": stage, "holdout": 0.0})


def test_a_record_and_the_index_have_all_characters(dataset):
    assert dataset.card["of_several"] == len(GROUPS)
    assert dataset.characters == sorted(COLOURS)
    names = {}
    for record, character in dataset.others.tolist():
        names.setdefault(record, []).append(dataset.characters[character])
    read = {n: dataset.read(n) for n in range(len(dataset))}
    groups = {n: record for n, record in read.items() if record.subjects}
    assert {n: record.characters[1:] for n, record in groups.items()} == names
    assert {tuple(record.characters) for record in groups.values()} == {*GROUPS}
    for record in groups.values():
        assert record.character == record.characters[0]
        by = record.width / (32 * len(record.subjects)), record.height / 48
        for subject, box in zip(record.subjects, WIDE[: len(record.subjects)], strict=True):
            np.testing.assert_allclose(subject.box, np.array(box) * (by * 2), rtol=1e-6)
        assert record.box_of(record.character) == record.subjects[0].box
        assert record.box_of("nobody") is None
    assert "5 show several characters" in (dataset.path / "card.md").read_text()
    assert dataset.card["pictures_per_character"]["min"] == 1  # of Eve


def test_a_record_of_several_is_read_as_it_was_written():
    subjects = SubjectBox("ana", (0.0, 1.0, 2.0, 3.0)), SubjectBox("Bén", (1.0, 1.5, 2.0, 3.0))
    record = Record(b"i", b"", "c", "ana", "v", "s", "f", 3, 4, (), subjects)
    assert deserialize(serialize(record)) == record
    assert deserialize(serialize(record._replace(subjects=()))).subjects == ()


def test_targets_show_no_more_characters_than_have_a_reference(dataset):
    shown = [len(dataset.read(n).characters) for n in range(len(dataset))]
    for limit in (1, 2, 3):
        wanted = np.flatnonzero(np.array(shown) <= limit)
        np.testing.assert_array_equal(Candidates(dataset, None, limit).targets, wanted)
    assert len(Candidates(dataset).targets) == len(dataset)


def test_nobody_who_is_held_out_is_in_a_training_picture(dataset):
    held_out = np.array([name == "ben" for name in dataset.characters])
    for mask in (~held_out, held_out):
        targets = Candidates(dataset, mask, 3).targets
        names = {name for n in targets for name in dataset.read(int(n)).characters}
        assert names == {dataset.characters[c] for c in np.flatnonzero(mask)}


@pytest.mark.parametrize("paired", [0.0, 1.0])
def test_every_character_of_a_target_has_a_reference(dataset, paired):
    plan = BatchPlan(dataset, batch=4, resolution=48, paired=paired, seed=1, subjects=3)
    eves = 0
    for step in range(40):
        rows = plan.rows(step)
        assert rows.others.shape == (4, 2)
        for target, reference, others in zip(rows.target, rows.reference, rows.others, strict=True):
            characters = dataset.read(int(target)).characters
            numbers = [int(reference), *others.tolist()]
            assert [n >= 0 for n in numbers] == [k < len(characters) for k in range(3)]
            for name, number in zip(characters, numbers, strict=False):
                assert name in dataset.read(number).characters
                eves += name == "eve"
                alone = not paired or name == "eve"  # of whom there is one picture
                assert (number == target) == alone
    assert eves > 2


def test_partners_of_further_characters_are_drawn_evenly(dataset):
    plan = BatchPlan(dataset, batch=8, resolution=48, paired=1.0, seed=1, subjects=2)
    rows = [plan.rows(step) for step in range(200)]
    target, others = (np.concatenate([getattr(r, x) for r in rows]) for x in ("target", "others"))
    group = next(n for n in range(len(dataset)) if dataset.read(n).characters == ["ana", "ben"])
    counts = np.bincount(others[target == group, 0])
    shows = [n for n in range(len(dataset)) if "ben" in dataset.read(n).characters]
    possible = np.array([n for n in shows if n != group])
    assert {*np.flatnonzero(counts)} == {*possible}
    assert counts[possible].min() > 0.5 * counts[possible].mean()


@pytest.mark.parametrize("paired", [0.0, 1.0])
@pytest.mark.parametrize("augment", [Augment(), CENTRED])
def test_references_and_regions_are_those_of_the_characters(dataset, paired, augment):
    plan = BatchPlan(dataset, batch=4, resolution=48, paired=paired, seed=1, subjects=2)
    groups = 0
    for batch in batches(dataset, plan, augment, start=0, stop=12, side=32):
        height, width = batch.size
        assert batch.low.shape == (4, 2, 32, 32, 3)
        assert batch.high.shape == (4, 2, 4, 32, 32, 3)
        assert batch.regions.shape == (4, 2, height * width // 256)
        for row, number in enumerate(batch.record):
            names = dataset.read(int(number)).characters
            groups += len(names) == 2
            for place in range(2):
                low, region = batch.low[row, place], batch.regions[row, place]
                if place >= len(names):
                    assert (low == 255).all()
                    assert not region.any()
                    continue
                colour = np.array(COLOURS[names[place]])
                is_character = np.abs(low.astype(int) - colour).max(-1) < 12
                is_white = low.min(-1) > 243
                assert is_character.mean() > 0.3
                assert (is_character | is_white).mean() > 0.8  # nobody else but at the edge
                if len(names) == 1:
                    assert (region == 1).all()
                    continue
                # Of what the target shows of the character, the region covers the tokens.
                there = np.abs(batch.target[row].astype(int) - colour).max(-1) < 60
                tokens = there.reshape(height // 16, 16, width // 16, 16).mean((1, 3))
                np.testing.assert_allclose(region, tokens.reshape(-1), atol=0.15)
    assert groups > 5


def test_one_reference_has_no_axis_of_its_own(dataset):
    plan = BatchPlan(dataset, batch=2, resolution=48, paired=0.0, seed=1)
    (batch,) = batches(dataset, plan, CENTRED, start=0, stop=1, side=32)
    assert batch.low.shape == (2, 32, 32, 3)
    assert batch.regions is None


def test_an_effect_is_measured_on_those_who_are_alone(dataset):
    of_two = recipe(subjects=2, paired=0.5)
    held_out = np.array([name in ("ana", "cid", "eve") for name in dataset.characters])
    data = stage_data(of_two, dataset, held_out)["stage1"]
    assert data.training.subjects == 2
    assert data.measuring.subjects == 1
    measured = {tuple(dataset.read(int(n)).characters) for n in data.measuring.records}
    assert measured == {("ana",), ("cid",)}
    only_one = np.array([name in ("ana", "eve") for name in dataset.characters])
    assert stage_data(of_two, dataset, only_one)["stage1"].measuring is None


def test_whoever_is_held_out_has_pictures_alone(dataset):
    tables = recipe(subjects=2).to_dict() | {"holdout": 1e-9}
    held = held_out_characters(recipe_of(tables), dataset)
    assert held.sum() == 2
    assert not held[dataset.characters.index("eve")]


def test_a_lora_trains_on_pictures_of_any_number(dataset):
    tables = recipe().to_dict() | {"lora": {"rank": 2}}
    data = stage_data(recipe_of(tables), dataset, np.zeros(5, bool))["stage1"]
    assert len(data.training.records) == len(dataset)
    tables["stage1"]["subjects"] = 2
    with pytest.raises(ConfigError, match=r"stage1.subjects is 2; .lora. sees no reference"):
        recipe_of(tables)


def test_a_stage_cannot_have_several_where_no_picture_shows_them(dataset, tmp_path):
    check_data(recipe(subjects=2), dataset)
    with pytest.raises(ConfigError, match=r"stage1.subjects is 2, and no picture of .* shows"):
        check_data(recipe(subjects=2), Dataset(prepared(tmp_path)))


def test_only_groups_leave_nothing_to_train_one_reference_on(tmp_path):
    prepare(write(tmp_path, alone=0), tmp_path / "out", PrepareOptions((48,)), workers=1)
    with pytest.raises(DataError, match="set subjects to train on groups"):
        BatchPlan(Dataset(tmp_path / "out"), batch=1, resolution=48, paired=0.0, seed=1)


def test_a_mask_shows_every_character(tmp_path):
    path = write(tmp_path, groups=GROUPS[:1])
    mask = Image.new("L", (64, 48))
    mask.paste(255, (0, 0, 32, 48))
    mask.save(tmp_path / "mask.png")
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    rows[-1]["mask"] = "mask.png"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(path, tmp_path / "out", PrepareOptions((48,), max_bad=1.0), workers=1)
    (bad,) = (tmp_path / "out" / "bad.jsonl").read_text().splitlines()
    assert json.loads(bad)["reason"] == "its mask shows nothing of its subject 'ben'"


def test_the_folder_names_the_character_of_a_group_and_the_file_one_of_its_own(tmp_path):
    (tmp_path / "source" / "ben").mkdir(parents=True)
    Image.new("RGB", (64, 48), "red").save(tmp_path / "source" / "ben" / "1.png")
    subjects = [{"character": c, "box": b} for c, b in zip(GROUPS[0], WIDE[:2], strict=True)]
    row = {"file": "ben/1.png", "caption": "x", "subjects": subjects}
    (tmp_path / "source" / "metadata.jsonl").write_text(json.dumps(row))
    for option, expected in (("folder", ["ben", "ana"]), ("file", ["ben/1.png"])):
        options = PrepareOptions((48,), source=SourceOptions(character=option))
        prepare(tmp_path / "source", tmp_path / option, options, workers=1)
        assert Dataset(tmp_path / option).read(0).characters == expected


@pytest.mark.parametrize(
    "subjects",
    [
        [("ben", (0, 0, 2, 3))],
        [("ana", (2, 0, 1, 3))],
        [("ana", (0, 0, 9, 3))],
        [("ana", (0, float("nan"), 2, 3))],
        [("ana", (0, 0, 2, 3))] * 9,
    ],
)
def test_a_stored_record_whose_subjects_are_not_its_pictures_is_damaged(subjects):
    record = Record(b"i", b"", "c", "ana", "v", "s", "f", 3, 4)
    stored = serialize(record._replace(subjects=tuple(SubjectBox(*x) for x in subjects)))
    with pytest.raises(ValueError, match="its subjects are none of its picture"):
        deserialize(stored)


def test_an_index_of_others_that_leads_nowhere_is_refused(dataset, tmp_path):
    shutil.copytree(dataset.path, tmp_path / "data")
    file = tmp_path / "data" / "index" / "others.npy"
    good = np.load(file)
    for change in ((0, 9), (999, 0), (0, -7), (-999, 0)):
        np.save(file, good + np.array(change, np.int32))
        with pytest.raises(DataError, match=r"others.npy: names records or characters"):
            Dataset(tmp_path / "data").others  # noqa: B018
    np.save(file, good.astype(np.float32))
    with pytest.raises(DataError, match=r"others.npy: has float32.*not int32\[-1, 2\]"):
        Dataset(tmp_path / "data").others  # noqa: B018


@pytest.mark.parametrize(
    ("subjects", "reason"),
    [
        ("ana", "subjects is 'ana'; expected a list of characters"),
        ([{"character": "a", "box": [0, 0, 10**400, 1]}], "subjects has .*; expected"),
        ([{"character": "", "box": [0, 0, 1, 1]}], "subjects has .*; expected"),
        ([{"character": "a", "box": [0, 0, 1]}], r"subjects has \[0, 0, 1\]; expected"),
        ([{"character": "a", "box": [4, 0, 4, 9]}], "which is empty"),
        ([{"character": "a", "box": [0, 0, 1, 1]}] * 2, "names a character twice: a, a"),
        ([{"character": str(n), "box": [0, 0, 1, 1]} for n in range(9)], "9 characters, more than"),
    ],
)
def test_wrong_subjects_are_refused_in_words(subjects, reason):
    with pytest.raises(ValueError, match=reason):
        check_subjects(subjects)


def test_of_a_row(tmp_path):
    """The first is the character, or the one that the row names; a number is a name, too."""
    for n in range(8):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{n}.png")
    boxes = [{"character": 7, "box": [0, 0, 32, 64]}, {"character": "b", "box": [32, 0, 99, 64]}]
    line = {"caption": "x", "subjects": boxes}
    rows = [line, line | {"character": "b"}, line | {"character": "c"}, line | {"subjects": ""}]
    rows += [line | {"subjects": [{"character": "z", "box": [70, 0, 99, 64]}]}]
    rows += [line | {"subjects": [{"character": "z", "box": [40, 0, 99, 64]}]}]
    rows += [{"caption": "x", "character": "y", "subjects": word} for word in ("a, b", ["a"])]
    path = tmp_path / "list.jsonl"
    path.write_text(
        "".join(json.dumps(row | {"file": f"{n}.png"}) + "\n" for n, row in enumerate(rows))
    )
    prepare(path, tmp_path / "out", PrepareOptions((64,), max_bad=1.0), workers=1)
    data = Dataset(tmp_path / "out")
    assert [data.read(n).characters for n in range(2)] == [["7", "b"], ["b", "7"]]
    assert data.read(0).subjects[1].box == (32, 0, 64, 64)
    reasons = (data.path / "bad.jsonl").read_text()
    assert "character is 'c', which is none of its subjects: 7, b" in reasons
    assert "its subject [70, 0, 99, 64] lies outside the picture, 64 x 64" in reasons
    assert "its subject 'z' is 24 x 64; expected at least 32 a side" in reasons
    assert [data.read(n).characters for n in range(2, len(data))] == [["y"], ["y"]]
