"""Data as people have it: every kind of source gives the same records, and no file is lost."""

import json
import shutil
from pathlib import Path

import datasets
import pandas
import pyarrow
import pytest
import webdataset
from data_source import picture
from pyarrow import parquet

from tests.toy import write_model
from train.data import card
from train.data.dataset import Dataset
from train.data.options import PrepareOptions
from train.data.prepare import prepare
from train.loop import train
from train.recipe import recipe_of

NAMES = ("ann", "bob")
ROWS = [(f"{name}{n}.png", f"waving, {name[0]} {n}", name) for name in NAMES for n in range(2)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Four pictures of two characters, named as in ROWS."""
    folder = tmp_path_factory.mktemp("originals")
    for number, (file, _, _) in enumerate(ROWS):
        picture(number).save(folder / file)
    return folder


def columns(*names: str) -> dict[str, list[str]]:
    return dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))


def with_bytes(originals: Path) -> dict[str, list]:
    table = columns("file", "text", "subject")
    return {"image": [(originals / name).read_bytes() for name in table.pop("file")], **table}


def folders(originals, out):
    for file, caption, name in ROWS:
        (out / name).mkdir(exist_ok=True)
        shutil.copy(originals / file, out / name)
        (out / name / file).with_suffix(".TXT").write_text(caption)


def kohya(originals, out):
    for file, caption, name in ROWS:
        folder = out / "img" / f"10_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(originals / file, folder)
        (folder / file).with_suffix(".caption").write_text(caption + "\n")


def imagefolder(write):
    """Pictures beside a metadata file that pandas writes, as Hugging Face reads them."""

    def writer(originals, out):
        for file, _, _ in ROWS:
            shutil.copy(originals / file, out)
        write(pandas.DataFrame(columns("file_name", "text", "label")), out)

    return writer


def saved(originals, out):
    """Two splits with an Image column and a ClassLabel, saved by `datasets`."""
    table = columns("image", "text", "label")
    table["image"] = [str(originals / file) for file in table["image"]]
    table["label"] = [NAMES.index(name) for name in table["label"]]
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    kinds["label"] = datasets.ClassLabel(names=list(NAMES))
    whole = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
    splits = {"train": whole.select(range(3)), "test": whole.select([3])}
    datasets.DatasetDict(splits).save_to_disk(out / "saved")
    (out / "saved" / "train" / "cache-0.arrow").write_bytes(b"of a map that was never finished")
    return out / "saved"


def hub_parquet(originals, out):
    table = columns("image", "text", "label")
    table["image"] = [{"path": f, "bytes": (originals / f).read_bytes()} for f in table["image"]]
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    kinds["label"] = datasets.Value("string")
    whole = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
    (out / "data").mkdir()
    whole.to_parquet(out / "data" / "train-00000-of-00001.parquet")


def names_in_parquet(originals, out):
    """`datasets` writes the paths of pictures that it was given by path, and not their bytes."""
    table = columns("image", "text", "label")
    for file in table["image"]:
        shutil.copy(originals / file, out)
    table["image"] = [str(out / file) for file in table["image"]]
    whole = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    whole.to_parquet(out / "all.parquet")


def row_groups(originals, out):
    table = pyarrow.table(with_bytes(originals))
    parquet.write_table(table, out / "all.parquet", row_group_size=3)
    return out / "all.parquet"


def arrow_file(originals, out):
    table = pyarrow.table(with_bytes(originals))
    with pyarrow.ipc.new_file(out / "all.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)


def shards(originals, out):
    for shard in range(2):
        with webdataset.TarWriter(str(out / f"{shard:06d}.tar")) as tar:
            for file, caption, name in ROWS[2 * shard : 2 * shard + 2]:
                sample = {"__key__": f"images/{file[:-4]}", "txt": caption}
                tar.write(sample | {"png": (originals / file).read_bytes(), "cls": name})


def shards_with_json(originals, out):
    with webdataset.TarWriter(str(out / "all.tar")) as tar:
        for file, caption, name in ROWS:
            tar.write(
                {"__key__": file[:-4], "depth.png": b"", "png": (originals / file).read_bytes()}
                | {"json": {"caption": caption, "identity": name, "width": 64}}
            )
    return out / "all.tar"


SOURCES = {
    "folders": folders,
    "kohya": kohya,
    "imagefolder, jsonl": imagefolder(
        lambda t, out: t.to_json(out / "metadata.jsonl", orient="records", lines=True)
    ),
    "imagefolder, csv": imagefolder(lambda t, out: t.to_csv(out / "metadata.csv")),
    "imagefolder, parquet": imagefolder(lambda t, out: t.to_parquet(out / "metadata.parquet")),
    "json, records": imagefolder(lambda t, out: t.to_json(out / "metadata.json", orient="records")),
    "json, columns": imagefolder(lambda t, out: t.to_json(out / "metadata.json")),
    "json, by datasets": imagefolder(
        lambda t, out: datasets.Dataset.from_pandas(t).to_json(out / "metadata.json")
    ),
    "tsv": imagefolder(lambda t, out: t.to_csv(out / "metadata.csv", sep="\t", index=False)),
    "saved by datasets": saved,
    "parquet of the Hub": hub_parquet,
    "parquet that names files": names_in_parquet,
    "parquet": row_groups,
    "arrow": arrow_file,
    "webdataset": shards,
    "webdataset, json": shards_with_json,
}


def records(folder: Path) -> list[tuple]:
    dataset = Dataset(folder)
    read = [dataset.read(number) for number in range(len(dataset))]
    return sorted((r.caption, r.character, r.image, r.mask, r.width, r.height) for r in read)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_same_records(kind, originals, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    source = SOURCES[kind](originals, folder) or folder
    prepare(source, tmp_path / "out", PrepareOptions((64,), max_bad=0), workers=1)
    assert records(tmp_path / "out") == sorted(
        (caption, name, (originals / file).read_bytes(), b"", 64, 64)
        for file, caption, name in ROWS
    )
    written = json.loads((tmp_path / "out" / "card.json").read_text())
    files = written["files"]
    counted = files["pictures"] + files["bad"] + files["lists_captions_and_containers"]
    counted += sum(files["set_aside"].values()) + sum(files["others"].values())
    there = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
    assert counted == len(there)
    assert written["unknown_keys"] == (["depth.png", "width"] if kind == "webdataset, json" else [])


def test_a_card_of_an_earlier_version_is_read(originals, tmp_path):
    folders(originals, tmp_path)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    prepare(tmp_path, out, PrepareOptions((64,)), workers=1)
    values = json.loads((out / "card.json").read_text())
    new = ("files", "unknown_keys", "telling_captions", "empty_captions", "alpha_masks")
    for key in (*new, "enlarged", "duplicates", "near_duplicates", "checksum"):
        del values[key]
    (out / "card.json").write_text(json.dumps(values))
    assert card.summary(out).count("\n") == 0
    assert len(records(out)) == 4


@pytest.mark.slow  # compiles a training step
def test_a_step_is_trained_on_what_webdataset_wrote(originals, tmp_path, optax_promotes):
    write_model(tmp_path / "model")
    shards(originals, tmp_path)
    prepare(tmp_path, tmp_path / "data", PrepareOptions((32,)), workers=1)
    tables = {key: str(tmp_path / key) for key in ("model", "data", "out")}
    stage = {"steps": 1, "batch": 2, "resolution": 32, "learning_rate": 1e-2, "warmup": 0}
    tables |= {"dtype": "float32", "text_length": 32, "lora": {"rank": 4}, "stage1": stage}
    train(recipe_of(tables | {"reporting": {"every": 1, "preview_every": 0}}))
    (line,) = map(json.loads, (tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert line["step"] == 1
    assert 0 < line["loss"] < 10
