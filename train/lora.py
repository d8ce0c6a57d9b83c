"""Style LoRA on the frozen base: low-rank pairs beside linear maps of FLUX.

Maps have their published names, with a star for the number of the block: one pair serves a whole
stack of blocks, `transformer_blocks.*.attn.to_q`, with a leading axis over the blocks.
"""

import difflib
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ic_jax.config import ConfigError
from ic_jax.models.flux import Flux
from ic_jax.models.layers import Linear
from ic_jax.models.low_rank import LoraLayer
from ic_jax.weights.loading import parameters
from ic_jax.weights.lora.delta import LoraDelta
from train.recipe import LoraConfig

StyleLora = dict[str, LoraLayer]
Maps = tuple[tuple[str, tuple[int, ...], Any], ...]  # name, shape and axes of each kernel

KERNEL = ".kernel"


def initial(flux: Flux, settings: LoraConfig, seed: int) -> StyleLora:
    """Return the LoRA before training, float32: A random, B zero, so that it has no effect yet.

    A is uniform in -1/sqrt(in) .. 1/sqrt(in), as in peft.

    Raises:
        ConfigError: a target is no linear map of this model.
    """
    kernels = {k: v for k, v in parameters(flux).items() if k.endswith(KERNEL)}
    names = targeted([k.removesuffix(KERNEL) for k in kernels], settings.targets)
    chosen = [kernels[name + KERNEL] for name in names]
    maps = tuple((n, x.shape, x.axes) for n, x in zip(names, chosen, strict=True))
    return _pairs(maps=maps, rank=settings.rank, scale=settings.scale, seed=seed)


def targeted(names: list[str], targets: tuple[str, ...]) -> list[str]:
    """Return the maps whose dotted name ends in one of `targets`, as peft chooses them.

    Raises:
        ConfigError: a target matches no map; names the nearest ones.
    """
    chosen: set[str] = set()
    for target in targets:
        matches = [name for name in names if f".{name}".endswith(f".{target}")]
        if not matches:
            parts = [name.split(".") for name in names]
            ends = {".".join(p[i:]) for p in parts for i in range(len(p)) if "*" not in p[i:]}
            near = difflib.get_close_matches(target, sorted(ends), n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}" if near else f"such as {min(ends)} is one"
            raise ConfigError(f"lora.targets: {target!r} ends no linear map of this model; {hint}?")
        chosen.update(matches)
    return sorted(chosen)


def with_lora(flux: Flux, lora: StyleLora) -> Flux:
    """Return FLUX with the pairs beside its maps; it shares the arrays of `flux`."""
    flux = jax.tree.map(lambda x: x, flux)  # copies the modules, not the arrays
    for name, pair in lora.items():
        linear: Linear = reduce(getattr, name.split("."), flux)  # type: ignore[assignment]
        linear.low_rank = nnx.data(pair)  # flax treats the None that it replaces as static
    return flux


def published(lora: StyleLora) -> dict[tuple[str, str], LoraDelta]:
    """Return the pairs by (model, published name), block by block, as in LoRA files."""
    changes = {}
    for name, pair in lora.items():
        a, b = (np.asarray(jax.device_get(x[...])).swapaxes(-1, -2) for x in (pair.a, pair.b))
        if "*" not in name:
            changes["transformer", name] = LoraDelta(a, b, pair.scale)
            continue
        for i in range(len(a)):
            changes["transformer", name.replace("*", str(i))] = LoraDelta(a[i], b[i], pair.scale)
    return changes


@partial(jax.jit, static_argnames=("maps", "rank", "scale", "seed"))
def _pairs(maps: Maps, rank: int, scale: float, seed: int) -> StyleLora:
    pairs = {}
    for key, (name, shape, axes) in zip(
        jax.random.split(jax.random.key(seed), len(maps)), maps, strict=True
    ):
        *stack, i, o = shape
        limit = i**-0.5
        a = jax.random.uniform(key, (*stack, i, rank), minval=-limit, maxval=limit)
        pairs[name] = LoraLayer(a, jnp.zeros((*stack, rank, o)), axes=axes, scale=scale)
    return pairs
