"""The model that an engine draws with, its LoRAs by name, and what its pictures tell of it."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ic_jax import InstantCharacterPipeline, activations, cli
from ic_jax.weights.loading import folder_configs
from ic_jax.weights.lora.targets import Targets, targets_of
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from ic_jax.weights.model_source import open_model
from infer import demo, loading_options
from infer.engine.characters import Character
from infer.engine.drawing import Drawing
from infer.engine.engine import MAX_BATCH
from infer.loading_options import default_sampling, dtype_of, environment
from infer.lora_options import LoraOption, lora_options, read_option
from infer.request import SAMPLING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the model and its LoRAs, and say how it is loaded."""
    add = parser.add_argument
    bundled = "the small model that comes with ic_jax"
    add("--model", type=cli.path, help=f"MODEL folder, or Hub id org/name (default: {bundled})")
    style = "style LoRA, which requests name; a file, a folder or a Hub id; repeat for several"
    add("--lora", action="append", metavar="NAME=FILE[=WEIGHT]", help=style)
    trigger = "trigger words of a LoRA, put before every prompt; one for each --lora"
    add("--trigger", action="append", metavar="WORDS", help=trigger)
    batch = "most pictures drawn at once, a power of two"
    add("--max-batch", type=cli.count, metavar="N", default=MAX_BATCH, help=batch)
    loading_options.add_arguments(parser)


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline and what its pictures tell of it."""

    pipe: InstantCharacterPipeline
    name: str  # as the user names it
    loras: Mapping[str, LoraOption]

    def metadata(self, drawing: Drawing, name: Callable[[Character], str]) -> dict[str, Any]:
        """Return what a picture's file tells, as `GenerateRequest.metadata` does.

        Args:
            drawing: of the picture.
            name: returns the name of a character's picture.
        """
        request, settings = drawing.request, asdict(drawing.settings)
        original = request.original
        image, mask = (original.sha256, original.mask_sha256) if original else (None, None)
        loras = [(self.loras[name], weight) for name, weight in request.loras]
        return {
            **environment(),
            "prompt": request.prompt,
            "seed": request.seed,
            "model": self.name,
            "subject": request.subject and name(request.subject),
            "reference": None,
            "subject_sha256": request.subject and request.subject.sha256,
            "subjects": [placed.option(name(placed.character)) for placed in request.subjects],
            "subjects_sha256": [placed.character.sha256 for placed in request.subjects],
            "reference_sha256": None,
            "image": image and f"sha256:{image}",
            "image_sha256": image,
            "mask": mask and f"sha256:{mask}",
            "mask_sha256": mask,
            "prompt_2": request.prompt_2,
            "negative_prompt": request.negative_prompt,
            "negative_prompt_2": request.negative_prompt_2,
            **{name: value for name, value in settings.items() if name in SAMPLING},
            "dtype": str(self.pipe.dtype),
            "lora": [f"{lora.source}={weight!r}" for lora, weight in loras],
            "trigger": [lora.lora.trigger or "" for lora, _ in loras],
            "fuse_lora": False,
        }


def load_with_loras(args: argparse.Namespace) -> LoadedModel:
    """Load the model and the LoRAs of the parsed options; no LoRA is active.

    Raises:
        ValueError: LoRAs without a name, or two of one name.
        NotEnoughMemoryError: the model, or `--max-batch` pictures beside it, do not fit; nothing
            was read.
        WeightsError: a model or LoRA that cannot be used.
    """
    model = open_model(args.model or SMALL_MODEL)
    loras = _loras(args.lora or [], args.trigger or [], targets_of(folder_configs(model)))
    pipe = InstantCharacterPipeline.from_pretrained(
        model,
        dtype_of(args),
        verify=not args.no_verify,
        mesh=args.mesh,
        offload_encoders=args.offload_encoders,
        drawing=_largest(model, args.max_batch),
    )
    pipe.set_progress_bar_config(disable=True)
    for name, lora in loras.items():
        pipe.load_lora_weights(lora.lora, name)
    pipe.set_adapters([])
    name = demo.MODEL_NAME if args.model is None else str(args.model)
    return LoadedModel(pipe, name, loras)


def _largest(model: ModelFolder, max_batch: int) -> activations.Drawing:
    """Return the largest batch of pictures of the model's default size; a mesh may draw more."""
    pictures = 2 ** (max_batch.bit_length() - 1)
    sampling = default_sampling(model)
    return activations.Drawing(
        height=sampling.height,
        width=sampling.width,
        steps=sampling.num_inference_steps,
        text_length=sampling.max_sequence_length,
        pictures=pictures,
        subjects=pictures if "adapter" in model.components else 0,
    )


def _loras(specs: list[str], triggers: list[str], targets: Targets) -> dict[str, LoraOption]:
    """Return the LoRAs of NAME=FILE[=WEIGHT] by name."""
    named = [spec.partition("=") for spec in specs]
    for spec, (name, _, source) in zip(specs, named, strict=True):
        if not name or not source:
            raise ValueError(f"--lora {spec}: requests name it; write NAME=FILE")
    names = [name for name, *_ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"--lora {', '.join(names)}: two have one name; give each its own")
    options = lora_options([source for *_, source in named], triggers)
    return {n: read_option(*x, targets) for n, x in zip(names, options, strict=True)}
