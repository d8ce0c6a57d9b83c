"""Subjects of a pipeline's call: several in one picture, each by its own pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ic_jax import sampler
from ic_jax.config import FluxConfig
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.image_prompt import BlockFactors
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.images import Fit, Picture
from ic_jax.preprocessing.regions import Region, region_weights
from ic_jax.runner import Grid, Runner

MAX_PICTURES = 12  # of each subject, after those of all are made equally many

SubjectImage = Picture | SubjectFeatures


@dataclass(frozen=True, eq=False)
class SubjectPrompt:
    """One of the subjects of a picture.

    Attributes:
        image: a picture of the character, or the result of `encode_subject`; or a list of several
            pictures of the one character, which are used together.
        scale: strength, at least 0; None is the call's `subject_scale`.
        region: part of the drawn picture that the subject is confined to: "left", "right", "top",
            "bottom" (halves), "center" (the middle half of both sides) or "all"; a box (left, top,
            right, bottom), each from 0 to 1; or a mask, a picture that is white where the region
            is. None, like "all", is the whole picture.
    """

    image: SubjectImage | Sequence[SubjectImage]
    scale: float | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        """Refuse a scale that is no number of at least 0."""
        if self.scale is not None:
            arguments.check_finite("a subject's scale", self.scale, 0)

    @property
    def is_confined(self) -> bool:
        """Whether the subject has a region that is less than the whole picture."""
        return self.region is not None and not (
            isinstance(self.region, str) and self.region == "all"
        )


Subjects = Sequence[SubjectPrompt] | Sequence[Sequence[SubjectPrompt]]


class EncodedSubjects(NamedTuple):
    """Subjects of a call.

    Attributes:
        features: of all pictures of all subjects.
        lists: the k subjects of each of u prompts.
        pictures: which of `features` show each subject; repeated to be equally many.
    """

    features: SubjectFeatures
    lists: list[list[SubjectPrompt]]
    pictures: Int[np.ndarray, "u k f"]


def encode_subjects(
    runner: Runner,
    subject_image: SubjectImage | Sequence[SubjectImage] | None,
    subjects: Subjects | None,
    fit: Fit,
) -> EncodedSubjects | None:
    """Return a call's subjects, encoding those that are pictures; None if it has none.

    Raises:
        ValueError: both arguments are given, or lists that do not go together.
    """
    if subjects is not None and subject_image is not None:
        raise ValueError("subject_image and subjects exclude each other; give one")
    if subject_image is not None:
        images = arguments.as_list("subject_image", subject_image)
        features = _encode_all(runner, images, fit)
        number = len(features.low_res_deep)
        lists = [[SubjectPrompt(features)] for _ in range(number)]  # one subject for each prompt
        return EncodedSubjects(features, lists, np.arange(number, dtype=np.int32)[:, None, None])
    if subjects is None:
        return None
    lists = _as_lists(subjects)
    images_of = [[arguments.as_list("a subject's image", s.image) for s in row] for row in lists]
    images = [x for row in images_of for listed in row for x in listed]
    features = _encode_all(runner, images, fit)
    return EncodedSubjects(features, lists, _numbers(images_of))


def _as_lists(subjects: Subjects) -> list[list[SubjectPrompt]]:
    """Return the subjects of each prompt; a flat list is shared by all prompts."""
    listed: list[Any] = arguments.as_list("subjects", subjects)
    if all(isinstance(x, SubjectPrompt) for x in listed):
        return [listed]
    lists = [arguments.as_list("a list in subjects", x) for x in listed]
    wrong = [x for row in lists for x in row if not isinstance(x, SubjectPrompt)]
    if wrong:
        raise ValueError(
            f"subjects hold a {type(wrong[0]).__name__}; give SubjectPrompt(image, ...) for each "
            "subject of a picture, or a list of these for each prompt"
        )
    lengths = sorted({len(row) for row in lists})
    if len(lengths) > 1:
        raise ValueError(
            f"the prompts have {' and '.join(map(str, lengths))} subjects; give as many to each"
        )
    return lists


def _numbers(images: list[list[list[SubjectImage]]]) -> Int[np.ndarray, "u k f"]:
    """Return the numbers of each subject's pictures, in the order of all.

    Subjects with fewer pictures than others have theirs several times: in the softmax of attention
    that changes nothing, and all are computed as one batch without a mask.
    """
    numbers = count()

    def of_subject(listed: list[SubjectImage]) -> list[int]:
        rows = sum(
            np.shape(x.low_res_deep)[0] if isinstance(x, SubjectFeatures) else 1 for x in listed
        )
        return [next(numbers) for _ in range(rows)]

    rows = [[of_subject(listed) for listed in row] for row in images]
    lengths = sorted({len(pictures) for row in rows for pictures in row})
    each = math.lcm(*lengths)
    if each > MAX_PICTURES:
        raise ValueError(
            f"subjects of {' and '.join(map(str, lengths))} pictures would take {each} pictures "
            f"each, more than {MAX_PICTURES}; give fewer, or as many of each"
        )
    full = [[pictures * (each // len(pictures)) for pictures in row] for row in rows]
    return np.array(full, np.int32)


def _encode_all(runner: Runner, images: Sequence[SubjectImage], fit: Fit) -> SubjectFeatures:
    """Return the features of pictures in order; those that are not encoded yet are one batch."""
    pictures = [x for x in images if not isinstance(x, SubjectFeatures)]
    encoded = runner.encode_pictures(pictures, fit) if pictures else None
    if encoded is not None and len(pictures) == len(images):
        return encoded
    parts, rows = [], iter(range(len(pictures)))
    for x in images:
        if not isinstance(x, SubjectFeatures):
            assert encoded is not None
            i = next(rows)
            x = SubjectFeatures(*(field[i : i + 1] for field in encoded))
        parts.append(runner.check_features(x))
    return runner.concatenate_rows(parts)


def subject_of_request(
    encoded: EncodedSubjects,
    args: SamplingArguments,
    flux: FluxConfig,
    *,
    pictures: int,
    steps: int,
    grid: Grid,
    reference_tokens: int,
) -> tuple[sampler.Subject, Float[np.ndarray, "b *k"] | None]:
    """Return the sampler's subject, and the scale in the negative prediction.

    Args:
        encoded: the call's subjects.
        args: the call's other arguments.
        flux: for the number of blocks.
        pictures: number b of pictures to draw.
        steps: number of steps.
        grid: of a picture to draw.
        reference_tokens: number of tokens of Kontext's reference, which is in no region.
    """
    single = encoded.pictures.shape[1:] == (1, 1) and not any(
        subject.is_confined for row in encoded.lists for subject in row
    )
    each = pictures // len(encoded.lists)

    def per_picture(rows: Any) -> np.ndarray:
        return np.repeat(np.asarray(rows, np.float32), each, axis=0)

    scale = per_picture(
        [[args.subject_scale if s.scale is None else s.scale for s in row] for row in encoded.lists]
    )
    scale = scale[:, 0] if single else scale
    regions = _regions(encoded.lists, grid, reference_tokens)
    negative = args.negative_subject_scale
    # A subject's own scale is lowered in the negative prediction as the call's is.
    share = negative / args.subject_scale if negative is not None and args.subject_scale else 1.0
    control: tuple[Any, ...] = (  # NumPy: jnp.array would compile programs
        scale,
        None if single else encoded.pictures,
        None if regions is None else per_picture(regions),
        step_factors(args, steps),
        block_factors(args.subject_blocks, flux),
    )
    return sampler.Subject(encoded.features, *control), None if negative is None else np.float32(
        share
    ) * scale


def _regions(
    lists: list[list[SubjectPrompt]], grid: Grid, reference_tokens: int
) -> Float[np.ndarray, "u k n"] | None:
    """Return the weight of each subject at each token; None if none is confined to a region."""
    if not any(subject.is_confined for row in lists for subject in row):
        return None

    def weights(subject: SubjectPrompt) -> np.ndarray:
        if not subject.is_confined:
            return np.ones(grid[0] * grid[1] + reference_tokens, np.float32)
        assert subject.region is not None
        return np.pad(region_weights(subject.region, grid), (0, reference_tokens))

    return np.stack([np.stack([weights(subject) for subject in row]) for row in lists])


def step_factors(args: SamplingArguments, steps: int) -> Float[np.ndarray, "s"]:
    """Return the factor of the subject's scale at each step.

    It is 1 from `subject_start` to `subject_end`, shares of the run, and rises before and falls
    after them along `subject_ramp`. A step counts by its middle.

    Raises:
        ValueError: it is 0 at every step.
    """
    middle = (np.arange(steps) + 0.5) / steps
    start, end, ramp = args.subject_start, args.subject_end, args.subject_ramp
    distance = np.maximum(np.maximum(start - middle, middle - end), 0)
    factors = np.clip(1 - distance / ramp, 0, 1) if ramp else (distance == 0).astype(np.float64)
    if not factors.any():
        raise ValueError(
            f"subject_start {start:g} and subject_end {end:g} leave the subject none of {steps} "
            "steps; take a wider range"
        )
    return factors.astype(np.float32)


def block_factors(blocks: str, flux: FluxConfig) -> BlockFactors:
    """Return the factor of the subject's scale in each block, 1 for those of `subject_blocks`.

    Raises:
        ValueError: there is no block of such a number.
    """
    double, single = flux.num_layers, flux.num_single_layers
    numbers = {
        "all": range(double + single),
        "double": range(double),
        "single": range(double, double + single),
    }
    chosen = numbers[blocks] if blocks in numbers else [int(n) for n in blocks.split(",")]
    if max(chosen, default=0) >= double + single:
        raise ValueError(
            f"subject_blocks names block {max(chosen)}; this model's are 0 to "
            f"{double + single - 1}, the first {double} of them double blocks"
        )
    factors = np.isin(np.arange(double + single), chosen).astype(np.float32)
    parts: Any = factors[:double], factors[double:]
    return BlockFactors(*parts)
