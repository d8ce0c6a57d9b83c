"""Numbers and digests that are the same on every machine and with every library version."""

import hashlib
import json
from typing import Any

import numpy as np
from jaxtyping import UInt64

_STEP = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: object) -> np.uint64:
    """A 64-bit key for anything with a stable repr."""
    hashed = hashlib.sha256(repr(parts).encode()).digest()
    return np.frombuffer(hashed[:8], "<u8")[0]


def mixed(key: np.uint64, counters: np.ndarray) -> UInt64[np.ndarray, "n"]:
    """Independent looking 64 bits for every counter (splitmix64: Steele et al., 2014)."""
    with np.errstate(over="ignore"):  # it is arithmetic modulo 2^64
        z = key + (counters.astype(np.uint64) + np.uint64(1)) * _STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permutation(key: np.uint64, n: int) -> np.ndarray:
    """0..n-1 shuffled, int32. numpy's own shuffles may change from one version to another."""
    return np.argsort(mixed(key, np.arange(n)), kind="stable").astype(np.int32)


def digest(value: Any) -> str:
    """Of JSON values, in 16 letters: short enough for a file's name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
