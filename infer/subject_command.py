"""`python -m infer subject`: what the image encoders see of a character's picture."""

import argparse
from typing import get_args

from PIL import Image

from ic_jax import cli
from ic_jax.cli import say
from ic_jax.files import atomic_write
from ic_jax.preprocessing.images import Fit, encoder_pixels, read_rgb, to_square
from ic_jax.weights.loading import read_config
from ic_jax.weights.model_folder import SMALL_MODEL
from ic_jax.weights.model_source import open_model
from infer import ground_options, output
from infer.picture_file import encode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `subject`."""
    add = parser.add_argument
    add("picture", metavar="PICTURE", type=cli.path, help="reference picture of the character")
    out = "picture to write, a .png, .jpg, .webp or .avif"
    add("--out", type=output.picture_path, required=True, metavar="FILE", help=out)
    model = "MODEL folder, or Hub id, whose encoders see the picture (default: the small model)"
    add("--model", type=cli.path, help=model)
    ground_options.add_arguments(parser)
    fit = "how to make the reference picture square: pad with white, or stretch (default: pad)"
    add("--subject-fit", choices=get_args(Fit), default="pad", help=fit)
    cli.add_overwrite(parser, "an existing FILE")


def run(args: argparse.Namespace) -> None:
    """Write what the encoders see."""
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists; give --overwrite or another --out")
    size = read_config(open_model(args.model or SMALL_MODEL), "siglip").image_size
    (picture,) = ground_options.figures(args, [args.picture]).values()
    seen = encoder_pixels(to_square(read_rgb(picture), args.subject_fit), size)
    atomic_write(args.out, encode(Image.fromarray(seen), args.out.suffix, {}))
    say(f"{args.out} is what the encoders see of {args.picture}: {len(seen)} x {len(seen)} pixels")
