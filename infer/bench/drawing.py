"""Drawing in a benchmark: random weights of a size, a request, and the programs on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from ic_jax.models.target import platform
from ic_jax.models.unstacked import compiler_options, drawing_form


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

    Attributes:
        settings: as given.
        configs: of all components.
        grid: height and width of a picture in tokens.
        result: latents after one step, once it was run.
    """

    result: np.ndarray | None = None

    def __init__(
        self,
        settings: DrawingSettings,
        *,
        stacked: bool = False,
        blocks: tuple[int, int] | None = None,
    ):
        """Describe what is drawn.

        Args:
            settings: the settings.
            stacked: leave the blocks stacked as they are loaded, instead of the form and the
                compiler's options with which the pipeline draws on this platform.
            blocks: numbers of double and of single blocks, instead of those of the size.
        """
        self.settings = settings
        size = size_of(settings.size)
        self.configs = dict(size.configs)
        if blocks is not None:
            counts = {"num_layers": blocks[0], "num_single_layers": blocks[1]}
            self.configs["transformer"] = replace(self.configs["transformer"], **counts)
        self.dtype = jnp.dtype(settings.dtype)
        token = size.pixels_per_token
        self.grid = settings.height // token, settings.width // token
        self._stacked = stacked

    @property
    def image_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def features(self) -> int:
        """Tokens of the subject's picture in an image encoder."""
        siglip = self.configs["siglip"]
        return (siglip.image_size // siglip.patch_size) ** 2

    @property
    def step_flops(self) -> float:
        """Model FLOPs of one step of the batch."""
        c, s = self.configs, self.settings
        count = s.batch * flux_forward(c["transformer"], self.image_tokens, s.text_length)
        if s.adapter:
            tokens = s.batch * self.image_tokens
            count += image_prompt_forward(c["adapter"], c["transformer"], tokens)
        return count

    @property
    def compiler_options(self) -> dict[str, Any]:
        """XLA's options, for programs of the sampler."""
        return {} if self._stacked else compiler_options(platform())

    @cached_property
    def models(self) -> tuple[Flux, Adapter | None]:
        """FLUX and the adapter with random weights, the same in every form."""
        flux, adapter = self.random_flux(), None
        if self.settings.adapter:
            configs = self.configs["adapter"], self.configs["transformer"]
            adapter = random_module("adapter", *configs, self.dtype)
        if not self._stacked:
            flux, adapter = drawing_form(flux, adapter, platform())
        return jax.block_until_ready((flux, adapter))

    def random_flux(self) -> Flux:
        """Return FLUX with random weights in the stacked form."""
        config = self.configs["transformer"]
        return random_module("transformer", config, config, self.dtype)

    def forget(self) -> None:
        """Free the weights."""
        self.__dict__.pop("models", None)

    @cached_property
    def request(self) -> sampler.SamplingRequest:
        flux, adapter = self.configs["transformer"], self.configs["adapter"]
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
        return self.compile(sampler.prepare, self.request)

    @cached_property
    def step(self) -> Program:
        index = np.int32(0)
        return self.compile(sampler.step, self.conditioning, self.request.latents, index)

    @cached_property
    def conditioning(self) -> sampler.Conditioning:
        return jax.block_until_ready(self.prepare.run(*self.models, self.request))

    def compile(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Program:
        """Compile a function of the models and more arguments, with more options of XLA."""
        every = {**self.compiler_options, **options}
        return compiled(function, *self.models, *arguments, options=every)

    def run_step(self, program: Program | None = None) -> Array:
        """Run one step, in the middle of a picture."""
        index, step = np.int32(self.settings.steps // 2), program or self.step
        return step.run(*self.models, self.conditioning, self.request.latents, index)

    def run_all_steps(self) -> Array:
        """Draw step by step, as the pipeline does with a progress bar."""
        models, latents = self.models, self.request.latents
        conditioning = self.prepare.run(*models, self.request)
        for index in range(self.settings.steps):
            latents = self.step.run(*models, conditioning, latents, np.int32(index))
        return latents
