"""What is drawn in a benchmark: random weights of a size, a request, and the programs on them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ic_jax import flow, sampler
from ic_jax.config import SchedulerConfig
from ic_jax.measuring.model_flops import flux_forward, image_prompt_forward
from ic_jax.measuring.random_weights import random_like, random_module
from ic_jax.measuring.sizes import size_of
from ic_jax.measuring.timing import Program, compiled
from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux
from ic_jax.models.rope import Rope, rope_table


@dataclass(frozen=True)
class DrawingSettings:
    """Settings of a benchmark of drawing, as JSON values."""

    size: str
    dtype: str
    adapter: bool
    height: int  # pixels
    width: int
    steps: int
    text_length: int
    batch: int
    samples: int  # of every time


class Drawing:
    """Pictures of one subject to draw; weights and programs are made when they are first asked for.

    So every part of a measurement can be made by itself.
    """

    def __init__(self, settings: DrawingSettings):
        self.settings = settings
        self.size = size_of(settings.size)
        self.dtype = jnp.dtype(settings.dtype)
        token = self.size.pixels_per_token
        self.grid = settings.height // token, settings.width // token

    @property
    def image_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def features(self) -> int:
        """Tokens of the subject's picture in an image encoder."""
        siglip = self.size.configs["siglip"]
        return (siglip.image_size // siglip.patch_size) ** 2

    @property
    def step_flops(self) -> float:
        """Model FLOPs of one step of the batch."""
        c, s = self.size.configs, self.settings
        count = s.batch * flux_forward(c["transformer"], self.image_tokens, s.text_length)
        if s.adapter:
            tokens = s.batch * self.image_tokens
            count += image_prompt_forward(c["adapter"], c["transformer"], tokens)
        return count

    @cached_property
    def models(self) -> tuple[Flux, Adapter | None]:
        configs, adapter = self.size.configs, None
        config = configs["transformer"]
        flux = random_module("transformer", config, config, self.dtype)
        if self.settings.adapter:
            adapter = random_module("adapter", configs["adapter"], config, self.dtype)
        return jax.block_until_ready((flux, adapter))

    @cached_property
    def request(self) -> sampler.SamplingRequest:
        flux, adapter = self.size.configs["transformer"], self.size.configs["adapter"]
        s, b = self.settings, self.settings.batch

        def normal(name: str, *shape: int, dtype: Any = self.dtype) -> Array:
            return random_like(jax.ShapeDtypeStruct(shape, dtype), name)

        subject = None
        if s.adapter:
            parts = {"deep": 1, "shallow": len(adapter.siglip_layers), "tiles": 4}
            features = SubjectFeatures(
                *(normal(k, 1, n * self.features, adapter.inner_dim) for k, n in parts.items())
            )
            subject = sampler.Subject(features, jnp.ones(b))
        table = rope_table(flow.position_ids(s.text_length, *self.grid), flux)
        return sampler.SamplingRequest(
            latents=normal("noise", b, self.image_tokens, flux.in_channels, dtype=jnp.float32),
            prompt=sampler.TextEmbeddings(
                normal("t5", b, s.text_length, flux.joint_attention_dim),
                normal("clip", b, flux.pooled_projection_dim),
            ),
            guidance_scale=jnp.full(b, 3.5),
            sigmas=jnp.asarray(flow.schedule(s.steps, self.image_tokens, SchedulerConfig())),
            rope=Rope(*map(jnp.asarray, table)),
            subject=subject,
        )

    @cached_property
    def prepare(self) -> Program:
        return compiled(sampler.prepare, *self.models, self.request)

    @cached_property
    def conditioning(self) -> sampler.Conditioning:
        return jax.block_until_ready(self.prepare.run(*self.models, self.request))

    @property
    def step_arguments(self) -> tuple[Any, ...]:
        """Arguments of `sampler.step` in the middle of a picture."""
        index = np.int32(self.settings.steps // 2)
        return *self.models, self.conditioning, self.request.latents, index

    @cached_property
    def step(self) -> Program:
        return compiled(sampler.step, *self.step_arguments)

    def run_step(self) -> Array:
        """Run one step."""
        return self.step.run(*self.step_arguments)
