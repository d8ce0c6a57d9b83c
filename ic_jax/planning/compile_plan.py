"""What a program would need on devices that need not be there: compiled, and its work counted.

libtpu compiles for TPU topologies on any machine; JAX knows the topology's devices as it knows its
own (https://docs.jax.dev/en/latest/aot.html).
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
from ic_jax.models.attention import compiling_for
from ic_jax.planning.hlo_cost import Work, work_of
from ic_jax.sharding import ShardingError, activation_spec, describe, shardings

# All that a program needs, or what it needs beside its arguments, of what a chip has.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_BESIDE_TOO_LARGE = re.compile(
    r"temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


def devices_of(topology: str | None) -> Sequence[Any]:
    """The devices of a TPU topology such as "v5e:2x4"; this machine's for None.

    Raises:
        ShardingError: there is no such topology, or libtpu is not installed.
    """
    if topology is None:
        return jax.devices()
    # libtpu would ask the machine which TPU it has, and take it for one process alone.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    kind, _, shape = topology.partition(":")
    sides = shape.split("x")
    alone: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if set(sides) == {"1"} else {}
    try:
        found = topologies.get_topology_desc(f"{kind}:{shape}", "tpu", **alone)
    except (RuntimeError, ValueError) as error:
        raise ShardingError(
            f"topology {topology!r}: {str(error).splitlines()[0]}; write one such as v5e:2x4, "
            "v6e:2x2 or v5p:4x4x4, with jax[tpu] installed"
        ) from None
    return found.devices


def placed(tree: Any, mesh: Mesh, dtype: Any = None, *, replicate: bool = False) -> Any:
    """Shapes of modules on a mesh, as arguments to compile with."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=place),
        tree,
        shardings(tree, mesh, replicate=replicate),
    )


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays that every device has, on a mesh."""
    place = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def rows(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays whose leading axis is the batch, on a mesh."""

    def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = ("batch", *[None] * (len(x.shape) - 1))
        spec = activation_spec(mesh.abstract_mesh, x.shape, axes) if x.shape else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


@dataclass(frozen=True)
class Plan:
    """One compiled program, on each device."""

    name: str
    arguments: dict[str, int]  # bytes by kind
    temporary: int | None  # bytes beside them; None where the compiler does not say
    needed: int  # bytes in all
    memory: float | None  # bytes that the device has
    work: Work | None
    seconds_to_compile: float

    @property
    def fits(self) -> bool | None:
        return None if self.memory is None else self.needed <= self.memory


def compile_plan(
    name: str,
    function: Callable,
    arguments: tuple[Any, ...],
    kinds: Any,
    mesh: Mesh,
    *,
    donate: Sequence[int] = (),
    out_shardings: Any = None,
) -> Plan:
    """Compile `function(*arguments)` for a mesh and account for it.

    Args:
        arguments: shapes with shardings; those that the program does not use are not counted.
        kinds: what their bytes are counted as: a tree of names, a prefix of `arguments`.

    Raises:
        ShardingError: the program cannot be laid out on the mesh.
    """
    device = mesh.devices.flat[0]
    chip, start = Chip.of(device), time.perf_counter()
    with compiling_for(platform(device)), jax.set_mesh(mesh):
        options = {} if out_shardings is None else {"out_shardings": out_shardings}
        lowered = jax.jit(function, donate_argnums=tuple(donate), **options).lower(*arguments)
        sizes = _bytes_by_kind(arguments, kinds, lowered)
        try:
            program: Any = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed, beside, memory = _wanted(str(error), sum(sizes.values()))
            if memory is None:
                raise
            seconds = time.perf_counter() - start
            return Plan(name, sizes, beside, needed, memory, None, seconds)
    stats = program.memory_analysis()
    beside = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    beside += stats.generated_code_size_in_bytes
    return Plan(
        name=name,
        arguments=sizes,
        temporary=beside,
        needed=stats.argument_size_in_bytes + beside,
        memory=chip.memory if chip else None,
        work=work_of(program.as_text()),
        seconds_to_compile=time.perf_counter() - start,
    )


def _wanted(error: str, arguments: int) -> tuple[int, int | None, float | None]:
    """Bytes that a program which is too large needs in all, those beside its arguments where the
    compiler says, and what the device has; None for that if it is another error."""
    for pattern, given in ((_TOO_LARGE, 0), (_BESIDE_TOO_LARGE, arguments)):
        found = pattern.search(error)
        if found is not None:
            wanted, memory = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            return int(wanted) + given, int(wanted) if given else None, memory
    return 0, None, None


def _bytes_by_kind(arguments: tuple[Any, ...], kinds: Any, lowered: Any) -> dict[str, int]:
    """Bytes of the arguments that are used, on each device."""
    kept = lowered._lowering.compile_args["kept_var_idx"]
    sizes: dict[str, int] = {}
    names = jax.tree.leaves(jax.tree.broadcast(kinds, arguments))
    for i, (kind, leaf) in enumerate(zip(names, jax.tree.leaves(arguments), strict=True)):
        share = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        sizes[kind] = sizes.get(kind, 0) + (share if i in kept else 0)
    return sizes


def roofline(work: Work, device: Any) -> dict[str, float] | None:
    """Least seconds that each kind of work takes on a device; None for one that is not listed."""
    chip = Chip.of(device)
    if chip is None:
        return None
    return {
        "arithmetic": work.flops / chip.flops,
        "memory": work.bytes / chip.bandwidth,
        "communication": sum(c.sent for c in work.collectives) / chip.links,
    }


def report(plan: Plan, mesh: Mesh) -> dict[str, Any]:
    """A plan as JSON values."""
    device = mesh.devices.flat[0]
    found: dict[str, Any] = {
        "program": plan.name,
        "device": device.device_kind,
        "devices": int(mesh.devices.size),
        "mesh": describe(mesh),
        "fits": plan.fits,
        "bytes per device": {
            **plan.arguments,
            "temporaries, results and code": plan.temporary,
            "needed": plan.needed,
            "memory": plan.memory,
        },
        "seconds to compile": round(plan.seconds_to_compile, 1),
    }
    if plan.work is None:
        return found
    work = plan.work
    by_kind: dict[str, dict[str, float]] = {}
    for c in work.collectives:
        entry = by_kind.setdefault(c.kind, {"count": 0, "bytes sent": 0, "largest": 0})
        entry["count"] += c.count
        entry["bytes sent"] += round(c.sent)
        entry["largest"] = max(entry["largest"], c.bytes)
    found |= {
        "TFLOP per device": round(work.flops / 1e12, 3),
        "bytes moved per device": round(work.bytes),
        "kernels": work.kernels,
        "collectives": by_kind,
    }
    seconds = roofline(work, device)
    if seconds is not None:
        found["seconds at least"] = {k: round(v, 4) for k, v in seconds.items()}
        found["seconds at least"]["overlapped"] = round(max(seconds.values()), 4)
    return found


def show(found: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Print reports for a person, and write them as JSON if there is a file for it."""
    for one in found:
        sizes = dict(one["bytes per device"])
        needed, memory = sizes.pop("needed"), sizes.pop("memory")
        verdict = {True: "fits", False: "does not fit", None: "memory unknown"}[one["fits"]]
        say(f"{one['program']}: {one['devices']} x {one['device']}, mesh {one['mesh']}: {verdict}")
        for kind, size in sizes.items():
            say(f"  {kind:32} {'?' if size is None else f'{size / 1e9:8.2f}'} GB")
        of = "" if memory is None else f" of {memory / 1e9:.2f}"
        say(f"  {'needed':32} {needed / 1e9:8.2f}{of} GB a device")
        for kind, work in one.get("collectives", {}).items():
            say(f"  {kind:32} {work['bytes sent'] / 1e9:8.2f} GB sent in {work['count']}")
        for kind, seconds in one.get("seconds at least", {}).items():
            say(f"  {kind:32} {seconds:8.3f} s at least")
        if one.get("suggestion"):
            say(f"  {one['suggestion']}")
    if file is not None:
        file.write_text(json.dumps(list(found), indent=2) + "\n")
