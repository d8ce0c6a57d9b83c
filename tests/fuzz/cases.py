"""Damaged files on which a reader once failed, kept to be replayed by the tests."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

CASES = Path(__file__).parent / "cases"
LARGEST = 20_000  # bytes of a case that is kept


def keep(reader: str, name: str, data: bytes) -> None:
    """Write a case, unless it is too large."""
    if len(data) > LARGEST:
        return
    digest = hashlib.sha256(name.encode() + data).hexdigest()[:8]
    file = CASES / reader / f"{digest}-{name.replace('/', '+')}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def kept(reader: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each damaged file of a reader."""
    for file in sorted((CASES / reader).glob("*")):
        yield file.name.partition("-")[2].replace("+", "/"), file.read_bytes()
