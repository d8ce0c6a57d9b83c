"""Readers of recipes, prompts, pictures and what pictures tell."""

import io
import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.edits import JSON, JSON_LINES, Form, as_json
from tests.fuzz.reader import TOY, Reader

RECIPE = b"""
model = "models/ic"
data = "data"
out = "runs/a"
seed = 1
mesh = "auto"
text_length = 128

[saving]
every = 100

[reporting]
preview_prompts = ["", "a hat"]

[lora]
rank = 4
targets = ["to_q"]

[stage1]
steps = 10
batch = 4
learning_rate = 1e-4

[stage2]
steps = 5
shifted = false
"""


def _toml(values: dict[str, Any], _: bytes) -> bytes:
    """Return TOML; a value that it cannot say is left out."""

    def said(value: Any) -> str | None:
        if isinstance(value, dict):
            items = [
                f"{json.dumps(k)} = {said(v)}" for k, v in value.items() if said(v) is not None
            ]
            return "{" + ", ".join(items) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(x for v in value if (x := said(v)) is not None) + "]"
        text = json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
        return None if value is None or "\\ud8" in text else text

    lines = [f"{json.dumps(k)} = {said(v)}" for k, v in values.items() if said(v) is not None]
    return "\n".join(line for line in lines if "\\ud8" not in line).encode()


def _read_recipe(folder: Path) -> None:
    from train.recipe import read_recipe

    read_recipe(folder / "recipe.toml")


def _write_run(folder: Path) -> None:
    (folder / "run").mkdir()
    lines = [{"step": n, "loss": 0.5, "reference effect": 0.1} for n in range(3)]
    text = b"".join(as_json(line) + b"\n" for line in lines)
    (folder / "run" / "metrics.jsonl").write_bytes(text)
    recipe = tomllib.loads(RECIPE.decode())
    (folder / "run" / "recipe.json").write_bytes(as_json(recipe))
    (folder / "run" / "seconds.json").write_bytes(as_json({"compiling": 3.5}))


def _read_run(folder: Path) -> None:
    from train.export import recipe_in
    from train.run_folder import read_metrics
    from train.speaker import Speaker

    with Speaker(folder / "run").silence("compiling"):
        pass
    read_metrics(folder / "run")
    recipe_in(folder / "run")


def _write_pictures(folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, mode, options in (
        ("a.png", "RGBA", {}),
        ("b.png", "1", {}),
        ("c.jpg", "RGB", {"exif": exif.tobytes()}),
        ("d.webp", "RGBA", {}),
        ("e.gif", "P", {"transparency": 0}),
        ("f.tif", "RGB", {"compression": "tiff_lzw"}),
        ("g.bmp", "RGB", {}),
        ("h.jp2", "RGB", {}),
        ("i.tga", "RGB", {}),
        ("j.ico", "RGBA", {}),
        ("k.ppm", "RGB", {}),
        ("l.avif", "RGB", {}),
    ):
        image.convert(mode).save(folder / name, **options)
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(folder / "m.png")


def _read_pictures(folder: Path) -> None:
    from ic_jax.preprocessing.images import ImageError, read_rgb
    from train.data.decode import decode_image, decode_mask, inspect_file

    for file in folder.iterdir():
        data = file.read_bytes()
        for read in (decode_image, decode_mask, inspect_file):
            try:
                read(data)
            except ImageError:
                continue
        read_rgb(file)


def _told(data: bytes) -> dict[str, Any]:
    from infer.picture_file import read_metadata

    metadata = read_metadata(io.BytesIO(data))
    assert metadata is not None
    return metadata


def _picture_that_tells(values: Any, _: bytes) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("ic_jax", json.dumps(values))
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _write_drawn(folder: Path) -> None:
    from infer import demo

    told = {"ic_jax": "0", "jax": "0", "device": "cpu", "prompt": "waving", "seed": 1}
    told |= {"model": demo.MODEL_NAME, "subject": None, "lora": [], "trigger": []}
    told |= {"sigmas": None, "num_inference_steps": 4, "height": 96, "width": 96}
    told |= {"dtype": "float32", "fuse_lora": False, "true_cfg_scale": 1.0}
    (folder / "a.png").write_bytes(_picture_that_tells(told, b""))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps(told).encode()
    Image.new("RGB", (16, 16)).save(folder / "b.jpg", exif=exif.tobytes())


def _read_drawn(folder: Path) -> None:
    from ic_jax.cli import Parser
    from infer.from_picture import with_picture
    from infer.options import add_arguments

    parser = Parser()
    add_arguments(parser)
    refused = None
    for file in sorted(folder.iterdir()):
        try:
            with_picture(parser.parse_args(["--from", str(file)]))
        except ValueError as error:
            refused = error
    if refused:
        raise refused


def _write_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a hat\nwaving, \u00fcber alles\n\na (red:1.2) coat\n")


def _read_prompts(folder: Path) -> None:
    from ic_jax.preprocessing.tokenizers import check_prompt
    from infer import output
    from infer.request import _prompts

    prompts = [check_prompt(text) for text in _prompts(None, folder / "prompts.txt")]
    for prompt in prompts:
        _tokenizer().encode(prompt, 16)
    for job in output.jobs(output.DEFAULT, prompts, [0]):
        str(job.file).encode()


@cache
def _tokenizer() -> Any:
    from ic_jax.preprocessing.tokenizers import load_tokenizer

    return load_tokenizer(TOY / "tokenizer", "!")


TOML = Form(lambda data: tomllib.loads(data.decode()), _toml)
READERS = {
    "recipe": Reader(
        lambda folder: (folder / "recipe.toml").write_bytes(RECIPE), _read_recipe, {"*": TOML}
    ),
    "run": Reader(_write_run, _read_run, {"*.json": JSON, "*.jsonl": JSON_LINES}),
    "pictures": Reader(_write_pictures, _read_pictures, megabytes=128),
    "picture-metadata": Reader(
        _write_drawn, _read_drawn, {"*.png": Form(_told, _picture_that_tells)}
    ),
    "prompts": Reader(_write_prompts, _read_prompts),
}
