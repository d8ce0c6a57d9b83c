"""Settings that peft writes beside the matrices of a LoRA: alphas, and what kind it is."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ic_jax.weights.safetensors_io import read_metadata
from ic_jax.weights.tensors import WeightsError

# Components -> prefixes of their settings in the header of a file that diffusers writes.
PREFIXES = {"transformer": "transformer.", "clip": "text_encoder.", "t5": "text_encoder_2."}
HEADER = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"  # beside a file that peft writes
PEFT_PREFIX = "base_model.model."


class Settings:
    """Settings of a file's LoRA by component: {"lora_alpha": 16, ...}."""

    def __init__(self, file: Path, keys: Mapping[str, Any]):
        """Read the settings of a LoRA file with these keys.

        Raises:
            WeightsError: the settings are damaged, or are those of another kind of LoRA.
        """
        header = _json(read_metadata(file).get(HEADER, "{}"), f"{file}: {HEADER} in its header")
        self._of = {
            component: {k.removeprefix(p): v for k, v in header.items() if k.startswith(p)}
            for component, p in PREFIXES.items()
        }
        beside = file.with_name(PEFT_CONFIG)
        if any(key.startswith(PEFT_PREFIX) for key in keys) and beside.is_file():
            self._of["transformer"] = _json(beside.read_text(encoding="utf-8-sig"), str(beside))
        for settings in self._of.values():
            if settings.get("use_dora"):
                raise WeightsError(
                    f"{file}: use_dora is set: this kind is not supported; get a plain LoRA"
                )

    def divisor(self, component: str, rank: int) -> float:
        """Return what alpha is divided by: the rank, or its root for a rank-stabilised LoRA.

        Source: arXiv 2312.03732, and peft's `use_rslora`.
        """
        return math.sqrt(rank) if self._of[component].get("use_rslora") else rank

    def alpha(self, component: str, module: str) -> Any:
        """Return the alpha of a module; None if no setting names one."""
        settings = self._of[component]
        patterns = settings.get("alpha_pattern") or {}
        # As in peft, a pattern is a regular expression for the end of a module's name.
        matching = (v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?({k})", module))
        return next(matching, settings.get("lora_alpha"))


def _json(text: str, place: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise WeightsError(f"{place} is no JSON object; get the LoRA again")
    return settings
