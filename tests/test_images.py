"""Every kind of picture that people bring, and what is not a picture."""

import contextlib
import struct
import zlib
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image

from ic_jax.preprocessing.images import MAX_SIDE, ImageError, read_rgb, tiles, to_square
from tests.conftest import GOLDENS

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def noise(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "picture.png", **options) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def png(width: int, height: int) -> bytes:
    """A PNG of a few kB that claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # bilevel
    rows = zlib.compress(bytes(10_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def refused(picture, *words: str) -> None:
    """The error is one line that has all the words, the last of which say what to do."""
    with pytest.raises(ImageError) as caught:
        read_rgb(picture)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, ";"):
        assert word in message


def test_path_image_and_array_give_the_same(tmp_path):
    rgb = noise()
    path = saved(tmp_path, Image.fromarray(rgb))
    for picture in (path, str(path), Image.fromarray(rgb), rgb, jnp.asarray(rgb)):
        np.testing.assert_array_equal(read_rgb(picture), rgb)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_rgb(opened), rgb)


# Transparency


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 51)]], np.uint8)
    expected = [[RED, WHITE, (204, 204, 204)]]
    for picture in (rgba, saved(tmp_path, Image.fromarray(rgba))):
        np.testing.assert_array_equal(read_rgb(picture), expected)


def test_grey_with_alpha_is_laid_on_white():
    np.testing.assert_array_equal(
        read_rgb(np.array([[(9, 255), (9, 0)]], np.uint8)), [[(9, 9, 9), WHITE]]
    )


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_entries_are_white(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([*RED, 0, 0, 255])
    path = saved(tmp_path, image, transparency=transparency)
    np.testing.assert_array_equal(read_rgb(path), [[RED, WHITE]])


def test_a_transparent_colour_is_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[RED, BLACK]], np.uint8)), transparency=BLACK)
    np.testing.assert_array_equal(read_rgb(path), [[RED, WHITE]])


def test_a_transparent_16_bit_grey_is_white(tmp_path):
    image = Image.fromarray(np.array([[257, 514]], np.uint16))
    path = saved(tmp_path, image, transparency=257)
    np.testing.assert_array_equal(read_rgb(path), [[WHITE, (2, 2, 2)]])


# Pixel types


def test_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([*RED, 0, 0, 255])
    np.testing.assert_array_equal(read_rgb(saved(tmp_path, image)), [[RED, (0, 0, 255)]])


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for picture in (image, saved(tmp_path, image, "picture.jpg", quality=100)):
        assert np.abs(read_rgb(picture).astype(int) - np.array(RED)).max() <= 2


def test_bilevel(tmp_path):
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    for picture in (image, saved(tmp_path, image), np.array([[True, False]])):
        np.testing.assert_array_equal(read_rgb(picture), [[WHITE, BLACK]])


@pytest.mark.parametrize("name", ["picture.png", "picture.tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(values), name)
    for picture in (path, values):
        np.testing.assert_array_equal(read_rgb(picture)[0, :, 1], [0, 100, 100, 101, 255])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0.0, 51.4, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[0, 51, 255]], np.int32), [0, 51, 255]),
        (np.array([[0, 13107, 65535]], np.int32), [0, 51, 255]),
        (np.array([[0, 1, 1]], np.int32), [0, 1, 1]),
    ],
)
def test_wide_grey_counts_to_1_255_or_65535(tmp_path, values, expected):
    path = saved(tmp_path, Image.fromarray(values), "picture.tiff")
    for picture in (values, Image.fromarray(values), path):
        np.testing.assert_array_equal(read_rgb(picture)[0, :, 0], expected)


def test_float_array_of_a_jax_model():
    rgb = noise()
    np.testing.assert_array_equal(read_rgb(jnp.asarray(rgb, jnp.float32) / 255), rgb)


@pytest.mark.parametrize("value", [-1.0, 1e6, np.nan, np.inf])
def test_values_out_of_range_are_refused(value):
    values = np.array([[0.0, value]], np.float32)
    refused(values, "the array given has values", "0..1")
    refused(Image.fromarray(values), "the picture given has values", "0..1")


def test_colours_without_a_conversion_are_refused():
    refused(Image.new("La", (2, 2)), "mode La", "save it as RGB")


# Orientation and frames


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    upright = noise()
    stored = {  # what the camera wrote, so that a viewer's correction gives `upright`
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read_rgb(path), upright)


@pytest.mark.parametrize("name", ["picture.gif", "picture.png", "picture.webp"])
def test_the_first_frame_of_an_animation(tmp_path, name):
    first, second = (Image.new("RGB", (4, 3), colour) for colour in (RED, BLACK))
    path = saved(
        tmp_path, first, name, save_all=True, append_images=[second], lossless=True, duration=9
    )
    with Image.open(path) as opened:
        assert opened.n_frames == 2
    np.testing.assert_array_equal(read_rgb(path), np.full((3, 4, 3), RED))


# What is no picture


def test_truncated_files_are_refused(tmp_path):
    for name in ("picture.png", "picture.jpg", "picture.webp", "picture.gif"):
        path = saved(tmp_path, Image.fromarray(noise(64, 64)), name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(path, name, "copy or download it again")
        path.write_bytes(path.read_bytes()[:6])
        refused(path, name)


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.webp", "picture.gif"])
def test_damaged_files_give_a_picture_or_an_image_error(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(noise(16, 16)), name)
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(intact)
        for i in rng.integers(0, len(intact), 3):
            damaged[i] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ImageError):  # and no other error
            assert read_rgb(path).dtype == np.uint8


def test_what_is_no_picture_is_named(tmp_path):
    for name, content, words in (
        ("empty.png", b"", ["is empty"]),
        ("text.png", b"version https://git-lfs.github.com/spec/v1\n", ["not a picture", "PNG"]),
        (
            "drawing.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            ["not a picture", "PNG"],
        ),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refused(path, name, *words)
    refused(tmp_path, "is a directory", "give one picture file")
    refused(tmp_path / "absent.png", "absent.png", "no such file")
    refused("a\0b.png", "null")
    refused("x" * 5000, "cannot be opened")
    refused(None, "NoneType", "path")


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4, 5), (2, 4, 4, 3), (4,)])
def test_arrays_of_other_shapes_are_refused(shape):
    refused(np.zeros(shape, np.uint8), "the array given", "pi")


@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 10_000), (60_000, 60_000), (MAX_SIDE + 1, 1), (1, 80_000_000)]
)
def test_decompression_bombs_are_refused_before_decoding(tmp_path, monkeypatch, width, height):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height))

    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    refused(path, "bomb.png", f"more than {MAX_SIDE} a side", "make it smaller")


def test_the_limit_also_holds_for_arrays():
    refused(np.zeros((1, MAX_SIDE + 1), np.uint8), str(MAX_SIDE), "make it smaller")


# Squares and tiles


def test_stretch_is_the_published_squeeze():
    rgb = read_rgb(GOLDENS / "tiny_instantcharacter" / "reference.png")
    expected = Image.fromarray(rgb).resize((420, 420), Image.Resampling.BICUBIC)
    assert rgb.shape == (420, 300, 3)
    np.testing.assert_array_equal(to_square(rgb, "stretch"), expected)


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 3), (4, 4)])
def test_pad_centres_on_white(height, width):
    rgb = noise(height, width)
    side = max(height, width)
    square = to_square(rgb, "pad")
    assert square.shape == (side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    np.testing.assert_array_equal(square[top : top + height, left : left + width], rgb)
    assert square.sum(dtype=int) == rgb.sum(dtype=int) + 3 * 255 * (side**2 - height * width)


def test_another_fit_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it checks the type first
    with pytest.raises(ValueError, match="neither 'stretch' nor 'pad'"):
        to_square(noise(), "crop")


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (300, 200)])
def test_tiles_of_any_picture(fit, height, width):
    low, high = tiles(to_square(noise(height, width), fit), 384)
    assert low.shape == (384, 384, 3)
    assert high.shape == (4, 384, 384, 3)
    assert low.dtype == high.dtype == np.uint8


def test_tiles_are_ordered_by_rows_and_fit_together():
    square = noise(32, 32)
    low, high = tiles(square, 16)
    top, bottom = np.hstack(high[:2]), np.hstack(high[2:])
    np.testing.assert_array_equal(np.vstack([top, bottom]), square)
    expected = Image.fromarray(square).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(low, expected)
