"""Open Peeps as files and as a data set: the same every time, whole or not at all."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from examples.open_peeps.world import dataset
from examples.open_peeps.world.commands import main
from examples.open_peeps.world.render import Identity, View, picture, render
from train.data.dataset import Dataset
from train.data.sources import read_source


def command(name, out, *more: str) -> list[str]:
    """A command with three characters of 32 pixels, unless `more` says otherwise."""
    options = {"--out": str(out), "--characters": "3", "--views": "2", "--size": "32"}
    options |= dict(zip(more[::2], more[1::2], strict=True))
    return [name, *(word for option in options.items() for word in option)]


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_data_set_repeats_byte_for_byte(tmp_path):
    assert main(command("write", tmp_path / "one", "--workers", "1")) == 0
    assert main(command("write", tmp_path / "two", "--workers", "2")) == 0
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    lines = [json.loads(line) for line in first["metadata.jsonl"].splitlines()]
    assert len(lines) == 9
    assert [line["view"] for line in lines].count("reference") == 3
    assert len(first) == 1 + 2 * 9
    source = read_source(tmp_path / "one")
    assert (len(source.entries), source.rejected) == (9, [])
    for line in lines:
        identity = Identity.parse(line["character"])
        view = View.parse(line["file"].removesuffix(".picture.png").split("-", 2)[2])
        with Image.open(tmp_path / "one" / line["file"]) as image:
            np.testing.assert_array_equal(np.asarray(image), picture(identity, view, 32))
        with Image.open(tmp_path / "one" / line["mask"]) as image:
            np.testing.assert_array_equal(np.asarray(image), render(identity, view, 32)[..., 3])


def test_prepare_writes_the_same_data_set_every_time(tmp_path, capsys):
    more = ("--workers", "1", "--size", "64")
    arguments = command("prepare", tmp_path / "one", *more)
    assert main(arguments) == 0
    assert main(command("prepare", tmp_path / "two", *more)) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two"}
    first = Dataset(tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(first) == 9
    assert first.read(0).character
    capsys.readouterr()
    assert main(arguments) == 2
    assert re.search("one: exists; name another folder", capsys.readouterr().err)


def test_people_side_by_side_are_in_their_boxes(tmp_path):
    assert main(command("prepare", tmp_path / "out", "--people", "2", "--workers", "1")) == 0
    data = Dataset(tmp_path / "out")
    assert data.card["of_several"] == len(data) == 6  # no reference views
    for record in map(data.read, range(len(data))):
        pixels = np.asarray(Image.open(io.BytesIO(record.image)))
        view = View.parse(record.file.removesuffix(".picture.png").split("-", 2)[2])
        assert len({subject.character for subject in record.subjects}) == 2
        for name, (left, top, right, bottom) in record.subjects:
            expected = picture(Identity.parse(name), view, 32)
            np.testing.assert_array_equal(pixels[:, int(left) : int(right)], expected)
            assert (top, bottom) == (0, 32)
        assert len(record.focus) == 4  # head and face of each


def test_an_interrupted_data_set_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "parallel_map", interrupted)
    assert main(command("write", tmp_path / "out")) == 130
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--characters", "1001", "--split", "held-out"), "held-out has 1000"),
        (("--size", "4"), "--size is 4; expected 8 to 4096"),
        (("--workers", "0"), "--workers is 0"),
        (("--people", "3"), "--people is 3; expected 1 to 2"),
        (("--people", "2", "--views", "0"), "has no reference views; give --views 1 or more"),
        (("--people", "2", "--characters", "1"), "--people is 2; there are 1 characters"),
        (("--people", "2", "--captions", "with-identity"), "captions tell the identity of one"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path, capsys, more, message):
    assert main(command("write", tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
