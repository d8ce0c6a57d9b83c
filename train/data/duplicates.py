"""Duplicates among the pictures of a character, told by a hash of what they look like.

A stage with pairs whose two pictures are one picture teaches the adapter to copy its reference.
"""

import numpy as np
from jaxtyping import UInt8, UInt64
from PIL import Image

# Of 90 pictures of ten drawn people, resized and saved as JPEG, none differed from itself in more
# than 8 bits, and no two of one person in fewer than 24.
GRID = 16  # rows and columns of cells that a picture is compared in
STEP = 4  # grey levels that a cell must be brighter by, more than JPEG changes even areas
NEAR = 12  # bits of 512 in which near-duplicates differ at most
COMPARED = 4096  # pictures of a character that are compared each with each


def difference_hash(rgb: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return a hash of 512 bits, of which a resized or re-encoded picture keeps nearly all.

    A bit says whether a cell is brighter than the one to its left, or above it (dHash).
    """
    # Means of whole pixels first: faster, and as good.
    reduced = Image.fromarray(rgb).reduce(max(1, min(rgb.shape[:2]) // (8 * GRID)))
    small = reduced.convert("L").resize((GRID + 1, GRID + 1), Image.Resampling.HAMMING)
    cells = np.asarray(small).astype(np.int16)
    across = cells[:-1, 1:] > cells[:-1, :-1] + STEP
    down = cells[1:, :-1] > cells[:-1, :-1] + STEP
    return np.packbits(np.concatenate([across, down])).tobytes()


def count_copies(
    stored: UInt64[np.ndarray, "n"], looks: UInt8[np.ndarray, "n b"]
) -> tuple[int, int]:
    """Count the pictures of one character that repeat an earlier one, exactly and nearly.

    Args:
        stored: hashes of the files.
        looks: difference hashes.
    """
    if len(stored) < 2:
        return 0, 0
    first = np.sort(np.unique(stored, return_index=True)[1])
    exact, distinct = len(stored) - len(first), looks[first]
    if len(distinct) > COMPARED:
        return exact, len(distinct) - len(np.unique(distinct, axis=0))
    near = 0
    for n in range(1, len(distinct)):
        near += bool((np.bitwise_count(distinct[:n] ^ distinct[n]).sum(axis=1) <= NEAR).any())
    return exact, near
