"""HEIC and AVIF, and what is said where the package that reads a format is missing."""

import io
import sys

import pillow_heif
import pyarrow
import pytest
from data_source import picture
from PIL import Image, features
from pyarrow import parquet

from train import commands
from train.data import decode
from train.data.dataset import Dataset
from train.data.options import PrepareOptions
from train.data.prepare import prepare


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
