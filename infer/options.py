"""Options of `python -m infer`: the pipeline's arguments, and where pictures go."""

import argparse
from pathlib import Path
from typing import get_args

import jax

from ic_jax import cli
from ic_jax.config import SamplingConfig
from ic_jax.flow import PATCH
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.images import Fit, read_rgb
from ic_jax.weights.encoders import Keeping
from ic_jax.weights.loading import read_config
from ic_jax.weights.model_folder import ModelFolder

DTYPES = ("bfloat16", "float32")
# Options that the pipeline takes under the same name.
SETTINGS = (
    "true_cfg_scale",
    "height",
    "width",
    "num_inference_steps",
    "sigmas",
    "guidance_scale",
    "subject_scale",
    "negative_subject_scale",
    "max_sequence_length",
)
PASSED_ON = ("prompt_2", "negative_prompt", *SETTINGS)


def _own(name: str, meaning: str) -> str:
    return f"{meaning} (default: the model's own, {getattr(SamplingConfig(), name)} for FLUX.1-dev)"


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Add the options of `draw`."""
    what = p.add_argument_group("what to draw")
    what.add_argument("--model", type=Path, help="model folder from python -m convert from-torch")
    what.add_argument("--subject", metavar="PICTURE", help="picture of the character")
    what.add_argument("--prompt", action="append", help="the scene; repeat for several")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="text file, one prompt a line")
    what.add_argument("--prompt-2", help="for T5, if it is to read something else than CLIP")
    what.add_argument("--negative-prompt", help="what to steer away from; needs --true-cfg-scale")
    what.add_argument("--seed", type=int, nargs="+", default=[0], help="one picture for each")
    what.add_argument(
        "--num-images-per-prompt", type=int, default=1, help="with seeds counting up from --seed"
    )
    how = p.add_argument_group("how to draw it")
    how.add_argument("--height", type=int, help=_own("height", "pixels, a multiple of 16"))
    how.add_argument("--width", type=int, help=_own("width", "pixels, a multiple of 16"))
    how.add_argument(
        "--num-inference-steps", "--steps", type=int, help=_own("num_inference_steps", "Euler's")
    )
    how.add_argument("--sigmas", type=float, nargs="+", help="noise levels instead of --steps")
    for name, meaning in (
        ("guidance_scale", "FLUX.1-dev's distilled one"),
        ("true_cfg_scale", "1 is off"),
        ("subject_scale", "of the adapter"),
    ):
        option = "--" + name.replace("_", "-")
        how.add_argument(option, type=float, help=_own(name, meaning))
    how.add_argument(
        "--negative-subject-scale",
        type=float,
        help="of the adapter in what --true-cfg-scale steers away from (default: the model's own, "
        "--subject-scale for FLUX.1-dev); 0 steers towards the subject, too",
    )
    how.add_argument(
        "--subject-fit", choices=get_args(Fit), default="pad", help="to a square: pad on white"
    )
    how.add_argument(
        "--max-sequence-length", type=int, help=_own("max_sequence_length", "T5 tokens")
    )
    how.add_argument("--lora", action="append", metavar="FILE[=WEIGHT]", help="style LoRA, peft")
    how.add_argument("--trigger", action="append", help="the LoRA's trigger words, one per --lora")
    run = p.add_argument_group("running")
    run.add_argument(
        "--out", type=Path, help="PNG file, or folder (default: out.png, replaced if it exists)"
    )
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="replace pictures that exist; otherwise those with the same arguments are kept",
    )
    run.add_argument(
        "--dtype", choices=DTYPES, help="to compute in (default: bfloat16; on a CPU float32)"
    )
    run.add_argument(
        "--mesh", default="auto", help="devices to spread over, such as data=2,tensor=4"
    )
    run.add_argument(
        "--encoders",
        choices=get_args(Keeping),
        default="keep",
        help="free: T5, SigLIP and DINOv2 are not in memory while pictures are drawn",
    )
    run.add_argument("--no-progress", action="store_true", help="one program for all steps")
    run.add_argument("--no-verify", action="store_true", help="trust the model's files unread")
    cli.add_compile_cache(run)
    cli.add_multiprocess(p)


def prompts(options: argparse.Namespace) -> list[str]:
    """All prompts, in order; an empty one where only a subject is given."""
    given = list(options.prompt or [])
    if options.prompts is not None:
        try:
            lines = options.prompts.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{options.prompts}: byte {error.start} is not UTF-8") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{options.prompts} holds no prompt; write one a line")
        given += found
    return given or [""]


def seeds(options: argparse.Namespace) -> list[int]:
    """Every seed once, in order."""
    each = arguments.check_count("num_images_per_prompt", options.num_images_per_prompt)
    counted = [seed + i for seed in options.seed for i in range(each)]
    return arguments.seeds(list(dict.fromkeys(counted)), prompts=1, images_each=len(set(counted)))


def check(options: argparse.Namespace) -> None:
    """Fill in the model's own settings, and refuse all that can be known to be wrong before
    gigabytes of weights are read."""
    # XLA widens every bfloat16 weight on a CPU, at every step.
    options.dtype = options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = ModelFolder.open(options.model)
    has_own = "sampling" in model.components
    settings = arguments.settings(
        read_config(model, "sampling") if has_own else SamplingConfig(),
        num_images_per_prompt=1,
        subject_fit=options.subject_fit,
        output_type="pil",
        **{name: getattr(options, name) for name in SETTINGS},
    )
    if options.negative_subject_scale is not None and settings.true_cfg_scale == 1.0:
        raise ValueError(
            "--negative-subject-scale does nothing at --true-cfg-scale 1; give more, say 2"
        )
    for name in SETTINGS:
        setattr(options, name, getattr(settings, name))
    settings.check_size(read_config(model, "vae").downscale * PATCH)
    if options.negative_prompt is not None and options.true_cfg_scale == 1.0:
        raise ValueError("--negative-prompt does nothing at --true-cfg-scale 1; give more, say 2")
    if options.subject is not None:
        read_rgb(options.subject)


def loras(options: argparse.Namespace) -> list[tuple[Path, float, str | None]]:
    """(file, weight, trigger) of every --lora."""
    files, triggers = options.lora or [], options.trigger or []
    if len(triggers) > len(files):
        raise ValueError(f"{len(triggers)} --trigger for {len(files)} --lora; one each at most")
    found = []
    for spec, trigger in zip(files, triggers + [None] * (len(files) - len(triggers)), strict=True):
        file, _, weight = spec.rpartition("=") if "=" in spec else (spec, "", "1")
        try:
            found.append((Path(file), float(weight), trigger))
        except ValueError:
            raise ValueError(f"--lora {spec}: {weight!r} is no number; write FILE=0.8") from None
    return found
