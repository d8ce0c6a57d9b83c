"""Streams of text and image tokens, sharded over the context axis of a mesh.

On c devices a stream has c shards of equal length, each with its share of the text before its share
of the image, so that concatenating and splitting streams need no communication. The order of tokens
does not affect attention as long as the rotary table has the same order. On one device a stream is
the plain concatenation, text first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.sharding import ShardingError, constrain, context_size

Tokens = Float[Array, "..."]  # b n d; b n h d or b h n d by heads


def shard_tokens(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Shard rows over the axes of the batch, and tokens over `context`.

    Raises:
        ShardingError: the number of tokens is not divisible by the size of the context axis.
    """
    if x.shape[1] % context_size():
        raise ShardingError(
            f"{x.shape[1]} tokens of text or image do not divide by context={context_size()}; "
            "take another mesh, picture size or text length"
        )
    return constrain(x, "batch", "tokens", None)


def concat_streams(txt: Tokens, img: Tokens, axis: int = 1) -> Tokens:
    """Concatenate text and image tokens, along the axis `axis`, to one stream."""
    both = jnp.concatenate([_parts(txt, axis), _parts(img, axis)], axis=axis + 1)
    return _merged(both, axis)


def split_streams(joint: Tokens, text_tokens: int, axis: int = 1) -> tuple[Tokens, Tokens]:
    """Split a stream into its text and its image tokens."""
    parts = jnp.split(_parts(joint, axis), [text_tokens // context_size()], axis=axis + 1)
    txt, img = (_merged(part, axis) for part in parts)
    return txt, img


def add_to_image(joint: Tokens, change: Tokens, axis: int = 1) -> Tokens:
    """Return the stream with `change` added to its image tokens."""
    txt, img = split_streams(joint, joint.shape[axis] - change.shape[axis], axis)
    return concat_streams(txt, img + change, axis)


def to_stream_order(table: Float[Array, "m d"], text_tokens: int) -> Float[Array, "m d"]:
    """Reorder the rows of a table, text tokens first, to the order of a stream."""
    return concat_streams(table[:text_tokens], table[text_tokens:], axis=0)


def _parts(x: Tokens, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], context_size(), -1, *x.shape[axis + 1 :])


def _merged(parts: Array, axis: int) -> Tokens:
    return parts.reshape(*parts.shape[:axis], -1, *parts.shape[axis + 2 :])
