"""Hashes and pseudo-random numbers that are the same on every machine and library version."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt64

_STEP = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 16


def hash64(*parts: object) -> np.uint64:
    """Hash values that have a stable repr to 64 bits."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.frombuffer(digest[:8], "<u8")[0]


def is_held_out(character: str, share: float) -> bool:
    """Return whether a hash of the character's id holds it out of training, in every run alike."""
    return int(hash64(character)) < share * 2**64


def hash_names(names: Sequence[str]) -> UInt64[np.ndarray, "n"]:
    """Return `hash64` of each name."""
    return np.array([hash64(name) for name in names], np.uint64)


def splitmix64(seed: np.uint64 | np.ndarray, counters: np.ndarray) -> UInt64[np.ndarray, "*n"]:
    """Return 64 pseudo-random bits for each counter (splitmix64: Steele et al., 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        z = seed + (counters.astype(np.uint64) + np.uint64(1)) * _STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permutation(seed: np.uint64, n: int) -> np.ndarray:
    """Shuffle 0..n-1, int32; numpy's own shuffles may change between versions."""
    keys = np.empty(n, np.uint64)
    for start in range(0, n, _BLOCK):  # what a block needs in between stays in the cache
        block = np.arange(start, min(start + _BLOCK, n))
        keys[block] = splitmix64(seed, block)
    # No two keys are equal, so any sort, such as the fastest of this machine, gives this order.
    return np.argsort(keys).astype(np.int32)


def digest(value: Any) -> str:
    """Hash a JSON value to 16 hexadecimal digits, short enough for a file name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
