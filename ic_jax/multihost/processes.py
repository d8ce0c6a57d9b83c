"""Several processes, usually one per host, that compute together: start, synchronise, exit.

On a TPU pod, under SLURM, Open MPI and Kubernetes JAX reads coordinator, number of processes and
process id from the environment; elsewhere three flags give them. `ic_jax.multihost.kv_store` is how
processes communicate, `ic_jax.multihost.heartbeat` what happens when one dies.
"""

import importlib.util
import json
import os
import re
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Timer
from typing import Any

import jax

from ic_jax.multihost import heartbeat
from ic_jax.multihost.coordinator_proxy import CoordinatorProxy
from ic_jax.multihost.kv_store import (
    REMEDY,
    ROOT,
    ProcessError,
    client,
    is_first,
    is_multiprocess,
    process_count,
    process_index,
    process_name,
)

START_TIMEOUT = 300.0  # seconds until all processes must have started
BARRIER_TIMEOUT = 600.0
WORK_TIMEOUT = 7200.0  # for work of process 0, such as checking a checkpoint's checksums
STATUS = re.compile(r"[A-Z_]{5,}: ")  # how the runtime's errors begin: "UNAVAILABLE: ..."

_barrier_counts: Counter[str] = Counter()  # calls of `barrier` by name


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes, before JAX's devices are used; a single process does nothing.

    Without arguments, all three values come from the environment.

    Args:
        coordinator: HOST:PORT of process 0, where it listens.
        num_processes: 1 for a single process, whatever the environment says.
        process_id: number of this process, from 0.

    Raises:
        ValueError: flags that do not fit together.
        ProcessError: the environment names several processes and JAX cannot connect them.
    """
    check_flags(coordinator, num_processes, process_id)
    cluster = None if num_processes else detect_cluster(os.environ)
    if jax.distributed.is_initialized() or num_processes == 1 or not (num_processes or cluster):
        return
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # JAX's preemption service would handle SIGTERM; training handles SIGTERM itself.
        jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {"cluster_detection_method": "deactivate"} if num_processes else {}
    where = coordinator or f"the coordinator that {cluster} names"
    # JAX itself would wait as long and then abort with a stack trace.
    timer = Timer(START_TIMEOUT, _exit_at_timeout, [where, process_id])
    timer.daemon = True
    timer.start()
    try:
        with proxied_coordinator():
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=int(START_TIMEOUT) + 60,
                **options,
            )
    except ValueError:  # the machine has TPUs, and there are no other processes
        if cluster == "TPU":
            return
        raise
    except (RuntimeError, OSError) as error:
        raise ProcessError(
            f"cannot join the other processes at {where}: {error}; give --coordinator HOST:PORT "
            "--num-processes N --process-id I, or --num-processes 1 for a single process"
        ) from error
    finally:
        timer.cancel()
    if is_multiprocess():
        global _heartbeat
        client().key_value_set(f"{ROOT}/hostnames/{process_index()}", socket.gethostname())
        barrier("start", START_TIMEOUT)
        _heartbeat = heartbeat.Heartbeat()
        _heartbeat.start()


@contextmanager
def proxied_coordinator() -> Iterator[None]:
    """Make JAX's client, created within, reach process 0 through a `CoordinatorProxy`.

    Replaces a private function of JAX. A version without it is used as it is, with a warning.
    """
    from jax._src import distributed  # JAX may learn only there which process is number 0

    extension = getattr(distributed, "_jax", None)
    make_client = getattr(extension, "get_distributed_runtime_client", None)
    if extension is None or make_client is None:
        warnings.warn(
            f"JAX {jax.__version__} has no get_distributed_runtime_client: if process 0 dies, the "
            "other processes end with JAX's own stack trace in place of a one-line error",
            stacklevel=2,
        )
        yield
        return

    def make_proxied_client(address: str, *args: Any, **kwargs: Any) -> Any:
        if distributed.global_state.service is None:  # process 0 runs the service itself
            _proxies.append(CoordinatorProxy(address, heartbeat.TIMEOUT, _first_disconnected))
            address = _proxies[-1].address
        return make_client(address, *args, **kwargs)

    extension.get_distributed_runtime_client = make_proxied_client
    try:
        yield
    finally:
        extension.get_distributed_runtime_client = make_client
        _remove_sockets()


def _remove_sockets() -> None:
    while _proxies:
        _proxies.pop().remove_socket()


def check_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Check that the flags are all given and fit, or none is, or --num-processes is 1.

    Raises:
        ValueError: names the flags that do not fit.
    """
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return
    present = [coordinator is not None, num_processes is not None, process_id is not None]
    if any(present) and not all(present):
        raise ValueError(
            "give all of --coordinator, --num-processes and --process-id, or none, or "
            "--num-processes 1"
        )
    if coordinator is None or num_processes is None or process_id is None:
        return
    name, colon, port = coordinator.rpartition(":")
    if not (name and colon and port.isdecimal()):
        raise ValueError(f"--coordinator {coordinator}: write HOST:PORT, such as node-a:8476")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process-id {process_id} of --num-processes {num_processes}: ids count from 0 to "
            "N - 1"
        )


def detect_cluster(environment: Mapping[str, str]) -> str | None:
    """Return what starts several processes here, judged by the environment; None for a single one.

    JAX finds out the rest. JAX is not asked in every case, since it takes a job of one process, or
    a notebook within Kubernetes, for one of several processes, and waits or fails.
    """

    def number(name: str, default: str = "1") -> int:
        text = environment.get(name, default)
        return int(text) if text.isdecimal() else 1

    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    tasks = number("SLURM_NTASKS")
    if "SLURM_STEP_NODELIST" in environment and number("SLURM_STEP_NUM_TASKS", str(tasks)) > 1:
        return "SLURM"
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if "," in (workers or "") or number("MEGASCALE_NUM_SLICES") > 1:
        return "GKE"
    if "JOB_COMPLETION_INDEX" in environment and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    # JAX sets this on import where there is no TPU.
    chips = "TPU_SKIP_MDS_QUERY" not in environment and importlib.util.find_spec("libtpu")
    return "TPU" if chips and "tpu" in environment.get("JAX_PLATFORMS", "tpu") else None


def barrier(name: str, timeout: float = BARRIER_TIMEOUT) -> None:
    """Wait until every process has called this with the same name; a single process returns.

    A name may be used again: the n-th call in one process meets the n-th in the others.

    Raises:
        ProcessError: `timeout` seconds after the first call, with the names of the processes that
            are missing.
    """
    if not is_multiprocess():
        return
    key = f"{ROOT}/barriers/{name}.{_barrier_counts[name]}"
    _barrier_counts[name] += 1
    client().key_value_set(f"{key}/{process_index()}", "")
    try:
        client().wait_at_barrier(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        arrived = {int(k.rpartition("/")[2]) for k, _ in client().key_value_dir_get(f"{key}/")}
        missing = [process_name(i) for i in range(process_count()) if i not in arrived]
        raise ProcessError(
            f"barrier {name!r}: waited {timeout:g} s for {', '.join(missing) or 'a late process'}"
            f"{REMEDY}"
        ) from error


def on_first(name: str, work: Callable[[], Any]) -> None:
    """Call `work` in process 0 while the others wait for it; raises as `barrier` does."""
    if is_first():
        work()
    barrier(name, WORK_TIMEOUT)


def broadcast_json(name: str, make: Callable[[], Any]) -> Any:
    """Return the JSON value that `make` returns in process 0; raises as `barrier` does."""
    if not is_multiprocess():
        return make()
    key = f"{ROOT}/values/{name}.{_barrier_counts[name]}"
    if is_first():
        client().key_value_set(key, json.dumps(make()))
    barrier(name)
    return json.loads(client().key_value_try_get(key))


def failed_process(error: BaseException) -> str | None:
    """Return which process failed, if that may be the cause of `error`; waits until it is known.

    A collective that loses a process fails with an error of the network, if it fails at all.
    """
    if _heartbeat is None or not _is_runtime_error(error):
        return None
    return _heartbeat.wait_for_failure(heartbeat.TIMEOUT + 4 * heartbeat.INTERVAL)


def exit_together(code: int, error: str | None = None, *, agreed: bool = False) -> int:
    """Leave the other processes and return `code`, or end all processes after an error.

    Exiting without this would hang: JAX's shutdown waits for all processes.

    Args:
        code: exit code of this process.
        error: what went wrong in this process, None if nothing did; the others print it and end.
        agreed: all processes end by themselves, with the same error.
    """
    if _heartbeat is None:
        return code
    if error is None or agreed:
        # The others may have long to go; the heartbeat ends this process if one of them dies.
        barrier("end", 7 * 24 * 3600.0)
        _heartbeat.stop()
        jax.distributed.shutdown()
        return code
    _heartbeat.announce(f"{process_name(process_index())} ended: {error}")
    _heartbeat.exit(code)
    raise AssertionError("this process has ended")


_heartbeat: heartbeat.Heartbeat | None = None
_proxies: list[CoordinatorProxy] = []  # while JAX connects the processes


def _first_disconnected() -> None:
    if _heartbeat is not None:  # otherwise JAX reports that it could not connect
        _heartbeat.first_disconnected()


def _is_runtime_error(error: BaseException | None) -> bool:
    """Return whether an error of a device or of the network caused `error`."""
    while error is not None:
        # Where an array is copied to the host, the runtime's status comes as a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or STATUS.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_at_timeout(where: str, process_id: int | None) -> None:
    hostname = socket.gethostname()
    name = hostname if process_id is None else f"process {process_id} ({hostname})"
    print(
        f"error: {name} waited {START_TIMEOUT:g} s at {where} and not all processes joined; check "
        "that the command runs for each, with its own --process-id, and that all reach that port",
        file=sys.stderr,
        flush=True,
    )
    _remove_sockets()
    os._exit(ProcessError.exit_code)
