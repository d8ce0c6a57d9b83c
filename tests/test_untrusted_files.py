"""Files that others may have written: regular, of limited size, below their folder, data only."""

import os
import socket

import pytest

from ic_jax.files import as_json, json_text
from ic_jax.untrusted_files import below, open_regular, parse_json, read_bytes, read_json


def test_a_pipe_a_device_a_folder_and_a_socket_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: is a pipe; name a regular file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(ValueError, match="/dev/zero: is a device"):
        read_bytes("/dev/zero")
    with pytest.raises(ValueError, match="is a folder"):
        read_bytes(tmp_path)
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="link: is a device"):
        read_bytes(tmp_path / "link")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(OSError):  # noqa: PT011 - the system's own
            read_bytes(tmp_path / "s")


def test_a_file_above_its_limit_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match=f"has {2**40} bytes, and such a file has at most 100"):
        read_bytes(file, limit=100)
    file.write_bytes(b"x" * 100)
    assert read_bytes(file, limit=100) == b"x" * 100
    with open_regular(file) as opened:
        assert opened.read(3) == b"xxx"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"{\n1: 2}", "config.json: line 2 is not JSON"),
        (b'{"a": NaN}', "config.json: NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[" * 10**6, "config.json: is nested too deep"),
        (b"\xff\xfe\x00", "byte 0 is not UTF-8"),
        (b"", "line 1 is not JSON"),
        (b"9" * 10**5, "config.json: "),
    ],
)
def test_what_is_not_json_is_one_line_that_names_the_file(data, error):
    with pytest.raises(ValueError, match=error) as caught:
        parse_json(data, "config.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_what_is_written_is_json():
    values = {"loss": float("nan"), "rates": [1.5, float("-inf")], "name": "NaN \u4e00"}
    assert json_text(values, ensure_ascii=False) == (
        '{"loss": null, "rates": [1.5, null], "name": "NaN \u4e00"}'
    )
    assert parse_json(as_json(values), "a") == values | {"loss": None, "rates": [1.5, None]}


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


def test_a_path_that_a_file_names_stays_below_its_folder(tmp_path):
    root = tmp_path / "data"
    (root / "pictures").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    secret.touch()
    (root / "link.png").symlink_to(secret)
    (root / "inside.png").symlink_to(root / "pictures")
    (root / "..two dots").touch()
    (root / "loop.png").symlink_to("loop.png")
    assert below(root, "loop.png") == root / "loop.png"  # opening it fails
    for name in ("pictures/a.png", "inside.png", "pictures/../link2.png", "..two dots"):
        assert below(root, name) == root / name
    for name in ("../secret.png", str(secret), "link.png", "pictures/../../secret.png", "", "a\0b"):
        with pytest.raises(ValueError, match=r"lies outside this folder|names no file"):
            below(root, name)
