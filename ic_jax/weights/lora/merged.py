"""LoRAs merged into the weights of a model, and the way back.

Sums are computed in float32 from the weights as they were loaded, and these are kept: adding and
subtracting in bfloat16 would change a tenth of all weights by rounding.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ic_jax.models.low_rank import LowRank
from ic_jax.sharding import put_like
from ic_jax.weights.loading import parameters


class Merged:
    """Model whose weights hold LoRAs."""

    def __init__(self, model: Any, maps: Mapping[str, LowRank]):
        """Write the LoRAs into the weights, keeping those that change in host memory.

        A model of shapes stays as it is.
        """
        self._parameters, self._base = parameters(model), dict[str, np.ndarray]()
        if isinstance(jax.tree.leaves(model)[0], jax.ShapeDtypeStruct):
            return  # to compile for
        for name, low_rank in maps.items():
            self._write(f"{name}.kernel", partial(_sum, a=low_rank.a, b=low_rank.b))
            if low_rank.bias is not None:
                self._write(f"{name}.bias", partial(_with_bias, bias=low_rank.bias))

    def restore(self) -> None:
        """Write the kept weights back, bit for bit."""
        for path, base in self._base.items():
            variable = self._parameters[path]
            variable.set_value(put_like(base, variable[...]))

    def _write(self, path: str, changed: Any) -> None:
        variable = self._parameters[path]
        value = variable[...]
        self._base[path] = np.array(value)  # a copy: `changed` frees the value
        variable.set_value(changed(value))


@partial(jax.jit, donate_argnames="kernel")
def _sum(
    kernel: Float[Array, "*l i o"], a: Float[Array, "*l i r"], b: Float[Array, "*l r o"]
) -> Float[Array, "*l i o"]:
    def merge(x: tuple[Array, Array, Array]) -> Array:
        kernel, a, b = x
        change = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)  # not in TF32
        return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

    # Block by block, because a stack of float32 sums would take several gigabytes.
    return merge((kernel, a, b)) if kernel.ndim == 2 else jax.lax.map(merge, (kernel, a, b))


@partial(jax.jit, donate_argnames="value")
def _with_bias(value: Float[Array, "*l o"], bias: Float[Array, "*l o"]) -> Float[Array, "*l o"]:
    return (value.astype(jnp.float32) + bias).astype(value.dtype)
