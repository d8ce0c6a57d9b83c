"""`--subject` of several characters: what its texts name, and pictures that tell them."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ic_jax import cli, prepare_subject
from ic_jax.weights.model_folder import SMALL_MODEL
from infer import options
from infer.commands import main
from infer.from_picture import PictureArguments, _replaced
from infer.ground_options import GROUND
from infer.request import read_request
from infer.subject_options import subject_option
from tests.conftest import TINY

SMALL = ["--height=64", "--width=32", "--steps=2", "--max-sequence-length=32", "--dtype=float32"]


@pytest.mark.parametrize(
    ("text", "pictures", "region", "scale"),
    [
        ("ana.png", ["ana.png"], None, None),
        ("ana.png@left", ["ana.png"], "left", None),
        ("ana.png:0.8", ["ana.png"], None, 0.8),
        ("ana.png@0.5,0,1,1:2", ["ana.png"], (0.5, 0.0, 1.0, 1.0), 2.0),
        ("a1.png+a2.png@masks/ana.png:1", ["a1.png", "a2.png"], "masks/ana.png", 1.0),
        ("a:b.png", ["a:b.png"], None, None),
        # names of files that are there
        ("ana@left.png", ["ana@left.png"], None, None),
        ("c+d.png@right", ["c+d.png"], "right", None),
        ("ana@left.png:0.5", ["ana@left.png"], None, 0.5),
    ],
)
def test_what_an_option_names(text, pictures, region, scale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ana@left.png", "c+d.png"):
        Path(name).write_bytes(b"")
    option = subject_option(text)
    assert (option.pictures, option.region, option.scale) == (
        tuple(map(Path, pictures)),
        region,
        scale,
    )
    assert option.is_plain == (region is scale is None and len(pictures) == 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ana.png@0.5,0,one,1", "the region 0.5,0,one,1 is neither one of all, left"),
        ("ana.png:-1", "the scale -1 is no number of at least 0"),
        ("ana.png:nan", "the scale nan is no number of at least 0"),
        ("ana.png+", "'' is no path"),
        ("@left", "'' is no path"),
    ],
)
def test_options_that_name_nothing(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        subject_option(text)


@pytest.fixture
def infer(tiny_model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    picture = Image.open(TINY / "reference.png").convert("RGB")
    picture.save("ana.png")
    Image.fromarray(255 - np.asarray(picture)).save("ben.png")

    def run(*arguments):
        common = [f"--model={tiny_model}", *SMALL, "--no-compile-cache"]
        code = main([*common, *arguments])
        return code, *capfd.readouterr()

    return run


def test_a_couple_is_drawn_told_and_drawn_again(infer, tmp_path):
    couple = ("--subject", "ana.png@top:0.5", "--subject", "ben.png@0,0.5,1,1")
    control = ("--subject-end=0.5", "--subject-ramp=0.5", "--subject-blocks=0-1")
    scene = ("--subject-ground=cut", "--prompt=a couple")
    code, out, _ = infer(*couple, *control, *scene, "--out=a.png")
    assert code == 0
    assert "encoded ana.png@top:0.5, ben.png@0,0.5,1,1: " in out
    told = json.loads(Image.open("a.png").text["ic_jax"])
    assert told["subject"] is None
    assert told["subjects"] == ["ana.png@top:0.5", "ben.png@0,0.5,1,1"]
    assert (told["subject_end"], told["subject_blocks"]) == (0.5, "0,1")
    assert told["subject_ground"] == "cut"
    assert infer("--from=a.png", "--out=b.png")[0] == 0
    first, again = (np.asarray(Image.open(name)) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(first, again)
    (tmp_path / "ben.png").unlink()
    code, _, err = infer("--from=a.png", "--out=c.png")
    assert code != 0
    assert "was drawn with --subject 'ben.png', which is not here; give --subject" in err


def parsed(*arguments):
    parser = cli.Parser()
    options.add_arguments(parser)
    return parser.parse_args([f"--model={SMALL_MODEL}", "--prompt=a girl", *arguments])


def test_a_character_is_cut_out_as_in_python(infer, tmp_path):
    mask = Image.new("L", Image.open("ana.png").size)
    mask.paste(255, (mask.width // 4, 0, mask.width // 2, mask.height))
    mask.save("mask.png")
    request = read_request(parsed("--subject=ana.png", "--subject-mask=mask.png"))
    assert (request.told["subject"], request.told["subject_mask"]) == ("ana.png", "mask.png")
    assert (request.told["subject_ground"], request.told["matting"]) == ("cut", None)
    cut = prepare_subject("ana.png", mask="mask.png")
    np.testing.assert_array_equal(request.figures[Path("ana.png")], cut)
    kept = read_request(parsed("--subject=ana.png", "--subject-ground=keep"))
    assert kept.figures == {Path("ana.png"): Path("ana.png")}
    assert kept.told["subject_ground"] is None


def test_options_of_the_command_line_replace_how_a_picture_was_cut():
    told = PictureArguments("a", 0, "m", "float32", subject="ana.png", subject_mask="mask.png")
    assert _replaced(parsed(), told) & {*GROUND} == set()
    assert _replaced(parsed("--subject-ground=keep"), told) >= {*GROUND}
    assert _replaced(parsed("--subject=ben.png"), told) & {*GROUND} == {"subject_mask"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subject-ground=cut"], "--subject-ground does nothing without a subject"),
        (
            ["--subject=ana.png", "--subject=ben.png", "--subject-mask=ana.png"],
            "--subject-mask is of one picture, and these are several: ana.png, ben.png",
        ),
        (
            ["--subject=ana.png", "--subject-mask=ana.png", "--matting=net.onnx"],
            "--subject-mask and --matting exclude each other",
        ),
        (["--subject=ana.png@lft"], "a region's mask: 'lft': there is no such file"),
        (["--subject=ana.png@0,0,96,96"], "region (0.0, 0.0, 96.0, 96.0) is no box"),
        (["--subject=eve.png@left"], "'eve.png': there is no such file"),
        (["--subject-start=0.5"], "--subject-start does nothing without a subject"),
        (["--subject=ana.png", "--subject-blocks=0-900"], "names block 900; this model's are 0"),
        (["--subject=ana.png", "--subject-end=2"], "subject_end is 2.0; it must be a number from"),
    ],
)
def test_mistakes_are_one_line_before_anything_loads(infer, arguments, message):
    code, out, err = infer(*arguments, "--prompt=a couple", "--out=a.png")
    assert code != 0
    assert "loaded" not in out
    assert message in err
    assert len(err.splitlines()) == 1
