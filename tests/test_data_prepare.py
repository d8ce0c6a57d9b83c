"""python -m train prepare: sources, rejected pictures, options, and resuming after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_source import contents, picture, prepared, source
from PIL import Image

from train import commands
from train.data import shards
from train.data.dataset import Dataset
from train.data.decode import decode_image
from train.data.errors import DataError
from train.data.prepare import PrepareOptions, prepare
from train.data.sources import read_source
from train.data.sources.entries import Entries, Entry, Part

ROOT = Path(__file__).parent.parent
SMALL = ["--resolution", "64", "--shard-size", "8", "--workers", "1"]


def main(arguments):
    return commands.main(["prepare", *arguments])


def records(folder: Path) -> list:
    dataset = Dataset(folder)
    return [dataset.read(number) for number in range(len(dataset))]


def lines(folder: Path, *fields: dict) -> Path:
    path = folder / "pictures.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in fields))
    return path


def test_packed_entries_are_the_same_entries():
    part, boxes = Part("a.tar", "é.png", 512, 9), ((0.1, 2, 3.5, 1e-9), (1, 2, 3, 4))
    entries = [Entry(f"{n}.png", "ña läuft", f"c{n}", focus=boxes, part=part) for n in range(600)]
    packed = Entries(entries)
    assert (len(packed), list(packed)) == (600, entries)
    assert packed[250:520:7] == entries[250:520:7]
    assert (packed[0], packed[-1], repr(packed[300])) == (
        entries[0],
        entries[-1],
        repr(entries[300]),
    )
    with pytest.raises(IndexError):
        packed[600]
    assert not Entries()


def bad(folder: Path) -> dict[str, str]:
    rejected = [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]
    return {item["file"]: item["reason"] for item in rejected}


def test_original_bytes_captions_and_card(tmp_path):
    out = prepared(tmp_path)
    listed = [json.loads(line) for line in (tmp_path / "source/pictures.jsonl").open()]
    stored = records(out)
    for line, record in zip(listed, stored, strict=True):
        assert record.image == (tmp_path / "source" / line["file"]).read_bytes()
        assert record.mask == b""
        with Image.open(io.BytesIO(record.image)) as image:
            assert image.size == (record.width, record.height)
        for field in ("file", "caption", "character", "view", "style"):
            assert getattr(record, field) == line[field]
    card = json.loads((out / "card.json").read_text())
    assert (card["pictures"], card["characters"], card["in_pairs"]) == (30, 12, 27)
    assert [shard["records"] for shard in card["shards"]] == [8, 8, 8, 6]
    dataset = Dataset(out)
    assert [dataset.characters[n] for n in dataset.character] == [r.character for r in stored]


def test_opens_as_tensorflow_dataset_without_tensorflow(tmp_path):
    out = prepared(tmp_path)
    source = tfds.builder_from_directory(out).as_data_source("train")
    assert len(source) == 30
    assert source[29]["caption"].decode() == Dataset(out).read(29).caption
    assert "tensorflow" not in sys.modules


def test_same_bytes_whatever_the_workers(tmp_path):
    pictures = source(tmp_path / "source")
    options = PrepareOptions((64,), shard_size=8)
    for workers in (1, 2):
        prepare(pictures, tmp_path / str(workers), options, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_killed_and_resumed(tmp_path):
    """SIGKILL when some shards are finished; the next call writes the rest, and none twice."""
    pictures = source(tmp_path / "source", characters=60, views=6)
    options = [str(pictures), "--out", str(tmp_path / "killed"), "--resolution", "64"]
    options += ["--shard-size", "4", "--workers", "2"]
    script = "import sys; from train.commands import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "prepare", *options], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    work = tmp_path / "killed.partial" / "work"
    deadline = time.monotonic() + 600  # of a busy machine
    while len(list(work.glob("*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)  # its workers notice and end
    done = {path: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert done
    assert not (tmp_path / "killed").exists()
    with pytest.raises(DataError, match="run the same command again"):
        Dataset(tmp_path / "killed")

    first = next(path for path in sorted(done) if path.name != "00001.json")  # damaged below
    shard = work.parent / json.loads(first.read_text())["file"]
    before = shard.stat().st_mtime_ns
    (work / "00001.json").write_text('{"half": ')
    options[-1] = "1"
    assert main(options) == 0
    assert (tmp_path / "killed" / shard.name).stat().st_mtime_ns == before

    options[2] = str(tmp_path / "whole")
    assert main(options) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_interrupted_run_notices_what_changed_since(tmp_path):
    pictures = source(tmp_path / "source")
    broken = tmp_path / "source" / "002_0_c.webp"
    good = broken.read_bytes()
    broken.write_bytes(b"no picture")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"1 of 30 .*002_0_c.webp.*not a picture"):
        prepare(pictures, out, PrepareOptions((64,), shard_size=8, max_bad=0), workers=1)
    broken.write_bytes(good)
    prepare(pictures, out, PrepareOptions((64,), shard_size=8, max_bad=0), workers=1)
    assert contents(out) == contents(prepared(tmp_path / "fresh"))


def test_bad_pictures_are_reported_and_left_out(tmp_path, capsys):
    for name in ("good", "odd", "turned"):
        picture(1).save(tmp_path / f"{name}.png")
    picture(1, (64, 500)).save(tmp_path / "thin.png")
    picture(1, (8, 8)).save(tmp_path / "tiny.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "small_mask.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "no_mask.png")
    names = ["good", "thin", "tiny", "empty", "text", "cut", "missing", "good"]
    entries = [{"file": f"{n}.png", "caption": "x", "character": "c"} for n in names]
    entries += [entries[0] | {"file": "odd.png", "mask": "small_mask.png"}]
    entries += [entries[0] | {"file": "turned.png", "mask": "no_mask.png"}]
    entries += [{"file": "odd.png", "character": "c"}, entries[0] | {"caption": 3}]
    entries += [entries[0] | {"caption": "\ud800"}]
    path = lines(tmp_path, *entries)
    with path.open("a") as file:
        file.write("{not json\n[]\n")
    out = tmp_path / "out"
    assert main([str(path), "--out", str(out), *SMALL]) == 4
    assert "cannot be used" in capsys.readouterr().err
    assert main([str(path), "--out", str(out), *SMALL, "--max-bad", "1"]) == 0
    assert "1 pictures of 1 characters" in capsys.readouterr().out
    assert [record.file for record in records(out)] == ["good.png"]
    reasons = bad(out)
    expected = {
        "thin.png": "no side more than 4 times",
        "tiny.png": "at least 32",
        "empty.png": "is empty",
        "text.png": "not a picture",
        "cut.png": "damaged",
        "missing.png": "No such file",
        "good.png": "listed twice",
        "odd.png": "its mask is 32 x 32",
        "turned.png": "shows no character",
        "pictures.jsonl line 11": "no caption",
        "pictures.jsonl line 12": "expected a string",
        "pictures.jsonl line 13": "surrogates",
        "pictures.jsonl line 14": "Expecting",
        "pictures.jsonl line 15": "not a JSON object",
    }
    assert reasons.keys() == expected.keys()
    for file, reason in expected.items():
        assert reason in reasons[file]


def test_odd_and_large_pictures_are_encoded_anew(tmp_path):
    picture(1).convert("CMYK").save(tmp_path / "cmyk.jpg")
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture(2, (200, 300), alpha=True).save(tmp_path / "large.png")
    mask = np.zeros((300, 200), np.uint8)
    mask[:150] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    picture(3, (256, 256)).save(tmp_path / "large.jpg", quality=95)
    files = ["cmyk.jpg", "deep.png", "large.png", "large.jpg"]
    entries = [{"file": file, "caption": "x", "character": "c"} for file in files]
    (tmp_path / "with_mask.png").write_bytes((tmp_path / "large.png").read_bytes())
    path = lines(tmp_path, *entries, entries[2] | {"file": "./with_mask.png", "mask": "mask.png"})
    prepare(path, tmp_path / "out", PrepareOptions((128, 64)), workers=1)
    cmyk, deep_, large, jpeg, masked = records(tmp_path / "out")
    rgb, alpha = decode_image(cmyk.image)
    assert rgb.shape == (64, 64, 3)
    assert alpha is None
    assert np.ptp(decode_image(deep_.image)[0]) == 255
    assert (large.width, large.height) == (112, 168)
    grey = np.asarray(Image.open(io.BytesIO(large.mask)))
    assert grey.shape == (168, 112)
    assert grey[84, 56] == 255
    assert grey[0, 0] == 0
    assert (jpeg.width, jpeg.height) == (128, 128)
    assert jpeg.image[:2] == b"\xff\xd8"
    assert np.asarray(Image.open(io.BytesIO(masked.mask)))[10, 5] == 255


def test_folder_of_sub_folders(tmp_path):
    folder = tmp_path / "pictures"
    for character in ("ann", "bob"):
        (folder / character).mkdir(parents=True)
        for n in range(2):
            picture(n).save(folder / character / f"{n}.png")
            (folder / character / f"{n}.txt").write_text(f"{character} {n}\n")
    (folder / "eve" / "deep").mkdir(parents=True)
    picture(5).save(folder / "eve" / "deep" / "x.png")
    picture(5).save(folder / "eve" / "deep" / "mask.png")
    lines(folder / "eve", {"file": "deep/x.png", "caption": "eve walks"})
    (folder / "eve" / "pictures.jsonl").rename(folder / "eve" / "metadata.jsonl")
    picture(6).save(folder / "lone.jpg")
    listing = read_source(folder)
    taken = {(e.file, e.character, e.caption) for e in listing.entries}
    assert taken == {
        ("ann/0.png", "ann", "ann 0"),
        ("ann/1.png", "ann", "ann 1"),
        ("bob/0.png", "bob", "bob 0"),
        ("bob/1.png", "bob", "bob 1"),
        ("eve/deep/x.png", "eve", "eve walks"),
    }
    reasons = dict(listing.rejected)
    assert "lone.txt" in reasons["lone.jpg"]


def test_out_in_the_way(tmp_path, capsys):
    out = prepared(tmp_path)
    command = [str(tmp_path / "source/pictures.jsonl"), "--out", str(out), *SMALL]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (out / "precious.txt").touch()
    assert main([*command, "--overwrite"]) == 2
    assert (out / "precious.txt").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--resolution", "100"], "multiple of 16"),
        (["--shard-size", "0"], "--shard-size"),
        (["--workers", "0"], "--workers"),
        (["--max-bad", "2"], "--max-bad"),
    ],
)
def test_wrong_options(tmp_path, capsys, options, word):
    pictures = source(tmp_path / "source", characters=1)
    assert main([str(pictures), "--out", str(tmp_path / "out"), *options]) == 2
    assert word in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2


def test_full_disk(tmp_path, capsys, monkeypatch):
    class Full:
        """array_record's writer on a full disk, as measured: the last call fails."""

        def __init__(self, path, options):
            self.path = path

        def write(self, data):
            Path(self.path).write_bytes(data)

        def close(self):
            raise RuntimeError("write() failed: No space left on device")

    pictures = source(tmp_path / "source")
    command = [str(pictures), "--out", str(tmp_path / "out"), *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", Full)
        assert main(command) == 74
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    assert contents(tmp_path / "out") == contents(prepared(tmp_path / "fresh"))


def test_damaged_data_set_is_named(tmp_path):
    out = prepared(tmp_path)
    shard = sorted(out.glob("characters-train*"))[1]
    data = shard.read_bytes()
    os.truncate(shard, 1000)
    with pytest.raises(DataError, match=r"00001-of-00004: has 1000 bytes"):
        Dataset(out)
    shard.write_bytes(data)
    (out / "index" / "width.npy").unlink()
    with pytest.raises(DataError, match=r"width\.npy: is missing"):
        Dataset(out)
    with pytest.raises(DataError, match="is not a data set"):
        Dataset(tmp_path)
