"""Who the hosts are, and the store in which they tell each other what is no array.

It is the key-value store that `jax.distributed` keeps on host 0. JAX has no public way to it: its
`sync_global_devices` knows neither a time limit nor names, so the client in
`jax._src.distributed` is taken, as Orbax does.
"""

from typing import Any

import jax

ROOT = "ic_jax"  # of our keys
REMEDY = "; see what it said last, and run the command on all hosts again"


class HostsError(RuntimeError):
    """A host did not come, or is gone; one line that names it."""

    exit_code = 69


def is_multiprocess() -> bool:
    """Whether this process is one of several; asks for no devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def process_index() -> int:
    """Which host this is."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
    """How many hosts there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is host 0, which writes what is written once."""
    return process_index() == 0


def client() -> Any:
    """The client of the coordination service: keys, values and barriers of all hosts."""
    from jax._src import distributed  # no public way, see above

    return distributed.global_state.client


def process_name(host: int) -> str:
    """A host as people know it: "host 2 (node-c)"."""
    names = dict(client().key_value_dir_get(f"{ROOT}/names/"))
    name = names.get(f"{ROOT}/names/{host}")
    return f"host {host} ({name})" if name else f"host {host}"
