"""Command-line options of `python -m infer draw`."""

import argparse
from typing import get_args

from ic_jax import cli
from ic_jax.config import SamplingConfig
from ic_jax.preprocessing.images import Fit
from ic_jax.preprocessing.originals import STRENGTH
from infer import ground_options, loading_options, output
from infer.subject_options import subject_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `draw`."""
    _add_what(parser.add_argument_group("what to draw"))
    _add_how(parser.add_argument_group("how to draw it"))
    _add_running(parser.add_argument_group("running"))
    cli.add_multiprocess(parser)
    cli.add_renamed(parser, prompts="--prompts-file", encoders="--offload-encoders")


def _add_what(group: cli.Arguments) -> None:
    add = group.add_argument
    bundled = "the small model that comes with ic_jax"
    add(
        "--model",
        type=cli.path,
        help=f"MODEL folder, or Hub id org/name of one (default: {bundled})",
    )
    subject = (
        "reference picture of the character; repeat for several, each PICTURE[@REGION][:SCALE], "
        "with a region such as left, 0.5,0,1,1 or a mask's file; A.png+B.png show one character"
    )
    add("--subject", action="append", type=subject_option, metavar="PICTURE", help=subject)
    ground_options.add_arguments(group)
    edited = "picture that the prompt changes or takes things from; for FLUX.1 Kontext"
    add("--reference", type=cli.path, metavar="PICTURE", help=edited)
    add("--image", type=cli.path, metavar="PICTURE", help="picture to draw over, see --strength")
    mask = "mask of --image, white, or else transparent, where it is drawn anew"
    add("--mask", type=cli.path, metavar="PICTURE", help=mask)
    add("--prompt", action="append", help="the scene; repeat for several")
    again = (
        "draw a picture of this command again, from the arguments that it tells; other options "
        "replace them"
    )
    add("--from", dest="from_picture", type=cli.path, metavar="PICTURE", help=again)
    add("--prompts-file", type=cli.path, metavar="FILE", help="text file with one prompt per line")
    add("--prompt-2", metavar="PROMPT", help="separate prompt for T5")
    add("--negative-prompt", metavar="PROMPT", help="what --true-cfg-scale steers away from")
    add("--negative-prompt-2", metavar="PROMPT", help="separate negative prompt for T5")
    seeds = "every prompt is drawn with each of these seeds (default: 0)"
    add("--seed", type=int, nargs="+", help=seeds)
    counted = "pictures for every prompt and seed, with seeds that count up from --seed"
    add("--num-images-per-prompt", type=int, metavar="N", default=1, help=counted)


def _add_how(group: cli.Arguments) -> None:
    add = group.add_argument
    add("--height", type=int, metavar="PIXELS", help=_size("height"))
    add("--width", type=int, metavar="PIXELS", help=_size("width"))
    steps = _help("num_inference_steps", "number of denoising steps")
    add("--num-inference-steps", "--steps", type=int, metavar="N", help=steps)
    levels = "noise levels of the steps, falling from 1, instead of --num-inference-steps"
    add("--sigmas", type=float, nargs="+", metavar="SIGMA", help=levels)
    strength = f"share of the steps that are taken from --image on (default: {STRENGTH})"
    add("--strength", type=float, metavar="SHARE", help=strength)
    for name, meaning in (
        ("guidance_scale", "distilled guidance of FLUX.1-dev; higher follows the prompt more"),
        ("true_cfg_scale", "classifier-free guidance; above 1 every step takes twice as long"),
        ("subject_scale", "strength of the reference picture, usually 0.8 to 1"),
    ):
        option = "--" + name.replace("_", "-")
        add(option, type=float, metavar="SCALE", help=_help(name, meaning))
    add(
        "--negative-subject-scale",
        type=float,
        metavar="SCALE",
        help="strength of the reference picture in the prediction that --true-cfg-scale steers "
        "away from; 0 steers towards the character as well (default: --subject-scale)",
    )
    fit = "how to make the reference picture square: pad with white, or stretch (default: pad)"
    add("--subject-fit", choices=get_args(Fit), help=fit)
    for name, meaning in (
        ("start", "share of the steps before which the subject does nothing (default: 0)"),
        ("end", "share of the steps after which the subject does nothing (default: 1)"),
        ("ramp", "share over which its scale rises before and falls after these (default: 0)"),
    ):
        add(f"--subject-{name}", type=float, metavar="SHARE", help=meaning)
    blocks = "blocks that see the subject: all, double, single or numbers: 0-3,18 (default: all)"
    add("--subject-blocks", metavar="BLOCKS", help=blocks)
    length = _help("max_sequence_length", "length of prompts in T5 tokens")
    add("--max-sequence-length", type=int, metavar="N", help=length)
    lora = (
        "style LoRA and its weight, 1 by default; a file, a folder or a Hub id; repeat for several"
    )
    add("--lora", action="append", metavar="FILE[=WEIGHT]", help=lora)
    trigger = "trigger words of a LoRA, put before every prompt; one for each --lora"
    add("--trigger", action="append", metavar="WORDS", help=trigger)
    fuse = "merge the LoRAs into the transformer's weights: no products at every step, but rounding"
    add("--fuse-lora", action="store_true", help=fuse)


def _add_running(group: cli.Arguments) -> None:
    add = group.add_argument
    out = (
        "picture to write, a .png, .jpg, .webp or .avif, or a folder for several "
        "(default: out.png, or out-2.png, ... where that exists)"
    )
    add("--out", type=output.destination, help=out)
    sheet = (
        "also write a contact sheet, with a row for each prompt and a column for each seed; small "
        "pictures are enlarged"
    )
    add("--grid", type=output.picture_path, metavar="FILE", help=sheet)
    cli.add_overwrite(group, "pictures; otherwise those made with the same settings are kept")
    bar = "no progress bar; runs all steps as one compiled program"
    add("--no-progress", action="store_true", help=bar)
    loading_options.add_arguments(group)


def _size(name: str) -> str:
    return _help(name, "a multiple of 16").replace("(default: ", "(default: that of --image, or ")


def _help(name: str, meaning: str) -> str:
    default = getattr(SamplingConfig(), name)
    return f"{meaning} (default: set by the model, {default} for FLUX.1-dev)"
