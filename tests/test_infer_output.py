"""Files of pictures: what `--out` names, names of pictures, formats, and what a picture tells."""

import argparse
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ic_jax import cli
from infer import demo, options, output
from infer.from_picture import DIGESTS, PICTURES, PictureArguments, with_picture
from infer.ground_options import GROUND
from infer.output import Destination
from infer.picture_file import FORMATS, USER_COMMENT, encode, read_metadata
from infer.request import SAMPLING, GenerateRequest

METADATA = {
    "ic_jax": "0.1.0",
    "jax": "0.10.2",
    "device": "cpu",
    "prompt": 'ein Mädchen, "女孩"\nim Regen',
    "seed": 2**32 - 1,
    "model": demo.MODEL_NAME,
    "dtype": "float32",
    "negative_prompt": None,
    "true_cfg_scale": 1.0,
    "guidance_scale": 0.1 + 0.2,
    "num_inference_steps": 4,
    "sigmas": None,
    "height": 96,
    "width": 64,
    "lora": ["styles/ink.safetensors=0.8"],
    "trigger": ["ink"],
}
IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("prompt", ["a girl", METADATA["prompt"]])
def test_every_format_tells_how_it_was_made(tmp_path, ending, prompt):
    metadata = METADATA | {"prompt": prompt}
    file = output.save(IMAGE, tmp_path / f"x{ending.upper()}", metadata)
    assert read_metadata(file) == metadata
    with Image.open(file) as picture:
        assert picture.format == FORMATS[ending]
        if ending != ".png":  # as viewers read it
            comment = picture.getexif().get_ifd(0x8769)[USER_COMMENT]
            encoding = "ascii" if comment.startswith(b"ASCII\0\0\0") else "utf-16-be"
            assert json.loads(comment[8:].decode(encoding)) == metadata


def test_a_png_tells_it_as_other_tools_do():
    text = Image.open(io.BytesIO(encode(IMAGE, ".png", METADATA))).text["parameters"]
    assert text.splitlines() == [
        'ein Mädchen, "女孩"',
        "im Regen <lora:ink:0.8>",
        "Steps: 4, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 0.3, Seed: 4294967295, "
        "Size: 64x96, Model: small model of ic_jax, Version: ic_jax 0.1.0",
    ]
    over = encode(IMAGE, ".png", METADATA | {"strength": 0.6, "model": "models/ic, é"})
    last = Image.open(io.BytesIO(over)).text["parameters"].splitlines()[-1]
    assert "Size: 64x96, Denoising strength: 0.6, Model: " in last
    # As AUTOMATIC1111's web UI splits the line.
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last))
    assert json.loads(pairs["Model"]) == "ic, é"
    assert len(pairs) == 9


@pytest.mark.parametrize("ending", FORMATS)
def test_arguments_that_a_file_cannot_hold_are_found_before_drawing(tmp_path, ending):
    job = output.Job("a girl", 0, tmp_path / f"x{ending}")
    with pytest.raises(ValueError, match="more than the file can hold; make the prompts shorter"):
        output.prepare([job], lambda _: METADATA | {"prompt": "女孩" * 33_000})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("girl.png", Destination(Path(), "girl", ".png")),
        ("a/girl.v2.JPEG", Destination(Path("a"), "girl.v2", ".JPEG")),
        ("girl.webp", Destination(Path(), "girl", ".webp")),
        ("~/girl.avif", Destination(Path("/home/ana"), "girl", ".avif")),
        ("~/drawn", Destination(Path("/home/ana/drawn"))),
        ("drawn.d/", Destination(Path("drawn.d"))),
        ("there.d", Destination(Path("there.d"))),
        ("v0.9", Destination(Path("v0.9"))),
        ("Mr. Smith and sons", Destination(Path("Mr. Smith and sons"))),
    ],
)
def test_what_out_names(text, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ana")
    monkeypatch.chdir(tmp_path)
    Path("there.d").mkdir()
    assert output.destination(text) == expected


@pytest.mark.parametrize("ending", ["heic", "jfif", "pdf", "txt", "gif", "bmp", "tiff", "v2"])
def test_an_ending_that_is_not_written_is_refused(ending, capsys):
    parser = cli.Parser()
    options.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", f"girl.{ending}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"girl.{ending}: pictures are written as .png, .jpg, .jpeg, .webp, .avif" in line
    assert "end the name of a folder in /" in line


def test_a_name_may_not_be_an_ending_and_a_name_of_any_length_is_no_traceback():
    with pytest.raises(argparse.ArgumentTypeError, match="no name before its ending"):
        output.destination("drawn/.png")
    assert output.destination("x" * 5000) == Destination(Path("x" * 5000))


def test_a_format_that_pillow_lacks_is_refused(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(argparse.ArgumentTypeError, match="Pillow cannot write"):
        output.destination("girl.avif")


def test_a_line_at_the_top_draws_only_itself(tmp_path):
    out, lines = (
        Destination(tmp_path, "x", ".webp"),
        ["A girl, in the rain", "a girl in the rain", "ein Mädchen"],
    )
    metadata = lambda job: {"prompt": job.prompt, "seed": job.seed}  # noqa: E731
    for job in output.jobs(out, lines, [1, 2]):
        job.file.write_bytes(encode(IMAGE, ".webp", metadata(job)))
    jobs = output.jobs(out, ["a boy", *lines], [1, 2])
    assert len({job.file for job in jobs}) == 8
    assert output.missing(jobs, metadata) == [0, 1]
    folder = Destination(tmp_path)
    assert output.jobs(folder, lines[:1], [2])[0] in output.jobs(folder, lines, [1, 2])


@pytest.mark.parametrize("prompt", ["", "!?", "女孩" * 60, "🎸" * 300, "../../x", "\udcff"])
def test_any_prompt_names_a_file_in_the_folder(prompt, tmp_path):
    (job,) = output.jobs(Destination(tmp_path), [prompt], [2**32 - 1])
    assert job.file.parent == tmp_path
    job.file.write_bytes(b"")
    assert len(os.fsencode(job.file.name)) < 230


def test_pictures_without_a_name_replace_nothing(tmp_path):
    out = Destination(tmp_path, "out")
    two = output.jobs(out, ["a", "b"], [0])
    two[1].file.write_text("precious")
    assert output.free_stem(out, ["a", "b"], [0]) == "out-2"
    assert output.free_stem(out, ["a"], [0]) == "out"
    (tmp_path / "out.png").symlink_to("nowhere")
    (tmp_path / "out-2.png").write_text("precious")
    assert output.free_stem(out, ["a"], [0]) == "out-3"
    saved = output.save(IMAGE, tmp_path / "out-2.png", METADATA, keep=True)
    assert saved == tmp_path / "out-2-2.png"
    assert (tmp_path / "out-2.png").read_text() == "precious"


def picture_with(tmp_path, **changes):
    file = tmp_path / "told.png"
    info = PngInfo()
    info.add_itxt("ic_jax", json.dumps(METADATA | {"lora": [], "trigger": []} | changes))
    IMAGE.save(file, pnginfo=info)
    return file


def parsed(*arguments):
    parser = cli.Parser()
    options.add_arguments(parser)
    return parser.parse_args([*map(str, arguments)])


def test_a_picture_tells_what_the_command_line_does_not(tmp_path):
    told = {"sigmas": [1.0, 0.5], "true_cfg_scale": 2.0, "negative_prompt": "dark"}
    told |= {"subject_scale": 0.9, "negative_subject_scale": 0.9, "fuse_lora": True}
    file = picture_with(tmp_path, **told)
    args = with_picture(parsed("--from", file))
    assert (args.prompt, args.seed) == ([METADATA["prompt"]], [2**32 - 1])
    assert (args.model, args.guidance_scale, args.sigmas) == (None, 0.1 + 0.2, (1.0, 0.5))
    assert args.num_inference_steps is None  # the levels are as many
    assert args.fuse_lora
    assert (args.negative_prompt, args.negative_subject_scale) == ("dark", 0.9)
    args = with_picture(parsed("--from", file, "--seed", 1, 2, "--steps", 3, "--prompt", "a boy"))
    assert (args.prompt, args.seed, args.width) == (["a boy"], [1, 2], 64)
    assert (args.num_inference_steps, args.sigmas) == (3, None)
    args = with_picture(parsed("--from", file, "--prompts-file", "x.txt", "--true-cfg-scale", 1))
    assert (args.prompt, args.negative_prompt, args.negative_subject_scale) == (None, None, None)
    args = with_picture(parsed("--from", file, "--subject-scale", 0.5))
    assert (args.subject_scale, args.negative_subject_scale) == (0.5, None)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"prompt": 3}, "prompt is 3; it must be of type str"),
        ({"prompt": "\x1b[2J"}, "holds control characters"),
        ({"seed": "1"}, "seed is '1'; it must be of type int"),
        ({"seed": True}, "seed is True"),
        ({"height": 1e9}, "height is 1000000000.0; it must be of type int"),
        ({"num_inference_steps": 10**9}, "must be a whole number from 1 to 1000"),
        ({"sigmas": [1 - i / 1e4 for i in range(1001)]}, "from 1 to 1000"),
        ({"sigmas": "1"}, "sigmas is '1'; it must be a list of numbers"),
        ({"guidance_scale": 10**400}, "cannot be drawn again: guidance_scale is 1000"),
        ({"lora": [{"a": 1}]}, "lora is [{'a': 1}]; it must be a list of texts"),
        ({"dtype": "float8"}, "dtype is 'float8'; it must be one of bfloat16, float32"),
        ({"pose": "x.png"}, "unknown key pose"),
        ({"model": "evil/model"}, "drawn with --model 'evil/model', which is not here; give"),
        ({"subject": ""}, "drawn with --subject '.', which is not here"),
        ({"reference": "x.png"}, "drawn with --reference 'x.png', which is not here"),
        ({"subject": "/dev/zero"}, "drawn with --subject '/dev/zero', which is not here"),
        ({"lora": ["evil/lora=1"]}, "drawn with --lora 'evil/lora', which is not here"),
    ],
)
def test_what_a_picture_tells_is_not_believed(told, message, tmp_path, capsys):
    args = parsed("--from", picture_with(tmp_path, **told))
    assert cli.run(lambda: with_picture(args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "[" * 10_000, '{"prompt": "' + "x" * 2**16 + '"}', "9" * 5000]
)
def test_what_is_no_table_of_arguments_is_nothing(text, tmp_path):
    info = PngInfo()
    info.add_text("ic_jax", text)
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    assert read_metadata(tmp_path / "x.png") is None


def test_a_subject_that_has_changed_is_said(tmp_path):
    subject = tmp_path / "ana.png"
    IMAGE.save(subject)
    file = picture_with(tmp_path, subject=str(subject), subject_sha256="0" * 64)
    with pytest.warns(UserWarning, match="ana.png has changed since .*told.png was drawn"):
        with_picture(parsed("--from", file))


def test_the_arguments_that_a_picture_tells_are_those_that_are_read():
    told = GenerateRequest(
        **dict.fromkeys(GenerateRequest.__dataclass_fields__)
        | {"sampling": dict.fromkeys(SAMPLING), "loras": ()}
        | {"told": dict.fromkeys((*PICTURES, *DIGESTS, *GROUND, "subject", "subjects"))}
    ).metadata(SimpleNamespace(prompt="a girl", seed=0))
    assert told.keys() == PictureArguments.__dataclass_fields__.keys()
