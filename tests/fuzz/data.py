"""Readers of data sets, of their sources, caches and checkpoints."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.edits import JSON, JSON_LINES, SAFETENSORS, as_json
from tests.fuzz.reader import Reader


def _write_dataset(folder: Path) -> None:
    from tests.data_source import prepared

    data = prepared(folder, characters=3, views=2)
    data.rename(folder / "data")
    for name in ("card.md", "bad.jsonl", "aside.jsonl", "features.json", "dataset_info.json"):
        (folder / "data" / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "source")
    card = json.loads((folder / "data" / "card.json").read_bytes())
    del card["checksum"]  # as earlier versions wrote it: its values are damaged, and not just told
    card["written"] = [w for w in card["written"] if (folder / "data" / w["file"]).exists()]
    (folder / "data" / "card.json").write_bytes(as_json(card))


def _read_dataset(folder: Path) -> None:
    from train.data.dataset import Dataset
    from train.data.errors import DataError
    from train.data.verify import verify

    try:
        verify(folder / "data")
    except DataError as error:
        if "differ from their checksum" not in str(error):
            raise
    dataset = Dataset(folder / "data")
    assert all(isinstance(name, str) for name in dataset.characters)
    dataset.character_hash.sum()
    assert (dataset.others >= 0).all()
    for number in range(len(dataset)):
        dataset.read(number)


def _cache(folder: Path) -> Any:
    from train.data.encoded_store import Embeddings, EncodedRows

    return EncodedRows(folder / "cache", Embeddings, np.arange(2), {"text_length": 4, "model": "a"})


def _write_cache(folder: Path) -> None:
    from train.data.encoded_store import Embeddings

    row = Embeddings(np.ones((4, 2), np.float32), np.ones(2, np.float32))
    _cache(folder).write(lambda records: {int(n): row for n in records})


def _read_cache(folder: Path) -> None:
    rows = _cache(folder)
    rows.refuse_replacing()
    rows.check()
    for record in rows.records:
        rows.read(int(record))


def _write_manifests(folder: Path) -> None:
    from train.checkpoints import _digests

    step = folder / "run" / "checkpoints" / "5"
    step.mkdir(parents=True)
    (step / "state").write_bytes(b"state")
    (folder / "run" / "manifests").mkdir()
    manifest = {"step": 5, "files": _digests(step)}
    (folder / "run" / "manifests" / "5.json").write_bytes(as_json(manifest))


def _read_manifests(folder: Path) -> None:
    from train.checkpoints import Checkpoints

    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._steps = folder / "run" / "checkpoints"
    checkpoints._manifests = folder / "run" / "manifests"
    checkpoints.verify(5)


ROWS = [
    {"file": f"{n}.png", "caption": "waving", "character": "a", "focus": [[0, 0, 8, 8]]}
    | {"view": "front", "style": "ink", "mask": "0.png"}
    | {
        "subjects": [
            {"character": "a", "box": [0, 0, 8, 8]},
            {"character": "b", "box": [8, 0, 9, 9]},
        ]
    }
    for n in range(2)
]


def _pictures(folder: Path) -> None:
    for n in range(2):
        Image.new("RGB", (16, 16), (n, 0, 0)).save(folder / f"{n}.png")


def _write_jsonl(folder: Path) -> None:
    _pictures(folder)
    (folder / "metadata.jsonl").write_bytes(JSON_LINES.file(ROWS, b""))


def _write_json(folder: Path) -> None:
    _pictures(folder)
    (folder / "metadata.json").write_bytes(as_json(ROWS))


def _write_csv(folder: Path) -> None:
    _pictures(folder)
    both = json.dumps(ROWS[0]["subjects"]).replace('"', '""')
    boxes = f'"[[0,0,8,8]]","{both}"'
    rows = "".join(f'{n}.png,"waving, smiling",a,{boxes}\n' for n in range(2))
    (folder / "metadata.csv").write_text("file,caption,character,focus,subjects\n" + rows)


def _write_captions(folder: Path) -> None:
    (folder / "a").mkdir()
    _pictures(folder / "a")
    for n in range(2):
        (folder / "a" / f"{n}.txt").write_text("waving, a red hat")


def _write_tar(folder: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (16, 16)).save(png, "PNG")
    with tarfile.open(folder / "a.tar", "w") as archive:
        members = {"0.png": png.getvalue(), "0.json": as_json(ROWS[0]), "1.png": png.getvalue()}
        for name, data in (members | {"1.txt": b"waving", "1.cls": b"a"}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _table() -> Any:
    import pyarrow as pa

    png = io.BytesIO()
    Image.new("RGB", (16, 16)).save(png, "PNG")
    cells = [{"bytes": png.getvalue(), "path": "0.png"}] * 2
    return pa.table({"image": cells, "caption": ["waving"] * 2, "character": ["a", "b"]})


def _write_parquet(folder: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(_table(), folder / "a.parquet")


def _write_arrow(folder: Path) -> None:
    import pyarrow as pa

    table = _table()
    with pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as w:
        w.write_table(table)


def _read_source(folder: Path) -> None:
    from ic_jax.preprocessing.images import ImageError
    from train.data.sources import read_source
    from train.data.sources.pictures import read_mask, read_picture

    source = read_source(folder)
    for entry in source.entries:
        try:
            read_picture(source.root, entry)
            read_mask(source.root, entry)
        except ImageError:
            pass


READERS = {
    "dataset": Reader(_write_dataset, _read_dataset, {"*.json": JSON}),
    "cache": Reader(_write_cache, _read_cache, {"*.json": JSON, "*.safetensors": SAFETENSORS}),
    "checkpoint-manifest": Reader(
        _write_manifests, _read_manifests, {"*.json": JSON}, kept=("run/checkpoints/5/state",)
    ),
    "jsonl": Reader(_write_jsonl, _read_source, {"*.jsonl": JSON_LINES}, ("0.png", "1.png")),
    "json-list": Reader(_write_json, _read_source, {"*.json": JSON}, ("0.png", "1.png")),
    "csv": Reader(_write_csv, _read_source, kept=("0.png", "1.png")),
    "captions": Reader(_write_captions, _read_source, kept=("a/0.png", "a/1.png")),
    "tar": Reader(_write_tar, _read_source),
    "parquet": Reader(_write_parquet, _read_source),
    "arrow": Reader(_write_arrow, _read_source),
}
