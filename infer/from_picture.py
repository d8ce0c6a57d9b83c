"""`--from PICTURE`: options that a picture's own metadata tells, which is untrusted text."""

import argparse
import unicodedata
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from ic_jax.cli import say
from ic_jax.files import sha256_file
from ic_jax.from_dict import dataclass_from_dict
from ic_jax.matting import split_scale
from ic_jax.preprocessing.arguments import check_choice, check_count
from ic_jax.preprocessing.figures import Ground
from infer import demo
from infer.ground_options import GROUND
from infer.loading_options import DTYPES, environment
from infer.picture_file import read_metadata
from infer.subject_options import SubjectOption, subject_option

MAX_STEPS = 1000
PICTURES = ("reference", "image", "mask", "subject_mask")
DIGESTS = tuple(f"{name}_sha256" for name in ("subject", "subjects", *PICTURES))


@dataclass(frozen=True)
class PictureArguments:
    """Arguments that a picture tells; the fields are those of `GenerateRequest.metadata`.

    An unknown one is refused: without it the picture would be another.
    """

    prompt: str
    seed: int
    model: str
    dtype: str
    ic_jax: str = ""
    jax: str = ""
    device: str = ""
    subject: str | None = None
    subject_sha256: str | None = None
    subjects: tuple[str, ...] = ()
    subjects_sha256: tuple[str, ...] = ()
    subject_ground: str | None = None
    subject_mask: str | None = None
    subject_mask_sha256: str | None = None
    matting: str | None = None
    reference: str | None = None
    reference_sha256: str | None = None
    image: str | None = None
    image_sha256: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    strength: float | None = None
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    guidance_scale: float | None = None
    subject_scale: float | None = None
    negative_subject_scale: float | None = None
    subject_fit: str | None = None
    subject_start: float | None = None
    subject_end: float | None = None
    subject_ramp: float | None = None
    subject_blocks: str | None = None
    max_sequence_length: int | None = None
    lora: tuple[str, ...] = ()
    trigger: tuple[str, ...] = ()
    fuse_lora: bool = False

    def __post_init__(self) -> None:
        """Check what no other code bounds."""
        steps = (self.num_inference_steps or 1, len(self.sigmas or [1.0]))
        check_count("num_inference_steps", max(steps), MAX_STEPS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("subject_ground", self.subject_ground or "keep", get_args(Ground))
        texts = [value for value in vars(self).values() if isinstance(value, str)]
        for text in (*texts, *self.subjects, *self.lora, *self.trigger):
            # They would reach the terminal.
            if any(unicodedata.category(c) == "Cc" and c not in "\t\n" for c in text):
                raise ValueError(f"{text!r} holds control characters")
        self._subjects()

    def options(self) -> dict[str, Any]:
        """Return the options that draw this picture, by their destination."""
        facts = ("ic_jax", "jax", "device", "subjects", *DIGESTS)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in facts}
        return values | {
            "prompt": [self.prompt],
            "seed": [self.seed],
            "model": None if self.model == demo.MODEL_NAME else Path(self.model),
            **{name: Path(file) for name in PICTURES if (file := getattr(self, name)) is not None},
            "subject": self._subjects(),
            "lora": list(self.lora),
            "trigger": [words or None for words in self.trigger],
        }

    def _subjects(self) -> list[SubjectOption] | None:
        if self.subject is not None:
            return [SubjectOption(self.subject, (Path(self.subject),))]
        try:
            return [subject_option(text) for text in self.subjects] or None
        except argparse.ArgumentTypeError as error:
            raise ValueError(str(error)) from None


def with_picture(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options of the command line, filled up with those of `--from`'s picture.

    Raises:
        FileNotFoundError: there is no such picture, or not what it was drawn with.
        ValueError: the picture does not tell how it was drawn, or cannot be drawn by this version.
    """
    picture = args.from_picture
    if not picture.is_file():
        raise FileNotFoundError(f"{picture}: there is no such picture")
    told = read_arguments(picture)
    options = {k: v for k, v in told.options().items() if k not in _replaced(args, told)}
    _check_paths(picture, options)
    _say_what_differs(picture, told, options)
    return argparse.Namespace(**vars(args) | options)


def read_arguments(picture: Path) -> PictureArguments:
    """Return the arguments that a picture tells.

    Raises:
        ValueError: it does not tell how it was drawn, or cannot be drawn by this version.
    """
    metadata = read_metadata(picture)
    if metadata is not None and "grid" in metadata:
        raise ValueError(f"{picture} is a contact sheet; give one of its pictures")
    if metadata is None:
        raise ValueError(
            f"{picture} does not tell how it was drawn; --from takes a picture of `python -m infer`"
        )
    try:
        return dataclass_from_dict(PictureArguments, metadata)
    except ValueError as error:
        raise ValueError(f"{picture} cannot be drawn again: {error}") from None


def _replaced(args: argparse.Namespace, told: PictureArguments) -> set[str]:
    """Return the options of the picture that the command line replaces."""
    names = {name for name, value in vars(args).items() if value is not None and value is not False}
    if args.prompts_file is not None:
        names.add("prompt")
    if args.lora is not None:
        names.add("trigger")
    if names.intersection(GROUND):  # they say together how a character is cut out
        names.update(GROUND)
    if args.subject is not None:
        names.add("subject_mask")  # which is that of another picture
    if args.num_inference_steps is not None:
        names.add("sigmas")
    elif args.sigmas is not None or told.sigmas is not None:
        names.add("num_inference_steps")
    if args.true_cfg_scale == 1:
        names |= {"negative_prompt", "negative_prompt_2", "negative_subject_scale"}
    if args.subject_scale is not None and told.negative_subject_scale == told.subject_scale:
        names.add("negative_subject_scale")
    return names


def _check_paths(picture: Path, options: dict[str, Any]) -> None:
    """Raise FileNotFoundError unless everything that a picture names is on this machine.

    Nothing is downloaded because a picture says so.
    """
    sources = [(name, options.get(name)) for name in ("model", *PICTURES)]
    files = [file for subject in options.get("subject") or () for file in subject.files]
    sources += [("subject", file) for file in files]
    network = options.get("matting")
    sources += [("matting", network and Path(network))]
    sources += [("lora", Path(lora.rpartition("=")[0])) for lora in options.get("lora", ())]
    for name, path in sources:
        place = Path(split_scale(str(path))[1]) if name == "matting" and path else path
        is_there = place is None or (
            place.exists() if name in ("model", "lora") else place.is_file()
        )
        if not is_there:
            option = "--" + name.replace("_", "-")
            raise FileNotFoundError(
                f"{picture} was drawn with {option} {str(path)!r}, which is not here; give {option}"
            )


def _say_what_differs(picture: Path, told: PictureArguments, options: dict[str, Any]) -> None:
    """Say why the same arguments may give another picture."""
    pairs = [(options.get(name), getattr(told, f"{name}_sha256")) for name in PICTURES]
    files = [file for subject in options.get("subject") or () for file in subject.files]
    digests = told.subjects_sha256 if told.subject is None else [told.subject_sha256]
    pairs += zip(files, digests, strict=False)  # as many as anybody has written
    for file, digest in pairs:
        if file is not None and digest is not None and sha256_file(file) != digest:
            warnings.warn(f"{file} has changed since {picture} was drawn", stacklevel=2)
    here = environment()
    others = [f"{name} {getattr(told, name)}" for name in here if getattr(told, name) != here[name]]
    if others:
        say(f"{picture} was drawn by {', '.join(others)}; pixels may differ a little")
