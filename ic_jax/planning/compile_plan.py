"""Compile plans: compile a program at full size for devices that may be absent, and report."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax.cli import say
from ic_jax.devices import Chip, platform
from ic_jax.models.target import compiling_for
from ic_jax.planning.hlo_cost import Work, work_of
from ic_jax.planning.report import CompileReport
from ic_jax.planning.topologies import is_absent_gpu
from ic_jax.sharding import activation_spec, describe, shardings

# Errors of the TPU compiler that say how much memory a program needs: in all, or beside its
# arguments. The GPU compiler makes programs of any size.
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_TEMPORARIES_TOO_LARGE = re.compile(
    r"temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}
# Nobody can measure which of Triton's kernels is fastest on a GPU that is absent: cuBLAS' are used.
ABSENT_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class CompilationError(ValueError):
    """Program that a compiler refuses; the message has its words."""


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
class PlannedProgram:
    """Program to compile: `function(*arguments)` on a mesh."""

    name: str
    function: Callable
    arguments: tuple[Any, ...]  # shapes with shardings; what the program does not use is left out
    labels: Any  # names under which their bytes are reported, a tree that is a prefix of them
    mesh: Mesh
    minutes: int  # about how long two cores compile it
    donate: Sequence[int] = ()
    out_shardings: Any = None
    compiler_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> Any:
        return self.mesh.devices.flat[0]

    def lower(self, platform: str, device: Any, to: str | None = None) -> Any:
        """Return the program lowered for such a device.

        Args:
            platform: "tpu", "gpu" or "cpu".
            device: one of that platform.
            to: JAX's name of the platform if it is not that of the arguments: "cuda", "rocm", ...

        Raises:
            ShardingError: the program cannot be laid out on the mesh.
        """
        options = {} if self.out_shardings is None else {"out_shardings": self.out_shardings}
        jitted = jax.jit(self.function, donate_argnums=tuple(self.donate), **options)
        # JAX keeps traces by function and arguments, not by what they are compiled for.
        jax.clear_caches()
        with compiling_for(platform, device), jax.set_mesh(self.mesh):
            return jitted.trace(*self.arguments).lower(lowering_platforms=(to,) if to else None)


def compile_report(program: PlannedProgram) -> CompileReport:
    """Compile a program and report what it needs on each device.

    Raises:
        CompilationError: the compiler wants more of another memory than the device's main one.
        ShardingError: the program cannot be laid out on the mesh.
    """
    mesh, device = program.mesh, program.device
    chip, start = Chip.of(device), time.perf_counter()
    say(
        f"compiling {program.name} for {mesh.size} x {device.device_kind}, mesh {describe(mesh)}: "
        f"about {program.minutes} min of two cores"
    )

    def too_large(needed: int, temporary: int | None, memory: float) -> CompileReport:
        seconds = time.perf_counter() - start
        return CompileReport(program.name, mesh, sizes, temporary, needed, memory, None, seconds)

    lowered = program.lower(platform(device), device)
    used = sorted(lowered._lowering.compile_args["kept_var_idx"])
    sizes = _bytes_by_label(program, used)
    if chip is not None and sum(sizes.values()) > chip.memory:
        return too_large(sum(sizes.values()), None, chip.memory)
    absent = ABSENT_GPU_OPTIONS if is_absent_gpu(device) else {}
    try:
        compiled: Any = lowered.compile(compiler_options={**program.compiler_options, **absent})
    except jax.errors.JaxRuntimeError as error:
        needed, temporary, memory = _required(str(error), sum(sizes.values()))
        if memory is not None:
            return too_large(needed, temporary, memory)
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # A kernel wants more of a chip's scratchpad, say: smaller pictures would not help.
        refusal = f"the compiler for {device.device_kind} refuses {program.name}: {error}"
        raise CompilationError(refusal) from error
    stats = compiled.memory_analysis()
    temporary = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporary += stats.generated_code_size_in_bytes
    return CompileReport(
        name=program.name,
        mesh=mesh,
        arguments=sizes,
        temporary=temporary,
        needed=stats.argument_size_in_bytes + temporary,
        memory=chip.memory if chip else None,
        work=_work(compiled.as_text(), program, used),
        seconds_to_compile=time.perf_counter() - start,
    )


def _work(text: str, program: PlannedProgram, used: Sequence[int]) -> Work:
    """Count the work of a compiled program that takes the arguments of the numbers `used`."""
    leaves = jax.tree.leaves(program.arguments, is_leaf=lambda x: isinstance(x, nnx.Variable))
    machines = [device.process_index for device in program.mesh.devices.flat]
    return work_of(
        text,
        is_weight=lambda number: isinstance(leaves[used[number]], nnx.Variable),
        machines=machines if platform(program.device) == "gpu" else (),
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


def _bytes_by_label(program: PlannedProgram, used: Sequence[int]) -> dict[str, int]:
    """Return the bytes of the arguments of the numbers `used`, on each device."""
    sizes: dict[str, int] = {}
    names = jax.tree.leaves(jax.tree.broadcast(program.labels, program.arguments))
    leaves = jax.tree.leaves(program.arguments)
    for i, (label, leaf) in enumerate(zip(names, leaves, strict=True)):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        sizes[label] = sizes.get(label, 0) + (size if i in used else 0)
    return sizes
