"""Request of `python -m infer draw`: its options, parsed and checked before any weights load."""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ic_jax import auto_mesh, multihost
from ic_jax.activations import Drawing
from ic_jax.cli import say
from ic_jax.config import SamplingConfig
from ic_jax.files import sha256_file
from ic_jax.flow import PATCH
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import Picture
from ic_jax.preprocessing.originals import STRENGTH, Originals
from ic_jax.preprocessing.references import to_references
from ic_jax.preprocessing.tokenizers import check_prompt
from ic_jax.subjects import block_factors
from ic_jax.text_files import lines_of, read_text
from ic_jax.weights.loading import folder_configs, read_config
from ic_jax.weights.lora.targets import targets_of
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from ic_jax.weights.model_source import open_model
from infer import demo, ground_options, output, subject_options
from infer.from_picture import PICTURES, with_picture
from infer.ground_options import GROUND
from infer.loading_options import default_sampling, dtype_of, environment
from infer.lora_options import LoraOption, lora_options, read_option
from infer.output import Destination, Job
from infer.subject_options import SubjectOption

CONTROL = ("subject_start", "subject_end", "subject_ramp", "subject_blocks")
# Settings that the pipeline takes under the same name.
SAMPLING = (
    "true_cfg_scale",
    "height",
    "width",
    "num_inference_steps",
    "sigmas",
    "guidance_scale",
    "subject_scale",
    "negative_subject_scale",
    "subject_fit",
    "max_sequence_length",
    "strength",
    *CONTROL,
)
OF_SUBJECTS = ("subject_scale", "negative_subject_scale", "subject_fit", *CONTROL)


@dataclass(frozen=True)
class GenerateRequest:
    """Pictures that one command asks for, and how to draw them."""

    jobs: tuple[Job, ...]
    model: ModelFolder
    model_name: str  # as the user names it
    subjects: tuple[SubjectOption, ...]
    figures: Mapping[Path, Picture]  # of the subjects by file: cut out, or the file itself
    reference: Path | None  # file of the picture to edit
    image: Path | None  # file of the picture to draw over
    mask: Path | None  # file of its mask
    told: dict[str, Any]  # what pictures tell of these files
    prompt_2: str | None
    negative_prompt: str | None
    negative_prompt_2: str | None
    sampling: dict[str, Any]  # the pipeline's arguments in SAMPLING
    loras: tuple[LoraOption, ...]
    fuse_lora: bool
    dtype: str
    mesh: Mesh | None
    offload_encoders: bool
    verify: bool  # the checksums of the model
    progress: bool
    overwrite: bool
    keep: bool  # what came up under a picture's name while it was drawn

    def drawing(self, pictures: int) -> Drawing:
        """Return the sizes of so many pictures that are drawn together."""
        sampling = self.sampling
        return Drawing(
            height=sampling["height"],
            width=sampling["width"],
            steps=len(sampling["sigmas"] or ()) or sampling["num_inference_steps"],
            text_length=sampling["max_sequence_length"],
            pictures=pictures,
            subjects=sum(len(subject.pictures) for subject in self.subjects),
            true_cfg=sampling["true_cfg_scale"] != 1,
        )

    def metadata(self, job: Job) -> dict[str, Any]:
        """Return what a picture's file tells about how it was made, as JSON values."""
        loras = [(f"{x.source}={x.lora.weight!r}", x.lora.trigger or "") for x in self.loras]
        return {
            **environment(),
            "prompt": job.prompt,
            "seed": job.seed,
            "model": self.model_name,
            **self.told,
            "prompt_2": self.prompt_2,
            "negative_prompt": self.negative_prompt,
            "negative_prompt_2": self.negative_prompt_2,
            **self.sampling,
            "dtype": self.dtype,
            "lora": [name for name, _ in loras],
            "trigger": [trigger for _, trigger in loras],
            "fuse_lora": self.fuse_lora,
        }


def read_request(args: argparse.Namespace) -> GenerateRequest:
    """Return the request that the parsed options make.

    Whatever can be checked without loading weights is checked here.

    Raises:
        ValueError: an option that cannot be used.
        FileNotFoundError: no such model, picture or prompts file.
        WeightsError: the model is no MODEL folder, or incomplete.
        ShardingError: the model cannot be laid out on the mesh.
    """
    command_line = args
    if args.from_picture is not None:
        args = with_picture(args)
    subjects, prompts = _subjects_and_prompts(args)
    _refuse_without_effect(command_line, subjects)
    loras = lora_options(args.lora or [], args.trigger or [])
    if args.fuse_lora and not loras:
        raise ValueError("--fuse-lora merges LoRAs, and there is none; name one with --lora")
    seeds = _seeds([0] if args.seed is None else args.seed, args.num_images_per_prompt)
    keep = args.out is None and not args.overwrite
    jobs = _jobs(args.out or output.DEFAULT, prompts, seeds, keep=keep)
    if args.grid is not None:
        _check_grid(args.grid, jobs)
    model = open_model(args.model or SMALL_MODEL)
    multiple = read_config(model, "vae").downscale * PATCH
    settings = _settings(args, model, multiple)
    configs = folder_configs(model)
    if command_line.guidance_scale is not None and not configs["transformer"].guidance_embeds:
        raise ValueError("--guidance-scale does nothing: this model has no guidance embedding")
    block_factors(settings.subject_blocks, configs["transformer"])
    for subject in subjects:
        subject.check()
    files = dict.fromkeys(picture for subject in subjects for picture in subject.pictures)
    figures = ground_options.figures(args, list(files))
    if args.reference is not None:
        to_references([args.reference], multiple)
    pictures = {name: getattr(args, name) for name in PICTURES}
    dtype = dtype_of(args)
    return GenerateRequest(
        jobs=tuple(jobs),
        model=model,
        model_name=demo.MODEL_NAME if args.model is None else str(args.model),
        subjects=tuple(subjects),
        figures=figures,
        reference=args.reference,
        image=args.image,
        mask=args.mask,
        told={name: x and str(x) for name, x in pictures.items()}
        | {f"{name}_sha256": x and sha256_file(x) for name, x in pictures.items()}
        | subject_options.metadata(subjects)
        | ground_options.metadata(args),
        prompt_2=args.prompt_2,
        negative_prompt=args.negative_prompt,
        negative_prompt_2=args.negative_prompt_2,
        sampling={name: value for name, value in asdict(settings).items() if name in SAMPLING},
        loras=tuple(read_option(*option, targets_of(configs)) for option in loras),
        fuse_lora=args.fuse_lora,
        dtype=dtype,
        mesh=auto_mesh.for_inference(args.mesh, model, dtype),
        offload_encoders=args.offload_encoders,
        verify=not args.no_verify,
        progress=not args.no_progress,
        overwrite=args.overwrite,
        keep=keep,
    )


def _subjects_and_prompts(args: argparse.Namespace) -> tuple[list[SubjectOption], list[str]]:
    """Return the subjects and every prompt once; those of the demo where none is named."""
    subjects, prompts = args.subject or [], _prompts(args.prompt, args.prompts_file)
    if args.model is None:
        say(demo.NO_MODEL)
        if args.reference is args.image is None and not (subjects or prompts):
            subjects = [SubjectOption(str(demo.SUBJECT), (demo.SUBJECT,))]
            prompts = [demo.PROMPT]
            say(demo.NO_PROMPT)
    if not prompts:
        raise ValueError('there is no scene to draw; give --prompt (--prompt "" leaves it open)')
    for text in (*prompts, args.prompt_2, args.negative_prompt, args.negative_prompt_2):
        check_prompt(text or "")
    unique = list(dict.fromkeys(prompts))
    if len(unique) < len(prompts):
        repeated = len(prompts) - len(unique)
        say(f"{repeated} of {len(prompts)} prompts repeat another; equal prompts are drawn once")
    return subjects, unique


def _refuse_without_effect(args: argparse.Namespace, subjects: Sequence[SubjectOption]) -> None:
    """Raise ValueError for an option of the command line that others leave without effect."""
    if args.sigmas is not None and args.num_inference_steps is not None:
        raise ValueError("--sigmas and --num-inference-steps exclude each other; give one")
    if args.image is None and args.mask is not None:
        raise ValueError("--mask does nothing without --image, the picture that it belongs to")
    if args.image is None and args.strength is not None:
        raise ValueError("--strength does nothing without --image, the picture to draw over")
    for name in () if subjects else (*OF_SUBJECTS, *GROUND):
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} does nothing without a subject; give --subject PICTURE")


def _check_grid(file: Path, jobs: list[Job]) -> None:
    """Raise ValueError if these pictures cannot be put on a contact sheet."""
    if multihost.is_multiprocess():
        raise ValueError("--grid needs a single process; make one later with `infer grid`")
    if file in [job.file for job in jobs]:
        raise ValueError(f"--grid {file} is the name of a picture; give it another")


def _jobs(out: Destination, prompts: list[str], seeds: list[int], *, keep: bool) -> list[Job]:
    """Return the pictures to draw, the same in every process; `keep` takes names that are free."""
    if not keep:
        return output.jobs(out, prompts, seeds)
    stem = multihost.broadcast_json("stem", partial(output.free_stem, out, prompts, seeds))
    if stem != out.stem:
        say(f"{out.stem} is the name of a picture that exists; this run's name is {stem}")
    return output.jobs(out._replace(stem=stem), prompts, seeds)


def _settings(args: argparse.Namespace, model: ModelFolder, multiple: int) -> SamplingArguments:
    """Return the sampling settings: the options, and the model's defaults where none is set."""
    defaults, fit = default_sampling(model), args.subject_fit or "pad"
    values = {name: getattr(args, name) for name in SAMPLING} | {"subject_fit": fit}
    values = {k: v for k, v in values.items() if v is not None or k not in CONTROL}
    originals = Originals.read(args.image, args.mask, args.strength)
    if originals is not None:
        area = defaults.height * defaults.width
        strength = STRENGTH if args.strength is None else args.strength
        size = originals.size(args.height, args.width, area, multiple)
        values |= {"height": size[0], "width": size[1], "strength": strength}
    settings = arguments.sampling_arguments(
        defaults,
        has_negative=args.negative_prompt is not None or args.negative_prompt_2 is not None,
        num_images_per_prompt=1,
        output_type="pil",
        **values,
    )
    settings.check_size(multiple)
    if "sampling" in model.components:
        _warn_of_another_size(settings, defaults)
    return settings


def _warn_of_another_size(settings: SamplingArguments, default: SamplingConfig) -> None:
    """Warn of a size that a model with sampling settings of its own was not trained at."""
    size, trained = (settings.height, settings.width), (default.height, default.width)
    if size != trained:
        warnings.warn(
            f"this model was trained at {trained[1]} x {trained[0]} pixels; its pictures are worse "
            f"at {size[1]} x {size[0]}",
            stacklevel=2,
        )


def _prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """Return all prompts, those of the file last."""
    if file is None:
        return prompts or []
    written = [line.strip() for line in lines_of(read_text(file)) if line.strip()]
    if not written:
        raise ValueError(f"{file} holds no prompt; write one prompt per line")
    return (prompts or []) + written


def _seeds(seeds: list[int], num_images_per_prompt: int) -> list[int]:
    """Return every seed once, in order."""
    count = arguments.check_count("num_images_per_prompt", num_images_per_prompt)
    counted = list(dict.fromkeys(seed + i for seed in seeds for i in range(count)))
    return arguments.seeds(counted, prompts=1, images_each=len(counted))
