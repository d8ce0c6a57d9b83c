"""Characters cut out of their pictures, by every means, and what the model sees of them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ic_jax import ImageError, InstantCharacterPipeline, OnnxMatting, matting, prepare_subject
from ic_jax.preprocessing import figures
from ic_jax.preprocessing.figures import MARGIN
from ic_jax.preprocessing.images import read_rgb, read_rgba, tiles, to_square
from infer.commands import main
from tests.conftest import TINY

GROUND, COAT = (40, 160, 150), (200, 30, 40)
BOX = (40, 20, 99, 139)  # of the figure, to its last pixel


def drawn(ground=GROUND, size=(200, 150), mode="RGB"):
    """A figure in a coat, with a hole through which the ground is seen, and dots of its colour."""
    picture = Image.new(mode, size, ground)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(BOX, fill=COAT)
    draw.rectangle((60, 60, 79, 79), fill=ground)
    return picture


def shown(result):
    """The part of a prepared picture inside of the margin, of the figure's own size."""
    width, height = BOX[2] - BOX[0] + 1, BOX[3] - BOX[1] + 1
    side = height + 2 * round(MARGIN * height)
    assert result.size == (side, side)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = np.asarray(result)
    inside = pixels[top : top + height, left : left + width]
    assert (pixels == 255).all(axis=-1).sum() >= side * side - width * height
    return inside


def test_a_flat_ground_is_cut_and_what_the_figure_encloses_stays():
    inside = shown(prepare_subject(drawn()))
    assert (inside[0, 0] == COAT).all()
    assert (inside[50, 30] == GROUND).all()  # the hole
    specked = drawn()
    ImageDraw.Draw(specked).rectangle((1, 1, 4, 4), fill="black")
    np.testing.assert_array_equal(shown(prepare_subject(specked)), inside)
    noise = np.random.default_rng(0).integers(-8, 9, (150, 200, 3))
    noisy = np.clip(np.asarray(drawn(), int) + noise, 0, 255).astype(np.uint8)
    assert np.abs(shown(prepare_subject(noisy)).astype(int) - inside).max() <= 70
    white = prepare_subject(drawn((255, 255, 255)))
    assert (shown(white)[50, 30] == 255).all()


def test_mixed_pixels_of_an_edge_lose_the_ground():
    large = drawn(size=(200, 150)).resize((400, 300), Image.Resampling.BILINEAR)
    pixels = np.asarray(prepare_subject(large).resize((132, 132), Image.Resampling.BOX), int)
    row = pixels[66]
    coat_to_white = (row - COAT) @ (255 - np.array(COAT)) / np.sum((255 - np.array(COAT)) ** 2)
    off = np.abs(row - (COAT + coat_to_white[:, None] * (255 - np.array(COAT)))).max(axis=-1)
    outside_of_hole = np.r_[0:54, 80:132]
    assert off[outside_of_hole].max() < 12  # between the coat's colour and white, nothing teal


def test_alpha_goes_before_the_ground_and_a_mask_or_a_network_before_alpha():
    picture = drawn((*GROUND, 255), mode="RGBA")
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(255, (BOX[0], BOX[1], BOX[2] + 1, BOX[3] + 1))
    transparent = picture.copy()
    transparent.putalpha(alpha)
    np.testing.assert_array_equal(
        shown(prepare_subject(transparent)), np.asarray(picture)[20:140, 40:100, :3]
    )
    half = Image.new("L", (20, 15), 0)
    half.paste(255, (0, 0, 10, 15))  # the left half, of another size
    cut = prepare_subject(transparent, mask=half)
    assert cut.size[0] > 150  # as high as the mask's white
    cut = prepare_subject(transparent, matting=lambda x: (x[..., 1] == COAT[1]).astype(float))
    assert (shown(cut)[50, 30] == 255).all()  # the network sees white behind the figure
    with pytest.raises(ValueError, match="a mask and a matting network exclude each other"):
        prepare_subject(transparent, mask=half, matting=lambda x: x[..., 0] / 255)


def test_a_ground_that_is_not_flat_is_refused_unless_a_network_finds_the_figure():
    busy = np.asarray(drawn()).copy()
    busy[:, 100:] = (250, 250, 0)
    with pytest.raises(ImageError, match=r"ground is not flat \(\d+% of its border is near one"):
        prepare_subject(busy)

    def finds(picture):
        return (picture == COAT).all(axis=-1).astype(np.float32)

    assert (shown(prepare_subject(busy, matting=finds))[0, 0] == COAT).all()
    with pytest.raises(ImageError, match="nothing of the picture is left"):
        prepare_subject(busy, matting=lambda picture: np.zeros(picture.shape[:2]))
    with pytest.raises(ImageError, match="nothing of the picture is left"):
        prepare_subject(Image.new("RGB", (20, 20), "teal"))


def test_large_pictures_are_made_smaller_and_too_large_ones_refused(monkeypatch):
    monkeypatch.setattr(figures, "MAX_SIDE", 100)
    assert prepare_subject(drawn()).size == (66, 66)  # half of 120 pixels, and the margin
    with pytest.raises(ImageError, match="more than 8192 a side"):
        prepare_subject(np.zeros((1, 9000), np.uint8))


def test_alpha_is_read_upright_and_opaque_without_transparency():
    grey = np.array([[0, 255], [7, 9]], np.uint8)
    rgba = read_rgba(np.stack([grey, 255 - grey], axis=-1))
    np.testing.assert_array_equal(rgba[..., 3], 255 - grey)
    assert (read_rgba(grey)[..., 3] == 255).all()
    np.testing.assert_array_equal(read_rgba(grey)[..., :3], read_rgb(grey))


# What the model sees


def test_a_preview_is_what_the_encoders_get(tiny_model):
    pipe = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", verify=False)
    for fit in ("pad", "stretch"):
        preview = np.asarray(pipe.preview_subject(TINY / "reference.png", fit))
        _, cut = tiles(to_square(read_rgb(TINY / "reference.png"), fit), 384)
        rows = [np.concatenate(cut[i : i + 2], axis=1) for i in (0, 2)]
        np.testing.assert_array_equal(preview, np.concatenate(rows))
    with pytest.raises(ValueError, match="fit is 'crop'"):
        pipe.preview_subject(drawn(), "crop")


# Matting networks


def field(number, value):
    """A protobuf field: a number, bytes, or text."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    parts = []
    while True:
        value, low = value >> 7, value & 127
        parts.append(low | (128 if value else 0))
        if not value:
            return bytes(parts)


def network(sides=(32, 32), operator="ReduceMax", channels=3, weights=None):
    """An ONNX file: the largest of a picture's normalised channels, which are logits for it.

    With `weights`, it adds a number to them that is in this file.
    """

    def tensor(name, shape):
        sizes = b"".join(field(1, field(1, n)) for n in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, sizes)))

    axes = field(1, "axes") + field(8, 1) + field(20, 7)
    adding = field(1, "x") + field(1, "w") + field(2, "sum") + field(4, "Add")
    source = "x" if weights is None else "sum"
    node = field(1, source) + field(2, "y") + field(4, operator) + field(5, axes)
    graph = (b"" if weights is None else field(1, adding)) + field(1, node) + field(2, "g")
    if weights is not None:
        entry = field(1, "location") + field(2, weights)
        size = field(1, 1) + field(2, 1)  # one float32
        graph += field(5, size + field(8, "w") + field(13, entry) + field(14, 1))
    graph += field(11, tensor("x", (1, channels, *sides))) + field(12, tensor("y", (1, 1, *sides)))
    return field(1, 7) + field(7, graph) + field(8, field(1, "") + field(2, 11))


def test_an_onnx_network_finds_the_figure(tmp_path):
    (tmp_path / "net.onnx").write_bytes(network())
    find = OnnxMatting(tmp_path / "net.onnx")
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[20:40, 30:60] = 255
    opacity = find(picture)
    assert opacity.shape == (60, 90)
    assert opacity[30, 45] > 0.9  # of logits: normalised white is 2.2 to 2.6
    assert opacity[5, 5] < 0.2
    busy = picture.copy()
    busy[:, :10] = (90, 0, 0)
    cut = prepare_subject(busy, matting=find)
    assert np.asarray(cut)[cut.size[1] // 2, cut.size[0] // 2].min() > 200


def test_an_isnet_gets_the_pixels_that_it_was_trained_on(tmp_path):
    """Half-grey is 0 to it, of which the logistic function is a half; to others it is not."""
    (tmp_path / "net.onnx").write_bytes(network())
    picture = np.full((60, 90, 3), 128, np.uint8)
    picture[:, :45] = 0  # so that the output is known for logits
    usual = OnnxMatting(tmp_path / "net.onnx")(picture)[30, 80]
    assert OnnxMatting(f"isnet:{tmp_path / 'net.onnx'}")(picture)[30, 80] == pytest.approx(
        0.5, abs=0.01
    )
    assert usual > 0.52
    with pytest.raises(FileNotFoundError, match=r"^nowhere.onnx: no such ONNX file"):
        OnnxMatting("isnet:nowhere.onnx")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a network", "is no ONNX network that can be run"),
        (b"", "is no ONNX network that can be run"),
        (network(operator="NoSuchThing"), "is no ONNX network that can be run"),
        (network(weights="w.bin"), "is no ONNX network that can be run"),
        (network(channels=1), r"does not take one picture, float32 \[1, 3, height, width\]"),
        (network(sides=(8192, 8192)), "takes pictures of .* more than 4096"),
    ],
)
def test_files_that_are_no_such_network_are_refused_in_one_line(
    tmp_path, data, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(4))
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        OnnxMatting(tmp_path / "net.onnx")
    assert "\n" not in str(raised.value)


def test_networks_are_found_like_loras(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(network())
    monkeypatch.setattr(matting.hub, "fetch", lambda repo_id, patterns, revision: tmp_path)
    names = ["a.onnx", "b.onnx", "README.md"]
    monkeypatch.setattr(matting.hub, "file_names", lambda repo_id, revision: names)
    assert OnnxMatting("org/net/a.onnx")
    with pytest.raises(ValueError, match=r"has 2 ONNX files, a.onnx, b.onnx; name one as org/net/"):
        OnnxMatting("org/net")
    del names[1]
    assert OnnxMatting("org/net@v1")
    with pytest.raises(FileNotFoundError, match="the Hub repository has no file c"):
        OnnxMatting("org/net/c.onnx")
    with pytest.raises(FileNotFoundError, match="no such ONNX file, and not a Hub id"):
        OnnxMatting("nowhere.onnx")


# The command


def test_infer_shows_what_the_model_sees(tmp_path, capsys):
    drawn().save(tmp_path / "a.png")
    (tmp_path / "net.onnx").write_bytes(network())
    source, out = str(tmp_path / "a.png"), tmp_path / "seen.png"
    assert main(["subject", source, "--out", str(out)]) == 0
    kept = np.asarray(Image.open(out))
    assert kept.shape == (192, 192, 3)  # twice the small model's 96
    assert (kept[96, 180] == GROUND).all()
    assert main(["subject", source, "--out", str(out)]) != 0
    assert "exists; give --overwrite" in capsys.readouterr().err
    cut = ["subject", source, "--out", str(out), "--overwrite"]
    assert main([*cut, "--subject-ground=cut"]) == 0
    assert (np.asarray(Image.open(out))[96, 180] == 255).all()
    assert main([*cut, "--matting", str(tmp_path / "net.onnx")]) == 0
    assert main([*cut, "--subject-ground=keep", "--matting", "x.onnx"]) != 0
    assert "without effect" in capsys.readouterr().err
