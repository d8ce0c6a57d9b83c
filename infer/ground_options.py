"""`--subject-ground`, `--subject-mask` and `--matting`: characters cut out of their pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ic_jax import cli
from ic_jax.matting import OnnxMatting
from ic_jax.preprocessing.figures import Ground, prepare_subject
from ic_jax.preprocessing.images import ImageError, Picture

GROUND = ("subject_ground", "subject_mask", "matting")  # destinations of the options


def add_arguments(group: cli.Arguments) -> None:
    """Add the options."""
    add = group.add_argument
    ground = "keep the picture's ground, or cut the character out of it (default: keep)"
    add("--subject-ground", choices=get_args(Ground), help=ground)
    mask = "mask of the character, which is white in it; cuts it out"
    add("--subject-mask", type=cli.path, metavar="PICTURE", help=mask)
    matting = (
        "ONNX file of a matting network, or Hub id of one, such as BiRefNet's; of an ISNet "
        "isnet:MODEL; cuts it out"
    )
    add("--matting", metavar="MODEL", help=matting)


def cuts(args: argparse.Namespace) -> bool:
    """Return whether the parsed options cut characters out; ValueError if they contradict."""
    ground, mask, matting = (getattr(args, name) for name in GROUND)
    has_source = mask is not None or matting is not None
    if ground == "keep" and has_source:
        raise ValueError("--subject-ground keep leaves a mask and --matting without effect")
    if mask is not None and matting is not None:
        raise ValueError("--subject-mask and --matting exclude each other; give one")
    return has_source or ground == "cut"


def figures(args: argparse.Namespace, pictures: Sequence[Path]) -> dict[Path, Picture]:
    """Return what the encoders get of each picture: the character cut out, or the file itself.

    Raises:
        ValueError: options that contradict, or a mask for several pictures.
        ImageError: a picture out of which nothing can be cut.
    """
    if not cuts(args):
        return {picture: picture for picture in pictures}
    if args.subject_mask is not None and len(pictures) > 1:
        names = ", ".join(map(str, pictures))
        raise ValueError(f"--subject-mask is of one picture, and these are several: {names}")
    matting = None if args.matting is None else OnnxMatting(args.matting)
    return {picture: _cut(picture, args.subject_mask, matting) for picture in pictures}


def metadata(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a picture tells about the options, but for the mask, as JSON values."""
    return {"subject_ground": "cut" if cuts(args) else None, "matting": args.matting}


def _cut(picture: Path, mask: Path | None, matting: OnnxMatting | None) -> Picture:
    try:
        return prepare_subject(picture, mask=mask, matting=matting)
    except ImageError as error:
        if str(picture) in str(error):
            raise
        raise ImageError(f"{picture}: {error}") from None
