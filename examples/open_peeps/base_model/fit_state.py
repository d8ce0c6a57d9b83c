"""State of a training as a folder of small files, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ic_jax.files import atomic_folder

PART = 15 * 2**20  # bytes of a file at most, so that a state can be carried wherever files can
INDEX = "state.json"


def save(folder: Path, state: Any, losses: list[float], seconds: float) -> None:
    """Write the arrays of a state one after the other, cut into files of at most `PART` bytes."""
    leaves = [np.asarray(x) for x in jax.device_get(jax.tree.leaves(state))]
    data = np.concatenate([np.frombuffer(x.tobytes(), np.uint8) for x in leaves])
    index = {"arrays": [[str(x.dtype), x.shape] for x in leaves], "seconds": round(seconds, 3)}
    with atomic_folder(folder, overwrite=True, owns=_is_ours) as part:
        for n, start in enumerate(range(0, len(data), PART)):
            data[start : start + PART].tofile(part / f"state-{n:03d}.bin")
        np.asarray(losses).tofile(part / "losses.bin")
        (part / INDEX).write_text(json.dumps(index))


def restore(folder: Path, state: Any) -> tuple[Any, list[float], float]:
    """Return the saved state, the losses so far and the seconds spent; `state` if none is saved."""
    kept = [folder, folder.with_name(folder.name + ".old")]  # of a kill while one was replaced
    folder = next((each for each in kept if (each / INDEX).exists()), folder)
    if not folder.exists():
        return state, [], 0.0
    index = json.loads((folder / INDEX).read_text())
    data = b"".join(file.read_bytes() for file in sorted(folder.glob("state-*.bin")))
    leaves, at = [], 0
    for dtype, shape in index["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        leaves.append(jnp.asarray(np.frombuffer(data, dtype, count, at).reshape(shape)))
        at += count * np.dtype(dtype).itemsize
    state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    return state, read_losses(folder), index["seconds"]


def read_losses(folder: Path) -> list[float]:
    """Return the loss of every step of a saved state."""
    return np.fromfile(folder / "losses.bin").tolist()


def _is_ours(name: str) -> bool:
    return name in (INDEX, "losses.bin") or name.startswith("state-")
