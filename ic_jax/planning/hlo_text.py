"""Text of a compiled program (HLO), read into instructions, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once. Here a computation counts as often as it
runs, if the compiler knows the trip count, as it does for every scan of this project.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8}
BITS |= {"s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
BITS |= {"s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}

# Instructions that move no data, or whose data is counted inside or at the start of them.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "iota", "after-all", "partition-id", "copy-done", "async-done", "async-update"),
    *("slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
    *("async-start", "fusion-done", "fusion-update", "opt-barrier"),
}
# Instructions whose computations apply to scalars.
SCALAR = ("reduce", "scatter", "sort", "map", "reduce-window", "all-reduce")

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


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
    rest: str  # attributes; the number of a parameter, the value of a constant
    root: bool = False  # its result is its computation's

    @property
    def results(self) -> tuple[Shape, ...]:
        """Shapes of what it writes: the start of a kernel also returns operands and a context."""
        if not self.opcode.endswith("-start") or len(self.shapes) <= len(self.operands):
            return self.shapes
        if self.opcode == "copy-start":
            return self.shapes[:1]
        others = self.shapes[len(self.operands) :]
        return tuple(s for s in others if s.dims or s.dtype not in ("s32", "u32"))

    @property
    def bytes(self) -> int:
        """Bytes of the results in device memory."""
        return sum(s.bytes for s in self.results if not s.on_chip)

    @property
    def size(self) -> int:
        """Bytes of the results, wherever they are."""
        return sum(s.bytes for s in self.results)

    @property
    def target(self) -> str:
        """The target of a custom call; "" for other instructions."""
        match = _TARGET.search(self.rest) if self.opcode == "custom-call" else None
        return match[1] if match else ""


@dataclass(frozen=True)
class Run:
    """Computation of a program that runs `times` times."""

    computation: str
    times: int
    fused: bool  # its instructions are parts of one kernel


@dataclass(frozen=True)
class Program:
    """Instructions of every computation."""

    entry: str
    computations: dict[str, list[Instruction]]

    def called(self, i: Instruction) -> list[str]:
        """Return the computations that an instruction calls."""
        names = [c for c in _CALLED.findall(i.rest) if c in self.computations]
        if branches := _BRANCHES.search(i.rest):
            names += [b.strip(" %") for b in branches[1].split(",")]
        return names

    def body(self, i: Instruction) -> list[Instruction]:
        """Return the instructions that a fusion is made of; none for other instructions."""
        names = self.called(i) if i.opcode in ("fusion", "fusion-start") else []
        return self.computations[names[0]] if names else []

    def runs(self) -> Iterator[Run]:
        """Yield every computation as often as it is called from another place."""
        todo = [Run(self.entry, 1, False)]
        while todo:
            run = todo.pop()
            yield run
            for i in self.computations[run.computation]:
                if i.opcode not in SCALAR:
                    times = run.times * (self.trips(i) or 1)
                    fused = run.fused or i.opcode in ("fusion", "fusion-start")
                    todo += [Run(name, times, fused) for name in self.called(i)]

    def trips(self, i: Instruction) -> int | None:
        """Return the trip count of a loop: the compiler's, or the only bound in its condition.

        It is None for a loop of unknown length, and 1 for an instruction that is no loop.
        """
        if i.opcode != "while":
            return 1
        if known := _TRIPS.search(i.rest):
            return int(known[1])
        condition = _CONDITION.search(i.rest)
        bounds = []
        for x in self.computations[condition[1]] if condition else []:
            value = re.match(r"(\d+)\)", x.rest) if x.opcode == "constant" else None
            if value and not x.shapes[0].dims:
                bounds.append(int(value[1]))
        return bounds[0] if len(bounds) == 1 else None

    @cached_property
    def with_products(self) -> frozenset[str]:
        """Computations with a matrix product or convolution, also in what they call."""
        names: set[str] = set()
        for name, body in self.computations.items():  # what is called stands before its caller
            if any(is_product(i) or not names.isdisjoint(self.called(i)) for i in body):
                names.add(name)
        return frozenset(names)


def is_product(i: Instruction) -> bool:
    """Return whether an instruction is a matrix product or a convolution by itself."""
    return i.opcode in ("dot", "convolution") or "matmul" in i.target or "$conv" in i.target


def parse(text: str) -> Program:
    """Read the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(match[2], match[3], root=match[1] is not None))
    return Program(entry, computations)


def _instruction(name: str, text: str, *, root: bool) -> Instruction:
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
    return Instruction(name, opcode[1], shapes, operands, rest, root)


def _closing(text: str, start: int) -> int:
    """Return the position after the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at + 1
    raise ValueError(text)
