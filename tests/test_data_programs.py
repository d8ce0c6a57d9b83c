"""Captions and masks by programs of the user's, and the checks of captions and pictures."""

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
from data_source import picture
from PIL import Image

from train import commands
from train.data.captions import telling_words, terms
from train.data.dataset import Dataset
from train.data.duplicates import NEAR, count_copies, difference_hash

ROOT = Path(__file__).parent.parent
# Says the picture's name; notes each run in a file; fails on one picture.
CAPTIONER = """
import sys, pathlib
path = pathlib.Path(sys.argv[-1])
with open({log!r}, "a") as log: print(path.name, file=log)
if path.stem == "broken": sys.exit("Traceback\\nno such luck")
print("a picture of", sys.argv[1:-1], path.parent.name, path.stem)
"""
MASKER = """
import sys
from PIL import Image
mask = Image.new("L", Image.open(sys.argv[1]).size)
mask.paste(255, (8, 8, 40, 40))
mask.save(sys.argv[2] if sys.argv[2:] else sys.stdout.buffer, "PNG")
"""


def source(folder: Path, names=("ann/0", "ann/it's $HOME", "bob/broken")) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{name}.png")
    return folder


def script(folder: Path, text: str) -> str:
    (folder / "program.py").write_text(text.format(log=str(folder / "log")))
    return f"{sys.executable} {folder / 'program.py'}"


def prepare(folder: Path, out: str, *options: str) -> int:
    arguments = [str(folder / "source"), "--out", str(folder / out), "--resolution", "64"]
    return commands.main(["prepare", *arguments, "--workers", "2", *options])


def records(folder: Path) -> dict:
    dataset = Dataset(folder)
    return {record.file: record for record in map(dataset.read, range(len(dataset)))}


def test_captions_are_made_once_and_a_failure_is_set_aside(tmp_path, capsys):
    source(tmp_path / "source")
    command = script(tmp_path, CAPTIONER) + " 'two words' {}"
    assert prepare(tmp_path, "out", "--caption", command) == 0
    captions = {file: record.caption for file, record in records(tmp_path / "out").items()}
    assert captions == {
        "ann/0.png": "a picture of ['two words'] ann 0",
        "ann/it's $HOME.png": "a picture of ['two words'] ann it's $HOME",
    }
    (aside,) = map(json.loads, (tmp_path / "out/aside.jsonl").read_text().splitlines())
    assert aside["file"] == "bob/broken.png"
    assert aside["reason"] == f"{sys.executable} ended with 1: no such luck"
    assert "1 set aside" in capsys.readouterr().out
    log = (tmp_path / "log").read_text().splitlines()
    assert sorted(log) == ["0.png", "broken.png", "it's $HOME.png"]
    # Results are kept by the picture's bytes, not by its name; what failed is tried again.
    (tmp_path / "source/ann/0.png").rename(tmp_path / "source/ann/1.png")
    assert prepare(tmp_path, "out", "--caption", command, "--overwrite") == 0
    assert records(tmp_path / "out")["ann/1.png"].caption == captions["ann/0.png"]
    assert (tmp_path / "log").read_text().splitlines()[3:] == ["broken.png"]


@pytest.mark.parametrize("arguments", ["", " {} {mask}"])
def test_masks_from_standard_output_or_from_a_file(tmp_path, arguments):
    source(tmp_path / "source", ["ann/0"])
    (tmp_path / "source/ann/0.txt").write_text("waving")
    command = script(tmp_path, MASKER) + arguments
    assert prepare(tmp_path, "out", "--mask", command) == 0
    (record,) = records(tmp_path / "out").values()
    mask = np.asarray(Image.open(io.BytesIO(record.mask)))
    assert (mask[8:40, 8:40].min(), mask.sum()) == (255, 255 * 32 * 32)


def test_programs_see_pictures_inside_a_tar(tmp_path):
    import webdataset

    (tmp_path / "source").mkdir()
    data = io.BytesIO()
    picture(1).save(data, "PNG")
    with webdataset.TarWriter(str(tmp_path / "source/0.tar")) as tar:
        tar.write({"__key__": "ann/0", "png": data.getvalue()})
    command = script(tmp_path, "import sys\nfrom PIL import Image\nprint(Image.open(sys.argv[1]))")
    assert prepare(tmp_path, "out", "--caption", command) == 0
    (record,) = records(tmp_path / "out").values()
    assert "PngImageFile" in record.caption
    assert record.character == "ann"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("no-such-program", 2, "--caption: there is no program no-such-program"),
        ("cat 'x", 2, "--caption cat 'x: No closing quotation"),
        ("false", 4, "--caption fails on each of the first 3 pictures; ann/0.png: false ended"),
        ("true", 4, "true made nothing; expected a caption"),
        ("cat", 4, "what cat printed: byte 0 is not UTF-8"),
        ("head -c 2000000 /dev/zero", 4, "head ended with|head printed 2"),
    ],
)
def test_a_command_that_cannot_work_is_one_line(tmp_path, capsys, command, code, message):
    source(tmp_path / "source")
    assert prepare(tmp_path, "out", "--caption", command) == code
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|"))
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_interrupted_it_ends_its_programs_and_keeps_what_they_made(tmp_path):
    source(tmp_path / "source", [f"ann/{n}" for n in range(6)])
    slow = "import sys, time, pathlib, os\nprint('made')\nsys.stdout.flush()\n"
    slow += "with open({log!r}, 'a') as log: print(os.getpid(), file=log)\n"
    slow += "if pathlib.Path(sys.argv[1]).stem > '1': time.sleep(600)\n"
    command = script(tmp_path, slow)
    arguments = ["prepare", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    arguments += ["--caption", command, "--workers", "2"]
    code = "import sys; from train.commands import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "log"
    while not log.exists() or len(log.read_text().split()) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip().endswith("error: interrupted")
    for pid in log.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert len(list((tmp_path / "out.results").rglob("*.txt"))) == 2


# What captions tell


def test_words_that_tell_one_character_are_found():
    scenes = ["on a red bench", "with long hair in the wind", "riding a horse", "in a red car"]
    characters, captions = [], []
    for name in ("ana", "ben", "eve", "kim", "lou"):
        for n, scene in enumerate(scenes):
            characters.append(name)
            words = {"ana": "Ana, red hair,", "ben": "a man" if n else "a man with a beard"}
            captions.append(f"{words.get(name, 'a person')} {scene}")
    ana, ben = telling_words(characters, captions)
    # "red" and "hair" are said of others as well, their pair of her alone.
    assert ana.words == [("ana", 4, 0), ("red hair", 4, 0)]
    assert ana.captions == [0, 1, 2, 3]
    assert [word for word, _, _ in ben.words] == ["man"]
    assert telling_words(["a"] * 3, ["x y"] * 3) == []  # nobody to tell from
    assert telling_words(["a", "a", "b"], ["x y", "x z", "x"]) == []
    pair = telling_words(["a", "a", "b"], ["x y", "x y", "x"])
    assert pair[0].words == [("y", 2, 0)]
    assert terms("L'île, Ana's 犬!") == {"l'île", "ana's", "犬", "l'île ana's", "ana's 犬"}


def test_the_command_lists_them(tmp_path, capsys):
    names = [f"{name}/{n}" for name in ("ann", "bob") for n in range(3)]
    folder = source(tmp_path / "source", names)
    for name in names:
        text = "" if name == "bob/2" else f"{'Ann ' if name < 'b' else ''}waving {name[-1]}"
        (folder / f"{name}.txt").write_text(text)
    assert prepare(tmp_path, "out") == 0
    out = capsys.readouterr().out
    assert "3 of 6 captions tell their character by words, such as ann: 'ann'" in out
    assert "1 of 6 pictures have an empty caption" in out
    assert commands.main(["captions", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ann: 'ann' in 3 of its 3 captions, 0 of the 3 others"
    assert lines[1] == "    ann/0.png: Ann waving 0"
    assert lines[-1].endswith(
        "3 of 6 captions, of 1 characters, tell their character by words; 1 are empty"
    )


# What pictures repeat


def test_copies_of_a_picture_are_told_from_other_pictures(tmp_path):
    rng = np.random.default_rng(0)
    large = [picture(n, (256, 256)) for n in range(20)]
    looks = [difference_hash(np.asarray(image)) for image in large]

    def distance(one: bytes, other: bytes) -> int:
        pair = [np.frombuffer(look, np.uint8) for look in (one, other)]
        return int(np.bitwise_count(pair[0] ^ pair[1]).sum())

    for image, look in zip(large, looks, strict=True):
        file = io.BytesIO()
        image.resize((150, 150), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
        assert distance(look, difference_hash(np.asarray(Image.open(file)))) <= NEAR
    distances = [distance(a, b) for n, a in enumerate(looks) for b in looks[:n]]
    assert min(distances) > 4 * NEAR
    plain = np.full((64, 64, 3), 255, np.uint8)
    noisy = plain - rng.integers(0, 3, plain.shape, dtype=np.uint8)
    assert difference_hash(plain) == difference_hash(noisy)
    rows = np.frombuffer(b"".join(looks[n] for n in (0, 1, 0, 1)), np.uint8).reshape(4, -1)
    assert count_copies(np.array([7, 8, 7, 9], np.uint64), rows) == (1, 1)


def test_what_harms_a_training_is_counted(tmp_path, capsys):
    folder = source(tmp_path / "source", ["ann/0"])
    picture(0).save(folder / "ann/1.png")
    picture(0).resize((128, 128)).save(folder / "ann/2.png")
    picture(3, (40, 48)).save(folder / "ann/3.png")
    picture(4, alpha=True).save(folder / "ann/4.png")
    opaque = picture(5)
    opaque.putalpha(255)
    opaque.save(folder / "ann/5.png")
    for n in range(6):
        (folder / f"ann/{n}.txt").write_text("waving")
    assert prepare(tmp_path, "out", "--resolution", "128") == 0
    card = Dataset(tmp_path / "out").card
    assert card["enlarged"] == {"64": 1, "128": 5}
    assert (card["duplicates"], card["near_duplicates"], card["alpha_masks"]) == (1, 1, 1)
    assert "5 of 6 pictures are enlarged at 128 pixels" in capsys.readouterr().out
    assert prepare(tmp_path, "large", "--min-side", "64", "--max-bad", "0") == 0
    card = Dataset(tmp_path / "large").card
    assert (card["pictures"], card["enlarged"]) == (5, {"64": 0})
    assert card["files"]["set_aside"] == {"has a side below --min-side 64": 1}
    assert prepare(tmp_path, "none", "--min-side", "-1") == 2
