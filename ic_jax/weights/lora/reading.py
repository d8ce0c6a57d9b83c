"""Reader of style LoRA files; a LoRA adds (alpha / rank) * B A to a linear map.

Whatever a header shows is checked before any matrix is read: what every key means, that each matrix
has its partner, ranks, and sizes against the model's.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ic_jax.preprocessing.arguments import check_finite
from ic_jax.weights.lora.delta import LoraFile
from ic_jax.weights.lora.keys import Key, meaning, passed_over, refusal
from ic_jax.weights.lora.layouts import TEXT_ENCODER
from ic_jax.weights.lora.pairs import Pair, pairs_of
from ic_jax.weights.lora.settings import CHECKSUM, Settings
from ic_jax.weights.lora.targets import Targets, misfit
from ic_jax.weights.safetensors_io import AGAIN, data_digest, read_metadata, read_tensors
from ic_jax.weights.tensors import Tensor, WeightsError


def read_lora(
    file: Path | str,
    weight: float = 1.0,
    trigger: str | None = None,
    *,
    targets: Targets | None = None,
) -> LoraFile:
    """Read a LoRA file of any layout in `ic_jax.weights.lora.layouts`.

    Alpha is a tensor, or else a setting that peft wrote beside the matrices, or else the rank.

    Args:
        weight: factor of the changes.
        trigger: words to put before every prompt.
        targets: linear maps of the model that the LoRA is for, from `targets_of`; sizes are
            compared before a matrix is read. None compares nothing.

    Raises:
        WeightsError: another kind of file, a key that no layout has, a LoRA for another model, or
            a matrix that is missing, misshapen or not finite; or the matrices differ from the
            checksum in the header, if there is one.
    """
    file = Path(file)
    weight = check_finite("LoRA weight", weight)
    tensors = read_tensors(file)
    checksum = read_metadata(file).get(CHECKSUM)
    if checksum is not None and checksum != data_digest(file):
        raise WeightsError(f"{file}: differs from its checksum; {AGAIN}")
    keys, left_out = _meanings(file, tensors)
    layouts = Counter(key.layout for key in keys.values() if key.part == "a")
    layouts.pop(TEXT_ENCODER, None)
    pairs = pairs_of(file, keys, tensors, Settings(file, tensors))
    if targets is not None:
        pairs = _fitting(file, pairs, targets, left_out)
    for what, number in left_out.items():
        warnings.warn(f"{file}: passed over {number} {what}", stacklevel=2)
    changes = {at: pair.read() for at, pair in pairs.items()}
    layout = max(layouts, key=layouts.__getitem__, default=TEXT_ENCODER)
    return LoraFile(file.name, changes, weight, trigger, layout, left_out)


def _meanings(file: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Key], Counter[str]]:
    """Return what each key means, and how many keys of what are passed over."""
    refused: dict[tuple[str, str], list[str]] = {}
    for key in tensors:
        if why := refusal(key):
            refused.setdefault(why, []).append(key)
    if refused:
        (kind, reason), named = next(iter(refused.items()))
        raise WeightsError(f"{file}: is {kind} ({named[0]}): {reason}")
    keys = {key: meaning(key) for key in tensors}
    left_out = Counter(what for key in tensors if (what := passed_over(key)))
    unknown = [name for name, key in keys.items() if key is None and not passed_over(name)]
    known = {name: key for name, key in keys.items() if key is not None}
    if unknown or not known:
        what = "keys that are no LoRA's for FLUX" if known else "no LoRA for FLUX"
        raise WeightsError(
            f"{file}: {'has' if known else 'is'} {what}: {len(unknown)} of {len(keys)} keys are "
            f"unknown, such as {', '.join(unknown[:3]) or 'none'}; docs/loras.md lists the layouts"
        )
    adapters = sorted({key.adapter for key in known.values() if key.adapter})
    if len(adapters) > 1:
        raise WeightsError(
            f"{file}: holds {len(adapters)} adapters, {', '.join(adapters)}; save each in a file"
        )
    return known, left_out


def _fitting(
    file: Path,
    pairs: Mapping[tuple[str, str], Pair],
    targets: Targets,
    left_out: Counter[str],
) -> dict[tuple[str, str], Pair]:
    """Return the pairs for components that the model has; WeightsError if one does not fit."""
    fitting = {}
    for (component, module), pair in pairs.items():
        if component not in targets and component != "transformer":
            left_out[f"changes of {component}, which this model lacks"] += 1
            continue
        if problem := misfit(targets, component, module, pair.inputs, pair.outputs):
            raise WeightsError(f"{file}: {problem}")
        fitting[component, module] = pair
    return fitting
