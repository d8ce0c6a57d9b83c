"""Reader and writer of style LoRA files; a LoRA adds (alpha / rank) * B A to a linear map."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ic_jax.preprocessing.arguments import check_finite
from ic_jax.weights.safetensors_io import Spec, read_metadata, read_tensors, write_file
from ic_jax.weights.tensors import WeightsError

# Prefixes of the peft layout, as diffusers writes it -> components.
PREFIXES = {"transformer.": "transformer", "text_encoder.": "clip"}
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|alpha)$")


@dataclass(frozen=True)
class LoraDelta:
    """Change of one linear map: scale * b @ a, with a [rank, in] and b [out, rank]."""

    a: np.ndarray
    b: np.ndarray
    scale: float


@dataclass(frozen=True)
class LoraFile:
    """Contents of a LoRA file; changes are by (component, published module name)."""

    name: str
    changes: Mapping[tuple[str, str], LoraDelta]
    weight: float
    trigger: str | None


def read_lora(file: Path | str, weight: float = 1.0, trigger: str | None = None) -> LoraFile:
    """Read a LoRA in the peft layout, as diffusers writes it.

    Alpha is the tensor `<module>.alpha`, or else the setting in the file's header, or else the
    rank.

    Args:
        weight: factor of the changes.
        trigger: words to put before every prompt.

    Raises:
        WeightsError: another layout or kind of LoRA, or a matrix that is missing, misshapen or
            not finite.
    """
    file = Path(file)
    weight = check_finite("LoRA weight", weight)
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    unknown = []
    for key, tensor in read_tensors(file).items():
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        match = _KEY.fullmatch(key.removeprefix(prefix)) if prefix else None
        if prefix is None or match is None:
            unknown.append(key)
            continue
        module = parts.setdefault((prefix, match["module"]), {})
        module[match["part"]] = np.asarray(tensor.array(), np.float32)
    if unknown or not parts:
        raise WeightsError(
            f"{file}: not a LoRA in the peft layout (transformer.*.lora_A.weight): "
            f"{len(unknown)} other keys, such as {unknown[:3]}"
        )
    alphas = _Alphas(file)
    changes = {
        (PREFIXES[prefix], module): _delta(file, module, tensors, alphas.of(prefix, module))
        for (prefix, module), tensors in parts.items()
    }
    return LoraFile(file.name, changes, weight, trigger)


def write_lora(
    file: Path | str,
    changes: Mapping[tuple[str, str], LoraDelta],
    dtype: np.dtype,
    *,
    overwrite: bool = False,
) -> None:
    """Write a LoRA file for `read_lora` and diffusers, atomically.

    B includes the scale, and no alpha is written, because some loaders ignore alpha.

    Args:
        changes: by (component, published module name).

    Raises:
        ValueError: the file name does not end in .safetensors.
        FileExistsError: `file` exists.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: a LoRA is one file; name it {file.name}.safetensors")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file}: exists; name another file or give --overwrite")
    prefixes = {model: prefix for prefix, model in PREFIXES.items()}
    tensors = {}
    for (model, module), change in changes.items():
        name = prefixes[model] + module
        tensors[f"{name}.lora_A.weight"] = change.a.astype(dtype)
        tensors[f"{name}.lora_B.weight"] = (np.float32(change.scale) * change.b).astype(dtype)
    specs = {name: Spec(value.dtype, value.shape) for name, value in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, specs, lambda name: [tensors[name]])


class _Alphas:
    """Alphas in peft's settings in a file's header, {"transformer.lora_alpha": 16, ...}."""

    def __init__(self, file: Path):
        try:
            self._settings = json.loads(read_metadata(file).get("lora_adapter_metadata", "{}"))
        except ValueError:
            raise WeightsError(f"{file}: lora_adapter_metadata in its header is not JSON") from None
        for prefix in PREFIXES:
            for variant in ("use_rslora", "use_dora"):
                if self._settings.get(prefix + variant):
                    raise WeightsError(
                        f"{file}: {variant} is set: this kind of LoRA is not supported"
                    )

    def of(self, prefix: str, module: str) -> float | None:
        """Return the alpha of a module; None if the settings name none."""
        patterns = self._settings.get(f"{prefix}alpha_pattern") or {}
        # As in peft, a pattern is a regular expression for the end of a module's name.
        matching = (v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", module))
        return next(matching, self._settings.get(f"{prefix}lora_alpha"))


def _delta(
    file: Path, module: str, tensors: dict[str, np.ndarray], alpha: float | None
) -> LoraDelta:
    def fail(problem: str) -> WeightsError:
        return WeightsError(f"{file}: {module}: {problem}")

    missing = {"lora_A.weight", "lora_B.weight"} - set(tensors)
    if missing:
        raise fail(f"{' and '.join(sorted(missing))} is missing")
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise fail(f"lora_A {a.shape} and lora_B {b.shape} do not share a rank")
    rank = a.shape[0]
    if "alpha" in tensors:
        alpha = float(tensors["alpha"])
    alpha = float(rank) if alpha is None else float(alpha)
    if not (np.isfinite(alpha) and np.isfinite(a).all() and np.isfinite(b).all()):
        raise fail("holds numbers that are not finite")
    return LoraDelta(a, b, alpha / rank)
