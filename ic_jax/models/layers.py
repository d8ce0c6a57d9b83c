"""Shared layers: linear maps, norms, embeddings, stacked blocks.

Conventions of the library:

- A parameter's path is its published tensor name. Only a transposed weight is renamed:
  a `kernel` here is a `weight` there, [out, in] -> [in, out] or [o, i, h, w] -> [h, w, i, o].
- Every parameter carries its logical axis names (metadata `axes`), one per dimension.
- A layer computes in the dtype of its input and casts its parameters to it; norms, softmax and
  sinusoids always compute in float32.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ic_jax.models.target import platform
from ic_jax.sharding import gathered

Axes = tuple[str | None, ...]

_kernel_init = jax.nn.initializers.lecun_normal()
_shapes_only = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Create kernels of zeros in the `with` block, for `nnx.eval_shape`.

    It would spend three quarters of its time on tracing random numbers that nobody computes.
    """
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def _initial_kernel(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    return jnp.zeros(shape) if _shapes_only.get() else _kernel_init(rngs.params(), shape)


def product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """Return x @ kernel in the precision of jax_default_matmul_precision.

    With "bfloat16", float32 operands are rounded to bfloat16 and the products summed in float32.
    A TPU does so by default; XLA's CPU backend would ignore the setting.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision == "bfloat16" and x.dtype == jnp.float32:
        return _rounded_product(x, kernel)
    return x @ kernel


@jax.custom_vjp
def _rounded_product(x: Array, kernel: Array) -> Array:
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _rounded_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded_product(x, kernel), (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))


def _rounded_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    rows = gradient.reshape(-1, gradient.shape[-1])
    x = x.reshape(-1, x.shape[-1])
    return _rounded_product(gradient, kernel.T), _rounded_product(x.T, rows)


_rounded_product.defvjp(_rounded_forward, _rounded_backward)


def per_channel(vector: Float[Array, "d"], x: Array) -> Array:
    """Return `vector` with leading axes of size 1, so that it applies to the last axis of `x`.

    JAX does so implicitly unless jax_numpy_rank_promotion is "raise".
    """
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


class Linear(nnx.Module):
    """x @ kernel + bias over the last dimension.

    `axes` names (in, out); `heads` is the number of heads in the axis of that name. `low_rank` is
    set while LoRAs are used or trained: the kernel stays as it is, and its gradient is not needed.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: Axes,
        heads: int | None = None,
        bias: bool = True,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        shape = (in_features, out_features)
        kernel = jnp.zeros(shape) if zero else _initial_kernel(rngs, shape)
        self.kernel = nnx.Param(kernel, axes=axes, heads=heads)
        zeros = jnp.zeros(out_features)
        self.bias = nnx.Param(zeros, axes=axes[1:], heads=heads) if bias else None
        self.low_rank: Any = None  # a LoraLayer, see models.low_rank

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = product(x, gathered(self.kernel, x.dtype))
        if self.low_rank is not None:
            y = y + self.low_rank(x)
        return y if self.bias is None else y + per_channel(gathered(self.bias, x.dtype), y)


class LinearOfParts(nnx.Module):
    """Linear map of two concatenated inputs that has a kernel for each, so that none is copied.

    `Linear` would concatenate the inputs; the rows of a kernel would be copied out of it.
    """

    def __init__(self, source: Linear, first: int):
        """Split the rows of `source` after the `first` ones."""
        kernel = source.kernel[...]
        parts = kernel[..., :first, :], kernel[..., first:, :]
        self.kernel_0, self.kernel_1 = (nnx.Param(x, axes=source.kernel.axes) for x in parts)
        self.bias, self.low_rank = source.bias, source.low_rank

    def __call__(self, x: Float[Array, "*b i"], y: Float[Array, "*b j"]) -> Float[Array, "*b o"]:
        kernels = (gathered(kernel, x.dtype) for kernel in (self.kernel_0, self.kernel_1))
        z = product(x, next(kernels)) + product(y, next(kernels))
        if self.low_rank is not None:
            z = z + self.low_rank(jnp.concatenate([x, y], axis=-1))
        return z if self.bias is None else z + per_channel(gathered(self.bias, x.dtype), z)


class Conv(nnx.Module):
    """2-D convolution, channels last, with symmetric zero padding by default."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
        axes: Axes = (None, None, "conv_in", "conv_out"),
        rngs: nnx.Rngs,
    ):
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(_initial_kernel(rngs, shape), axes=axes)
        self.bias = nnx.Param(jnp.zeros(out_channels), axes=axes[3:])
        self.stride = stride
        self.padding = padding or ((size // 2, size // 2),) * 2

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        y = jax.lax.conv_general_dilated(
            x,
            gathered(self.kernel, x.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + per_channel(gathered(self.bias, x.dtype), y)


class Embedding(nnx.Module):
    """Table of rows, looked up by integer id."""

    def __init__(self, rows: int, features: int, *, axes: Axes, rngs: nnx.Rngs):
        table = 0.02 * jax.random.normal(rngs.params(), (rows, features))
        self.weight = nnx.Param(table, axes=axes)

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        return gathered(self.weight, self.weight.dtype)[ids]


def normalize(x: Float[Array, "*b d"], eps: float) -> Float[Array, "*b d"]:
    """Apply LayerNorm without parameters, computed and returned in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    if platform() == "tpu":  # both means in one pass over x
        variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0)
    else:
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


class LayerNorm(nnx.Module):
    def __init__(self, features: int, *, eps: float):
        self.weight = nnx.Param(jnp.ones(features), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(features), axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = normalize(x, self.eps) * per_channel(self.weight[...].astype(jnp.float32), x)
        return (y + per_channel(self.bias[...].astype(jnp.float32), x)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight (used by T5, and by FLUX for queries and keys)."""

    def __init__(self, features: int, *, eps: float):
        self.weight = nnx.Param(jnp.ones(features), axes=(None,))
        self.eps = eps

    def inverse_rms(self, x: Float[Array, "*b d"]) -> Float[Array, "*b 1"]:
        """Return 1 / sqrt(mean(x^2) + eps), float32."""
        return jax.lax.rsqrt(jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True) + self.eps)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32) * self.inverse_rms(x)
        return (y * per_channel(self.weight[...].astype(jnp.float32), x)).astype(x.dtype)


class Mlp(nnx.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array],
        rngs: nnx.Rngs,
    ):
        self.fc1 = Linear(features, hidden, axes=("width", None), rngs=rngs)
        self.fc2 = Linear(hidden, features, axes=(None, "width"), rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.fc2(self.activation(self.fc1(x)))


def gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def gelu_erf(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def sinusoid(t: Float[Array, "*b"], channels: int) -> Float[Array, "*b c"]:
    """Return the sinusoidal embedding of `t`, cosines first, periods from 2 pi to 10000 x 2 pi.

    Always float32: in bfloat16 a timestep of 437.5 is off by up to two. NumPy computes the
    frequencies, with exponents rounded as in the published code, because a timestep of up to 1000
    would multiply the rounding error of a device's exp.
    """
    half = channels // 2
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / half
    frequencies = np.exp(exponents, dtype=np.float64).astype(np.float32)
    t = t.astype(jnp.float32)[..., None]
    angles = t * per_channel(jnp.asarray(frequencies), t)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbedMlp(nnx.Module):
    """linear_2(silu(linear_1(x))): embedding of time, guidance or pooled text."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.linear_1 = Linear(in_features, features, axes=(None, "embed"), rngs=rngs)
        self.linear_2 = Linear(features, features, axes=("embed", None), rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b d"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


# What the backward pass of a stack recomputes of each block: nothing; the block from its input;
# the block, except its matrix products, which are stored.
Remat = Literal["none", "blocks", "dots"]


class Stack(nnx.Module):
    """`count` equal blocks, stored as one block with a leading axis and applied by one scan.

    The block is the attribute "*", so the path of a parameter is for example
    `transformer_blocks.*.attn.to_q.kernel`, and "*" replaces the block number of published names.
    """

    def __init__(self, make: Callable[..., Any], count: int, *, rngs: nnx.Rngs):
        keys = jax.random.split(rngs.params(), count)
        block = jax.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)
        for variable in jax.tree.leaves(block, is_leaf=_is_variable):
            variable.set_metadata(axes=("layers", *variable.axes))
        setattr(self, "*", block)

    @property
    def blocks(self) -> Any:
        """The block with a leading axis on every parameter."""
        return getattr(self, "*")

    def scan(
        self, step: Callable, carry: Any, xs: Any = None, *, remat: Remat = "none"
    ) -> tuple[Any, Any]:
        """Apply carry, y = step(block, carry, x) to the blocks in order; return (carry, ys).

        Another stack in `xs` stands for its blocks.
        """

        def body(carry: Any, block_and_x: tuple) -> tuple[Any, Any]:
            return step(block_and_x[0], carry, block_and_x[1])

        if remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            # Within a scan XLA cannot merge recomputation and forward pass: no barrier is needed.
            body = jax.checkpoint(body, prevent_cse=False, policy=dots if remat == "dots" else None)
        xs = jax.tree.map(lambda x: x.blocks if _is_stack(x) else x, xs, is_leaf=_is_stack)
        return jax.lax.scan(body, carry, (self.blocks, xs))

    def map(self, name: str, function: Callable[[Any], Array]) -> Array:
        """Return function(part) of the part `name` of every block, stacked."""
        return jax.lax.map(function, getattr(self.blocks, name))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _is_stack(x: Any) -> bool:
    return isinstance(x, Stack)
