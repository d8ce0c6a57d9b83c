"""Platform and device that a program is compiled for, which need not be those that JAX runs on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import jax

T = TypeVar("T")

_target: ContextVar[tuple[str, Any] | None] = ContextVar("target", default=None)


@contextmanager
def compiling_for(platform: str, device: Any = None) -> Iterator[None]:
    """Choose code for "tpu", "gpu" or "cpu", and for such a device, instead of JAX's default."""
    token = _target.set((platform, device))
    try:
        yield
    finally:
        _target.reset(token)


def platform() -> str:
    """Return "tpu", "gpu" or "cpu"."""
    target = _target.get()
    return target[0] if target else jax.default_backend()


def device() -> Any:
    """Return a device of the platform; None if `compiling_for` named none."""
    target = _target.get()
    return target[1] if target else jax.devices()[0]


def in_memory(arrays: T) -> T:
    """Have a TPU write arrays to memory before anything reads them.

    XLA for TPUs fuses what precedes a product into it, and then computes it again for every tile of
    the result.
    """
    return jax.lax.optimization_barrier(arrays) if platform() == "tpu" else arrays
