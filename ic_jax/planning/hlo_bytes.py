"""Memory traffic of the instructions of a compiled program.

Every instruction outside of fusions is a kernel: it reads its operands and writes its result.
"""

from collections.abc import Mapping

from ic_jax.planning.hlo_text import FREE, Instruction, Program

SLICES = {"dynamic-slice", "slice", "gather", "slice-start", "dynamic-slice-start"}


def moved(i: Instruction, instructions: Mapping[str, Instruction], program: Program) -> float:
    """Return the bytes that an instruction outside of fusions reads and writes.

    Args:
        instructions: of the same computation, by name.
        program: to look into fusions: of an operand that they only slice, slices are read.
    """
    if i.opcode in FREE:
        return 0
    operands = [instructions[o].bytes if o in instructions else 0 for o in i.operands]
    written, body = i.bytes, program.body(i)
    if i.opcode in SLICES:
        operands = [i.size if operands[0] else 0]
    elif i.opcode == "dynamic-update-slice":
        written = operands[1] if len(operands) > 1 else written
        operands = [written]
    elif body:
        operands = [
            _read(_parameter(body, n), body, b, program) if b else 0 for n, b in enumerate(operands)
        ]
        updates = [x for x in body if x.opcode == "dynamic-update-slice"]
        if updates and any(u.bytes >= i.bytes for u in updates):  # in place
            local = {x.name: x for x in body}
            written = sum(local[u.operands[1]].size for u in updates)
            operands = [b for b in operands if b < i.bytes]
    return written + sum(operands)


def _read(value: Instruction, body: list[Instruction], size: int, program: Program) -> int:
    """Return the bytes that a fusion reads of an operand of `size` bytes: only slices count, if all
    uses, also in nested fusions, are slices."""
    read = 0
    for user in (x for x in body if value.name in x.operands):
        inner = program.body(user)
        if user.opcode in SLICES and user.operands[0] == value.name:
            read += user.size
        elif user.opcode == "bitcast":
            read += _read(user, body, size, program)
        elif inner:
            for number, operand in enumerate(user.operands):
                if operand == value.name:
                    read += _read(_parameter(inner, number), inner, size, program)
        else:
            return size
    return min(read, size)


def _parameter(body: list[Instruction], number: int) -> Instruction:
    return next(x for x in body if x.opcode == "parameter" and x.rest.startswith(f"{number})"))
