"""Text and image tokens as one stream, and the stream in parts on a mesh's context axis.

On c devices a stream is c parts of equal length, each with its share of the text before its share
of the image, so that joining and parting move nothing between devices. Attention does not mind
the order of tokens as long as the rotary table has the same. On one device this is the plain
concatenation, text first.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.sharding import ShardingError, constrain, context_size


def shard_tokens(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Rows over the batch's axes, tokens over `context`.

    Raises:
        ShardingError: the tokens do not divide by the context axis.
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
    """The stream of both."""
    both = jnp.concatenate([_parts(txt), _parts(img)], axis=2)
    return both.reshape(txt.shape[0], -1, *txt.shape[2:])


def split_streams(
    joint: Float[Array, "b m *d"], text_tokens: int
) -> tuple[Float[Array, "b t *d"], Float[Array, "b m-t *d"]]:
    """(text, image) of a stream."""
    parts, t = _parts(joint), text_tokens // context_size()

    def whole(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    return whole(parts[:, :, :t]), whole(parts[:, :, t:])


def add_to_image(
    joint: Float[Array, "b m *d"], change: Float[Array, "b n *d"]
) -> Float[Array, "b m *d"]:
    """The stream with `change` added to its image tokens."""
    parts, change = _parts(joint), _parts(change)
    t = parts.shape[2] - change.shape[2]
    return parts.at[:, :, t:].add(change).reshape(joint.shape)


def to_stream_order(table: Float[Array, "m d"], text_tokens: int) -> Float[Array, "m d"]:
    """Rows of a table, text tokens first, in the order of a stream."""
    rows = table[None]
    return concat_streams(rows[:, :text_tokens], rows[:, text_tokens:])[0]


def _parts(x: Float[Array, "b m *d"]) -> Float[Array, "b c m_c *d"]:
    return x.reshape(x.shape[0], context_size(), -1, *x.shape[2:])
