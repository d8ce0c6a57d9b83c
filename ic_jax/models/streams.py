"""Streams of text and image tokens, sharded over the context axis of a mesh.

On c devices a stream has c shards of equal length, each with its share of the text before its share
of the image, so that concatenating and splitting streams need no communication. The order of tokens
does not affect attention as long as the rotary table has the same order. On one device a stream is
the plain concatenation, text first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.sharding import ShardingError, constrain, context_size


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


def concat_streams(
    txt: Float[Array, "b t *d"], img: Float[Array, "b n *d"]
) -> Float[Array, "b t+n *d"]:
    """Concatenate text and image tokens to one stream."""
    both = jnp.concatenate([_parts(txt), _parts(img)], axis=2)
    return both.reshape(txt.shape[0], -1, *txt.shape[2:])


def split_streams(
    joint: Float[Array, "b m *d"], text_tokens: int
) -> tuple[Float[Array, "b t *d"], Float[Array, "b m-t *d"]]:
    """Split a stream into its text and its image tokens."""
    parts, t = _parts(joint), text_tokens // context_size()

    def merge(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    return merge(parts[:, :, :t]), merge(parts[:, :, t:])


def add_to_image(
    joint: Float[Array, "b m *d"], change: Float[Array, "b n *d"]
) -> Float[Array, "b m *d"]:
    """Return the stream with `change` added to its image tokens."""
    parts, change = _parts(joint), _parts(change)
    t = parts.shape[2] - change.shape[2]
    return parts.at[:, :, t:].add(change).reshape(joint.shape)


def to_stream_order(table: Float[Array, "m d"], text_tokens: int) -> Float[Array, "m d"]:
    """Reorder the rows of a table, text tokens first, to the order of a stream."""
    rows = table[None]
    return concat_streams(rows[:, :text_tokens], rows[:, text_tokens:])[0]


def _parts(x: Float[Array, "b m *d"]) -> Float[Array, "b c m_c *d"]:
    return x.reshape(x.shape[0], context_size(), -1, *x.shape[2:])
