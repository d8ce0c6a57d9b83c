"""`python -m infer subject`: what the image encoders see of a character's picture."""

import argparse
from typing import get_args

from PIL import Image

from ic_jax import cli
from ic_jax.cli import say
from ic_jax.files import atomic_write
from ic_jax.matting import OnnxMatting
from ic_jax.preprocessing.figures import Ground, prepare_subject
from ic_jax.preprocessing.images import Fit, encoder_pixels, read_rgb, to_square
from ic_jax.weights.loading import read_config
from ic_jax.weights.model_folder import SMALL_MODEL
from ic_jax.weights.model_source import open_model
from infer import output
from infer.picture_file import encode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `subject`."""
    add = parser.add_argument
    add("picture", metavar="PICTURE", type=cli.path, help="reference picture of the character")
    out = "picture to write, a .png, .jpg, .webp or .avif"
    add("--out", type=output.picture_path, required=True, metavar="FILE", help=out)
    model = "MODEL folder, or Hub id, whose encoders see the picture (default: the small model)"
    add("--model", type=cli.path, help=model)
    ground = "keep the picture's ground, or cut the character out of it (default: keep)"
    add("--subject-ground", choices=get_args(Ground), help=ground)
    mask = "mask of the character, which is white in it; cuts it out"
    add("--subject-mask", type=cli.path, metavar="PICTURE", help=mask)
    matting = "ONNX file of a matting network, or Hub id of one, such as BiRefNet's; cuts it out"
    add("--matting", metavar="MODEL", help=matting)
    fit = "how to make the reference picture square: pad with white, or stretch (default: pad)"
    add("--subject-fit", choices=get_args(Fit), default="pad", help=fit)
    cli.add_overwrite(parser, "an existing FILE")


def run(args: argparse.Namespace) -> None:
    """Write what the encoders see."""
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists; give --overwrite or another --out")
    cuts = args.subject_mask is not None or args.matting is not None
    if args.subject_ground == "keep" and cuts:
        raise ValueError("--subject-ground keep leaves a mask and --matting without effect")
    size = read_config(open_model(args.model or SMALL_MODEL), "siglip").image_size
    picture = args.picture
    if cuts or args.subject_ground == "cut":
        matting = None if args.matting is None else OnnxMatting(args.matting)
        picture = prepare_subject(picture, mask=args.subject_mask, matting=matting)
    seen = encoder_pixels(to_square(read_rgb(picture), args.subject_fit), size)
    atomic_write(args.out, encode(Image.fromarray(seen), args.out.suffix, {}))
    say(f"{args.out} is what the encoders see of {args.picture}: {len(seen)} x {len(seen)} pixels")
