"""Several processes, as a rule one a host, that compute together: started, waited for, ended.

A TPU pod, SLURM, Open MPI and Kubernetes say in the environment who is who, and JAX reads that;
elsewhere three flags say it. See `ic_jax.multihost.kv_store` for how hosts speak to each other, and
`ic_jax.multihost.heartbeat` for what happens when one dies.
"""

import importlib.util
import json
import os
import re
import socket
import sys
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
    HostsError,
    client,
    is_first,
    is_multiprocess,
    process_count,
    process_index,
    process_name,
)

START_TIMEOUT = 300.0  # seconds until all hosts must have come
BARRIER_TIMEOUT = 600.0
WORK_TIMEOUT = 7200.0  # the first host's, such as comparing a checkpoint with its checksums
STATUS = re.compile(r"[A-Z_]{5,}: ")  # how the runtime's errors begin: "UNAVAILABLE: ..."

_waits: Counter[str] = Counter()  # by name: how many barriers of it were passed


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other hosts, before anything asks JAX for devices; alone, do nothing at all.

    Args:
        coordinator: HOST:PORT of host 0, where it listens.
        num_processes: how many there are; 1 is alone whatever the environment says.
        process_id: which this is. With none of the three the environment says all.

    Raises:
        ValueError: flags that do not fit together.
        HostsError: the environment names several hosts and JAX cannot make them out.
    """
    check_flags(coordinator, num_processes, process_id)
    kind = None if num_processes else cluster(os.environ)
    if jax.distributed.is_initialized() or num_processes == 1 or not (num_processes or kind):
        return
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM for itself; training has its own way to stop on it.
        jax.config.update("jax_enable_preemption_service", False)
    own: dict[str, Any] = {"cluster_detection_method": "deactivate"} if num_processes else {}
    where = coordinator or f"the coordinator that {kind} names"
    # JAX itself would wait as long and then abort with a stack trace.
    late = Timer(START_TIMEOUT, _too_late, [where, process_id])
    late.daemon = True
    late.start()
    try:
        with _relayed():
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=int(START_TIMEOUT) + 60,
                **own,
            )
    except ValueError:  # the machine has TPUs, and no other hosts
        if kind == "TPU":
            return
        raise
    except (RuntimeError, OSError) as error:
        raise HostsError(
            f"cannot join the other hosts at {where}: {error}; give --coordinator HOST:PORT "
            "--num-processes N --process-id I, or --num-processes 1 to be alone"
        ) from error
    finally:
        late.cancel()
    if is_multiprocess():
        global _watch
        client().key_value_set(f"{ROOT}/names/{process_index()}", socket.gethostname())
        barrier("start", START_TIMEOUT)
        _watch = heartbeat.Heartbeat()
        _watch.start()


@contextmanager
def _relayed() -> Iterator[None]:
    """JAX's client, made within, reaches host 0 through a relay; not on host 0 itself."""
    from jax._src import distributed  # where host 0 is JAX may have found out only there

    make = distributed._jax.get_distributed_runtime_client

    def relayed(address: str, *given: Any, **named: Any) -> Any:
        if distributed.global_state.service is None:
            _relays.append(CoordinatorProxy(address, heartbeat.SILENCE, _first_is_gone))
            address = _relays[-1].address
        return make(address, *given, **named)

    distributed._jax.get_distributed_runtime_client = relayed
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = make
        _put_away_relays()


def _put_away_relays() -> None:
    while _relays:
        _relays.pop().joined()


def check_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """ValueError unless they are all given and fit, or none, or --num-processes 1."""
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return
    given = [coordinator is not None, num_processes is not None, process_id is not None]
    if any(given) and not all(given):
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
            f"--process-id {process_id} of --num-processes {num_processes}: they count from 0 to "
            "N - 1"
        )


def cluster(environment: Mapping[str, str]) -> str | None:
    """What starts several processes here, as far as the environment shows; None if nothing does.

    JAX makes out the rest. It is not asked always, since it takes a job of one process, or a
    notebook within Kubernetes, for a part of something and waits or fails.
    """

    def number(name: str, otherwise: str = "1") -> int:
        text = environment.get(name, otherwise)
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
    """Wait until every host has called this with the same name; alone, return at once.

    The name may be used again: the n-th call on one host meets the n-th on the others.

    Raises:
        HostsError: after `timeout` seconds since the first host came; names who is missing.
    """
    if not is_multiprocess():
        return
    key = f"{ROOT}/barriers/{name}.{_waits[name]}"
    _waits[name] += 1
    client().key_value_set(f"{key}/{process_index()}", "")
    try:
        client().wait_at_barrier(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        came = {int(k.rpartition("/")[2]) for k, _ in client().key_value_dir_get(f"{key}/")}
        missing = [process_name(i) for i in range(process_count()) if i not in came]
        raise HostsError(
            f"barrier {name!r}: waited {timeout:g} s for {', '.join(missing) or 'a late host'}"
            f"{REMEDY}"
        ) from error


def on_first(name: str, work: Callable[[], Any]) -> None:
    """Host 0 does something while the others wait for it; HostsError as `barrier`."""
    if is_first():
        work()
    barrier(name, WORK_TIMEOUT)


def broadcast_json(name: str, make: Callable[[], Any]) -> Any:
    """What host 0 makes, in JSON, on every host; HostsError as `barrier`."""
    if not is_multiprocess():
        return make()
    key = f"{ROOT}/values/{name}.{_waits[name]}"
    if is_first():
        client().key_value_set(key, json.dumps(make()))
    barrier(name)
    return json.loads(client().key_value_try_get(key))


def failed_process(error: BaseException) -> str | None:
    """Who is gone, if that can be why this host failed; waits until it would be known.

    A collective that loses a host fails with an error of the network, if it fails at all.
    """
    if _watch is None or not _by_jax(error):
        return None
    return _watch.verdict(heartbeat.SILENCE + 4 * heartbeat.PULSE)


def exit_together(code: int, error: str | None = None, *, agreed: bool = False) -> int:
    """Leave with an exit code; alone, just return it.

    A process that simply ended would be held up by those that go on, and leave them waiting.

    Args:
        error: what went wrong here, None if nothing did; the other hosts say it too and end.
        agreed: all hosts come to this end by themselves.
    """
    if _watch is None:
        return code
    if error is None or agreed:
        # Others may have long to go; the watch ends this process if one of them dies.
        barrier("end", 7 * 24 * 3600.0)
        _watch.stop()
        jax.distributed.shutdown()
        return code
    _watch.tell(f"{process_name(process_index())} ended: {error}")
    _watch.leave(code)
    raise AssertionError("this process has ended")


_watch: heartbeat.Heartbeat | None = None
_relays: list[CoordinatorProxy] = []  # while JAX joins the hosts


def _first_is_gone() -> None:
    if _watch is not None:  # otherwise JAX says that it could not join
        _watch.first_is_gone()


def _by_jax(error: BaseException | None) -> bool:
    """Whether an error of the devices or the network stands behind this one."""
    while error is not None:
        # Where an array is gather_to_host, the runtime's status comes as a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or STATUS.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _too_late(where: str, host: int | None) -> None:
    own = f"host {host} ({socket.gethostname()})" if host is not None else socket.gethostname()
    print(
        f"error: {own} waited {START_TIMEOUT:g} s at {where} and not all hosts came; see that the "
        "command runs on each, with its own number, and that they reach that port",
        file=sys.stderr,
        flush=True,
    )
    _put_away_relays()
    os._exit(HostsError.exit_code)
