"""Cost of a compiled program per device, from its HLO text: FLOPs, memory traffic, communication.

XLA's own cost analysis counts the body of a loop once. Here each instruction counts as often as it
runs, if the compiler knows the trip count, as it does for every scan of this project.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8}
BITS |= {"s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
BITS |= {"s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move no data, or whose data is counted inside them.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "iota", "after-all", "partition-id", "copy-done", "async-done", "async-update"),
    *("slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
}
# Multiplications and additions of JAX's attention kernels for TPUs, per query, key and channel.
KERNELS = {"splash_mha_fwd": 4, "splash_mha_dq": 6, "splash_mha_dkv": 8}
SLICES = {"dynamic-slice", "slice", "gather"}

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in a scratchpad, not in device memory

    @property
    def bytes(self) -> int:
        return math.prod(self.dims) * BITS.get(self.dtype, 0) // 8


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result, or of each element of a tuple
    operands: tuple[str, ...]
    rest: str  # attributes

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in self.shapes if not s.on_chip)


@dataclass(frozen=True)
class Collective:
    """Collective that runs `count` times; `bytes` is its largest input or output buffer."""

    kind: str
    bytes: int
    devices: int  # that take part
    count: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in total with ring algorithms."""
        ring = (self.devices - 1) / self.devices
        factor = {"all-reduce": 2 * ring, "collective-permute": 1.0}.get(self.kind, ring)
        return self.count * self.bytes * factor


@dataclass
class Work:
    """Work of one device in one run of a program."""

    flops: float = 0.0  # of matrix products and convolutions
    bytes: float = 0.0  # of memory traffic, if every result is written and read once
    kernels: dict[str, int] = field(default_factory=dict)  # number of calls of each custom call
    collectives: list[Collective] = field(default_factory=list)
    loops_of_unknown_length: int = 0


def work_of(text: str) -> Work:
    """Count the work in the text of a compiled program."""
    entry, computations = _parse(text)
    work, counts = Work(), dict[tuple[str, int, int], int]()
    for computation, times, fused in _runs(entry, computations, work):
        instructions = {i.name: i for i in computations[computation]}
        for i in instructions.values():
            work.flops += times * _flops(i, instructions)
            kind = i.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                sizes = [
                    i.shapes,
                    *(instructions[o].shapes for o in i.operands if o in instructions),
                ]
                largest = max(s.bytes for shapes in sizes for s in shapes)
                if not i.opcode.endswith("-start") and kind != "all-gather":
                    largest = max(sum(s.bytes for s in shapes) for shapes in sizes)
                key = (kind, largest, _group_size(i.rest))
                counts[key] = counts.get(key, 0) + times
            elif i.opcode == "custom-call":
                target = re.search(r'custom_call_target="([^"]*)"', i.rest)
                name = target[1] if target else "?"
                work.kernels[name] = work.kernels.get(name, 0) + times
            if not fused:
                work.bytes += times * _moved(i, instructions, computations)
    work.collectives = [Collective(k, b, n, times) for (k, b, n), times in counts.items()]
    work.collectives.sort(key=lambda c: -c.sent)
    return work


def _runs(
    entry: str, computations: Mapping[str, list[Instruction]], work: Work
) -> Iterator[tuple[str, int, bool]]:
    """Yield (computation, number of runs, whether inside a fusion) for every call."""
    todo = [(entry, 1, False)]
    while todo:
        name, times, fused = todo.pop()
        yield name, times, fused
        for i in computations[name]:
            called = [c for c in _CALLED.findall(i.rest) if c in computations]
            if branches := _BRANCHES.search(i.rest):
                called += [b.strip(" %") for b in branches[1].split(",")]
            if i.opcode in ("reduce", "scatter", "sort", "map", "reduce-window", "all-reduce"):
                continue  # their computations apply to scalars
            trips = 1
            if i.opcode == "while":
                known = _trips(i, computations)
                work.loops_of_unknown_length += known is None
                trips = known or 1
            todo += [(c, times * trips, fused or i.opcode == "fusion") for c in called]


def _trips(loop: Instruction, computations: Mapping[str, list[Instruction]]) -> int | None:
    """Return the trip count of a loop: the compiler's, or the only bound in its condition."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    condition = _CONDITION.search(loop.rest)
    bounds = []
    for i in computations[condition[1]] if condition else []:
        value = re.match(r"(\d+)\)", i.rest) if i.opcode == "constant" else None
        if value and not i.shapes[0].dims:
            bounds.append(int(value[1]))
    return bounds[0] if len(bounds) == 1 else None


def _flops(i: Instruction, instructions: Mapping[str, Instruction]) -> float:
    results = math.prod(i.shapes[0].dims) if i.shapes else 0
    if i.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        left = instructions[i.operands[0]].shapes[0].dims
        contracted = [left[int(d)] for d in dims[1].split(",") if d] if dims else []
        return 2.0 * results * math.prod(contracted)
    if i.opcode == "convolution":
        labels = re.search(r"dim_labels=\w+_(\w+)->", i.rest)
        kernel = instructions[i.operands[1]].shapes[0].dims
        each = math.prod(kernel) / (kernel[labels[1].index("o")] if labels else 1)
        groups = re.search(r"batch_group_count=(\d+)", i.rest)
        return 2.0 * results * each / (int(groups[1]) if groups else 1)
    for name, each in KERNELS.items():
        if i.opcode == "custom-call" and i.name.startswith(name):
            shapes = [instructions[o].shapes[0].dims for o in i.operands if o in instructions]
            q, k = [dims for dims in shapes if len(dims) >= 3 and dims[-1] > 64][:2]
            return float(each) * math.prod(q) * k[-2]
    return 0.0


def _moved(
    i: Instruction,
    instructions: Mapping[str, Instruction],
    computations: Mapping[str, list[Instruction]],
) -> float:
    """Return the bytes that an instruction outside of fusions reads and writes."""
    if i.opcode in FREE:
        return 0
    operands = [instructions[o].bytes if o in instructions else 0 for o in i.operands]
    written = i.bytes
    inside = _CALLED.search(i.rest) if i.opcode == "fusion" else None
    if i.opcode in SLICES:
        operands = [written]
    elif i.opcode == "dynamic-update-slice":
        written = operands[1] if len(operands) > 1 else written
        operands = [written]
    elif inside and inside[1] in computations:
        body = computations[inside[1]]
        operands = [
            _read(_parameter(body, n), body, b, computations) if b else 0
            for n, b in enumerate(operands)
        ]
        updates = [x for x in body if x.opcode == "dynamic-update-slice"]
        if updates and any(u.bytes >= i.bytes for u in updates):  # in place
            local = {x.name: x for x in body}
            written = sum(_size(local[u.operands[1]]) for u in updates)
            operands = [b for b in operands if b < i.bytes]
    return written + sum(operands)


def _read(
    value: Instruction,
    body: list[Instruction],
    size: int,
    computations: Mapping[str, list[Instruction]],
) -> int:
    """Return the bytes that a fusion reads of an operand of `size` bytes: only slices count, if all
    uses, also in nested fusions, are slices."""
    read = 0
    for user in (x for x in body if value.name in x.operands):
        inside = _CALLED.search(user.rest) if user.opcode == "fusion" else None
        if user.opcode in SLICES and user.operands[0] == value.name:
            read += _size(user)
        elif user.opcode == "bitcast":
            read += _read(user, body, size, computations)
        elif inside:
            inner = computations[inside[1]]
            for number, operand in enumerate(user.operands):
                if operand == value.name:
                    read += _read(_parameter(inner, number), inner, size, computations)
        else:
            return size
    return min(read, size)


def _parameter(body: list[Instruction], number: int) -> Instruction:
    return next(x for x in body if x.opcode == "parameter" and x.rest.startswith(f"{number})"))


def _size(i: Instruction) -> int:
    return sum(s.bytes for s in i.shapes)


def _group_size(rest: str) -> int:
    if groups := _GROUPS.search(rest):
        return len(groups[1].split(","))
    if groups := _IOTA_GROUPS.search(rest):
        return int(groups[2])
    if groups := _MESH_GROUPS.search(rest):
        sizes = {k.strip(" '"): int(v) for k, v in (x.split("=") for x in groups[1].split(","))}
        return math.prod(sizes[name.strip(" '")] for name in groups[2].split(","))
    return 2  # a permutation lists pairs


def _parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Return the name of the entry, and the instructions of every computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(match[1], match[2]))
    return entry, computations


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(d, tuple(map(int, filter(None, dims.split(",")))), "S(" in (layout or ""))
        for d, dims, layout in _SHAPE.findall(text[:end])
    )
    opcode = _OPCODE.match(text, end)
    assert opcode is not None, text
    close = _closing(text, opcode.end() - 1)
    operands = tuple(re.findall(r"%([\w.\-]+)", text[opcode.end() : close]))
    # The number of a parameter and the value of a constant are in place of operands.
    literal = opcode[1] in ("parameter", "constant")
    rest = text[opcode.end() :] if literal else text[close:]
    return Instruction(name, opcode[1], shapes, operands, rest)


def _closing(text: str, start: int) -> int:
    """Return the position after the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at + 1
    raise ValueError(text)
