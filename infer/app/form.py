"""Form of the page: its values, the engine's requests for them, and the way back from a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from ic_jax.config import SamplingConfig
from ic_jax.preprocessing.regions import NAMES

CHARACTERS = 3
ANYWHERE = "anywhere"
PLACES = (ANYWHERE, *(name for name in NAMES if name != "all"))
# Arguments of a picture that the form does not show; a picture that is drawn again keeps them.
KEPT = (
    *("prompt_2", "negative_prompt_2", "negative_subject_scale"),
    *("subject_fit", "max_sequence_length"),
)


@dataclass(frozen=True)
class Form:
    """Values of the page's inputs, in their order there."""

    prompt: str
    negative_prompt: str
    styles: list[str]  # names of LoRAs
    subject_scale: float
    guidance_scale: float
    true_cfg_scale: float
    num_inference_steps: int
    width: int
    height: int
    seed: int
    random_seed: bool
    pictures: int
    files: tuple[str | None, ...]  # of the characters
    places: tuple[str, ...]  # of the characters, as `--subject PICTURE@PLACE` takes them

    @classmethod
    def read(cls, values: Sequence[Any]) -> Self:
        """Return the form whose inputs have these values."""
        n = len(fields(cls)) - 2
        characters = values[n:]
        files, places = characters[:CHARACTERS], characters[CHARACTERS:]
        return cls(*[*values[:n], tuple(files), tuple(places)])

    def values(self) -> list[Any]:
        """Return the values of the inputs, in order."""
        *values, files, places = (getattr(self, field.name) for field in fields(self))
        return [*values, *files, *places]


def empty(sampling: SamplingConfig, prompt: str) -> Form:
    """Return the form before anybody has touched it: the model's own settings."""
    return Form(
        prompt=prompt,
        negative_prompt="",
        styles=[],
        subject_scale=sampling.subject_scale,
        guidance_scale=sampling.guidance_scale,
        true_cfg_scale=sampling.true_cfg_scale,
        num_inference_steps=sampling.num_inference_steps,
        width=sampling.width,
        height=sampling.height,
        seed=0,
        random_seed=True,
        pictures=1,
        files=(None,) * CHARACTERS,
        places=(ANYWHERE,) * CHARACTERS,
    )


def region_of(place: str) -> str | tuple[float, ...] | None:
    """Return the region of a place; ValueError if it is neither a name nor a box."""
    if place in PLACES:
        return None if place == ANYWHERE else place
    try:
        return tuple(float(side) for side in place.split(","))
    except ValueError:
        names = ", ".join(PLACES)
        raise ValueError(
            f"a character cannot stand {place!r}; give {names}, or left,top,right,bottom in 0..1"
        ) from None
