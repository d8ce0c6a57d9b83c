"""Data as people have it: every kind of source gives the same records, and no file is lost."""

import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pandas
import pillow_heif
import pyarrow
import pytest
import webdataset
from data_source import picture
from PIL import Image, features
from pyarrow import parquet

from tests.toy import write_model
from train import commands
from train.data import card, decode
from train.data.dataset import Dataset
from train.data.errors import DataError
from train.data.options import PrepareOptions
from train.data.prepare import prepare
from train.data.sources import read_source
from train.data.sources.entries import SourceOptions
from train.data.sources.pictures import read_mask, read_picture
from train.loop import train
from train.recipe import recipe_of

NAMES = ("ann", "bob")
ROWS = [(f"{name}{n}.png", f"waving, {name[0]} {n}", name) for name in NAMES for n in range(2)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Four pictures of two characters, named as in ROWS."""
    folder = tmp_path_factory.mktemp("originals")
    for number, (file, _, _) in enumerate(ROWS):
        picture(number).save(folder / file)
    return folder


def columns(*names: str) -> dict[str, list[str]]:
    return dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))


def with_bytes(originals: Path) -> dict[str, list]:
    table = columns("file", "text", "subject")
    return {"image": [(originals / name).read_bytes() for name in table.pop("file")], **table}


def folders(originals, out):
    for file, caption, name in ROWS:
        (out / name).mkdir(exist_ok=True)
        shutil.copy(originals / file, out / name)
        (out / name / file).with_suffix(".TXT").write_text(caption)


def kohya(originals, out):
    for file, caption, name in ROWS:
        folder = out / "img" / f"10_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(originals / file, folder)
        (folder / file).with_suffix(".caption").write_text(caption + "\n")


def imagefolder(write):
    """Pictures beside a metadata file that pandas writes, as Hugging Face reads them."""

    def writer(originals, out):
        for file, _, _ in ROWS:
            shutil.copy(originals / file, out)
        write(pandas.DataFrame(columns("file_name", "text", "label")), out)

    return writer


def saved(originals, out):
    """Two splits with an Image column and a ClassLabel, saved by `datasets`."""
    table = columns("image", "text", "label")
    table["image"] = [str(originals / file) for file in table["image"]]
    table["label"] = [NAMES.index(name) for name in table["label"]]
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    kinds["label"] = datasets.ClassLabel(names=list(NAMES))
    whole = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
    splits = {"train": whole.select(range(3)), "test": whole.select([3])}
    datasets.DatasetDict(splits).save_to_disk(out / "saved")
    (out / "saved" / "train" / "cache-0.arrow").write_bytes(b"of a map that was never finished")
    return out / "saved"


def hub_parquet(originals, out):
    table = columns("image", "text", "label")
    table["image"] = [{"path": f, "bytes": (originals / f).read_bytes()} for f in table["image"]]
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    kinds["label"] = datasets.Value("string")
    whole = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
    (out / "data").mkdir()
    whole.to_parquet(out / "data" / "train-00000-of-00001.parquet")


def names_in_parquet(originals, out):
    """`datasets` writes the paths of pictures that it was given by path, and not their bytes."""
    table = columns("image", "text", "label")
    for file in table["image"]:
        shutil.copy(originals / file, out)
    table["image"] = [str(out / file) for file in table["image"]]
    whole = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    whole.to_parquet(out / "all.parquet")


def row_groups(originals, out):
    table = pyarrow.table(with_bytes(originals))
    parquet.write_table(table, out / "all.parquet", row_group_size=3)
    return out / "all.parquet"


def arrow_file(originals, out):
    table = pyarrow.table(with_bytes(originals))
    with pyarrow.ipc.new_file(out / "all.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)


def shards(originals, out):
    for shard in range(2):
        with webdataset.TarWriter(str(out / f"{shard:06d}.tar")) as tar:
            for file, caption, name in ROWS[2 * shard : 2 * shard + 2]:
                sample = {"__key__": f"images/{file[:-4]}", "txt": caption}
                tar.write(sample | {"png": (originals / file).read_bytes(), "cls": name})


def shards_with_json(originals, out):
    with webdataset.TarWriter(str(out / "all.tar")) as tar:
        for file, caption, name in ROWS:
            tar.write(
                {"__key__": file[:-4], "depth.png": b"", "png": (originals / file).read_bytes()}
                | {"json": {"caption": caption, "identity": name, "width": 64}}
            )
    return out / "all.tar"


SOURCES = {
    "folders": folders,
    "kohya": kohya,
    "imagefolder, jsonl": imagefolder(
        lambda t, out: t.to_json(out / "metadata.jsonl", orient="records", lines=True)
    ),
    "imagefolder, csv": imagefolder(lambda t, out: t.to_csv(out / "metadata.csv")),
    "imagefolder, parquet": imagefolder(lambda t, out: t.to_parquet(out / "metadata.parquet")),
    "json, records": imagefolder(lambda t, out: t.to_json(out / "metadata.json", orient="records")),
    "json, columns": imagefolder(lambda t, out: t.to_json(out / "metadata.json")),
    "json, by datasets": imagefolder(
        lambda t, out: datasets.Dataset.from_pandas(t).to_json(out / "metadata.json")
    ),
    "tsv": imagefolder(lambda t, out: t.to_csv(out / "metadata.csv", sep="\t", index=False)),
    "saved by datasets": saved,
    "parquet of the Hub": hub_parquet,
    "parquet that names files": names_in_parquet,
    "parquet": row_groups,
    "arrow": arrow_file,
    "webdataset": shards,
    "webdataset, json": shards_with_json,
}


def records(folder: Path) -> list[tuple]:
    dataset = Dataset(folder)
    read = [dataset.read(number) for number in range(len(dataset))]
    return sorted((r.caption, r.character, r.image, r.mask, r.width, r.height) for r in read)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_same_records(kind, originals, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    source = SOURCES[kind](originals, folder) or folder
    prepare(source, tmp_path / "out", PrepareOptions((64,), max_bad=0), workers=1)
    assert records(tmp_path / "out") == sorted(
        (caption, name, (originals / file).read_bytes(), b"", 64, 64)
        for file, caption, name in ROWS
    )
    written = json.loads((tmp_path / "out" / "card.json").read_text())
    files = written["files"]
    counted = files["pictures"] + files["bad"] + files["lists_captions_and_containers"]
    counted += sum(files["set_aside"].values()) + sum(files["others"].values())
    there = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    assert counted == len(there)
    assert written["unknown_keys"] == (["depth.png", "width"] if kind == "webdataset, json" else [])


def line(**fields) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


# What lies in folders of pictures beside pictures


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


@pytest.mark.parametrize(("package", "extra"), [("pyarrow", "parquet"), ("pillow_heif", "heic")])
def test_a_missing_package_is_named_with_its_extra(package, extra, tmp_path, monkeypatch, capsys):
    pillow_heif.from_pillow(picture(1)).save(tmp_path / "a.heic")
    table = {"image": [(tmp_path / "a.heic").read_bytes()], "text": ["x"], "label": ["c"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("x")
    source = tmp_path / ("a.parquet" if package == "pyarrow" else "")
    monkeypatch.setitem(sys.modules, package, None)
    decode._formats.cache_clear()
    with monkeypatch.context() as patch:
        patch.delitem(Image.OPEN, "HEIF", raising=False)
        code = commands.main(["prepare", str(source), "--out", str(tmp_path / "out")])
    decode._formats.cache_clear()
    assert code == (2 if package == "pyarrow" else 4)
    assert f"pip install -e '.[{extra}]'" in capsys.readouterr().err


def test_a_card_of_an_earlier_version_is_read(originals, tmp_path):
    folders(originals, tmp_path)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    prepare(tmp_path, out, PrepareOptions((64,)), workers=1)
    values = json.loads((out / "card.json").read_text())
    new = ("files", "unknown_keys", "telling_captions", "empty_captions", "alpha_masks")
    for key in (*new, "enlarged", "duplicates", "near_duplicates", "checksum"):
        del values[key]
    (out / "card.json").write_text(json.dumps(values))
    assert card.summary(out).count("\n") == 0
    assert len(records(out)) == 4


@pytest.mark.slow  # compiles a training step
def test_a_step_is_trained_on_what_webdataset_wrote(originals, tmp_path, optax_promotes):
    write_model(tmp_path / "model")
    shards(originals, tmp_path)
    prepare(tmp_path, tmp_path / "data", PrepareOptions((32,)), workers=1)
    tables = {key: str(tmp_path / key) for key in ("model", "data", "out")}
    stage = {"steps": 1, "batch": 2, "resolution": 32, "learning_rate": 1e-2, "warmup": 0}
    tables |= {"dtype": "float32", "text_length": 32, "lora": {"rank": 4}, "stage1": stage}
    train(recipe_of(tables | {"reporting": {"every": 1, "preview_every": 0}}))
    (line,) = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert line["step"] == 1
    assert 0 < line["loss"] < 10


# Keys and characters


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


# Tables and tars that mean harm, or are damaged


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


# Formats


def test_heic_and_avif(tmp_path):
    pillow_heif.from_pillow(picture(1)).save(tmp_path / "a.heic")
    assert features.check("avif")
    picture(2).save(tmp_path / "b.avif")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("waving")
    prepare(tmp_path, tmp_path / "out", PrepareOptions((64,), max_bad=0), workers=1)
    dataset = Dataset(tmp_path / "out")
    for number in range(2):
        with Image.open(io.BytesIO(dataset.read(number).image)) as image:
            assert (image.format, image.size) == ("PNG", (64, 64))
