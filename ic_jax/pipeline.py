"""Text-to-image pipeline: prompts and a picture of a character in, pictures of it out."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from PIL import Image

from ic_jax import auto_mesh, compilation_cache, keywords, memory
from ic_jax.activations import Drawing
from ic_jax.components import Components
from ic_jax.config import SamplingConfig, SchedulerConfig
from ic_jax.encode_methods import EncodeMethods
from ic_jax.lora_methods import LoraMethods
from ic_jax.models.target import platform
from ic_jax.models.unstacked import drawing_form
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import Fit, Picture
from ic_jax.preprocessing.originals import STRENGTH, Originals
from ic_jax.progress import BarConfig, Progress
from ic_jax.request import (
    Prompts,
    ReferenceImage,
    build_request,
    encode_references,
    text_embeddings,
)
from ic_jax.result import PipelineResult, to_pil
from ic_jax.runner import Runner, ShapesRunner
from ic_jax.sharding import describe
from ic_jax.subjects import SubjectImage, Subjects, encode_subjects
from ic_jax.weights import hub, loading
from ic_jax.weights.encoders import LARGE_ENCODERS, Encoders, EncodersOnDemand
from ic_jax.weights.lora.lora_set import LoraSet
from ic_jax.weights.lora.targets import targets_of
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder, create
from ic_jax.weights.model_source import open_model

OutputType = Literal["pil", "np", "latent"]
StepCallback = Callable[[Any, int, float, dict[str, Array]], Mapping[str, Array] | None]


class InstantCharacterPipeline(Components, EncodeMethods, LoraMethods):
    """Pipeline that draws a character, known from one picture, in the scene of a prompt.

    Every model compiles once per shape and number of steps. Prompts, subjects, seeds, guidance
    and scales are arguments of the compiled programs: another value compiles nothing.

    Examples:
        >>> from ic_jax import InstantCharacterPipeline
        >>> pipe = InstantCharacterPipeline.from_pretrained()  # the bundled small model
        >>> prompt = "A person waving, in a red hoodie, on plain teal."
        >>> result = pipe(prompt, subject_image="infer/demo.png", seed=[0, 1],
        ...               num_images_per_prompt=2)
        >>> result.images[0].size, result.seeds
        ((128, 128), [0, 1])

    Attributes:
        scheduler: the noise schedule.
        sampling: defaults of a call's arguments.
    """

    scheduler: SchedulerConfig
    sampling: SamplingConfig
    _make_runner: type[Runner] = Runner

    def __init__(self, model: loading.Model, encoders: Encoders | None = None):
        """Build a pipeline of models in memory; `from_pretrained` is the usual way.

        Args:
            model: at least a transformer and a VAE, all of one dtype, also that of the computation.
            encoders: source of T5, SigLIP and DINOv2; the model's own by default.
        """
        self._model = model
        self._encoders = encoders or Encoders(model)
        self._runner = self._make_runner(model, self._encoders)
        self.scheduler = model.scheduler or SchedulerConfig()
        self.sampling = model.sampling or SamplingConfig()
        self._loras = LoraSet(targets_of(loading.configs(model)), self._lora_models)
        self._encoders.when_loaded(self._loras.apply_to)
        self._progress = Progress()

    @classmethod
    @keywords.teaches(keywords.FROM_PRETRAINED)
    def from_pretrained(
        cls,
        name_or_path: ModelFolder | Path | str = SMALL_MODEL,
        dtype: DTypeLike = "bfloat16",
        *,
        revision: str | None = None,
        verify: bool = True,
        mesh: str | Mesh | None = "auto",
        offload_encoders: bool = False,
        drawing: Drawing | None = None,
        ahead: Callable[["InstantCharacterPipeline"], Any] | None = None,
    ) -> Self:
        """Load a converted model.

        Args:
            name_or_path: a MODEL folder (from `python -m convert from-torch`, or
                `save_pretrained`), or the Hub id org/name of one. The Hub library downloads it
                into its cache, from which it is read offline; HF_HUB_OFFLINE=1 forbids the network.
                By default the small model that comes with ic_jax. An opened folder is not opened
                again.
            dtype: "bfloat16" or "float32", of all parameters and computation. float16 is too
                narrow for T5.
            revision: branch, tag or commit of the Hub repository; the main branch by default.
            verify: compare the files' SHA-256 while they are read for the first time.
            mesh: devices to shard the model over, such as "tensor=4" or "data=2,tensor=4". "auto"
                takes as many as the model needs (docs/sharding.md); None is one device.
            offload_encoders: load T5, SigLIP and DINOv2 only to encode, and free them before
                sampling: 12.6 GB less memory for FLUX.1-dev, but every call with prompts loads T5
                again.
            drawing: sizes of calls that will follow, whose activations must fit as well; None
                compares the weights alone with the free memory, since any size may follow.
            ahead: makes a call that will follow, with the pipeline that it takes, which compiles
                in place of drawing. A thread runs it while the weights are read, where there is
                no mesh; its errors are those of the call that follows.

        Raises:
            FileNotFoundError: no such folder; or on the Hub no such repository or revision, no
                access to it, or no connection.
            WeightsError: not a converted model (the message holds the command that converts
                published weights), or an incomplete or damaged one.
            ShardingError: the model cannot be laid out on the mesh.
            NotEnoughMemoryError: the weights, or `drawing` beside them, do not fit into the memory
                that is free; nothing was read. The message says what would fit.
        """
        if dtype not in ("bfloat16", "float32", jnp.bfloat16, jnp.float32):
            raise ValueError(f"dtype is {dtype!r}; it must be 'bfloat16' or 'float32'")
        dtype = jnp.dtype(dtype)
        folder = open_model(name_or_path, revision)
        if isinstance(mesh, str):
            mesh = auto_mesh.for_inference(mesh, folder, dtype)
        memory.check_inference(
            folder, dtype, mesh, offload_encoders=offload_encoders, drawing=drawing
        )
        components = set(folder.components) - set(LARGE_ENCODERS if offload_encoders else ())
        with _compiling_ahead(folder, dtype, None if mesh is not None else ahead):
            options: dict[str, Any] = {"verify": verify, "mesh": mesh}
            model = loading.load_model(folder, dtype, components=components, **options)
        if model.transformer is not None:
            models = drawing_form(model.transformer, model.adapter, platform())
            model.transformer, model.adapter = models
        if not offload_encoders:
            return cls(model)
        verified = set[str]()

        def load(component: str) -> Any:
            if component not in folder.components:
                return None
            first = verify and component not in verified
            module = loading.load_component(folder, component, dtype, verify=first, mesh=mesh)
            verified.add(component)
            return module

        return cls(model, EncodersOnDemand(load))

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write a MODEL folder that `from_pretrained` loads; it is written whole or not at all.

        Parameters keep the pipeline's dtype. LoRAs are not part of a model: the folder holds the
        weights without them, and a warning says so.

        Raises:
            FileExistsError: `folder` is in the way, and `overwrite` is not set or it holds
                something else.
            ValueError: the model is sharded over several processes.
        """
        self._runner.refuse_several_processes("saving")
        if self._loras.active:
            warnings.warn("saving the model without its LoRAs", stacklevel=2)
        model = replace(self._model, scheduler=self.scheduler, sampling=self.sampling)
        with self._loras.inactive(), create(folder, overwrite=overwrite) as writer:
            loading.write_model(writer, model, self._encoders.get)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, commit_message: str | None = None
    ) -> str:
        """Upload the model to the Hugging Face Hub, for `from_pretrained(repo_id)`.

        Log in first with `hf auth login`. A copy of the model is written into the folder for
        temporary files.

        Args:
            repo_id: org/name; the repository is created if it does not exist.
            private: whether a new repository is private.
            commit_message: by default the Hub library's.

        Returns:
            The repository's address.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "MODEL")
            self.save_pretrained(folder)
            return hub.push(folder, repo_id, private=private, commit_message=commit_message)

    @keywords.teaches(keywords.CALL)
    def __call__(
        self,
        prompt: Prompts | None = None,
        prompt_2: Prompts | None = None,
        negative_prompt: Prompts | None = None,
        negative_prompt_2: Prompts | None = None,
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
        subject_image: SubjectImage | Sequence[SubjectImage] | None = None,
        subject_scale: float | None = None,
        negative_subject_scale: float | None = None,
        subject_fit: Fit = "pad",
        subjects: Subjects | None = None,
        subject_start: float = 0.0,
        subject_end: float = 1.0,
        subject_ramp: float = 0.0,
        subject_blocks: str | Sequence[int] = "all",
        reference_image: ReferenceImage | None = None,
        image: Picture | Sequence[Picture] | None = None,
        mask_image: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        max_sequence_length: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> PipelineResult:
        """Draw pictures.

        Arguments are those of diffusers' FluxPipeline, and the subject's. Sizes, steps, scales
        and lengths that are None take the model's defaults, `self.sampling`; for FLUX.1-dev they
        are the published values, which are given here in brackets.

        Args:
            prompt: a text, or a list of p. Prompts and subjects pair up in order; a single one is
                shared by all. None is the empty prompt.
            prompt_2: separate text for T5; None or "" uses `prompt`.
            negative_prompt: text that true classifier-free guidance steers away from, shared or
                one for each prompt.
            negative_prompt_2: separate negative text for T5; None or "" uses `negative_prompt`.
            true_cfg_scale: scale of true classifier-free guidance; 1 turns it off [1]. Above 1,
                every step calls the model twice. Unlike in diffusers, a scale above 1 without
                anything to steer away from is refused, and so is a negative prompt at scale 1.
            height: in pixels, a multiple of 16 up to 4096 [1024].
            width: likewise.
            num_inference_steps: number of denoising steps [28]; another number compiles again.
            sigmas: noise levels in place of `num_inference_steps`, falling within (0, 1].
            guidance_scale: FLUX.1-dev's distilled guidance [3.5]; FLUX.1-schnell ignores it.
            num_images_per_prompt: pictures of each prompt, with the seeds seed, seed + 1, ...
            seed: from 0 to 2^32 - 1, or a list with one for each of the b pictures. A picture
                depends on its own seed alone, whatever else is in the batch.
            latents: packed starting noise in place of a seed, [b, height * width / 256, c].
            prompt_embeds: T5's output, in place of prompts; with `pooled_prompt_embeds`, CLIP's.
                `encode_prompt` returns both.
            pooled_prompt_embeds: see `prompt_embeds`.
            negative_prompt_embeds: likewise in place of negative prompts.
            negative_pooled_prompt_embeds: see `negative_prompt_embeds`.
            subject_image: picture of the character (path, PIL image, array), a list of them, or
                the result of `encode_subject`. None draws with plain FLUX.
            subject_scale: strength of the subject, at least 0, usually 0.8 to 1 [0.9].
            negative_subject_scale: the same in the negative prediction [`subject_scale`, as
                published]. At 0 true guidance steers towards the subject as well as the prompt;
                without a negative prompt it steers away from the empty one.
            subject_fit: how to make the picture square: "pad" with white, or "stretch" as the
                published pipeline does.
            subjects: several subjects of one picture in place of `subject_image`: a list of
                `SubjectPrompt`, shared by all prompts, or one such list for each prompt. If any has
                a region, each is confined to its own, and where regions overlap they add up;
                otherwise all share one attention.
            subject_start: share of the run before which the subjects do nothing.
            subject_end: share of the run after which the subjects do nothing.
            subject_ramp: share of the run over which the scale rises before `subject_start` and
                falls after `subject_end`, instead of at once.
            subject_blocks: blocks of the transformer that see the subjects: "all", "double",
                "single", or a list of numbers, counted from the first double block.
            reference_image: picture that the prompt changes or takes things from, for FLUX.1
                Kontext; a list that pairs up with the prompts; or the result of
                `encode_reference`. It is resized to the nearest of the sizes that Kontext was
                trained with, about 1024 x 1024, and does not decide `height` and `width`.
            image: picture to draw over (image to image), or a list that pairs up with the prompts.
                All are resized to `height` and `width`, which default to the sides of the first,
                or to smaller ones of its aspect ratio where these would be more pixels than the
                model's default.
            mask_image: mask of `image`, white where it is drawn anew and black where it stays
                (inpainting), or transparent where it is drawn anew if it has transparency; one for
                all pictures, or one for each. It is resized like them.
            strength: share of the steps that are taken, from a noised `image` on, within (0, 1]
                [0.6]. 1 forgets the picture but for what the mask keeps.
            max_sequence_length: T5 tokens, at most 512 [512].
            output_type: "pil", "np" (float32 in 0..1) or "latent".
            callback_on_step_end: called after each step as in diffusers, with (pipeline, step,
                timestep in 0..1000, {"latents": latents}); may return {"latents": new}. Steps are
                then separate calls of one compiled step instead of one program.

        Raises:
            ValueError: an argument that cannot be used, in one line.
            FloatingPointError: the model produced numbers that are not finite.
        """
        originals = Originals.read(image, mask_image, strength)
        if originals is not None:
            area = self.sampling.height * self.sampling.width
            height, width = originals.size(height, width, area, self._runner.pixels_per_token)
            strength = STRENGTH if strength is None else strength
        negative_texts = (negative_prompt, negative_prompt_2)
        negative_embeds = (negative_prompt_embeds, negative_pooled_prompt_embeds)
        args = arguments.sampling_arguments(
            self.sampling,
            has_negative=any(x is not None for x in (*negative_texts, *negative_embeds)),
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
            subject_start=subject_start,
            subject_end=subject_end,
            subject_ramp=subject_ramp,
            subject_blocks=subject_blocks,
            max_sequence_length=max_sequence_length,
            output_type=output_type,
            strength=strength,
        )
        args.check_size(self._runner.pixels_per_token)
        embeds = (prompt_embeds, pooled_prompt_embeds)
        length, triggers = args.max_sequence_length, self._loras.triggers
        runner, texts = self._runner, (prompt, prompt_2)
        prompts = text_embeddings(runner, texts, embeds, length, triggers=triggers)
        negative = None
        if args.true_cfg_scale != 1:
            length = prompts.embeds.shape[1]
            negative = text_embeddings(
                runner, negative_texts, negative_embeds, length, prefix="negative_"
            )
        request, seeds = build_request(
            runner,
            self.scheduler,
            args,
            texts=prompts,
            negative=negative,
            subjects=encode_subjects(runner, subject_image, subjects, subject_fit),
            references=encode_references(runner, reference_image),
            originals=originals,
            seed=seed,
            latents=latents,
        )
        steps, total = len(request.sigmas) - 1, len(request.latents)
        if callback_on_step_end is None:
            inputs = runner.transformer, runner.model.adapter, request
            denoised = self._progress.time(steps, partial(runner.sample, request), inputs)
        else:
            after_step = partial(callback_on_step_end, self)
            denoise = partial(runner.sample_stepwise, request)
            denoised = self._progress.count(steps, denoise, after_step)
        told = None if prompt_embeds is not None else arguments.as_list("prompt", prompt or "")
        told = told and [text for text in told for _ in range(total // len(told))]
        return PipelineResult(self._images(denoised, args), seeds, told, args)

    def set_progress_bar_config(
        self, *, disable: bool | None = None, desc: str | None = None, leave: bool = True
    ) -> None:
        """Set how calls show their progress; the compiled programs are the same with and without.

        The bar moves by the clock, as fast as the last call of the same shapes; with
        `callback_on_step_end` it counts steps.

        Args:
            disable: whether to show none; None shows it in a notebook and on a terminal.
            desc: text before the bar.
            leave: whether the finished bar stays.
        """
        self._progress.config = BarConfig(disable, desc, leave)

    def _lora_models(self) -> dict[str, Any]:
        """Return the models that LoRAs may change and that are in memory now, by component."""
        models = {"transformer": self._model.transformer, "clip": self._model.clip}
        models["t5"] = self._encoders.in_memory().get("t5")
        return {component: model for component, model in models.items() if model is not None}

    def __repr__(self) -> str:
        """Say what is loaded, on which devices, in which dtype, and which LoRAs are active."""
        lines = []
        for name, part in self.components.items():
            leaves = jax.tree.leaves(part) if hasattr(part, "config") else []
            size = f", {sum(x.size for x in leaves):,} parameters" if leaves else ""
            lines.append(f"{name}: {type(part).__name__ if part is not None else None}{size}")
        lines.append(f"dtype: {self.dtype}")
        devices = f"mesh {describe(self.mesh)} of {self.mesh.size} x " if self.mesh else ""
        lines.append(f"device: {devices}{self.device.device_kind}")
        loras = ", ".join(f"{name} at {weight:g}" for name, weight in self._loras.active.items())
        lines.append(f"active LoRAs: {loras or None}")
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + "\n)"

    if not TYPE_CHECKING:  # which would take every name for an attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise keywords.no_attribute(self, name)

    def _images(
        self, latents: Array, args: SamplingArguments
    ) -> list[Image.Image] | np.ndarray | Array:
        runner = self._runner
        if args.output_type == "latent":
            runner.check_finite(latents)
            return latents
        pixels = runner.decode(latents, runner.grid(args.height, args.width))
        runner.check_finite(pixels)
        if args.output_type == "np":
            return pixels
        return to_pil(pixels)


class ShapesPipeline(InstantCharacterPipeline):
    """Pipeline of a model of shapes, which compiles the programs of a call and draws nothing."""

    _make_runner = ShapesRunner

    def __init__(self, model: loading.Model):
        super().__init__(model)
        self.set_progress_bar_config(disable=True)

    def _images(self, latents: Any, args: SamplingArguments) -> list[Image.Image]:
        assert isinstance(self._runner, ShapesRunner)
        if args.output_type != "latent":
            self._runner.compile_pictures(latents, self._runner.grid(args.height, args.width))
        return []


@contextmanager
def _compiling_ahead(
    folder: ModelFolder, dtype: Any, ahead: Callable[[InstantCharacterPipeline], Any] | None
) -> Iterator[None]:
    """Run `ahead` in a thread beside the `with` block; see `from_pretrained`."""
    if ahead is None:
        yield
        return

    def run() -> None:
        # The call that follows says what is wrong, and so does the loader of a damaged model.
        with suppress(Exception):
            model = loading.model_shapes(folder, dtype)
            form = partial(drawing_form, platform=platform())
            models = jax.eval_shape(form, model.transformer, model.adapter)
            model.transformer, model.adapter = models
            ahead(ShapesPipeline(model))

    thread = Thread(target=run, name=compilation_cache.AHEAD, daemon=True)
    thread.start()
    yield
    thread.join()
