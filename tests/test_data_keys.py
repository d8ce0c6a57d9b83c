"""Keys, characters and rows of lists: what is wrong is named, and rejects nothing else."""

import json
import shutil

import pytest
from data_source import line, picture

from train.data.errors import DataError
from train.data.sources import read_source
from train.data.sources.entries import SourceOptions


def test_a_key_that_is_misspelt_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(line(file="a.png", caption="x", character="c", widht=3))
    assert read_source(path).unknown == ["widht"]
    path.write_text(line(file="a.png", captoin="x", character="c"))
    (rejected,) = read_source(path).rejected
    assert rejected.reason == "has no caption; 'captoin' is not known; did you mean caption?"
    path.write_text(line(file_name="a.png", text="x", charcter="c"))
    with pytest.raises(DataError, match=r"names its character by .*--character charcter"):
        read_source(path)
    (entry,) = read_source(path, SourceOptions("charcter")).entries
    assert entry.character == "c"
    with pytest.raises(DataError, match=r"names its character by who; .*--character KEY"):
        read_source(path, SourceOptions("who"))


def test_a_source_without_characters_takes_them_from_folders_or_files(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\nimages/ann/0.png,x\n1.png,y\n")
    with pytest.raises(DataError, match=r"metadata\.csv: no row names its .*--character folder"):
        read_source(tmp_path)
    listed = read_source(tmp_path, SourceOptions("folder"))
    assert [entry.character for entry in listed.entries] == ["ann"]
    assert listed.rejected[0].reason == "character is empty"
    files = [entry.character for entry in read_source(tmp_path, SourceOptions("file")).entries]
    assert files == ["images/ann/0.png", "1.png"]


def test_numbered_folders_stay_apart(tmp_path):
    for folder in ("1_hero", "2_hero", "3_ann woman", "2024_x"):
        (tmp_path / folder).mkdir()
        picture(1).save(tmp_path / folder / "0.png")
        (tmp_path / folder / "0.txt").write_text("1girl, solo")
    for folder in ("train", "test"):  # no characters, and their pictures not one
        shutil.copytree(tmp_path / "1_hero", tmp_path / folder)
    characters = {entry.character for entry in read_source(tmp_path).entries}
    assert characters == {"1_hero", "2_hero", "ann woman", "2024_x", "train/0", "test/0"}


def test_rows_that_are_wrong_reject_no_others(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbffile;caption;character;focus\r\n"
        b'a.png;"two\nlines";c;"[[1, 2, 3, 4]]"\r\nb.png;x;c;;5\r\nc.png;\xe4;c;\r\nd.png;x;c;\r\n'
    )
    listed = read_source(path)
    assert [(e.file, e.caption, e.focus) for e in listed.entries] == [
        ("a.png", "two\nlines", ((1, 2, 3, 4),)),
        ("d.png", "x", ()),
    ]
    assert ["more than the header" in r.reason for r in listed.rejected] == [True, False]
    assert "is not UTF-8" in listed.rejected[1].reason
    (tmp_path / "a.json").write_text(json.dumps({"a.png": {"caption": "x", "character": "c"}}))
    assert read_source(tmp_path / "a.json").entries[0].file == "a.png"
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert "nested too deep" in read_source(tmp_path / "a.json").rejected[0].reason
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"a\.zip: is no folder and none of \.jsonl"):
        read_source(tmp_path / "a.zip")
