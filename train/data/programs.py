"""Captions and masks that the user's own programs make of the pictures of a source."""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Literal

from tqdm import tqdm

from ic_jax.files import atomic_write
from ic_jax.preprocessing.images import ImageError
from ic_jax.text_files import decode_text, read_text
from train.data.decode import decode_mask, encode_png
from train.data.errors import DataError
from train.data.hashing import digest
from train.data.sources import PictureSource
from train.data.sources.entries import Entries, Entry, SetAside
from train.data.sources.pictures import read_picture

Kind = Literal["caption", "mask"]
SUFFIX = {"caption": ".txt", "mask": ".png"}
PICTURE, RESULT = "{}", "{mask}"  # placeholders of a command
AT_FIRST = 10  # failures without a success that stop the run
WINDOW = 1024  # pictures that wait for a program at a time
MAX_CAPTION = 2**20  # bytes


class ProgramError(ValueError):
    """A program that failed on a picture; the message gives the reason alone."""


class Program:
    """Program of the user's that makes the caption or the mask of a picture, without a shell.

    A result is kept in a file named by the hash of the picture, in a folder named by the hash of
    the command, so that an interrupted run, or one with other settings, makes none twice.
    """

    def __init__(self, kind: Kind, command: str, store: Path) -> None:
        """Split a command as a shell would.

        Args:
            kind: what the program makes.
            command: program and arguments. `{}` stands for the path of the picture, which else is
                the last argument. A mask is written to the path `{mask}`, or else, as a caption,
                to the standard output.
            store: folder of the results.

        Raises:
            ValueError: the command cannot be split, or its program is not there.
        """
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"--{kind} {command}: {error}") from None
        if not self._words or not shutil.which(self._words[0]):
            name = self._words[0] if self._words else "''"
            raise ValueError(f"--{kind}: there is no program {name}; check its path")
        if not any(PICTURE in word for word in self._words):
            self._words.append(PICTURE)
        self.kind: Kind = kind
        self.store = store / f"{kind}-{digest([kind, *self._words])}"
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopped = Lock(), Event()

    def result(self, root: Path, entry: Entry) -> Path:
        """Return the file with the result for a picture, made now unless it is kept.

        Raises:
            ProgramError: the program failed, or what it made is no caption or mask.
            ImageError: the picture cannot be read.
        """
        data = read_picture(root, entry)
        name = hashlib.sha256(data).hexdigest()
        kept = self.store / name[:2] / (name + SUFFIX[self.kind])
        if kept.is_file():
            return kept
        with tempfile.TemporaryDirectory(prefix="ic_jax_") as work:
            picture = (root / entry.file).absolute()
            if entry.part:
                picture = Path(work) / ("picture" + Path(entry.part.name).suffix)
                picture.write_bytes(data)
            made = self._run(picture, Path(work) / "mask.png")
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, self._checked(made))
        return kept

    def stop(self) -> None:
        """End the programs that run, and start no others."""
        self._stopped.set()
        with self._lock:
            for process in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)

    def _run(self, picture: Path, out: Path) -> bytes:
        """Run the program on a picture; return what it made."""
        writes = any(RESULT in word for word in self._words)
        words = [w.replace(RESULT, str(out)).replace(PICTURE, str(picture)) for w in self._words]
        with self._lock:
            if self._stopped.is_set():
                raise ProgramError("was not started")
            # A session of its own: Ctrl-C comes to this process alone, which then ends it.
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            made, errors = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            said = f": {lines[-1].strip()}" if lines else ""
            raise ProgramError(f"{words[0]} ended with {process.returncode}{said}")
        if not writes:
            return made
        return out.read_bytes() if out.is_file() else b""

    def _checked(self, made: bytes) -> bytes:
        if not made.strip():
            raise ProgramError(f"{self._words[0]} made nothing; expected a {self.kind}")
        if self.kind == "mask":
            try:
                return encode_png(decode_mask(made))
            except ImageError as error:
                raise ProgramError(f"what {self._words[0]} made {error}") from None
        if len(made) > MAX_CAPTION:
            raise ProgramError(f"{self._words[0]} printed {len(made)} bytes; expected a caption")
        try:
            return decode_text(made, f"what {self._words[0]} printed").strip().encode()
        except ValueError as error:
            raise ProgramError(str(error)) from None


def run_program(
    pictures: PictureSource, program: Program, workers: int | None = None
) -> PictureSource:
    """Return the source with the captions or masks of a program in place of its own.

    A picture that it fails on is set aside, with the program's last line of errors.

    Raises:
        DataError: the program fails on each of the first pictures.
    """
    root, entries, failed = pictures.root, Entries(), []

    def result(entry: Entry) -> Entry | SetAside:
        try:
            made = program.result(root, entry)
        except ImageError:
            return entry  # rejected with the other pictures that cannot be read
        except ProgramError as error:
            return SetAside(entry.file, str(error))
        if program.kind == "caption":
            return entry._replace(caption=read_text(made))
        return entry._replace(mask=str(made.absolute()), mask_part=None)

    total = len(pictures.entries)
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    bar = tqdm(total=total, unit=program.kind, mininterval=0.5)
    try:
        for start in range(0, total, WINDOW):
            for item in pool.map(result, pictures.entries[start : start + WINDOW]):
                bar.update()
                failed.append(item) if isinstance(item, SetAside) else entries.append(item)
                bar.set_postfix(failed=len(failed), refresh=False)
                if not entries and len(failed) == min(AT_FIRST, total):
                    raise DataError(
                        f"--{program.kind} fails on each of the first {len(failed)} pictures; "
                        f"{failed[0].file}: {failed[0].reason}"
                    )
    except BaseException:
        program.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return pictures._replace(entries=entries, aside=pictures.aside + failed)


def run_programs(
    pictures: PictureSource, caption: str, mask: str, store: Path, workers: int | None
) -> PictureSource:
    """Run the commands that are given, "" for none; see `run_program`."""
    commands: list[tuple[Kind, str]] = [("caption", caption), ("mask", mask)]
    for program in [Program(kind, command, store) for kind, command in commands if command]:
        pictures = run_program(pictures, program, workers)
    return pictures
