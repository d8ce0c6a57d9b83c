"""Writer of LoRA files in peft's layout, as diffusers writes it."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ic_jax.weights.lora.delta import LoraDelta
from ic_jax.weights.lora.settings import CHECKSUM, HEADER, PREFIXES
from ic_jax.weights.safetensors_io import Spec, write_file

TRIGGER = "modelspec.trigger_phrase"  # key of a file's metadata


@dataclass(frozen=True)
class Training:
    """How a LoRA was trained, for the metadata of its file."""

    trigger: str
    base: str  # name of the model
    steps: int


def write_lora(
    file: Path | str,
    changes: Mapping[tuple[str, str], LoraDelta],
    dtype: np.dtype,
    *,
    training: Training | None = None,
    overwrite: bool = False,
) -> None:
    """Write a LoRA file for `read_lora` and diffusers, atomically.

    B includes the scale, because some loaders ignore alpha: in the file, alpha is the rank. The
    metadata has rank, alpha and a checksum, and what `training` says, where diffusers, kohya's
    tools and those for modelspec (https://github.com/Stability-AI/ModelSpec) look for them.

    Args:
        changes: by component and published name of the linear map.

    Raises:
        ValueError: the file name does not end in .safetensors, or there is no change.
        FileExistsError: `file` exists.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: a LoRA is one file; name it {file.name}.safetensors")
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file}: exists; name another file or give --overwrite")
    tensors = {}
    for (component, module), change in changes.items():
        name, scale = PREFIXES[component] + module, np.float32(change.scale)
        tensors[f"{name}.lora_A.weight"] = change.a.astype(dtype)
        tensors[f"{name}.lora_B.weight"] = (scale * change.b).astype(dtype)
        if change.bias is not None:
            tensors[f"{name}.lora_B.bias"] = (scale * change.bias).astype(dtype)
    specs = {name: Spec(value.dtype, value.shape) for name, value in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(file.stem, changes, training)
    # In the order of the file, which is theirs, since their dtypes are equal.
    data = b"".join(value.tobytes() for value in tensors.values())
    metadata[CHECKSUM] = hashlib.sha256(data).hexdigest()
    write_file(file, specs, lambda name: [tensors[name]], metadata)


def _metadata(
    title: str, changes: Mapping[tuple[str, str], LoraDelta], training: Training | None
) -> dict[str, str]:
    peft: dict[str, object] = {}
    for component in dict.fromkeys(component for component, _ in changes):
        ranks = {m: len(change.a) for (c, m), change in changes.items() if c == component}
        rank, _ = Counter(ranks.values()).most_common(1)[0]
        others = {module: r for module, r in ranks.items() if r != rank}
        settings = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(ranks),
            "lora_bias": any(c.bias is not None for (k, _), c in changes.items() if k == component),
        }
        peft |= {PREFIXES[component] + key: value for key, value in settings.items()}
    rank, _ = Counter(len(change.a) for change in changes.values()).most_common(1)[0]
    metadata = {
        HEADER: json.dumps(peft),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "ss_base_model_version": "flux1",
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
    }
    if training is not None:
        metadata |= {"ss_sd_model_name": training.base, "ss_steps": str(training.steps)}
        if training.trigger:
            words = json.dumps({"1": {training.trigger: 1}})
            metadata |= {TRIGGER: training.trigger, "ss_tag_frequency": words}
    return metadata
