"""Damage to files, and the readers that must tell it."""

import random
from pathlib import Path
from typing import Any


def flip(path: Path, rng: random.Random) -> dict[str, Any]:
    """Flip a random bit of a file."""
    data = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return {"flipped": f"byte {at}, bit {bit}"}


def truncate(path: Path, rng: random.Random) -> dict[str, Any]:
    """Cut a file at a random byte."""
    data = path.read_bytes()
    keep = rng.randrange(len(data))
    path.write_bytes(data[:keep])
    return {"cut": f"{keep} of {len(data)} bytes stay"}


def remove(path: Path, _: random.Random) -> dict[str, Any]:
    """Remove a file."""
    path.unlink()
    return {"removed": path.name}


DAMAGES = {"a flipped bit": flip, "a cut": truncate, "a removed file": remove}


def pick(folder: Path, patterns: tuple[str, ...], rng: random.Random) -> Path:
    """Return a random file that matches and is not empty."""
    found = {p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}
    return rng.choice(sorted(path for path in found if path.stat().st_size))
