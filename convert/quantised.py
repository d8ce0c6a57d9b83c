"""Quantised safetensors: scaled fp8 is dequantised, what only other libraries compute is refused.

Sources: ComfyUI, comfy/ops.py and comfy/utils.py (`scale_weight`, `weight_scale`, `comfy_quant`);
bitsandbytes, functional.py (`quant_state`, `SCB`); nunchaku (`qweight`, `wscales`).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ic_jax.weights.tensors import (
    FLOATS,
    OtherWeightsError,
    Tensor,
    WeightsError,
    computed,
)

# Ends of names that only one kind of file has -> the kind.
REFUSED: dict[str, str] = {
    r"\.quant_state\.bitsandbytes__(nf4|fp4)$": "4-bit weights of bitsandbytes",
    r"\.(quant_map|nested_quant_map|nested_absmax)$": "4-bit weights of bitsandbytes",
    r"\.SCB$": "8-bit weights of bitsandbytes",
    r"\.(wscales|smooth_factor|smooth_factor_orig)$": "SVDQuant weights of nunchaku",
    r"\.weight_scale_2$": "NVFP4 weights",
    r"\.(qzeros|g_idx)$": "GPTQ or AWQ weights",
    r"\._data$|\.tensor_impl\.": "quantised weights of torchao or quanto",
}
REMEDY = "which only that library's kernels compute; get the bf16, fp8 or GGUF file of this model"
SCALES = (".scale_weight", ".weight_scale")  # beside `.weight`; ComfyUI's older and newer names
# For activations, which are not quantised here, and marks of the whole file.
NOT_NEEDED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
FORMATS = ("float8_e4m3fn", "float8_e5m2")  # of `comfy_quant`


def dequantised(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors with scales multiplied into them, and the kind of storage.

    A product is float32, computed as the tensor is read. Scales belong to a tensor or to its rows.

    Raises:
        OtherWeightsError: a kind of storage that is refused.
        WeightsError: a scale without its tensor.
    """
    for pattern, kind in REFUSED.items():
        if name := next((name for name in tensors if re.search(pattern, name)), None):
            raise OtherWeightsError(f"{path}: has {kind} ({name}), {REMEDY}")
    for name in tensors:
        if name.endswith(".comfy_quant"):
            _check_format(path, name, tensors[name])
    fp8 = {FLOATS["F8_E4M3"], FLOATS["F8_E5M2"]}
    storage = "fp8" if any(t.dtype in fp8 for t in tensors.values()) else "plain"
    scaled = dict(tensors)
    for name in tensors:
        for end in SCALES:
            if name.endswith(end):
                storage = "scaled fp8"
                weight = name.removesuffix(end) + ".weight"
                scaled[weight] = _product(path, weight, scaled.get(weight), name, scaled.pop(name))
    if storage == "plain":
        return scaled, storage
    return {n: t for n, t in scaled.items() if not n.endswith(NOT_NEEDED)}, storage


def _check_format(path: Path, name: str, tensor: Tensor) -> None:
    """Check the format that ComfyUI writes as JSON in a tensor of bytes."""
    try:
        kind = json.loads(bytes(tensor.array().astype(np.uint8))).get("format")
    except (ValueError, AttributeError):
        kind = "damaged"
    if kind not in FORMATS:
        raise OtherWeightsError(f"{path}: {name} says {kind}, {REMEDY}")


def _product(path: Path, name: str, weight: Tensor | None, of: str, scale: Tensor) -> Tensor:
    rows = weight.shape[:1] if weight else ()
    if weight is None or scale.shape not in ((), (1,), rows, (*rows, 1)):
        shape = list(weight.shape) if weight else "not there"
        raise WeightsError(
            f"{path}: {of} has the shape {list(scale.shape)}, and {name} is {shape}; a scale is "
            "one number, or one for each row; download the file again"
        )

    def of_rows(rows: slice) -> np.ndarray:
        factor = scale.array().astype(np.float32).reshape(-1)
        if factor.size > 1:
            factor = factor[rows].reshape(-1, *[1] * (len(weight.shape) - 1))
        product = weight.array()[rows].astype(np.float32)
        product *= factor
        return product

    return computed(weight.shape, of_rows)
