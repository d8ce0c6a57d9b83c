"""Settings that peft writes beside the matrices of a LoRA: alphas, and what kind it is."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ic_jax.from_dict import shown
from ic_jax.untrusted_files import parse_json, read_bytes
from ic_jax.weights.safetensors_io import read_metadata
from ic_jax.weights.tensors import WeightsError

# Components -> prefixes of their settings in the header of a file that diffusers writes.
PREFIXES = {"transformer": "transformer.", "clip": "text_encoder.", "t5": "text_encoder_2."}
HEADER = "lora_adapter_metadata"
# In the header, of all that follows it. Not modelspec.hash_sha256, which other tools leave as it
# was when they change a file.
CHECKSUM = "ic_jax.sha256"
PEFT_CONFIG = "adapter_config.json"  # beside a file that peft writes
PEFT_PREFIX = "base_model.model."


# What a regular expression of `alpha_pattern` may be made of: names, numbers and gaps.
NAME_PATTERN = re.compile(r"\^?(?:[\w.-]|\\\.|\\d\+?|\.\*)*\$?")
REPEATS, MAX_REPEATS = re.compile(r"[*+]"), 2


class Settings:
    """Settings of a file's LoRA by component: {"lora_alpha": 16, ...}."""

    def __init__(self, file: Path, keys: Mapping[str, Any]):
        """Read the settings of a LoRA file with these keys.

        Raises:
            WeightsError: the settings are damaged, or are those of another kind of LoRA.
        """
        place = f"{file}: {HEADER} in its header"
        header = _settings(read_metadata(file).get(HEADER, "{}"), place)
        self._of = {
            component: {k.removeprefix(p): v for k, v in header.items() if k.startswith(p)}
            for component, p in PREFIXES.items()
        }
        beside = file.with_name(PEFT_CONFIG)
        if any(key.startswith(PEFT_PREFIX) for key in keys) and beside.is_file():
            self._of["transformer"] = _settings(read_bytes(beside), str(beside))
        for settings in self._of.values():
            if settings.get("use_dora"):
                raise WeightsError(
                    f"{file}: use_dora is set: this kind is not supported; get a plain LoRA"
                )
        self._patterns = {
            component: _compiled(settings.get("alpha_pattern") or {}, file)
            for component, settings in self._of.items()
        }

    def divisor(self, component: str, rank: int) -> float:
        """Return what alpha is divided by: the rank, or its root for a rank-stabilised LoRA.

        Source: arXiv 2312.03732, and peft's `use_rslora`.
        """
        return math.sqrt(rank) if self._of[component].get("use_rslora") else rank

    def alpha(self, component: str, module: str) -> Any:
        """Return the alpha of a module; None if no setting names one."""
        matching = (v for pattern, v in self._patterns[component] if pattern.fullmatch(module))
        return next(matching, self._of[component].get("lora_alpha"))


def _compiled(patterns: Any, file: Path) -> list[tuple[re.Pattern, Any]]:
    """Return the patterns of `alpha_pattern`: as in peft, for the end of a module's name.

    Raises:
        WeightsError: no names, or regular expressions that could take any time.
    """
    if not isinstance(patterns, dict):
        raise WeightsError(f"{file}: alpha_pattern is no JSON object; get the LoRA again")
    for pattern in patterns:
        if not NAME_PATTERN.fullmatch(pattern) or len(REPEATS.findall(pattern)) > MAX_REPEATS:
            raise WeightsError(
                f"{file}: the pattern {shown(pattern)} of alpha_pattern is no name of a layer; "
                "save the LoRA with names"
            )
    return [(re.compile(rf"(?:.*\.)?(?:{k})"), value) for k, value in patterns.items()]


def _settings(text: bytes | str, place: str) -> dict[str, Any]:
    try:
        settings = parse_json(text, place)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise WeightsError(f"{place} is no JSON object; get the LoRA again")
    return settings
