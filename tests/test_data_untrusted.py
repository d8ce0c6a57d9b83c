"""Lists, tables and tars that mean harm or are damaged: no file outside is read, nothing runs."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
from data_source import line, picture
from pyarrow import parquet

from train.data.sources import read_source
from train.data.sources.pictures import read_mask, read_picture


@pytest.mark.parametrize(
    "name", ["../secret.png", "link.png", "/etc/hostname", "folder/../../secret.png"]
)
def test_a_list_leads_to_no_file_outside(tmp_path, name):
    source = tmp_path / "source"
    source.mkdir()
    picture(1).save(tmp_path / "secret.png")
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    (source / "metadata.jsonl").write_text(
        line(file=name, caption="x", character="c")
        + line(file="a.png", mask=name, caption="x", character="c")
    )
    listed = read_source(source)
    assert not listed.entries
    assert [r.reason.count("outside this folder") for r in listed.rejected] == [1, 1]


def test_a_tar_gives_regular_files_alone(tmp_path):
    path = tmp_path / "a.tar"
    data = io.BytesIO()
    picture(1).save(data, "PNG")
    with tarfile.open(path, "w") as tar:

        def add(name, content=b"", kind=tarfile.REGTYPE, link=""):
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, link
            tar.addfile(member, io.BytesIO(content))

        add("../0.png", data.getvalue())
        add("../0.txt", b"waving")
        add("../0.mask.png", data.getvalue())
        add("../0.cls", b"ann")
        add("1.png", kind=tarfile.SYMTYPE, link="/etc/hostname")
        add("1.json", b'{"caption": "x", "character": "c"}')
        add("2.png", kind=tarfile.FIFOTYPE)
        add("3.png", b"")
        add("3.json", b"[]")
        add("ben/4.png", data.getvalue())
        add("ben/4.txt", b"\xe4")
        add("ben/5.png", b"")
        add("ben/5.txt", b"x")
    listed = read_source(path)
    first, empty = listed.entries
    assert (first.file, first.caption, first.character) == ("a.tar!../0.png", "waving", "ann")
    assert empty.character == "ben"
    assert read_picture(tmp_path, first) == read_mask(tmp_path, first) == data.getvalue()
    with pytest.raises(ValueError, match="is empty"):
        read_picture(tmp_path, empty)
    reasons = dict(listed.rejected)
    assert reasons["a.tar!1"] == "has no picture"
    assert "3.json is not a JSON object" in reasons["a.tar!3"]
    assert "4.txt: byte 0 is not UTF-8" in reasons["a.tar!ben/4"]
    assert sorted(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:700])
    assert "is no tar that can be read" in read_source(path).rejected[-1].reason


def test_a_table_names_no_file_outside_and_runs_nothing(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    picture(1).save(tmp_path / "secret.png")
    picture(1).save(source / "inside.png")
    names = ["inside.png", "../secret.png", "/etc/hostname", None]
    table = pyarrow.table(
        {
            "image": pyarrow.array(
                [{"bytes": None, "path": name} for name in names],
                pyarrow.struct({"bytes": pyarrow.binary(), "path": "string"}),
            ),
            "text": list("abcd"),
            "label": [0, 0, 1, 7],
        }
    )
    kinds = {"label": {"_type": "ClassLabel", "names": ["ann", "bob"]}}
    kinds["image"] = {"_type": "__import__('os').abort()", "decode": True}
    facts = {"huggingface": json.dumps({"info": {"features": kinds}})}
    parquet.write_table(table.replace_schema_metadata(facts), source / "a.parquet")
    (entry,), rejected = read_source(source)[1:3]
    assert (entry.file, entry.character) == ("inside.png", "ann")
    assert read_picture(source, entry) == (source / "inside.png").read_bytes()
    assert ["outside this folder" in item.reason for item in rejected] == [True, True, False]
    assert rejected[2] == ("a.parquet!3", "label is 7; the table names 2 classes")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_damaged_table_is_rejected_in_one_line(tmp_path, suffix):
    table = pyarrow.table({"image": [b"x"] * 9, "text": ["a"] * 9, "label": ["b"] * 9})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 10, len(whole) // 2, len(whole)):
        data = bytearray(whole[:length])
        if length == len(whole):
            for place in rng.integers(len(whole), size=20):
                data[place] ^= 255
        path.write_bytes(data)
        listed = read_source(path)
        for item in listed.rejected:
            assert "\n" not in item.reason
