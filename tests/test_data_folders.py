"""Folders of pictures: every file is used, set aside with a reason, or counted as no picture."""

import json
import os
import shutil

import pandas
import pytest
from data_source import line, picture

from train import commands
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.sources import read_source
from train.data.sources.entries import SourceOptions


def test_every_file_is_used_set_aside_with_a_reason_or_no_picture(tmp_path, capsys):
    source = tmp_path / "source"
    kept = ["ann/0.png", "ann/photo.jfif", "ann/Screenshot at 3.04\u202fPM.png"]
    kept += ["ann/a\u00a0b\u3000c.png", "ann/👩\u200d🚀.png", "\u0645\u06cc\u200c\u062e/犬.png"]
    beside = ["ann/._0.png", "ann/.ipynb_checkpoints/0.png", "ann/0-masklabel.png", "Thumbs.db"]
    beside += ["__MACOSX/ann/0.png", "ann/.DS_Store", "names.csv"]
    for number, name in enumerate(kept + beside):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(source / name, "JPEG" if name.endswith("jfif") else "PNG")
    for name in kept:
        (source / name).with_suffix(".txt").write_text("waving")
    (source / "ann/0.caption").write_text("second")
    (source / "README.md").write_text("mine")
    os.mkfifo(source / "pipe.png")
    arguments = [str(source), "--out", str(tmp_path / "out"), "--resolution", "64"]
    assert commands.main(["prepare", *arguments, "--max-bad", "0", "--workers", "1"]) == 0
    dataset = Dataset(tmp_path / "out")
    assert {dataset.read(n).file for n in range(len(dataset))} == set(kept)
    files = dataset.card["files"]
    assert (files["pictures"], files["lists_captions_and_containers"]) == (6, 6)
    assert files["others"] == {".md": 1}
    assert (files["bad"], sum(files["set_aside"].values())) == (0, 9)
    aside = [json.loads(text) for text in (tmp_path / "out/aside.jsonl").read_text().splitlines()]
    reasons = {item["file"]: item["reason"] for item in aside}
    assert reasons.keys() == {*beside, "pipe.png", "ann/0.caption"}
    assert "give it as SOURCE" in reasons["names.csv"]
    assert "hidden folder" in reasons["ann/.ipynb_checkpoints/0.png"]
    out = capsys.readouterr().out
    assert "files: 6 pictures and masks, 6 lists, captions and containers, 0 bad, 9 set" in out
    assert "2 set aside: is in a hidden folder" in out


def test_pictures_that_a_list_omits_are_set_aside(tmp_path):
    for name in ("a.png", "b.png", "mask.png"):
        picture(1).save(tmp_path / name)
    text = line(file="a.png", caption="x", character="c", mask="mask.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    (tmp_path / "metadata.csv").write_text("file,caption,character\nb.png,x,c\n")
    source = read_source(tmp_path)
    assert [entry.file for entry in source.entries] == ["a.png"]
    assert dict(source.aside) == {
        "b.png": "is not named by the list above it",
        "metadata.csv": "metadata.jsonl beside it is read instead",
    }


def test_links_are_followed_inside_the_source_and_out_of_it_when_asked(tmp_path):
    outside, source = tmp_path / "outside", tmp_path / "source"
    for folder in (outside, source / "bob"):
        folder.mkdir(parents=True)
        picture(1).save(folder / "0.png")
        (folder / "0.txt").write_text("waving")
    (source / "ann").symlink_to(outside)
    (source / "bob" / "again").symlink_to(source)
    (source / "bob" / "one.png").symlink_to(source / "bob" / "0.png")
    (source / "bob" / "nothing.png").symlink_to(source / "gone.png")
    listed = read_source(source)
    assert {entry.file for entry in listed.entries} == {"bob/0.png"}
    assert dict(listed.rejected).keys() == {"bob/one.png"}  # it has no caption
    reasons = dict(listed.aside)
    assert "give --follow-links" in reasons["ann"]
    assert "read already" in reasons["bob/again"]
    assert "link to nothing" in reasons["bob/nothing.png"]
    listed = read_source(source, SourceOptions(follow_links=True))
    assert {entry.file for entry in listed.entries} == {"bob/0.png", "ann/0.png"}
    cache = tmp_path / "datasets--org--name"
    (cache / "snapshots" / "0").mkdir(parents=True)
    shutil.move(outside, cache / "blobs")
    for name in ("0.png", "0.txt"):
        (cache / "snapshots" / "0" / name).symlink_to(f"../../blobs/{name}")
    assert len(read_source(cache / "snapshots" / "0").entries) == 1


def test_what_holds_no_pictures_stops_no_run(tmp_path):
    """img2dataset writes a table of its downloads beside every tar."""
    urls = pandas.DataFrame({"url": ["https://a"], "caption": ["x"], "label": ["c"]})
    urls.to_parquet(tmp_path / "00000.parquet")
    (tmp_path / "00000.tar.gz").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"lists no picture; 3 files are set aside"):
        read_source(tmp_path)
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("")
    listed = read_source(tmp_path)
    assert (len(listed.entries), listed.rejected) == (1, [])
    reasons = dict(listed.aside)
    assert reasons["00000.parquet"] == "is a table that neither holds nor names pictures"
    assert reasons["00000.tar.gz"] == "is compressed; unpack it"
    with pytest.raises(DataError, match=r"--character who: .* has no list or table"):
        read_source(tmp_path, SourceOptions("who"))
