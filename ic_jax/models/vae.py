"""Autoencoder of FLUX between pixels and latents, channels last.

Equivalent to diffusers' AutoencoderKL without quantisation convolutions, with the same parameter
names.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ic_jax.config import VaeConfig
from ic_jax.models.attention import attention, merge_heads, split_heads
from ic_jax.models.layers import Conv, Linear, per_channel

EPS = 1e-6


class Vae(nnx.Module):
    """Pixels b h w 3 in -1..1 <-> latents b h/8 w/8 c (8: `config.downscale`).

    `encode` and `decode` use raw latents. The diffusion model uses shifted and scaled latents:
    `to_latents`, `from_latents`.
    """

    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.config = config

    def encode(
        self, pixels: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b y x c"], Float[Array, "b y x c"]]:
        """Return mean and log-variance of the normal distribution of the raw latents.

        Height and width must be divisible by `config.downscale`.
        """
        mean, logvar = jnp.split(self.encoder(pixels), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, raw: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """Decode raw latents to pixels, which may lie slightly outside -1..1."""
        return self.decoder(raw)

    def to_latents(self, raw: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        """Shift and scale raw latents to those of the diffusion model."""
        return (raw - self.config.shift_factor) * self.config.scaling_factor

    def from_latents(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        """Return the raw latents of latents of the diffusion model."""
        return latents / self.config.scaling_factor + self.config.shift_factor


class Chain(nnx.Module):
    """Modules named 0, 1, 2, ..., applied in order; the identity if there are none."""

    def __init__(self, modules: Iterable[nnx.Module]):
        names = []
        for name, module in enumerate(modules):
            names.append(str(name))
            setattr(self, str(name), module)
        self.names = tuple(names)

    def __iter__(self) -> Iterator[Callable[[Array], Array]]:
        return (getattr(self, name) for name in self.names)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        for module in self:
            x = module(x)
        return x


class Encoder(nnx.Module):
    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels
        groups = config.norm_num_groups
        ins = (widths[0], *widths[:-1])
        self.conv_in = Conv(config.in_channels, widths[0], 3, rngs=rngs)
        self.down_blocks = Chain(
            DownBlock(i, o, config, last=n == len(widths) - 1, rngs=rngs)
            for n, (i, o) in enumerate(zip(ins, widths, strict=True))
        )
        self.mid_block = MidBlock(widths[-1], groups, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    def __init__(self, config: VaeConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels[::-1]
        groups = config.norm_num_groups
        ins = (widths[0], *widths[:-1])
        self.conv_in = Conv(config.latent_channels, widths[0], 3, rngs=rngs)
        self.mid_block = MidBlock(widths[0], groups, rngs=rngs)
        self.up_blocks = Chain(
            UpBlock(i, o, config, last=n == len(widths) - 1, rngs=rngs)
            for n, (i, o) in enumerate(zip(ins, widths, strict=True))
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], config.out_channels, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        x = self.up_blocks(self.mid_block(self.conv_in(x)))
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class DownBlock(nnx.Module):
    """Resnets, then downsampling by 2, except in the last block."""

    def __init__(self, i: int, o: int, config: VaeConfig, *, last: bool, rngs: nnx.Rngs):
        self.resnets = _resnets(i, o, config.layers_per_block, config.norm_num_groups, rngs)
        self.downsamplers = Chain([] if last else [Downsample(o, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        return self.downsamplers(self.resnets(x))


class UpBlock(nnx.Module):
    """Resnets, one more than in a `DownBlock`, then upsampling by 2, except in the last block."""

    def __init__(self, i: int, o: int, config: VaeConfig, *, last: bool, rngs: nnx.Rngs):
        self.resnets = _resnets(i, o, config.layers_per_block + 1, config.norm_num_groups, rngs)
        self.upsamplers = Chain([] if last else [Upsample(o, rngs=rngs)])

    def __call__(self, x: Float[Array, "b y x i"]) -> Float[Array, "b h w o"]:
        return self.upsamplers(self.resnets(x))


class MidBlock(nnx.Module):
    def __init__(self, features: int, groups: int, *, rngs: nnx.Rngs):
        self.resnets = _resnets(features, features, 2, groups, rngs)
        self.attentions = Chain([PixelAttention(features, groups, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        before, after = self.resnets
        return after(self.attentions(before(x)))


class Resnet(nnx.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))); x is projected if its width changes."""

    def __init__(self, i: int, o: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(i, groups)
        self.conv1 = Conv(i, o, 3, rngs=rngs)
        self.norm2 = GroupNorm(o, groups)
        self.conv2 = Conv(o, o, 3, rngs=rngs)
        self.conv_shortcut = None if i == o else Conv(i, o, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def _resnets(i: int, o: int, count: int, groups: int, rngs: nnx.Rngs) -> Chain:
    return Chain(Resnet(i if n == 0 else o, o, groups, rngs=rngs) for n in range(count))


class PixelAttention(nnx.Module):
    """x + attention of every pixel to every pixel, with one head."""

    def __init__(self, features: int, groups: int, *, rngs: nnx.Rngs):
        def linear() -> Linear:
            return Linear(features, features, axes=(None, None), rngs=rngs)

        self.group_norm = GroupNorm(features, groups)
        self.to_q = linear()
        self.to_k = linear()
        self.to_v = linear()
        self.to_out = nnx.Dict({"0": linear()})

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        b, _, _, d = x.shape
        y = self.group_norm(x).reshape(b, -1, d)  # b hw d
        q, k, v = (split_heads(project(y), d) for project in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out["0"](merge_heads(attention(q, k, v))).reshape(x.shape)


class Downsample(nnx.Module):
    def __init__(self, features: int, *, rngs: nnx.Rngs):
        # Padded at the bottom and on the right only, as in the training of the published weights.
        self.conv = Conv(features, features, 3, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b y x d"]:
        return self.conv(x)


class Upsample(nnx.Module):
    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.conv = Conv(features, features, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b h w d"]:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))  # each pixel four times


class GroupNorm(nnx.Module):
    """GroupNorm over the pixels and the channels of each group, in float32."""

    def __init__(self, features: int, groups: int):
        self.weight = nnx.Param(jnp.ones(features), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(features), axes=(None,))
        self.groups = groups

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)  # b h w g d/g
        y = y - _group_mean(y)
        y = y * jax.lax.rsqrt(_group_mean(jnp.square(y)) + EPS)
        y = y.reshape(x.shape) * per_channel(self.weight[...].astype(jnp.float32), x)
        return (y + per_channel(self.bias[...].astype(jnp.float32), x)).astype(x.dtype)


def _group_mean(x: Float[Array, "b h w g c"]) -> Float[Array, "b 1 1 g 1"]:
    """Average rows first: XLA on a CPU sums sequentially, which loses digits over a picture."""
    return x.mean(2, keepdims=True).mean((1, 4), keepdims=True)
