"""Errors of a full disk, each with the name of the file or folder that could not be written."""

import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from ic_jax.cli import run
from ic_jax.files import atomic_file, atomic_folder, atomic_write, copy_file, write_json
from ic_jax.planning.report import show
from infer import output
from train.report import Report

PICTURE = Image.new("RGB", (16, 16))


@contextmanager
def full_disk():
    """Refuse every byte that this process writes to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def in_folder(file: Path) -> None:
    with atomic_folder(file, overwrite=False, owns=lambda _: True) as folder:
        (folder / "config.json").write_bytes(b"{}")


def picture(file: Path) -> None:
    with atomic_file(file) as part:
        PICTURE.save(part, "PNG")


def log(folder: Path) -> None:
    """Append as a run does to its log, and close it as every run does."""
    folder.mkdir()
    report = Report(folder, 0, "", {})
    try:
        report.scalars(1, {"loss": 1.0})
    finally:
        report.close()


WRITERS = {
    "a folder of weights": in_folder,  # MODEL, converted to torch, a data set, a cache
    "a chart": picture,  # plots and previews
    "a page": lambda f: atomic_write(f, b"x"),  # plots, cards, recipes
    "a copy": lambda f: copy_file(Path(__file__), f),  # what export takes from the base
    "a manifest": lambda f: write_json(f, {}),
    "a plan": lambda f: show([], f),
    "a drawing": lambda f: output.save(PICTURE, f.with_suffix(".png"), {}),
    "the log of a run": log,
}


@pytest.mark.parametrize("what", WRITERS)
def test_an_error_names_the_file(tmp_path, capfd, what):
    def command():
        with full_disk():
            WRITERS[what](tmp_path / "asked")

    assert run(command) == 74
    line = capfd.readouterr().err
    assert line.startswith(f"error: {tmp_path}/asked")
    assert "File too large" in line
