"""Command-line options of `python -m infer draw`."""

import argparse
from pathlib import Path
from typing import get_args

from ic_jax import cli
from ic_jax.config import SamplingConfig
from ic_jax.preprocessing.images import Fit

DTYPES = ("bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `draw`."""
    _add_what(parser.add_argument_group("what to draw"))
    _add_how(parser.add_argument_group("how to draw it"))
    _add_running(parser.add_argument_group("running"))
    cli.add_multiprocess(parser)
    cli.add_renamed(parser, prompts="--prompts-file", encoders="--offload-encoders")


def _add_what(group: cli.Arguments) -> None:
    add = group.add_argument
    add(
        "--model",
        metavar="MODEL",
        type=Path,
        help="folder written by `python -m convert from-torch` or `python -m train export`, "
        "or Hub id org/name of one (default: the small model that comes with ic_jax)",
    )
    add("--subject", metavar="PICTURE", help="reference picture of the character")
    add("--prompt", action="append", help="the scene; repeat for several")
    add("--prompts-file", type=Path, metavar="FILE", help="text file with one prompt per line")
    add("--prompt-2", metavar="PROMPT", help="separate prompt for T5 (default: --prompt)")
    add(
        "--negative-prompt",
        metavar="PROMPT",
        help="what to steer away from; needs --true-cfg-scale above 1",
    )
    add(
        "--negative-prompt-2",
        metavar="PROMPT",
        help="separate negative prompt for T5 (default: --negative-prompt)",
    )
    add(
        "--seed",
        type=int,
        nargs="+",
        default=[0],
        help="one or more seeds, each for a picture of every prompt (default: 0)",
    )
    add(
        "--num-images-per-prompt",
        type=int,
        metavar="N",
        default=1,
        help="pictures for every prompt and seed, with seeds that count up from --seed",
    )


def _add_how(group: cli.Arguments) -> None:
    add = group.add_argument
    add(
        "--height", type=int, metavar="PIXELS", help=_of_model("height", "height, a multiple of 16")
    )
    add("--width", type=int, metavar="PIXELS", help=_of_model("width", "width, a multiple of 16"))
    add(
        "--num-inference-steps",
        "--steps",
        type=int,
        metavar="N",
        help=_of_model("num_inference_steps", "number of denoising steps"),
    )
    add(
        "--sigmas",
        type=float,
        nargs="+",
        metavar="SIGMA",
        help="noise levels of the steps, falling from 1, instead of --num-inference-steps",
    )
    for name, meaning in (
        ("guidance_scale", "distilled guidance of FLUX.1-dev: higher follows the prompt more"),
        (
            "true_cfg_scale",
            "strength of classifier-free guidance away from --negative-prompt; 1 is off, more "
            "doubles the time",
        ),
        ("subject_scale", "strength of the reference picture, from 0; usually 0.8 to 1"),
    ):
        option = "--" + name.replace("_", "-")
        add(option, type=float, metavar="SCALE", help=_of_model(name, meaning))
    add(
        "--negative-subject-scale",
        type=float,
        metavar="SCALE",
        help="strength of the reference picture in the prediction that --true-cfg-scale steers "
        "away from; 0 steers towards the character as well (default: --subject-scale)",
    )
    add(
        "--subject-fit",
        choices=get_args(Fit),
        default="pad",
        help="how to make the reference picture square: pad with white, or stretch",
    )
    add(
        "--max-sequence-length",
        type=int,
        metavar="N",
        help=_of_model("max_sequence_length", "length of the prompt in T5 tokens"),
    )
    add(
        "--lora",
        action="append",
        metavar="FILE[=WEIGHT]",
        help="style LoRA (peft layout) and its weight, 1 by default; repeat for several",
    )
    add(
        "--trigger",
        action="append",
        metavar="WORDS",
        help="trigger words of a LoRA, put before every prompt; one for each --lora",
    )


def _add_running(group: cli.Arguments) -> None:
    add = group.add_argument
    add(
        "--out",
        type=Path,
        help="PNG file, or folder for several pictures (default: out.png, replaced if it exists)",
    )
    cli.add_overwrite(
        group, "pictures that exist; otherwise those made with the same settings are kept"
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="dtype of the weights and of the computation (default: bfloat16; float32 on a CPU)",
    )
    add(
        "--mesh",
        metavar="AXES",
        default="auto",
        help="devices to spread the model over, such as data=2,tensor=4 (docs/sharding.md)",
    )
    add(
        "--offload-encoders",
        action="store_true",
        help="load T5, SigLIP and DINOv2 only to encode, and free them before sampling",
    )
    add(
        "--no-progress",
        action="store_true",
        help="no progress bar; runs all steps as one compiled program",
    )
    add(
        "--no-verify",
        action="store_true",
        help="load the model without comparing its files with their checksums",
    )
    cli.add_compile_cache(group)


def _of_model(name: str, meaning: str) -> str:
    return (
        f"{meaning} (default: set by the model, {getattr(SamplingConfig(), name)} for FLUX.1-dev)"
    )
