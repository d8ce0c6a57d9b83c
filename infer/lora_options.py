"""`--lora` and `--trigger` of `python -m infer draw`."""

from typing import NamedTuple

from ic_jax.cli import say
from ic_jax.preprocessing import arguments
from ic_jax.weights.lora.delta import LoraFile
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.source import find_lora
from ic_jax.weights.lora.targets import Targets
from ic_jax.weights.lora.writing import TRIGGER
from ic_jax.weights.safetensors_io import read_metadata


class LoraOption(NamedTuple):
    """A `--lora`, read with its weight and its `--trigger`."""

    source: str
    lora: LoraFile


def lora_options(specs: list[str], triggers: list[str]) -> list[tuple[str, float, str | None]]:
    """Return the source, weight and trigger of each `--lora`."""
    if len(triggers) > len(specs):
        raise ValueError(f"{len(triggers)} --trigger for {len(specs)} --lora; one each at most")
    padded = triggers + [None] * (len(specs) - len(triggers))
    return [(*_weighted(spec), trigger) for spec, trigger in zip(specs, padded, strict=True)]


def _weighted(spec: str) -> tuple[str, float]:
    source, _, weight = spec.rpartition("=") if "=" in spec else (spec, "", "1")
    try:
        return source, arguments.check_finite(f"the weight of --lora {source}", float(weight))
    except ValueError:
        raise ValueError(f"--lora {spec}: {weight!r} is no number; write FILE=0.8") from None


def read_option(source: str, weight: float, trigger: str | None, targets: Targets) -> LoraOption:
    """Return a `--lora`, read and compared with the model that it is for."""
    file = find_lora(source)
    lora = read_lora(file, weight, trigger, targets=targets)
    if trigger is None and (trained := read_metadata(file).get(TRIGGER)):
        say(f'--lora {source} was trained with a trigger; --trigger "{trained}" puts it first')
    return LoraOption(source, lora)
