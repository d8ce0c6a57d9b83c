"""Copies of weights in a compiled program, made before a product can read them.

A scan slices stacked weights, XLA's merging of products concatenates them, and a layout that a
product does not take is transposed. What a program does to weights besides, such as casting them,
is no copy.
"""

from collections.abc import Callable

from ic_jax.planning.hlo_text import Instruction, Program

# Instructions that only move values, and those whose result is their first operand.
MOVES = {"copy", "copy-start", "slice", "slice-start", "dynamic-slice", "dynamic-slice-start"}
MOVES |= {"concatenate", "transpose", "reshape", "reverse", "pad"}
SAME = {"bitcast", "opt-barrier", "copy-done", "slice-done", "dynamic-slice-done", "async-done"}
SAME |= {"fusion-done", "all-gather", "all-gather-start", "all-gather-done"}

# Whether a value consists of weights alone; of a tuple, that of each element.
Origin = bool | tuple["Origin", ...]


def weight_copies(program: Program, is_weight: Callable[[int], bool]) -> float:
    """Return the bytes that copies of weights read and write in device memory.

    Args:
        program: the compiled program.
        is_weight: whether the argument of a number is a weight.
    """
    counter = _Counter(program)
    entry = program.computations[program.entry]
    count = sum(i.opcode == "parameter" for i in entry)
    counter.result(program.entry, [is_weight(n) for n in range(count)], 1, fused=False)
    return counter.bytes


class _Counter:
    """Follows the weights through a program, and adds up the copies."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.bytes = 0.0

    def result(self, name: str, arguments: list[Origin], times: int, *, fused: bool) -> Origin:
        """Return the origin of a computation's result from those of its arguments."""
        body = self._program.computations[name]
        arrays = {i.name for i in body if len(i.shapes) != 1 or i.shapes[0].dims}
        origins: dict[str, Origin] = {}
        root: Origin = False
        for i in body:
            if i.opcode == "parameter":
                origins[i.name] = arguments[int(i.rest.partition(")")[0])]
            elif i.opcode in MOVES:  # scalars say where a slice begins
                origins[i.name] = all(origins.get(o) is True for o in i.operands if o in arrays)
            else:
                operands = [origins.get(o, False) for o in i.operands]
                origins[i.name] = self._origin(i, operands, times, fused=fused)
            if not fused and (i.opcode in MOVES or self._program.body(i)):
                self._count(i, origins[i.name], times)
            root = origins[i.name] if i.root else root
        return root

    def _origin(self, i: Instruction, operands: list[Origin], times: int, *, fused: bool) -> Origin:
        called = self._program.called(i)
        if i.opcode == "tuple":
            return tuple(operands)
        if i.opcode == "get-tuple-element":
            index = int(i.rest.partition("index=")[2].split(",")[0])
            return operands[0][index] if isinstance(operands[0], tuple) else operands[0]
        if i.opcode in SAME:
            return operands[0]
        if i.opcode in ("fusion", "fusion-start", "call", "async-start"):
            fused = fused or i.opcode.startswith("fusion")
            return self.result(called[0], operands, times, fused=fused)
        if i.opcode == "while":
            body = i.rest.partition("body=%")[2].split(",")[0]
            times *= self._program.trips(i) or 1
            return _both(operands[0], self.result(body, operands, times, fused=fused))
        return False

    def _count(self, i: Instruction, origin: Origin, times: int) -> None:
        """Add what an instruction of that origin writes, and reads in order to write it."""
        elements = origin if isinstance(origin, tuple) else [origin] * len(i.results)
        for shape, element in zip(i.results, elements, strict=True):
            if element is True and not shape.on_chip:
                self.bytes += 2.0 * times * shape.bytes


def _both(before: Origin, after: Origin) -> Origin:
    """Return the origin of a loop's state, which is weights if it starts and stays so."""
    if isinstance(before, tuple) and isinstance(after, tuple):
        return tuple(map(_both, before, after))
    return before is True and after is True
