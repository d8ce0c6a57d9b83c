"""Devices that need not be attached: TPU slices, and machines of NVIDIA GPUs.

libtpu and JAX's CUDA plugin compile on any machine for devices that are described to them, and JAX
treats those like attached ones (https://docs.jax.dev/en/latest/aot.html).
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from ic_jax.planning.gpu_targets import GPU_TARGETS, target_config
from ic_jax.sharding import ShardingError, make_mesh

TPU_KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
# Chips of one host where they are not as many as libtpu takes by default, four.
HOSTS = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x4": (2, 4, 1)}
TOPOLOGY_HELP = (
    f"devices, which need not be attached: TPUs ({', '.join(TPU_KINDS)}) as v5e:2x4 or v5p:4x4x4; "
    f"GPUs ({', '.join(GPU_TARGETS)}) as h100:8, or h100:2x8 for two machines of eight "
    "(default: this machine)"
)
EXAMPLES = "GPUs as h100:8, or h100:2x8 for two machines of eight; TPUs as v5e:2x4 or v5p:4x4x4"


def topology_devices(topology: str | None) -> Sequence[Any]:
    """Return the devices of a topology such as "h100:8" or "v5e:2x4"; this machine's for None.

    Raises:
        ShardingError: there is no such topology, or the compiler for it is not installed.
    """
    if topology is None:
        return jax.devices()
    kind, _, shape = topology.partition(":")
    sides = [int(side) for side in shape.split("x") if re.fullmatch(r"[1-9]\d*", side)]
    if kind not in (*GPU_TARGETS, *TPU_KINDS):
        kinds = ", ".join((*GPU_TARGETS, *TPU_KINDS))
        raise ShardingError(f"topology {topology!r}: {kind!r} is none of {kinds}")
    if len(sides) != len(shape.split("x")) or len(sides) > (2 if kind in GPU_TARGETS else 3):
        raise ShardingError(f"topology {topology!r}: {shape!r} is no shape; write {EXAMPLES}")
    # Otherwise JAX would look for attached devices, which may be other ones or in use.
    jax.config.update("jax_platforms", "cpu")
    return _gpus(kind, sides) if kind in GPU_TARGETS else _tpus(topology, sides)


def over_whole_topology(mesh: Mesh, devices: Sequence[Any]) -> Mesh:
    """Return a mesh for which libtpu compiles: over all chips of a topology.

    Args:
        mesh: over some or all of the devices.
        devices: of the topology. If `mesh` leaves TPU chips of it out, the result is over a smaller
            topology that has no others.
    """
    chips = list(mesh.devices.flat)
    if len(chips) == len(devices) or chips[0].platform != "tpu" or chips[0] in jax.devices():
        return mesh
    sides = np.ptp([chip.coords for chip in chips], axis=0) + 1
    (kind,) = (name for name, kind in TPU_KINDS.items() if kind == chips[0].device_kind)
    flat = sides[:2] if kind in ("v5e", "v6e") else sides
    return make_mesh(dict(mesh.shape), topology_devices(f"{kind}:{'x'.join(map(str, flat))}"))


def is_absent_gpu(device: Any) -> bool:
    """Return whether a device is a GPU that is not attached."""
    return device.platform in ("cuda", "gpu") and device not in jax.devices()


def _gpus(kind: str, sides: Sequence[int]) -> Sequence[Any]:
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise ShardingError(
            f"topology {kind}: JAX has no compiler for NVIDIA GPUs here; pip install -e '.[cuda13]'"
        )
    machines, each = (1, *sides) if len(sides) == 1 else sides
    target, shape = target_config(GPU_TARGETS[kind]), f"1x{machines}x{each}"
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=target, topology=shape
        ).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ShardingError(
            f"topology {kind}: {str(error).splitlines()[0]}; JAX 0.12 describes GPUs that are not "
            f"attached, and this is {jax.__version__}"
        ) from None


def _tpus(topology: str, sides: Sequence[int]) -> Sequence[Any]:
    if not importlib.util.find_spec("libtpu"):
        raise ShardingError(
            f"topology {topology}: JAX has no compiler for TPUs here; pip install -e '.[tpu]'"
        )
    # Otherwise libtpu queries the machine for its TPU, and locks it for one process.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    shape = topology.partition(":")[2]
    host: dict[str, Any] = {"chips_per_host_bounds": HOSTS[shape]} if shape in HOSTS else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **host).devices
    except (RuntimeError, ValueError) as error:
        raise ShardingError(
            f"topology {topology!r}: {str(error).splitlines()[0]}; write {EXAMPLES}"
        ) from None
