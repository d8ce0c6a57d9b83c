"""A model's parts, each run as one compiled program per shape, with weights as arguments."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from ic_jax import flow, sampler
from ic_jax.models.clip import ClipText
from ic_jax.models.features import SubjectFeatures, subject_features
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.target import platform
from ic_jax.models.unstacked import compiler_options
from ic_jax.models.vae import Vae
from ic_jax.noised_originals import noised_originals
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.images import Fit, Picture, read_rgb, tiles, to_square
from ic_jax.preprocessing.references import to_references
from ic_jax.preprocessing.tokenizers import PromptTokenizer, warn_of_unknown
from ic_jax.sharding import constrain, mesh_of
from ic_jax.weights.encoders import Encoders
from ic_jax.weights.loading import Model

NOT_KONTEXT = (
    "this model is not known as FLUX.1 Kontext, and no other FLUX was trained to follow a "
    "reference picture; if it is Kontext, convert it with --kontext"
)
Grid = tuple[int, int]  # height and width of a picture in tokens
Rows = TypeVar("Rows")  # array, or arrays, with a leading axis over rows


class ReferenceLatents(NamedTuple):
    """Latents of reference pictures of one size, for `reference_image`."""

    latents: Float[Array, "r m c"]  # packed
    grid: Grid


class Runner:
    """Compiled parts of a model, on the mesh of its parameters; a missing part raises ValueError.

    Attributes:
        mesh: None on one device.
        dtype: of all parameters and computation.
        pixels_per_token: along one side of a picture.
        tokenizer: None if the model has none.
    """

    def __init__(self, model: Model, encoders: Encoders):
        """Use the parts of `model`; `encoders` is the source of its large encoders."""
        if model.transformer is None or model.vae is None:
            raise ValueError(
                "drawing needs the transformer and the VAE; convert with --flux and --vae"
            )
        self.model, self._encoders = model, encoders
        self.transformer, self.vae = model.transformer, model.vae
        self.mesh = mesh_of(model.transformer)
        self.spans_processes = self.mesh is not None and self.mesh.is_multi_process
        self.dtype = self.transformer.proj_out.kernel.dtype
        self.pixels_per_token = self.vae.config.downscale * flow.PATCH
        self.tokenizer = None
        if model.tokenizer is not None and model.tokenizer_2 is not None:
            self.tokenizer = PromptTokenizer.from_folders(model.tokenizer, model.tokenizer_2)

    def refuse_several_processes(self, what: str) -> None:
        """Raise ValueError if the model is sharded over several processes."""
        if self.spans_processes:
            raise ValueError(
                f"{what} needs the whole model within one process; take a smaller mesh"
            )

    def grid(self, height: int, width: int) -> Grid:
        """Convert a picture's sides from pixels to tokens."""
        return height // self.pixels_per_token, width // self.pixels_per_token

    def encode_prompts(
        self, prompts: list[str], prompts_2: list[str], length: int
    ) -> sampler.TextEmbeddings:
        """Encode pairs of prompts, CLIP's and T5's; a list of one text is shared."""
        clip, (t5,) = self.model.clip, self._encoders.get("t5")
        if self.tokenizer is None or clip is None or t5 is None:
            raise ValueError(
                "the model has no text encoders; give prompt_embeds and pooled_prompt_embeds, "
                "or convert it with --t5 and --clip"
            )
        warn_of_unknown(self.tokenizer, prompts, prompts_2)
        count = arguments.common_count(prompts=len(prompts), prompts_2=len(prompts_2))
        clip_ids, t5_ids = self.tokenizer(
            prompts * (count // len(prompts)),
            prompts_2 * (count // len(prompts_2)),
            max_sequence_length=length,
        )
        with self._on_mesh():
            return self._run(_encode_text, clip, t5, clip_ids, t5_ids)

    def encode_pictures(self, pictures: Sequence[Picture], fit: Fit) -> SubjectFeatures:
        """Encode pictures, one row each."""
        adapter, (siglip, dinov2) = self.model.adapter, self._encoders.get("siglip", "dinov2")
        if adapter is None or siglip is None or dinov2 is None:
            raise ValueError(
                "a subject needs the adapter, SigLIP and DINOv2; convert the model with "
                "--adapter, --siglip and --dinov2"
            )
        size = siglip.config.image_size
        cut = [tiles(to_square(read_rgb(picture), fit), size) for picture in pictures]
        low, high = (np.stack(part) for part in zip(*cut, strict=True))
        with self._on_mesh():
            static = {"config": adapter.config, "dtype": self.dtype}
            return self._run(_encode_subject, siglip, dinov2, low=low, high=high, **static)

    def check_features(self, features: SubjectFeatures) -> SubjectFeatures:
        """Cast features to the model's dtype; ValueError if they do not fit the adapter."""
        if self.model.adapter is None:
            raise ValueError("a subject needs the adapter; convert the model with --adapter")
        config = self.model.adapter.config
        u, n = np.shape(features.low_res_deep)[:2]
        parts = {"low_res_deep": 1, "low_res_shallow": len(config.siglip_layers)}
        for name, count in (parts | {"high_res_deep": 4}).items():
            shape = (u, count * n, config.inner_dim)
            arguments.check_shape(f"subject_image's {name}", getattr(features, name), shape)
        return SubjectFeatures(*(jnp.asarray(field, self.dtype) for field in features))

    def concatenate_rows(self, parts: Sequence[SubjectFeatures]) -> SubjectFeatures:
        """Return features with the rows of all parts."""
        if len(parts) == 1:
            return parts[0]
        with self._on_mesh():
            return self._run(_concatenate_rows, parts)

    def encode_references(
        self, pictures: Sequence[Picture], *, resize: bool = True
    ) -> ReferenceLatents:
        """Encode reference pictures, `resize` as for `to_references`; warn if not with Kontext."""
        pixels = to_references(pictures, self.pixels_per_token, resize=resize)
        if self.model.source is None or not self.model.source.is_kontext:
            warnings.warn(NOT_KONTEXT, stacklevel=3)
        with self._on_mesh():
            latents = self._run(_encode_references, self.vae, pixels, dtype=self.dtype)
        return ReferenceLatents(latents, self.grid(*pixels.shape[1:3]))

    def noise_originals(
        self,
        pixels: UInt8[np.ndarray, "r h w 3"],
        masks: Bool[np.ndarray, "m y x"] | None,
        noise: Float[Array, "b n c"],
        sigma: np.float32,
        seeds: Sequence[int] | None,
    ) -> tuple[Float[Array, "b n c"], sampler.Inpainting | None]:
        """Return the noised latents of pictures to draw over, and what their masks keep."""
        numbers = None if seeds is None else np.asarray(seeds, np.uint32)
        with self._on_mesh():
            inputs = self.vae, pixels, masks, noise, sigma, numbers
            return self._run(noised_originals, *inputs, dtype=self.dtype)

    def repeat_rows(self, rows: Rows, times: int) -> Rows:
        """Repeat each row of some arrays `times` times; the copies of a row are neighbours."""
        if times == 1:
            return rows
        with self._on_mesh():
            return self._run(_repeat_rows, rows, times=times)

    def noise(self, seeds: Sequence[int], grid: Grid) -> Float[Array, "b n c"]:
        """Return the packed noise of each seed, float32."""
        height, width = (n * flow.PATCH for n in grid)
        channels = self.vae.config.latent_channels
        numbers = np.asarray(seeds, np.uint32)
        packed = self._run(_noise, numbers, height=height, width=width, channels=channels)
        # A mesh of several processes takes local data as NumPy arrays only.
        return np.asarray(packed) if self.spans_processes else packed  # type: ignore[return-value]

    def sample(self, request: sampler.SamplingRequest) -> Float[Array, "b n c"]:
        """Return the denoised packed latents; one program runs all steps."""
        self._encoders.put_away()
        return self._call(sampler.sample, request)

    def sample_stepwise(
        self,
        request: sampler.SamplingRequest,
        after_step: Callable[[int, float, dict[str, Array]], Mapping[str, Any] | None],
    ) -> Float[Array, "b n c"]:
        """Denoise like `sample`, step by step; `after_step` may return latents to continue with.

        Args:
            request: see `sampler.sample`.
            after_step: takes (step, timestep in 0..1000, {"latents": latents}).
        """
        self._encoders.put_away()
        conditioning, latents = self._call(sampler.prepare, request), request.latents
        for i, sigma in enumerate(np.asarray(request.sigmas[:-1])):
            latents = self._call(sampler.step, conditioning, latents, np.int32(i))
            changed = after_step(i, 1000.0 * float(sigma), {"latents": latents})
            if changed is not None and "latents" in changed:
                arguments.check_shape("the callback's latents", changed["latents"], latents.shape)
                latents = jnp.asarray(changed["latents"], jnp.float32)
        return latents

    def decode(self, latents: Float[Array, "b n c"], grid: Grid) -> np.ndarray:
        """Decode packed latents to pictures, float32 [b, height, width, 3] in 0..1."""
        return np.asarray(self._pixels(latents, grid))

    def check_finite(self, values: Array | np.ndarray) -> None:
        """Raise FloatingPointError unless all values are finite."""
        if not bool(self._run(_all_finite, values)):
            raise FloatingPointError(
                f"the model produced numbers that are not finite in {self.dtype}; "
                "try dtype='float32', or a smaller guidance_scale, subject_scale or LoRA weight"
            )

    def _pixels(self, latents: Float[Array, "b n c"], grid: Grid) -> Float[Array, "b h w 3"]:
        with self._on_mesh():
            if latents.dtype != self.dtype:
                latents = self._run(_cast, latents, dtype=self.dtype)
            return self._run(_decode, self.vae, latents, grid=grid)

    def _call(self, function: Callable, *inputs: Any) -> Any:
        """Call a function of the sampler on FLUX, the adapter and `inputs`."""
        with self._on_mesh():
            models = self.transformer, self.model.adapter
            return self._run(_jitted(function, platform()), *models, *inputs)

    def _run(self, program: Any, *args: Any, **options: Any) -> Any:
        """Run a compiled program; every one is run here."""
        return program(*args, **options)

    def _on_mesh(self) -> AbstractContextManager:
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


@cache
def _jitted(function: Callable, platform: str) -> Callable:
    return jax.jit(function, compiler_options=compiler_options(platform))


_encode_subject = jax.jit(subject_features, static_argnames=("config", "dtype"))


@jax.jit
def _encode_text(
    clip: ClipText, t5: T5Encoder, clip_ids: Int[Array, "b n"], t5_ids: Int[Array, "b t"]
) -> sampler.TextEmbeddings:
    return sampler.TextEmbeddings(t5(t5_ids), clip(clip_ids))


@partial(jax.jit, static_argnames=("height", "width", "channels"))
def _noise(
    seeds: UInt32[Array, "b"], height: int, width: int, channels: int
) -> Float[Array, "b n c"]:
    return flow.pack(sampler.noise(seeds, height, width, channels))


@partial(jax.jit, static_argnames=("dtype",))
def _encode_references(
    vae: Vae, pixels: UInt8[Array, "r h w 3"], dtype: DTypeLike
) -> Float[Array, "r m c"]:
    mean, _ = vae.encode((pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype))
    latents = flow.pack(vae.to_latents(mean.astype(jnp.float32))).astype(dtype)
    return constrain(latents, None, None, None)  # replicated, as what the other encoders return


@partial(jax.jit, static_argnames=("times",))
def _repeat_rows(rows: Rows, times: int) -> Rows:
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), rows)


@jax.jit
def _concatenate_rows(parts: Sequence[SubjectFeatures]) -> SubjectFeatures:
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


# A separate program: fused with the code that uses the result, XLA on a CPU would not round.
@partial(jax.jit, static_argnames=("dtype",))
def _cast(x: Array, dtype: DTypeLike) -> Array:
    return x.astype(dtype)


@partial(jax.jit, static_argnames=("grid",))
def _decode(vae: Vae, latents: Float[Array, "b n c"], grid: Grid) -> Float[Array, "b h w 3"]:
    height, width = (n * flow.PATCH for n in grid)
    pixels = vae.decode(vae.from_latents(flow.unpack(latents, height, width)))
    pixels = constrain(pixels, None, None, None, None)  # replicated: every process can read them
    return jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)


@jax.jit
def _all_finite(values: Array) -> Array:
    return jnp.isfinite(values).all()


class ShapesRunner(Runner):
    """Runner of a model of shapes, on one device: compiles programs and returns results' shapes.

    The programs are afterwards found by a `Runner` of such a model. For a GPU they are only traced
    and lowered: XLA chooses kernels by timing them, which reading weights would disturb.
    """

    def _run(self, program: Any, *args: Any, **options: Any) -> Any:
        lowered = program.lower(*args, **options)
        if platform() != "gpu":
            lowered.compile()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info)

    def check_features(self, features: SubjectFeatures) -> SubjectFeatures:
        return features

    def sample_stepwise(
        self, request: sampler.SamplingRequest, after_step: Any
    ) -> Float[Array, "b n c"]:
        conditioning = self._call(sampler.prepare, request)
        first = self._call(sampler.step, conditioning, request.latents, np.int32(0))
        return self._call(sampler.step, conditioning, first, np.int32(1))

    def compile_pictures(self, latents: Float[Array, "b n c"], grid: Grid) -> None:
        """Compile `decode` and `check_finite`."""
        self._run(_all_finite, self._pixels(latents, grid))
