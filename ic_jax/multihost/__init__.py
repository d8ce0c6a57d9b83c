"""Several processes that compute together: start, synchronise, broadcast, exit."""

from ic_jax.multihost.kv_store import ProcessError as ProcessError
from ic_jax.multihost.kv_store import client as client
from ic_jax.multihost.kv_store import is_first as is_first
from ic_jax.multihost.kv_store import is_multiprocess as is_multiprocess
from ic_jax.multihost.kv_store import process_count as process_count
from ic_jax.multihost.kv_store import process_index as process_index
from ic_jax.multihost.kv_store import process_name as process_name
from ic_jax.multihost.processes import barrier as barrier
from ic_jax.multihost.processes import broadcast_json as broadcast_json
from ic_jax.multihost.processes import check_flags as check_flags
from ic_jax.multihost.processes import detect_cluster as detect_cluster
from ic_jax.multihost.processes import exit_together as exit_together
from ic_jax.multihost.processes import failed_process as failed_process
from ic_jax.multihost.processes import initialize as initialize
from ic_jax.multihost.processes import on_first as on_first
