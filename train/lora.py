"""A style LoRA on the frozen base: low-rank pairs beside linear maps of FLUX.

Maps are named as they are published, the block's number a star: a pair speaks of a whole stack
of blocks, `transformer_blocks.*.attn.to_q`, with a leading axis over them.
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
from ic_jax.models.layers import Linear, LoraLayer
from ic_jax.weights.loading import parameters
from ic_jax.weights.lora import LoraDelta
from train.recipe import LoraConfig

StyleLora = dict[str, LoraLayer]
Maps = tuple[tuple[str, tuple[int, ...], Any], ...]  # name, shape and axes of each kernel

KERNEL = ".kernel"


def fresh(flux: Flux, settings: LoraConfig, seed: int) -> StyleLora:
    """The LoRA before training, float32: A random, B zero, so that it changes nothing yet.

    A is uniform within 1 / sqrt(in) either way, as peft draws it.

    Raises:
        ConfigError: a target is no linear map of this model.
    """
    kernels = {k: v for k, v in parameters(flux).items() if k.endswith(KERNEL)}
    names = targeted([k.removesuffix(KERNEL) for k in kernels], settings.targets)
    found = [kernels[name + KERNEL] for name in names]
    maps = tuple((n, x.shape, x.axes) for n, x in zip(names, found, strict=True))
    return _pairs(maps=maps, rank=settings.rank, scale=settings.scale, seed=seed)


def targeted(names: list[str], targets: tuple[str, ...]) -> list[str]:
    """The maps among `names` that end in one of `targets`, whole parts, as peft chooses them.

    Raises:
        ConfigError: a target fits none; names the nearest ones.
    """
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in names if f".{name}".endswith(f".{target}")]
        if not found:
            parts = [name.split(".") for name in names]
            ends = {".".join(p[i:]) for p in parts for i in range(len(p)) if "*" not in p[i:]}
            near = difflib.get_close_matches(target, sorted(ends), n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}" if near else f"such as {min(ends)} is one"
            raise ConfigError(f"lora.targets: {target!r} ends no linear map of this model; {hint}?")
        chosen.update(found)
    return sorted(chosen)


def with_lora(flux: Flux, lora: StyleLora) -> Flux:
    """FLUX with the pairs beside its maps; `flux` itself is unchanged, its arrays are shared."""
    flux = jax.tree.map(lambda x: x, flux)  # modules of its own
    for name, pair in lora.items():
        linear: Linear = reduce(getattr, name.split("."), flux)  # type: ignore[assignment]
        linear.low_rank = nnx.data(pair)  # it was None, which flax takes for a constant
    return flux


def published(lora: StyleLora) -> dict[tuple[str, str], LoraDelta]:
    """The pairs by (model, published name), block by block, as LoRA files have them."""
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
    made = {}
    for key, (name, shape, axes) in zip(
        jax.random.split(jax.random.key(seed), len(maps)), maps, strict=True
    ):
        *stack, i, o = shape
        limit = i**-0.5
        a = jax.random.uniform(key, (*stack, i, rank), minval=-limit, maxval=limit)
        made[name] = LoraLayer(a, jnp.zeros((*stack, rank, o)), axes=axes, scale=scale)
    return made
