"""Platform and device that a program is compiled for, which need not be those that JAX runs on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

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
