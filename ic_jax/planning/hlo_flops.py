"""FLOPs of the instructions of a compiled program: products, convolutions, attention kernels."""

import math
import re
from collections.abc import Mapping

from ic_jax.planning.hlo_text import Instruction

# Multiplications and additions of attention kernels, per query, key and channel: two products
# forward; backward one or two more, and what is computed again.
SPLASH = {"splash_mha_fwd": 4, "splash_mha_dq": 6, "splash_mha_dkv": 8}  # Pallas, by its name
FUSED_FORWARD, FUSED_BACKWARD = 4, 10  # cuDNN's

Instructions = Mapping[str, Instruction]


def is_attention(i: Instruction) -> bool:
    """Return whether an instruction is a kernel that computes attention."""
    return i.opcode == "custom-call" and ("fmha" in i.target or i.name.startswith(tuple(SPLASH)))


def flops(i: Instruction, instructions: Instructions) -> float:
    """Return the FLOPs of one run of an instruction; 0 for all but products and attention.

    Args:
        instructions: of the same computation, by name.
    """
    if i.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        return _product(i, instructions, dims[1] if dims else "")
    if "matmul" in i.target:  # cublasLt
        dims = re.search(r'"lhs_contracting_dimensions":\["([\d",]*)"\]', i.rest)
        return _product(i, instructions, dims[1].replace('"', "") if dims else "-1")
    if i.opcode == "convolution" or "$convForward" in i.target or "$convBiasActivation" in i.target:
        return _convolution(i, instructions)
    return _attention(i, instructions) if is_attention(i) else 0.0


def _product(i: Instruction, instructions: Instructions, contracting: str) -> float:
    left = instructions[i.operands[0]].shapes[0].dims
    contracted = [left[int(d)] for d in contracting.split(",") if d]
    return 2.0 * math.prod(i.shapes[0].dims) * math.prod(contracted)


def _convolution(i: Instruction, instructions: Instructions) -> float:
    labels = re.search(r"dim_labels=\w+_(\w+)->", i.rest)
    kernel = instructions[i.operands[1]].shapes[0].dims
    each = math.prod(kernel) / (kernel[labels[1].index("o")] if labels else 1)
    groups = re.search(r"batch_group_count=(\d+)", i.rest)
    return 2.0 * math.prod(i.shapes[0].dims) * each / (int(groups[1]) if groups else 1)


def _attention(i: Instruction, instructions: Instructions) -> float:
    shapes = [instructions[o].shapes[0].dims for o in i.operands if o in instructions]
    if "fmha" in i.target:  # b n h d and b m h d
        each = FUSED_BACKWARD if "Backward" in i.target else FUSED_FORWARD
        return float(each) * math.prod(shapes[0]) * shapes[1][1]
    each = next(count for name, count in SPLASH.items() if i.name.startswith(name))
    q, k = [dims for dims in shapes if len(dims) >= 3 and dims[-1] > 64][:2]  # b h n d, b h m d
    return float(each) * math.prod(q) * k[-2]
