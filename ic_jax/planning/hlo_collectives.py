"""Collectives of a compiled program: what they send, among which devices and machines."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ic_jax.planning.hlo_text import Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """Collective that runs `count` times; `bytes` is its largest input or output buffer."""

    kind: str
    bytes: int
    devices: int  # that take part
    machines: int  # over which these devices are spread
    count: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in total with ring algorithms."""
        ring = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * ring, "collective-permute": 1.0}.get(self.kind, ring)
        return self.count * self.bytes * factor

    @property
    def sent_to_other_machines(self) -> float:
        """The share of `sent` that leaves the machine through each device's network card.

        Of a ring that visits a machine's devices one after the other, only one leaves the machine,
        and what it sends is spread over the cards of all; an all-to-all sends to each directly.
        """
        if self.machines == 1:
            return 0.0
        local = self.devices / self.machines
        if self.kind == "all-to-all":
            return self.count * self.bytes * (1 - 1 / self.machines)
        return self.sent / local


def kind_of(i: Instruction) -> str | None:
    """Return which of KINDS an instruction is or starts; None if it is no collective."""
    kind = i.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def collective(
    i: Instruction, instructions: Mapping[str, Instruction], machines: Sequence[int]
) -> Collective:
    """Return the collective that an instruction runs once.

    Args:
        instructions: of the same computation, by name.
        machines: the machine of each device, in the order of the program's device numbers; empty
            where all devices are linked directly.
    """
    kind = kind_of(i)
    assert kind is not None, i.opcode
    sizes = [i.shapes, *(instructions[o].shapes for o in i.operands if o in instructions)]
    largest = max(s.bytes for shapes in sizes for s in shapes)
    if not i.opcode.endswith("-start") and kind != "all-gather":
        largest = max(sum(s.bytes for s in shapes) for shapes in sizes)
    groups = _groups(i.rest)
    spread = max(len({machines[d] for d in group}) for group in groups) if machines else 1
    return Collective(kind, largest, max(map(len, groups)), spread, 1)


def _groups(rest: str) -> Sequence[Sequence[int]]:
    """Return the groups of device numbers that communicate with each other."""
    if lists := _LISTS.search(rest):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", lists[1])]
    if iota := _IOTA.search(rest):
        dims = _numbers(iota[3])
        order = _numbers(iota[4]) if iota[4] else range(len(dims))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return ids.reshape(int(iota[1]), int(iota[2])).tolist()
    if mesh := _MESH.search(rest):
        sizes = {k.strip(" '"): int(v) for k, v in (x.split("=") for x in mesh[1].split(","))}
        names = [name.strip(" '") for name in mesh[2].split(",")]
        axes = [list(sizes).index(name) for name in names]
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        last = np.moveaxis(ids, axes, range(-len(axes), 0))
        return last.reshape(-1, math.prod(sizes[name] for name in names)).tolist()
    return [(0, 1)]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)
