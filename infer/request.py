"""Request of `python -m infer draw`: its options, parsed and checked before any weights load."""

import argparse
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ic_jax import auto_mesh
from ic_jax.cli import say
from ic_jax.config import SamplingConfig
from ic_jax.flow import PATCH
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import read_rgb
from ic_jax.preprocessing.references import to_references
from ic_jax.text_files import lines_of, read_text
from ic_jax.version import __version__
from ic_jax.weights.loading import folder_configs, read_config
from ic_jax.weights.lora.delta import LoraFile
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.source import find_lora
from ic_jax.weights.lora.targets import Targets, targets_of
from ic_jax.weights.lora.writing import TRIGGER
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from ic_jax.weights.model_source import open_model
from ic_jax.weights.safetensors_io import read_metadata
from infer import demo, output
from infer.output import Job

DEFAULT_OUT = Path("out.png")
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
)


class LoraOption(NamedTuple):
    """A `--lora`, read with its weight and its `--trigger`."""

    source: str
    lora: LoraFile


@dataclass(frozen=True)
class GenerateRequest:
    """Pictures that one command asks for, and how to draw them."""

    jobs: tuple[Job, ...]
    model: ModelFolder
    subject: Path | None  # file of the character's picture
    reference: Path | None  # file of the picture to edit
    prompt_2: str | None
    negative_prompt: str | None
    negative_prompt_2: str | None
    sampling: dict[str, Any]  # the pipeline's arguments in SAMPLING
    loras: tuple[LoraOption, ...]
    dtype: str
    mesh: Mesh | None
    offload_encoders: bool
    verify: bool  # the checksums of the model
    progress: bool
    overwrite: bool

    def metadata(self, job: Job) -> dict[str, Any]:
        """Return what a picture's PNG tells about how it was made, as JSON values."""
        loras = [(f"{x.source}={x.lora.weight:g}", x.lora.trigger) for x in self.loras]
        return {
            "ic_jax": __version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "prompt": job.prompt,
            "seed": job.seed,
            "model": str(self.model.path),
            "subject": None if self.subject is None else str(self.subject),
            "reference": None if self.reference is None else str(self.reference),
            "prompt_2": self.prompt_2,
            "negative_prompt": self.negative_prompt,
            "negative_prompt_2": self.negative_prompt_2,
            **self.sampling,
            "dtype": self.dtype,
            "lora": [name for name, _ in loras],
            "trigger": [trigger for _, trigger in loras],
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
    subject, prompts = args.subject, _prompts(args.prompt, args.prompts_file)
    if args.model is None:
        say(demo.NO_MODEL)
        if subject is None and not prompts:
            subject, prompts = demo.SUBJECT, [demo.PROMPT]
            say(demo.NO_PROMPT)
    loras = _lora_options(args.lora or [], args.trigger or [])
    seeds = _seeds(args.seed, args.num_images_per_prompt)
    jobs = output.jobs(args.out or DEFAULT_OUT, prompts or [""], seeds)
    model = open_model(args.model or SMALL_MODEL)
    multiple = read_config(model, "vae").downscale * PATCH
    settings = _settings(args, model, multiple)
    targets = targets_of(folder_configs(model))
    if subject is not None:
        read_rgb(subject)
    if args.reference is not None:
        to_references([args.reference], multiple)
    # XLA widens every bfloat16 weight on a CPU, at every step.
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return GenerateRequest(
        jobs=tuple(jobs),
        model=model,
        subject=subject,
        reference=args.reference,
        prompt_2=args.prompt_2,
        negative_prompt=args.negative_prompt,
        negative_prompt_2=args.negative_prompt_2,
        sampling={name: value for name, value in asdict(settings).items() if name in SAMPLING},
        loras=tuple(_read_lora(*option, targets) for option in loras),
        dtype=dtype,
        mesh=auto_mesh.for_inference(args.mesh, model, dtype),
        offload_encoders=args.offload_encoders,
        verify=not args.no_verify,
        progress=not args.no_progress,
        overwrite=args.overwrite or args.out is None,
    )


def _settings(args: argparse.Namespace, model: ModelFolder, multiple: int) -> SamplingArguments:
    """Return the sampling settings: the options, and the model's defaults where none is set."""
    has_own = "sampling" in model.components
    settings = arguments.sampling_arguments(
        read_config(model, "sampling") if has_own else SamplingConfig(),
        has_negative=args.negative_prompt is not None or args.negative_prompt_2 is not None,
        num_images_per_prompt=1,
        output_type="pil",
        **{name: getattr(args, name) for name in SAMPLING},
    )
    settings.check_size(multiple)
    if has_own:
        _warn_of_another_size(settings, read_config(model, "sampling"))
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


def _lora_options(specs: list[str], triggers: list[str]) -> list[tuple[str, float, str | None]]:
    """Return the source, weight and trigger of each `--lora`."""
    if len(triggers) > len(specs):
        raise ValueError(f"{len(triggers)} --trigger for {len(specs)} --lora; one each at most")
    padded = triggers + [None] * (len(specs) - len(triggers))
    return [(*_weighted(spec), trigger) for spec, trigger in zip(specs, padded, strict=True)]


def _weighted(spec: str) -> tuple[str, float]:
    source, _, weight = spec.rpartition("=") if "=" in spec else (spec, "", "1")
    try:
        return source, float(weight)
    except ValueError:
        raise ValueError(f"--lora {spec}: {weight!r} is no number; write FILE=0.8") from None


def _read_lora(source: str, weight: float, trigger: str | None, targets: Targets) -> LoraOption:
    file = find_lora(source)
    lora = read_lora(file, weight, trigger, targets=targets)
    if trigger is None and (trained := read_metadata(file).get(TRIGGER)):
        say(f'--lora {source} was trained with a trigger; --trigger "{trained}" puts it first')
    return LoraOption(source, lora)
