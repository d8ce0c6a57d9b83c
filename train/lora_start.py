"""LoRA file that training goes on with."""

import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ic_jax.config import ConfigError, FluxConfig
from ic_jax.models.low_rank import LoraLayer
from ic_jax.weights.lora.delta import LoraFile
from ic_jax.weights.lora.lora_set import split_number
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.source import find_lora
from ic_jax.weights.lora.targets import targets_of
from train.checkpoints import has_checkpoint
from train.lora import StyleLora, targeted
from train.recipe import LoraConfig


def read_start(settings: LoraConfig, config: FluxConfig, run: Path) -> LoraFile | None:
    """Return the LoRA that a recipe goes on with; None if it starts anew.

    Changes of text encoders, which are not trained, are passed over with a warning. A run that has
    checkpoints goes on without the file if it is gone, since they replace it.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: no LoRA for this model.
        ConfigError: its rank is above the recipe's, it changes maps that are no targets, or it has
            biases.
    """
    if not settings.start:
        return None
    targets = targets_of({"transformer": config})
    try:
        file = find_lora(settings.start)
    except FileNotFoundError as error:
        if not has_checkpoint(run):
            raise
        warnings.warn(f"lora.start: {error}; the run's checkpoints replace it", stacklevel=2)
        return None
    lora = read_lora(file, targets=targets)
    maps = sorted({split_number(name)[0] for name in targets["transformer"]})
    chosen = set(targeted(maps, settings.targets))
    place = f"lora.start {settings.start!r}"
    for (_, module), change in lora.changes.items():
        if split_number(module)[0] not in chosen:
            raise ConfigError(f"{place} changes {module}; add it to lora.targets")
        if len(change.a) > settings.rank:
            raise ConfigError(f"{place} has rank {len(change.a)}; set lora.rank to it or above")
        if change.bias is not None:
            raise ConfigError(f"{place} has a bias of {module}, which is not trained; train anew")
    return lora


def continued(pairs: StyleLora, lora: LoraFile) -> StyleLora:
    """Return new pairs with the changes of a LoRA, which are the same function at first.

    Where its rank is below that of the pairs, or it has no change, they keep a random A and a B of
    zeros.
    """
    started = {}
    for name, pair in pairs.items():
        a, b = (np.array(x[...]) for x in (pair.a, pair.b))
        for number in range(len(a)) if "*" in name else [None]:
            module = name if number is None else name.replace("*", str(number))
            change = lora.changes.get(("transformer", module))
            if change is None:
                continue
            at, rank = () if number is None else number, len(change.a)
            a[at][:, :rank] = change.a.T
            b[at][:rank] = change.scale / pair.scale * change.b.astype(np.float32).T
        axes = (*pair.a.axes[:-1], pair.b.axes[-1])
        started[name] = LoraLayer(jnp.asarray(a), jnp.asarray(b), axes=axes, scale=pair.scale)
    return started
