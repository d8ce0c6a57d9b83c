"""Text that users write, in the encodings and with the line endings of their editors."""

import json

import pytest

from convert.configs import read_object
from ic_jax.config import ConfigError
from ic_jax.text_files import lines_of, read_text
from ic_jax.weights.tensors import WeightsError
from infer.request import _prompts
from train.data.sources import read_source
from train.recipe import read_recipe

TEXT = "eine Füchsin\u2028liest\n犬が走る\x0b\x85\x0cschnell\r\n\nlast"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


def written(path, text, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path.write_bytes((mark + text).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_reader_takes_every_encoding(tmp_path, encoding):
    assert read_text(written(tmp_path / "x.txt", TEXT, encoding)) == TEXT
    prompts = _prompts(["first"], tmp_path / "x.txt")
    assert prompts == ["first", "eine Füchsin\u2028liest", "犬が走る\x0b\x85\x0cschnell", "last"]

    assert read_object(written(tmp_path / "x.json", '{"ä": 1}', encoding)) == {"ä": 1}

    recipe = 'model = "m"\ndata = "d"\nout = "ö"\n[stage1]\nsteps = 3\n'
    assert read_recipe(written(tmp_path / "x.toml", recipe, encoding)).out.name == "ö"

    folder = tmp_path / "pictures"
    (folder / "ana").mkdir(parents=True)
    (folder / "ana" / "a.png").write_bytes(b"")
    written(folder / "ana" / "a.txt", " Ana läuft\r\n", encoding)
    assert read_source(folder).entries[0].caption == "Ana läuft"
    line = json.dumps({"file": "a.png", "caption": "Ana\u2028läuft"}, ensure_ascii=False)
    written(folder / "ana" / "metadata.jsonl", f"{line}\r\n", encoding)
    (entry,) = read_source(folder).entries
    assert (entry.file, entry.caption) == ("ana/a.png", "Ana\u2028läuft")


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="x: byte 2 is not UTF-8; save it as UTF-8"):
        read_text(path)
    with pytest.raises(WeightsError, match="x: byte 2 is not UTF-8"):
        read_object(path)
    with pytest.raises(ConfigError, match="byte 2 is not UTF-8"):
        read_recipe(path)
    path = tmp_path / "metadata.jsonl"
    good = b'{"file": "a.png", "caption": "a", "character": "b"}'
    path.write_bytes(good + b'\n{"caption": "\xe4"}\n')
    source = read_source(path)
    assert [entry.file for entry in source.entries] == ["a.png"]
    (rejected,) = source.rejected
    assert rejected == ("metadata.jsonl line 2", "is not UTF-8; save the file as UTF-8")


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", []), ("a", ["a"]), ("a\n", ["a"]), ("a\r\nb\rc\n\nd", ["a", "b", "c", "", "d"])],
)
def test_lines(text, lines):
    assert lines_of(text) == lines
