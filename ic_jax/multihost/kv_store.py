"""Process ids and names, and the key-value store of `jax.distributed`.

Process 0 holds the store; the processes exchange everything in it that is not an array. JAX has no
public API for it: `multihost_utils.sync_global_devices` takes no timeout and names no process. So
the client is taken from `jax._src.distributed`, as Orbax does.
"""

from typing import Any

import jax

ROOT = "ic_jax"  # prefix of all keys
REMEDY = "; see what it said last, and run the command on all processes again"


class ProcessError(RuntimeError):
    """Error: a process did not start, missed a barrier or died; the message names the process."""

    exit_code = 69


def is_multiprocess() -> bool:
    """Return whether this process is one of several; does not initialise JAX's devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def process_index() -> int:
    """Return the id of this process, 0 if it is the only one."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
    """Return the number of processes."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is process 0, which writes the files that are written once."""
    return process_index() == 0


def client() -> Any:
    """Return the client of JAX's coordination service: its keys, values and barriers."""
    from jax._src import distributed  # not public, see above

    return distributed.global_state.client


def process_name(process_id: int) -> str:
    """Return the name of a process in messages: "process 2 (node-c)"."""
    hostnames = dict(client().key_value_dir_get(f"{ROOT}/hostnames/"))
    hostname = hostnames.get(f"{ROOT}/hostnames/{process_id}")
    return f"process {process_id} ({hostname})" if hostname else f"process {process_id}"
