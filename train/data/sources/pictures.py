"""The bytes of a source's pictures, wherever they are."""

from pathlib import Path

from ic_jax.preprocessing.images import ImageError
from ic_jax.untrusted_files import open_regular, read_bytes
from train.data.sources.entries import Entry, Part
from train.data.sources.tables import TABLES, read_cell

# Suffixes of pictures, in files and in tars.
PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
MAX_BYTES = 2**29  # of a picture; 8192 x 8192 pixels of 16-bit RGB have 0.4 GB


def read_picture(root: Path, entry: Entry) -> bytes:
    """Read the file of a picture, whatever holds it.

    Raises:
        ImageError: it cannot be read, is empty or has more than `MAX_BYTES`.
    """
    return _read(root, entry.file, entry.part)


def read_mask(root: Path, entry: Entry) -> bytes | None:
    """Read the file of a picture's mask, None where the source has none; as `read_picture`."""
    if not entry.mask and entry.mask_part is None:
        return None
    return _read(root, entry.mask, entry.mask_part)


def _read(root: Path, file: str, part: Part | None) -> bytes:
    name = part.name if part else Path(file).name
    try:
        data = _read_part(root, part) if part else read_bytes(root / file, limit=MAX_BYTES)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise ImageError(f"{name} cannot be read ({reason})") from None
    except ValueError as error:
        raise ImageError(" ".join(str(error).split())) from None
    if not data:
        raise ImageError(f"{name} is empty")
    return data


def _read_part(root: Path, part: Part) -> bytes:
    path = root / part.file
    if path.suffix.lower() not in TABLES:
        if part.size > MAX_BYTES:
            raise ValueError(f"{part.name} has {part.size} bytes, more than {MAX_BYTES}")
        with open_regular(path) as file:
            file.seek(part.start)
            return file.read(part.size)
    return read_cell(path, part.name, part.start)
