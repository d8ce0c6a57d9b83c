"""Contact sheets: rows, columns, labels and sizes; the command that makes one of drawn pictures."""

import numpy as np
import pytest
from PIL import Image

from ic_jax.contact_sheet import MARGIN, draw_sheet, shown_side
from infer import grid, output
from infer.commands import main
from infer.picture_file import read_metadata
from tests.test_infer_output import METADATA

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TOP = 44  # below the headings, of 22 pixels


def plain(colour, size=(96, 64)):
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize(
    ("side", "shown"), [(16, 256), (96, 288), (192, 384), (256, 256), (400, 400), (1024, 512)]
)
def test_small_pictures_are_enlarged_and_large_ones_reduced(side, shown):
    assert shown_side(side) == shown


def test_a_sheet_has_rows_under_headings():
    rows = [[plain(RED), "a girl", None], [plain(GREEN), None, None]]
    pixels = np.asarray(draw_sheet(["left", "text", "right"], rows))
    tops = (TOP, TOP + 288 + MARGIN)
    for colour, top in zip((RED, GREEN), tops, strict=True):
        ys, xs = np.nonzero((pixels == colour).all(-1))
        assert (ys.min(), xs.min()) == (top, MARGIN)
        assert (len(set(ys)), len(set(xs))) == (192, 288)  # in proportion
    text = pixels[:, 288 + 2 * MARGIN :]
    assert (text[TOP : tops[1]] < 128).any()
    assert (text[tops[1] :] == 255).all()


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_legend_is_below_the_sheet_and_within_it(pictures):
    headings, row = ["1"] * pictures, [plain(RED)] * pictures
    alone = np.asarray(draw_sheet(headings, [row]))
    legend = ["after step 3: " + "seed 0, " * 20, "1: the empty prompt"]
    pixels = np.asarray(draw_sheet(headings, [row], legend=legend))
    assert (pixels[: len(alone)] == alone).all()
    rows, columns = np.nonzero((pixels[len(alone) :] < 128).all(-1))
    lines = 1 + (np.diff(np.unique(rows)) > 1).sum()
    assert lines >= 5 - pictures
    assert MARGIN <= columns.min() < columns.max() < pixels.shape[1] - MARGIN // 2
    assert rows.max() < pixels.shape[0] - len(alone) - MARGIN // 2


@pytest.mark.parametrize("text", ["", "女孩" * 300, "a girl " * 300, "one\n\ntwo", "x" * 5000])
def test_any_text_stays_in_its_cell(text):
    sheet = draw_sheet(["prompt", "picture"], [[text, plain("white")]])
    pixels = np.asarray(sheet)
    assert (pixels[TOP:, sheet.width - 288 - 2 * MARGIN :] == 255).all()
    assert (pixels[-4:] == 255).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 300), (300, 1)])
def test_a_sheet_of_many_pictures_is_no_larger_than_every_format_takes(rows, columns):
    picture = plain(RED, (8, 8))
    sheet = draw_sheet(["x"] * columns, [[picture] * columns] * rows)
    assert 8_000 < max(sheet.size) <= 16_000


@pytest.fixture
def drawn(tmp_path):
    """Two prompts with two seeds, the second at another scale for one of them."""
    subject = tmp_path / "ana.png"
    plain(BLUE, (500, 500)).save(subject)
    common = METADATA | {"lora": [], "subject": str(subject)}
    rows = [("a girl", 0.9, 0), ("a girl", 0.9, 5), ("a boy", 0.9, 0), ("a boy", 0.5, 5)]
    files = []
    for i, (prompt, scale, seed) in enumerate(rows):
        told = common | {"prompt": prompt, "subject_scale": scale, "seed": seed}
        files.append(output.save(plain((40 * i, 0, 0)), tmp_path / f"{i}.webp", told))
    return files


def test_pictures_are_placed_by_what_they_tell(drawn, monkeypatch):
    calls = []
    monkeypatch.setattr(grid, "draw_sheet", lambda *cells, side: calls.append((*cells, side)))
    grid.draw(drawn, [read_metadata(file) for file in drawn])
    ((headings, rows, side),) = calls
    assert side == 288  # whatever the size of the subject
    assert headings == ["subject", "prompt", "seed 0", "seed 5"]
    labels = ["a girl\nsubject_scale 0.9", "a boy\nsubject_scale 0.9", "a boy\nsubject_scale 0.5"]
    assert [row[1] for row in rows] == labels
    assert [[x is not None for x in row] for row in rows] == [
        [True, True, True, True],
        [True, True, True, False],
        [True, True, False, True],
    ]


def test_a_subject_that_is_gone_is_left_out(drawn, tmp_path, monkeypatch):
    (tmp_path / "ana.png").write_text("no picture")
    calls = []
    monkeypatch.setattr(grid, "draw_sheet", lambda *cells, side: calls.append(cells))
    grid.draw(drawn, [read_metadata(file) for file in drawn])
    assert calls[0][0] == ["prompt", "seed 0", "seed 5"]


def test_the_command_writes_a_sheet_once_and_replaces_nothing_else(drawn, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    pictures, options = [str(file) for file in drawn], ["--out", str(out)]
    assert main(["grid", *pictures, *options]) == 0
    assert min(Image.open(out).size) > 3 * 288
    before = out.read_bytes()
    assert main(["grid", *pictures, *options]) == 0
    assert "already exists" in capsys.readouterr().out
    assert main(["grid", *pictures[1:], *options]) == 2
    assert "sheet.png exists but was made with other settings" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["grid", *pictures[1:], *options, "--overwrite"]) == 0
    assert out.read_bytes() != before
    assert main(["--from", str(out)]) == 2
    assert "is a contact sheet; give one of its pictures" in capsys.readouterr().err


def test_a_picture_that_tells_nothing_is_refused(tmp_path, capsys):
    plain(RED).save(tmp_path / "x.png")
    assert main(["grid", str(tmp_path / "x.png"), "--out", str(tmp_path / "sheet.png")]) == 2
    assert "x.png does not tell its prompt and seed" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()
