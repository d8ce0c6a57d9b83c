"""Compile plans: memory, FLOPs and communication of a program on devices that may be absent.

libtpu compiles for TPU topologies on any machine, and JAX describes their devices like attached
ones (https://docs.jax.dev/en/latest/aot.html).
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax.cli import say
from ic_jax.devices import Chip, platform
from ic_jax.models.target import compiling_for
from ic_jax.planning.hlo_cost import Work, work_of
from ic_jax.sharding import ShardingError, activation_spec, describe, shardings

# Errors of the TPU compiler that say how much memory a program needs: in all, or beside its
# arguments.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_TEMPORARIES_TOO_LARGE = re.compile(
    r"temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


def topology_devices(topology: str | None) -> Sequence[Any]:
    """Return the devices of a TPU topology such as "v5e:2x4"; this machine's for None.

    Raises:
        ShardingError: there is no such topology, or libtpu is not installed.
    """
    if topology is None:
        return jax.devices()
    # Otherwise libtpu queries the machine for its TPU, and locks it for one process.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    kind, _, shape = topology.partition(":")
    sides = shape.split("x")
    alone: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if set(sides) == {"1"} else {}
    try:
        return topologies.get_topology_desc(f"{kind}:{shape}", "tpu", **alone).devices
    except (RuntimeError, ValueError) as error:
        raise ShardingError(
            f"topology {topology!r}: {str(error).splitlines()[0]}; write one such as v5e:2x4, "
            "v6e:2x2 or v5p:4x4x4, with jax[tpu] installed"
        ) from None


def sharded_shapes(tree: Any, mesh: Mesh, *, replicate: bool = False) -> Any:
    """Return the shapes of modules with their shardings, as arguments to compile with."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, replicate=replicate),
    )


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """Return the shapes of arrays that are replicated over a mesh."""
    replicated = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), tree)


def batch_shapes(tree: Any, mesh: Mesh) -> Any:
    """Return the shapes of arrays whose leading axis is the batch, sharded over a mesh."""

    def sharded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = ("batch", *[None] * (len(x.shape) - 1))
        spec = activation_spec(mesh.abstract_mesh, x.shape, axes) if x.shape else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(sharded, tree)


@dataclass(frozen=True)
class CompileReport:
    """Requirements of one compiled program on each device."""

    name: str
    mesh: Mesh
    arguments: dict[str, int]  # bytes by label
    temporary: int | None  # bytes beside them; None where the compiler does not say
    needed: int  # bytes in all
    memory: float | None  # bytes that the device has
    work: Work | None
    seconds_to_compile: float

    @property
    def fits(self) -> bool | None:
        return None if self.memory is None else self.needed <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        device = self.mesh.devices.flat[0]
        values: dict[str, Any] = {
            "program": self.name,
            "device": device.device_kind,
            "devices": int(self.mesh.devices.size),
            "mesh": describe(self.mesh),
            "fits": self.fits,
            "bytes per device": {
                **self.arguments,
                "temporaries, results and code": self.temporary,
                "needed": self.needed,
                "memory": self.memory,
            },
            "seconds to compile": round(self.seconds_to_compile, 1),
        }
        if self.work is not None:
            values |= _work_to_dict(self.work)
            if seconds := roofline(self.work, device):
                rounded = {kind: round(value, 4) for kind, value in seconds.items()}
                overlapped = round(max(seconds.values()), 4)
                values["seconds at least"] = rounded | {"overlapped": overlapped}
        return values


def compile_report(
    name: str,
    function: Callable,
    arguments: tuple[Any, ...],
    labels: Any,
    mesh: Mesh,
    *,
    donate: Sequence[int] = (),
    out_shardings: Any = None,
) -> CompileReport:
    """Compile `function(*arguments)` for a mesh and report what it needs on each device.

    Args:
        arguments: shapes with shardings; arguments that the program does not use do not count.
        labels: names under which their bytes are reported, a tree that is a prefix of `arguments`.

    Raises:
        ShardingError: the program cannot be laid out on the mesh.
    """
    device = mesh.devices.flat[0]
    chip, start = Chip.of(device), time.perf_counter()
    with compiling_for(platform(device), device), jax.set_mesh(mesh):
        options = {} if out_shardings is None else {"out_shardings": out_shardings}
        lowered = jax.jit(function, donate_argnums=tuple(donate), **options).lower(*arguments)
        sizes = _bytes_by_label(arguments, labels, lowered)
        try:
            program: Any = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed, temporary, memory = _required(str(error), sum(sizes.values()))
            if memory is None:
                raise
            seconds = time.perf_counter() - start
            return CompileReport(name, mesh, sizes, temporary, needed, memory, None, seconds)
    stats = program.memory_analysis()
    temporary = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporary += stats.generated_code_size_in_bytes
    return CompileReport(
        name=name,
        mesh=mesh,
        arguments=sizes,
        temporary=temporary,
        needed=stats.argument_size_in_bytes + temporary,
        memory=chip.memory if chip else None,
        work=work_of(program.as_text()),
        seconds_to_compile=time.perf_counter() - start,
    )


def _required(error: str, arguments: int) -> tuple[int, int | None, float | None]:
    """Return the memory figures of a compiler's error about a program that is too large.

    They are the bytes that the program needs in all, those beside its arguments (None where the
    error does not say) and those that the device has (None if it is another error).
    """
    for pattern, others in ((_TOO_LARGE, 0), (_TEMPORARIES_TOO_LARGE, arguments)):
        match = pattern.search(error)
        if match is not None:
            needed, memory = (float(match[i]) * _UNITS[match[i + 1]] for i in (1, 3))
            return int(needed) + others, int(needed) if others else None, memory
    return 0, None, None


def _bytes_by_label(arguments: tuple[Any, ...], labels: Any, lowered: Any) -> dict[str, int]:
    """Return the bytes of the arguments that are used, on each device."""
    used = lowered._lowering.compile_args["kept_var_idx"]
    sizes: dict[str, int] = {}
    names = jax.tree.leaves(jax.tree.broadcast(labels, arguments))
    for i, (label, leaf) in enumerate(zip(names, jax.tree.leaves(arguments), strict=True)):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        sizes[label] = sizes.get(label, 0) + (size if i in used else 0)
    return sizes


def _work_to_dict(work: Work) -> dict[str, Any]:
    collectives: dict[str, dict[str, float]] = {}
    for c in work.collectives:
        entry = collectives.setdefault(c.kind, {"count": 0, "bytes sent": 0, "largest": 0})
        entry["count"] += c.count
        entry["bytes sent"] += round(c.sent)
        entry["largest"] = max(entry["largest"], c.bytes)
    return {
        "TFLOP per device": round(work.flops / 1e12, 3),
        "bytes moved per device": round(work.bytes),
        "kernels": work.kernels,
        "collectives": collectives,
    }


def roofline(work: Work, device: Any) -> dict[str, float] | None:
    """Return the least seconds that each kind of work takes; None if the device is not listed."""
    chip = Chip.of(device)
    if chip is None:
        return None
    return {
        "arithmetic": work.flops / chip.flops,
        "memory": work.bytes / chip.bandwidth,
        "communication": sum(c.sent for c in work.collectives) / chip.links,
    }


def show(reports: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Print reports (of `CompileReport.to_dict`), and also write them as JSON to `file`."""
    for report in reports:
        sizes = dict(report["bytes per device"])
        needed, memory = sizes.pop("needed"), sizes.pop("memory")
        verdict = {True: "fits", False: "does not fit", None: "memory unknown"}[report["fits"]]
        devices = f"{report['devices']} x {report['device']}"
        say(f"{report['program']}: {devices}, mesh {report['mesh']}: {verdict}")
        for label, size in sizes.items():
            say(f"  {label:32} {'?' if size is None else f'{size / 1e9:8.2f}'} GB")
        of = "" if memory is None else f" of {memory / 1e9:.2f}"
        say(f"  {'needed':32} {needed / 1e9:8.2f}{of} GB a device")
        for kind, work in report.get("collectives", {}).items():
            say(f"  {kind:32} {work['bytes sent'] / 1e9:8.2f} GB sent in {work['count']}")
        for kind, seconds in report.get("seconds at least", {}).items():
            say(f"  {kind:32} {seconds:8.3f} s at least")
        if report.get("suggestion"):
            say(f"  {report['suggestion']}")
    if file is not None:
        file.write_text(json.dumps(list(reports), indent=2) + "\n")
