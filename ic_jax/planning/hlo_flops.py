"""FLOPs of the instructions of a compiled program: products, convolutions, attention kernels."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

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
    """Count what a convolution multiplies; XLA writes some products as ones over padding."""
    left, kernel = (instructions[name].shapes[0].dims for name in i.operands[:2])
    out = i.shapes[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    groups = re.search(r"batch_group_count=(\d+)", i.rest)
    each = math.prod(kernel) / (kernel[labels[2].index("o")] if labels else 1)
    flops = 2.0 * math.prod(out) * each / (int(groups[1]) if groups else 1)
    if labels:
        for axis, window in enumerate(_windows(i.rest)):
            dims = (
                x[y.index(str(axis))]
                for x, y in zip((left, out), labels.groups()[::2], strict=True)
            )
            flops *= window.share_within(*dims)
    return flops


@dataclass(frozen=True)
class _Window:
    """Window of a convolution along one axis."""

    size: int
    stride: int
    before: int  # padding
    dilation: int  # of what it slides over
    own_dilation: int

    def share_within(self, length: int, steps: int) -> float:
        """Return the share of its positions, over all steps, that lie on values."""
        end = (length - 1) * self.dilation
        within = 0
        for k in range(self.size):
            places = range(
                k * self.own_dilation - self.before,
                k * self.own_dilation - self.before + steps * self.stride,
                self.stride,
            )
            within += sum(0 <= place <= end and place % self.dilation == 0 for place in places)
        return within / (self.size * steps)


def _windows(text: str) -> list[_Window]:
    """Return the windows of a convolution, which HLO prints as {size=3x3 pad=1_1x1_1}."""
    window = re.search(r"window=\{([^}]*)\}", text)
    if window is None:
        return []
    fields = dict(re.findall(r"(\w+)=(\S+)", window[1]))
    sizes = fields["size"].split("x")
    none = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    values = (fields.get(name, "x".join([value] * len(sizes))) for name, value in none.items())
    rows = zip(sizes, *(text.split("x") for text in values), strict=True)
    return [_Window(*(int(value.partition("_")[0]) for value in row)) for row in rows]


def _attention(i: Instruction, instructions: Instructions) -> float:
    shapes = [instructions[o].shapes[0].dims for o in i.operands if o in instructions]
    if "fmha" in i.target:  # b n h d and b m h d
        each = FUSED_BACKWARD if "Backward" in i.target else FUSED_FORWARD
        return float(each) * math.prod(shapes[0]) * shapes[1][1]
    each = next(count for name, count in SPLASH.items() if i.name.startswith(name))
    q, k = [dims for dims in shapes if len(dims) >= 3 and dims[-1] > 64][:2]  # b h n d, b h m d
    return float(each) * math.prod(q) * k[-2]
