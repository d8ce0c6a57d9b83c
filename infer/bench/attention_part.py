"""Part of a benchmark that measures attention at the shapes of the model, forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ic_jax.measuring.parts import one_line
from ic_jax.measuring.random_weights import random_like
from ic_jax.measuring.timing import compiled, rates, round_to, timed
from ic_jax.models.attention import attention
from ic_jax.models.heads import heads_first
from ic_jax.models.splash import BLOCKS, blocks_up_to
from ic_jax.models.target import platform
from infer.bench.drawing import Drawing

CHECKED_HEADS = 2  # whose results are compared with float32


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention, and the order of its axes: heads before tokens, or after."""

    queries: int
    keys: int
    heads: int
    head_dim: int
    heads_first: bool = False

    def random(self, name: str, rows: int, tokens: int, dtype: Any) -> Array:
        """Return random queries, keys or values."""
        axes = (self.heads, tokens) if self.heads_first else (tokens, self.heads)
        return random_like(jax.ShapeDtypeStruct((rows, *axes, self.head_dim), dtype), name)

    def checked(self, x: Array) -> Array:
        """Return the heads that are compared, [b, n, h, d] in float32."""
        x = x.swapaxes(1, 2) if self.heads_first else x
        return x[:, :, :CHECKED_HEADS].astype(jnp.float32)


def attentions(drawing: Drawing) -> dict[str, Any]:
    """Return the chosen kernel's time and its error against float32, forward and backward."""
    flux, adapter = (drawing.configs[k] for k in ("transformer", "adapter"))
    n, f, m = drawing.image_tokens, drawing.features, adapter.num_queries
    joint = n + drawing.settings.text_length
    heads = flux.num_attention_heads, flux.attention_head_dim, heads_first()
    stack = adapter.num_attention_heads, adapter.attention_head_dim
    shapes = {
        "FLUX": Shape(joint, joint, *heads),
        "subject": Shape(n, m, *heads),
        "projector": Shape(f, f, *stack),
        "projector, tiles": Shape(f, 4 * f, *stack),
        "resampler": Shape(m, 2 * f + m, adapter.heads, adapter.dim_head),
    }
    return {name: _measured(shape, drawing) for name, shape in shapes.items()}


def _measured(shape: Shape, drawing: Drawing) -> dict[str, Any]:
    rows, samples = drawing.settings.batch, drawing.settings.samples
    lengths = {"q": shape.queries, "k": shape.keys, "v": shape.keys, "w": shape.queries}
    *qkv, w = (shape.random(name, rows, n, drawing.dtype) for name, n in lengths.items())
    call = partial(attention, heads_first=shape.heads_first)
    flops = 4.0 * rows * shape.queries * shape.keys * shape.heads * shape.head_dim
    entry: dict[str, Any] = {
        "shape": f"{shape.queries} x {shape.keys} x {shape.heads} x {shape.head_dim}"
    }
    try:
        checked = map(shape.checked, (*qkv, w))
        expected, expected_gradients = jax.jit(partial(_with_gradients, _exact))(*checked)
    except Exception as error:
        return entry | {"failed": one_line(error)}
    try:
        program = compiled(call, *qkv)
        time = timed(lambda: program.run(*qkv), samples)
        entry |= time.to_dict() | rates(flops, time.median)
        entry["calls"] = program.to_dict().get("calls")
        entry["error"] = _error(shape.checked(program.run(*qkv)), expected)
        if platform() == "tpu":
            entry |= _by_block(call, qkv, samples)
    except Exception as error:
        entry["failed"] = one_line(error)
    try:
        both = compiled(partial(_with_gradients, call), *qkv, w)
        time = timed(lambda: both.run(*qkv, w), samples)
        entry["with gradients ms"] = time.to_dict()["ms"]
        gradients = map(shape.checked, both.run(*qkv, w)[1])
        errors = map(_error, gradients, expected_gradients)
        entry["gradient errors"] = " ".join(map(str, errors))
    except Exception as error:
        entry["gradients failed"] = one_line(error)
    return entry


def _by_block(call: Callable[..., Array], qkv: list[Array], samples: int) -> dict[str, float]:
    """Return times of splash attention by the largest block of tokens."""
    times = {}
    for size in BLOCKS[:2]:
        with blocks_up_to(size):
            # Wrapped anew: JAX would find the other size's program by the function.
            program = compiled(lambda *x: call(*x), *qkv)
        time = timed(partial(program.run, *qkv), samples)
        times[f"blocks of {size} ms"] = time.to_dict()["ms"]
    return times


def _exact(q: Array, k: Array, v: Array) -> Array:
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest") / q.shape[-1] ** 0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, -1), v, precision="highest")


def _with_gradients(function: Any, q: Array, k: Array, v: Array, w: Array) -> Any:
    """Return the result and the gradients of its sum weighted by w."""
    out, pull = jax.vjp(function, q, k, v)
    return out, pull(w)


def _error(result: Array, expected: Array) -> float:
    """Return the relative error, as a root mean square."""
    off = jnp.linalg.norm((result - expected).ravel()) / jnp.linalg.norm(expected.ravel())
    return round_to(float(off))
