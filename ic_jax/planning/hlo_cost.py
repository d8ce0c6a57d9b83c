"""Cost of a compiled program per device, from its text: FLOPs, memory traffic, communication.

For TPUs also the compiler's own estimate of each kernel's cycles; of Pallas' kernels it has none.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ic_jax.planning.hlo_bytes import moved
from ic_jax.planning.hlo_collectives import Collective, collective, kind_of
from ic_jax.planning.hlo_copies import weight_copies
from ic_jax.planning.hlo_flops import flops, is_attention
from ic_jax.planning.hlo_text import FREE, Instruction, Program, is_product, parse

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclass
class Cycles:
    """The TPU compiler's estimate of a program's time without attention, in cycles of the chip."""

    products: int = 0  # kernels with a matrix product
    others: int = 0


@dataclass
class Work:
    """Work of one device in one run of a program."""

    flops: float = 0.0  # of matrix products, convolutions and attention
    attention_flops: float = 0.0  # the part of `flops` of attention kernels
    bytes: float = 0.0  # of memory traffic, if every result is written and read once
    weight_copies: float = 0.0  # the part of `bytes` that copies weights before they are used
    cycles: Cycles = field(default_factory=Cycles)
    kernels: dict[str, int] = field(default_factory=dict)  # number of calls, by the kernel's name
    collectives: list[Collective] = field(default_factory=list)
    loops_of_unknown_length: int = 0


def work_of(
    text: str,
    is_weight: Callable[[int], bool] = lambda _: True,
    machines: Sequence[int] = (),
) -> Work:
    """Count the work in the text of a compiled program.

    Args:
        text: of the program.
        is_weight: whether the argument of a number is a weight.
        machines: the machine of each device, in the order of the program's device numbers; empty
            where all devices are linked directly.
    """
    program = parse(text)
    work, counts = Work(weight_copies=weight_copies(program, is_weight)), dict[Collective, int]()
    for run in program.runs():
        instructions = {i.name: i for i in program.computations[run.computation]}
        for i in instructions.values():
            arithmetic = run.times * flops(i, instructions)
            work.flops += arithmetic
            work.attention_flops += arithmetic * is_attention(i)
            work.loops_of_unknown_length += program.trips(i) is None
            if kind_of(i):
                entry = collective(i, instructions, machines)
                counts[entry] = counts.get(entry, 0) + run.times
            elif i.target:
                work.kernels[_kernel(i)] = work.kernels.get(_kernel(i), 0) + run.times
            if not run.fused:
                work.bytes += run.times * moved(i, instructions, program)
                _add_cycles(work.cycles, i, program, run.times)
    work.collectives = [replace(entry, count=times) for entry, times in counts.items()]
    work.collectives.sort(key=lambda c: -c.sent)
    return work


def _kernel(i: Instruction) -> str:
    """Return the name of the kernel that a custom call runs."""
    is_pallas = i.target == "tpu_custom_call"  # of any kernel, named by the instruction
    return i.name.partition(".")[0] if is_pallas else i.target


def _add_cycles(cycles: Cycles, i: Instruction, program: Program, times: int) -> None:
    estimate = _CYCLES.search(i.rest)
    if i.opcode in FREE or is_attention(i) or estimate is None:
        return
    if is_product(i) or program.with_products.intersection(program.called(i)):
        cycles.products += times * int(estimate[1])
    else:
        cycles.others += times * int(estimate[1])
