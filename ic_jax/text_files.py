"""Text that users write: prompts, captions, recipes, configs."""

import codecs
import re
from pathlib import Path

from ic_jax.untrusted_files import MAX_TEXT, read_bytes

ENCODINGS = {  # by the byte order mark; the decoders leave it out
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",  # as Windows' Notepad and PowerShell write it
    codecs.BOM_UTF16_BE: "utf-16",
}
LINE_ENDING = re.compile(r"\r\n|\n|\r")


def read_text(path: Path, *, errors: str = "strict", limit: int = MAX_TEXT) -> str:
    """Read a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Args:
        errors: what becomes of bytes that are no text, see `codecs.decode`.
        limit: most bytes that it may have.

    Raises:
        ValueError: names the file and the first byte that is no text, or it is no regular file of
            limited size (see `ic_jax.untrusted_files`).
    """
    return decode_text(read_bytes(path, limit=limit), str(path), errors=errors)


def decode_text(data: bytes, name: str, *, errors: str = "strict") -> str:
    """Decode the bytes of a text as `read_text` does; `name` begins an error's message."""
    encoding = next((kind for mark, kind in ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise ValueError(f"{name}: byte {error.start} is not {kind}; save it as UTF-8") from None


def lines_of(text: str) -> list[str]:
    """Cut text into lines at line endings alone.

    `str.splitlines` cuts at U+2028, U+0085, form feeds and others as well, which prompts contain.
    """
    lines = LINE_ENDING.split(text)
    return lines[:-1] if lines[-1] == "" else lines
