"""InstantCharacter from a prompt and a picture to pictures: the models and sampler, joined."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from PIL import Image

from ic_jax import auto_mesh, flow, sampler
from ic_jax.config import SamplingConfig, SchedulerConfig
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.rope import rope_table
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.images import Fit, Picture
from ic_jax.preprocessing.tokenizers import check_prompt
from ic_jax.runner import Grid, Runner
from ic_jax.weights import loading
from ic_jax.weights.encoders import LARGE_ENCODERS, Encoders, EncodersOnDemand, Keeping
from ic_jax.weights.lora import LoraSet, read_lora
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder

OutputType = Literal["pil", "np", "latent"]
Subject = Picture | SubjectFeatures
Subjects = Subject | Sequence[Subject]
StepCallback = Callable[[Any, int, float, dict[str, Array]], Mapping[str, Array] | None]


@dataclass(frozen=True)
class PipelineResult:
    """images: PIL pictures; or float32 [b, height, width, 3] in 0..1; or packed latents.

    Pictures of one prompt are neighbours. seeds: each picture's own, None with given latents.
    """

    images: list[Image.Image] | np.ndarray | Array
    seeds: list[int] | None


class InstantCharacterPipeline:
    """Draws a character from one picture of it in the scene that a prompt describes.

    Every model compiles once per shape and number of steps; prompts, subjects, seeds, guidance
    and scales are arguments of the compiled programs.
    """

    def __init__(self, model: loading.Model, encoders: Encoders | None = None):
        """From models in memory, all of one dtype, which is computed in.

        Args:
            model: at least the transformer and the VAE; `from_pretrained` is the usual way.
            encoders: where T5, SigLIP and DINOv2 are, if they are not the model's.
        """
        self._runner = Runner(model, encoders or Encoders(model))
        self.scheduler = model.scheduler or SchedulerConfig()
        self.sampling = model.sampling or SamplingConfig()
        loaded = {"transformer": model.transformer, "clip": model.clip}
        self._loras = LoraSet({kind: m for kind, m in loaded.items() if m is not None})

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str = SMALL_MODEL,
        dtype: DTypeLike = "bfloat16",
        *,
        verify: bool = True,
        mesh: str | Mesh | None = "auto",
        encoders: Keeping = "keep",
    ) -> Self:
        """Load a converted model folder (`python -m convert from-torch`).

        Args:
            folder: by default the small model that comes with ic_jax.
            dtype: bfloat16 or float32, of all parameters and of computing. float16 is too
                narrow for T5.
            verify: compare the files' SHA-256, which takes about as long as reading them.
            mesh: devices to spread the model over, such as "tensor=4" or "data=2,tensor=4";
                "auto" takes as many as it needs (docs/sharding.md), None is one device.
            encoders: "free" reads T5, SigLIP and DINOv2 when something is to be encoded and
                deletes them before the steps: 12.6 GB less for FLUX.1-dev, and reading T5 again
                for every call with prompts.

        Raises:
            WeightsError: the folder is no model, incomplete or damaged.
            ShardingError: the model cannot be laid out on the mesh.
        """
        if dtype not in ("bfloat16", "float32", jnp.bfloat16, jnp.float32):
            raise ValueError(f"dtype is {dtype!r}; it must be 'bfloat16' or 'float32'")
        arguments.check_choice("encoders", encoders, get_args(Keeping))
        kept = jnp.dtype(dtype)
        placed = auto_mesh.for_inference(mesh, folder, kept) if isinstance(mesh, str) else mesh
        if encoders == "keep":
            return cls(loading.load_model(Path(folder), kept, verify=verify, mesh=placed))
        opened = ModelFolder.open(folder)
        if verify:
            opened.verify()
        others = set(opened.components) - set(LARGE_ENCODERS)
        model = loading.load_model(folder, kept, components=others, verify=False, mesh=placed)

        def load(kind: str) -> Any:
            if kind not in opened.components:
                return None
            return loading.load_component(opened, kind, kept, verify=False, mesh=placed)

        return cls(model, EncodersOnDemand(load))

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        latents: Float[Array, "b n c"] | np.ndarray | None = None,
        prompt_embeds: Float[Array, "p t e"] | np.ndarray | None = None,
        pooled_prompt_embeds: Float[Array, "p d"] | np.ndarray | None = None,
        negative_prompt_embeds: Float[Array, "p t e"] | np.ndarray | None = None,
        negative_pooled_prompt_embeds: Float[Array, "p d"] | np.ndarray | None = None,
        subject_image: Subjects | None = None,
        subject_scale: float | None = None,
        negative_subject_scale: float | None = None,
        subject_fit: Fit = "pad",
        max_sequence_length: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> PipelineResult:
        """Draw.

        Sizes, steps, scales and lengths that are not given are the model's own
        (`self.sampling`): for FLUX.1-dev the published ones, `ic_jax.config.SamplingConfig`.

        Args:
            prompt: one, or a list. A list of prompts and a list of subjects of the same length
                go together one by one; a single one serves for all.
            prompt_2: for T5, if it is to read something else than CLIP.
            negative_prompt: what true classifier-free guidance steers away from.
            true_cfg_scale: 1 is off; anything else draws every step twice.
            height: in pixels, a multiple of 16; likewise `width`.
            num_inference_steps: Euler steps; another number compiles again.
            sigmas: noise levels instead of that number, as diffusers takes them.
            guidance_scale: FLUX.1-dev's distilled guidance; FLUX.1-schnell ignores it.
            num_images_per_prompt: pictures for each prompt, with the seeds seed, seed + 1, ...
            seed: or a list, one for each picture. A picture follows from its own seed alone,
                whatever is drawn beside it.
            latents: packed starting noise instead of a seed.
            prompt_embeds: T5's output instead of prompts; with `pooled_prompt_embeds`, CLIP's
                (`encode_prompt`). Likewise the negative ones.
            subject_image: a picture of the character (path, PIL, array), a list of them, or
                what `encode_subject` returned. None draws with plain FLUX.
            subject_scale: how strongly the subject is drawn, 0.8 to 1.0 as a rule.
            negative_subject_scale: likewise in what true guidance steers away from; by default the
                same, as published. At 0, guidance is towards the subject as towards the prompt.
            subject_fit: how a picture is made square: "pad" with white, or "stretch" as the
                published pipeline does.
            max_sequence_length: T5 tokens.
            output_type: "pil", "np" or "latent".
            callback_on_step_end: called as diffusers does, (pipeline, step, timestep in 0..1000,
                {"latents": ...}); may return {"latents": ...} to go on with. The loop then runs
                step by step instead of as one program.

        Raises:
            ValueError: an argument that cannot be used, in one line.
            FloatingPointError: the model produced numbers that are not finite.
        """
        settings = arguments.settings(
            self.sampling,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            num_images_per_prompt=num_images_per_prompt,
            subject_scale=subject_scale,
            negative_subject_scale=negative_subject_scale,
            subject_fit=subject_fit,
            max_sequence_length=max_sequence_length,
            output_type=output_type,
        )
        settings.check_size(self._runner.pixels_per_token)
        texts = self._given("", prompt_embeds, pooled_prompt_embeds)
        if texts is None:
            prompt = "" if prompt is None else prompt
            texts = self._encoded(prompt, prompt_2, settings.max_sequence_length)
        negative = None
        if settings.true_cfg_scale != 1.0:
            negative = self._given(
                "negative_", negative_prompt_embeds, negative_pooled_prompt_embeds
            )
            if negative is None:
                unwanted = arguments.as_list("negative_prompt", negative_prompt or "")
                length = texts.embeds.shape[1]
                negative = self._runner.encode_prompts(unwanted, unwanted, length)
        subjects = self._subjects(subject_image, subject_fit)
        request, seeds = self._request(settings, texts, negative, subjects, seed, latents)
        if callback_on_step_end is None:
            final = self._runner.sample(request)
        else:
            final = self._runner.sample_stepwise(request, partial(callback_on_step_end, self))
        return PipelineResult(self._output(final, settings), seeds)

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        prompt_2: str | Sequence[str] | None = None,
        max_sequence_length: int | None = None,
        *,
        triggers: bool = True,
    ) -> tuple[Float[Array, "p t e"], Float[Array, "p d"]]:
        """What T5 and CLIP make of prompts: `prompt_embeds` and `pooled_prompt_embeds`.

        `triggers` says whether the LoRAs' go before, which a negative prompt does without.

        Raises:
            ValueError: the model has no text encoders, or prompts that cannot be used.
        """
        length = max_sequence_length or self.sampling.max_sequence_length
        arguments.check_count("max_sequence_length", length, 512)
        texts = self._encoded(prompt, prompt_2, length, triggers=triggers)
        return texts.embeds, texts.pooled

    def encode_subject(
        self, image: Picture | Sequence[Picture], fit: Fit = "pad"
    ) -> SubjectFeatures:
        """Encode one picture or a list, to be given as `subject_image` any number of times.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: the model has no adapter, or no image encoders.
        """
        arguments.check_choice("fit", fit, ("pad", "stretch"))
        return self._runner.encode_pictures(arguments.as_list("subject_image", image), fit)

    def load_lora(self, file: Path | str, weight: float = 1.0, trigger: str | None = None) -> None:
        """Merge a style LoRA (peft layout) at `weight`; `trigger` goes before every prompt.

        Several add up. The base weights are kept and come back exactly with `unload_loras`.

        Raises:
            WeightsError: the file is not such a LoRA, or not for this model; nothing changed.
            ValueError: the model is spread over several hosts.
        """
        if self._runner.spans_hosts:
            raise ValueError("a LoRA needs the whole model within a host; take a smaller mesh")
        self._loras.add(read_lora(file, weight, trigger))

    def unload_loras(self) -> None:
        """Take every LoRA out; the weights are again what they were, bit for bit."""
        self._loras.clear()

    def _request(
        self,
        settings: arguments.Settings,
        texts: sampler.TextEmbeddings,
        negative: sampler.TextEmbeddings | None,
        subjects: SubjectFeatures | None,
        seed: Any,
        latents: Any,
    ) -> tuple[sampler.SamplingRequest, list[int] | None]:
        """What is sampled, and each picture's seed."""
        count = arguments.common_count(
            prompts=len(texts.embeds),
            negatives=None if negative is None else len(negative.embeds),
            subjects=None if subjects is None else len(subjects.low_res_deep),
        )
        total = count * settings.num_images_per_prompt

        def rows(prompt: sampler.TextEmbeddings) -> sampler.TextEmbeddings:  # one for each picture
            return self._runner.repeated(prompt, total // len(prompt.embeds))

        def filled(value: float) -> Any:  # on the host: an array made by JAX is a program too
            return np.full(total, value, np.float32)

        subject = true_cfg = None
        if subjects is not None:
            subject = sampler.Subject(subjects, filled(settings.subject_scale))
        if negative is not None:
            true_cfg = sampler.TrueCfg(
                rows(negative),
                filled(settings.true_cfg_scale),
                filled(settings.negative_subject_scale),
            )
        height, width = self._grid(settings)
        seeds, start = self._start(seed, latents, (height, width), total, settings)
        ids = flow.position_ids(texts.embeds.shape[1], height, width)
        levels: Any = flow.schedule(
            settings.sigmas or settings.num_inference_steps, height * width, self.scheduler
        )
        request = sampler.SamplingRequest(
            latents=start,
            prompt=rows(texts),
            guidance_scale=filled(settings.guidance_scale),
            sigmas=levels,
            rope=rope_table(ids, self._runner.transformer.config),
            subject=subject,
            true_cfg=true_cfg,
        )
        return request, seeds

    def _grid(self, settings: arguments.Settings) -> Grid:
        """Height and width in tokens."""
        side = self._runner.pixels_per_token
        return settings.height // side, settings.width // side

    def _encoded(
        self, prompt: Any, prompt_2: Any, length: int, *, triggers: bool = True
    ) -> sampler.TextEmbeddings:
        words = self._loras.triggers if triggers else []

        def lines(name: str, given: str | Sequence[str]) -> list[str]:
            checked = map(check_prompt, arguments.as_list(name, given))
            return [", ".join(filter(None, [*words, text])) for text in checked]

        prompt_2 = prompt if prompt_2 is None else prompt_2
        return self._runner.encode_prompts(
            lines("prompt", prompt), lines("prompt_2", prompt_2), length
        )

    def _given(self, kind: str, embeds: Any, pooled: Any) -> sampler.TextEmbeddings | None:
        if embeds is None and pooled is None:
            return None
        name, pooled_name = f"{kind}prompt_embeds", f"{kind}pooled_prompt_embeds"
        if embeds is None or pooled is None:
            raise ValueError(f"{name} and {pooled_name} go together; give both")
        flux, dtype = self._runner.transformer.config, self._runner.dtype
        arguments.check_shape(name, embeds, (None, None, flux.joint_attention_dim))
        arguments.check_shape(pooled_name, pooled, (len(embeds), flux.pooled_projection_dim))
        return sampler.TextEmbeddings(jnp.asarray(embeds, dtype), jnp.asarray(pooled, dtype))

    def _subjects(self, subjects: Subjects | None, fit: Fit) -> SubjectFeatures | None:
        """Features of all subjects in order, encoding what is not encoded yet."""
        if subjects is None:
            return None
        given = arguments.as_list("subject_image", subjects)
        pictures = [x for x in given if not isinstance(x, SubjectFeatures)]
        if len(pictures) == len(given):
            return self.encode_subject(pictures, fit)
        encoded = self.encode_subject(pictures, fit) if pictures else None
        parts, fresh = [], iter(range(len(pictures)))
        for x in given:
            if not isinstance(x, SubjectFeatures):
                assert encoded is not None
                i = next(fresh)
                x = SubjectFeatures(*(field[i : i + 1] for field in encoded))
            parts.append(self._runner.check_features(x))
        if len(parts) == 1:
            return parts[0]
        return SubjectFeatures(*(jnp.concatenate(field) for field in zip(*parts, strict=True)))

    def _start(
        self,
        seed: Any,
        latents: Any,
        grid: Grid,
        total: int,
        settings: arguments.Settings,
    ) -> tuple[list[int] | None, Array]:
        """Each picture's seed, and its packed noise."""
        if latents is not None:
            channels = self._runner.transformer.config.in_channels
            arguments.check_shape("latents", latents, (total, grid[0] * grid[1], channels))
            return None, jnp.asarray(latents, jnp.float32)
        each = settings.num_images_per_prompt
        seeds = arguments.seeds(seed, total // each, each)
        return seeds, self._runner.noise(seeds, grid)

    def _output(
        self, latents: Array, settings: arguments.Settings
    ) -> list[Image.Image] | np.ndarray | Array:
        runner = self._runner
        if settings.output_type == "latent":
            runner.refuse_not_finite(latents)
            return latents
        pixels = runner.decode(latents, self._grid(settings))
        runner.refuse_not_finite(pixels)
        if settings.output_type == "np":
            return pixels
        return [Image.fromarray(np.round(255 * image).astype(np.uint8)) for image in pixels]
