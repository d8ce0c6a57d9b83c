"""Limits: the table of docs/reliability.md has the code's, and what is beyond one is a line."""

import re
import resource
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from convert.torch_read import MAX_DIRECTORY, MAX_PICKLE, read_torch
from ic_jax.cli import run
from ic_jax.config import SamplingConfig
from ic_jax.preprocessing import images
from ic_jax.preprocessing.arguments import MAX_SIDE, sampling_arguments
from ic_jax.preprocessing.images import read_rgb
from ic_jax.preprocessing.tokenizers import CLIP_LENGTH, PromptTokenizer
from ic_jax.terminal import printable_line
from ic_jax.untrusted_files import MAX_TEXT, below, read_bytes
from ic_jax.weights.lora.pairs import MAX_RANK
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.model_folder import SMALL_MODEL
from ic_jax.weights.safetensors_io import MAX_HEADER, read_tensors
from infer.from_picture import MAX_STEPS, PictureArguments
from infer.picture_file import MAX_METADATA, encode, read_metadata
from train.data import prepare
from train.data.card_reading import MAX_CARD, read_card
from train.data.sources import read_source, tables
from train.data.sources.entries import Entry
from train.data.sources.folder import MAX_CAPTION
from train.data.sources.lists import LIMIT
from train.data.sources.pictures import MAX_BYTES, read_picture
from train.limits import MAX_TEXT_LENGTH
from train.recipe import read_recipe, recipe_of

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
RECIPE = 'model = "m"\ndata = "d"\nout = "o"\n'


def test_the_table_has_the_numbers_of_the_code():
    rows = re.findall(r"\| (\d+)[ a-zA-Z]* \| `([\w.]+)\.([A-Z_]+)` \|", PAGE.read_text())
    assert len(rows) == 22
    for number, module, name in rows:
        assert int(number) == getattr(import_module(module), name), name


def large(file: Path, size: int, start: bytes = b"") -> Path:
    """Return a sparse file of more bytes than its limit."""
    with file.open("wb") as out:
        out.write(start)
        out.truncate(size + 1)
    return file


def error_of(read, *arguments) -> str:
    """Return the error of a reader, as a command prints it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at
        read(*arguments)
    return printable_line(caught.value)


def lora(file: Path) -> Path:
    start = "transformer.transformer_blocks.0.attn.to_q.lora"
    shapes = {f"{start}_A.weight": (MAX_RANK + 1, 2), f"{start}_B.weight": (2, MAX_RANK + 1)}
    save_file({name: np.ones(shape, np.float16) for name, shape in shapes.items()}, file)
    return file


def recipe(file: Path, line: str) -> Path:
    file.write_text(f"{RECIPE}[stage1]\nsteps = 1\n{line}\n")
    return file


def zip_of(file: Path, *, pickle: int = 10, name: int = 1) -> Path:
    """Return a zip whose one member has so large a pickle, or whose directory is so large."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 10)
    data = bytearray(file.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 28] = pickle.to_bytes(4, "little") * 2
    at = data.rfind(b"PK\x05\x06")
    data[at + 12 : at + 16] = name.to_bytes(4, "little") if name > 1 else data[at + 12 : at + 16]
    file.write_bytes(data)
    return file


BEYOND = {
    "a config": lambda f: error_of(read_bytes, large(f / "a.json", MAX_TEXT)),
    "a name": lambda f: error_of(below, f, "a" * 256),
    "a recipe": lambda f: error_of(read_recipe, large(f / "a.toml", MAX_TEXT)),
    "steps": lambda f: error_of(read_recipe, recipe(f / "a.toml", "warmup = 100000001")),
    "a batch": lambda f: error_of(read_recipe, recipe(f / "a.toml", "batch = 1048577")),
    "a resolution": lambda f: error_of(read_recipe, recipe(f / "a.toml", "resolution = 4112")),
    "no resolution": lambda f: error_of(read_recipe, recipe(f / "a.toml", "resolution = -16")),
    "a rate": lambda f: error_of(read_recipe, recipe(f / "a.toml", "learning_rate = inf")),
    "a trained rank": lambda f: error_of(read_recipe, recipe(f / "a.toml", "[lora]\nrank = 4097")),
    "a rank": lambda f: error_of(read_lora, lora(f / "a.safetensors")),
    "a header": lambda f: error_of(
        read_tensors,
        large(f / "a", MAX_HEADER + 100, (MAX_HEADER + 1).to_bytes(8, "little") + b"{"),
    ),
    "a pickle": lambda f: error_of(read_torch, zip_of(f / "a", pickle=MAX_PICKLE + 1)),
    "a directory": lambda f: error_of(read_torch, zip_of(f / "a", name=MAX_DIRECTORY + 1)),
    "a card": lambda f: error_of(read_card, large(f / "card.json", MAX_CARD).parent),
    "steps told": lambda f: error_of(
        lambda: PictureArguments("a", 0, "m", "float32", num_inference_steps=MAX_STEPS + 1)
    ),
    "a picture's bytes": lambda f: error_of(
        read_picture, large(f / "a.png", MAX_BYTES).parent, Entry("a.png", "", "")
    ),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_is_beyond_a_limit_is_printable_line(tmp_path, what):
    line = BEYOND[what](tmp_path)
    assert re.search(r"\d|names no file", line)
    assert len(line) < 400
    if what not in ("steps told", "a name"):
        assert "/a" in line or "a.png" in line or "card.json" in line


def test_a_caption_and_a_list_beyond_their_limit_are_set_aside(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    large(tmp_path / "a.txt", MAX_CAPTION)
    (rejected,) = read_source(tmp_path).rejected
    assert f"at most {MAX_CAPTION}" in rejected.reason
    large(tmp_path / "metadata.jsonl", LIMIT)
    assert f"at most {LIMIT}" in read_source(tmp_path).rejected[0].reason


def test_arguments_of_a_picture_beyond_the_limit_are_not_read(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encode(Image.new("RGB", (16, 16)), ".png", {"a": "x" * MAX_METADATA}))
    assert read_metadata(file) is None


def test_a_row_group_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures = pa.table({"image": [b"x" * 100, b"y" * 100], "id": ["a", "b"]})
    pq.write_table(pictures, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    assert tables.read_cell(tmp_path / "a.parquet", "image", 1) == b"y" * 100
    tables._parquet_cells.cache_clear()
    monkeypatch.setattr(tables, "MAX_GROUP", 199)
    line = error_of(tables.read_cell, tmp_path / "a.parquet", "image", 1)
    assert re.search(r"row group has \d+ bytes, more than 199; write the table", line)


def sampling(**values):
    """Check a call's arguments, as a pipeline of 16 pixels a token does."""
    numbers = {"num_images_per_prompt": 1, "sigmas": None, "subject_fit": "pad"}
    defaults = {**dict.fromkeys(SamplingConfig().to_dict()), "output_type": "pil", **numbers}
    arguments = sampling_arguments(SamplingConfig(), has_negative=False, **defaults | values)
    arguments.check_size(16)


def test_a_drawn_side_beyond_the_limit_is_refused():
    sampling(height=MAX_SIDE)
    line = error_of(lambda: sampling(width=MAX_SIDE + 16))
    assert line == (
        f"width is {MAX_SIDE + 16}; it must be a multiple of 16 from 16 to {MAX_SIDE}, "
        f"such as {MAX_SIDE}"
    )


def test_lengths_of_prompts_beyond_the_limit():
    """T5's is refused of a call and of a recipe; what a prompt has beyond them is cut."""
    assert error_of(lambda: sampling(max_sequence_length=MAX_TEXT_LENGTH + 1)).startswith(
        "max_sequence_length is 513; it must be a whole number from 1 to 512"
    )
    values = {"model": "m", "data": "d", "out": "o", "text_length": MAX_TEXT_LENGTH + 1}
    line = error_of(recipe_of, values | {"stage1": {"steps": 1}})
    assert "text_length is 513; it must be at most 512" in line
    folders = (SMALL_MODEL / name for name in ("tokenizer", "tokenizer_2"))
    tokenizer = PromptTokenizer.from_folders(*folders)
    with pytest.warns(UserWarning, match="CLIP reads 77 tokens and.*; T5 reads 512 tokens and"):
        clip, t5 = tokenizer("a person " * 600, max_sequence_length=MAX_TEXT_LENGTH)
    assert (clip.shape, t5.shape) == ((1, CLIP_LENGTH), (1, MAX_TEXT_LENGTH))


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith(f"{name}:"))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "1", {}),
        ("a.jpg", "RGB", {"progressive": True, "quality": 95, "subsampling": 0}),
        ("b.png", "RGBA", {}),
        ("c.png", "I;16", {}),
        ("a.webp", "RGB", {}),
        ("a.gif", "P", {}),
    ],
)
def test_decoding_takes_no_more_than_was_counted(tmp_path, monkeypatch, name, mode, options):
    """Count a picture's bytes as they are when it is turned, whose memory is a copy more."""
    side = 2048
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.ones((side, side), np.uint16) if mode == "I;16" else np.zeros((side, side), "u1")
    image = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / name, **options, exif=exif)
    del image
    monkeypatch.setattr(images, "MAX_DECODING", 1)
    need = re.search(r"takes (\d+) MB to decode \(2048 x", error_of(read_rgb, tmp_path / name))
    assert need
    monkeypatch.undo()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here on
    before = status("VmRSS")
    assert read_rgb(tmp_path / name).shape == (side, side, 3)
    assert status("VmHWM") - before <= 1e6 * int(need[1]) + 12e6


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (9000, 10)).save(tmp_path / "wide.png")
    assert "more than 8192 a side" in error_of(read_rgb, tmp_path / "wide.png")
    Image.new("L", (8192, 8192)).save(tmp_path / "a.gif")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    line = error_of(read_rgb, tmp_path / "a.gif")
    assert "takes 940 MB to decode (8192 x 8192 pixels), more than 800; make it smaller" in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 1


def test_fewer_workers_where_memory_is_short(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for free, workers in ((None, 16), (64e9, 16), (4.1e9, 5), (1e8, 1)):
        monkeypatch.setattr(prepare, "free_host_memory", lambda free=free: free)
        assert prepare.default_workers() == workers


def test_an_error_never_floods_or_controls_the_terminal(capsys):
    def fail():
        raise ValueError(f"a\x1b[2J\n\udcff {'b' * 10_000}; take less")

    assert run(fail) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: a\\x1b[2J \\udcff bbb")
    assert line.endswith("; take less\n")
    assert len(line) < 2100
