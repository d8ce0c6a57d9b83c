"""Random weights and inputs, made on the devices in seconds."""

import math
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ic_jax.config import FluxConfig
from ic_jax.sharding import parameter_sharding
from ic_jax.weights.loading import abstract, parameters

# JAX's default generator takes ten times as long for 15e9 numbers on a GPU.
GENERATOR = "unsafe_rbg"


def random_module(
    component: str,
    config: Any,
    flux: FluxConfig | None,
    dtype: Any,
    *,
    mesh: Mesh | None = None,
    replicate: bool = False,
) -> Any:
    """Return a component with random weights: rows of unit size stay of about unit size.

    Nothing is zero but biases: products of zeros take less power, and a GPU's clock rises.

    Args:
        mesh: devices to shard the parameters over; None is the default device.
        replicate: see `ic_jax.sharding.shardings`.
    """
    module = abstract(component, config, flux)
    variables, kinds = parameters(module), {}
    for path, variable in variables.items():
        sharding = None
        if mesh is not None:
            sharding = parameter_sharding(path, variable, mesh, replicate=replicate)
        kinds[path] = (variable.shape, jnp.dtype(dtype), _scale(path, variable), sharding)
    unique = list(dict.fromkeys(kinds.values()))
    with ThreadPoolExecutor() as pool:  # XLA compiles them at the same time
        makers = dict(zip(unique, pool.map(_maker, unique), strict=True))
    for path, variable in variables.items():
        variable.set_value(makers[kinds[path]](_key(f"{component}.{path}")))
    return module


def random_like(shape: jax.ShapeDtypeStruct, name: str, below: int = 256) -> jax.Array:
    """Return an array of a shape, dtype and sharding: unit normal, or whole numbers from 0."""
    scale = 1.0 if jnp.issubdtype(shape.dtype, jnp.floating) else below
    return _maker((shape.shape, jnp.dtype(shape.dtype), scale, shape.sharding))(_key(name))


def _key(name: str) -> jax.Array:
    return jax.random.key(zlib.crc32(name.encode()), impl=GENERATOR)


def _scale(path: str, variable: Any) -> float | None:
    """Return the standard deviation of a parameter; 0 for biases, None for scales of norms."""
    name, stacked = path.rpartition(".")[2], variable.axes[0] == "layers"
    shape = variable.shape[stacked:]
    if name == "bias":
        return 0.0
    if len(shape) == 1:
        return None
    return 1 / math.sqrt(math.prod(shape[:-1])) if name == "kernel" else 0.1


Kind = tuple[tuple[int, ...], Any, float | None, Any]  # shape, dtype, scale and sharding


@cache  # a program for each kind, not for each parameter
def _maker(kind: Kind) -> Callable[[jax.Array], jax.Array]:
    shape, dtype, scale, sharding = kind
    make = partial(_make, shape=shape, dtype=dtype, scale=scale)
    return jax.jit(make, out_shardings=sharding).lower(_key("any")).compile()


def _make(key: jax.Array, shape: tuple[int, ...], dtype: Any, scale: float | None) -> jax.Array:
    if scale is None:
        return jnp.ones(shape, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        return jax.random.randint(key, shape, 0, int(scale)).astype(dtype)
    if scale == 0:
        return jnp.zeros(shape, dtype)
    return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)
