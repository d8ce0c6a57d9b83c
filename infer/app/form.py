"""Form of the page: its values, the engine's requests for them, and the way back from a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8

from ic_jax.config import SamplingConfig

CHARACTERS = 1
ANYWHERE = "anywhere"
PLACES = (ANYWHERE, "left", "right", "top", "bottom", "center")
PAINTS = {"#d62728": "red", "#1f77b4": "blue", "#2ca02c": "green"}  # one for each character
MAX_DISTANCE = 60  # of a painted colour from its paint, summed over channels
MIN_PAINTED = 0.002  # of the picture's area; less is a slip of the brush
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


def empty(sampling: SamplingConfig, prompt: str = "") -> Form:
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


def painted_places(editor: Mapping[str, Any] | None) -> list[str | None]:
    """Return the box that each character's paint fills on the editor, None where there is none.

    A box is "left,top,right,bottom" in 0..1.
    """
    layers = [np.asarray(layer.convert("RGBA")) for layer in (editor or {}).get("layers", ())]
    return [_box([_is_paint(layer, paint) for layer in layers]) for paint in PAINTS]


def _is_paint(layer: UInt8[np.ndarray, "h w 4"], paint: str) -> np.ndarray:
    colour = np.array([int(paint[i : i + 2], 16) for i in (1, 3, 5)])
    distance = np.abs(layer[..., :3].astype(int) - colour).sum(-1)
    return (distance < MAX_DISTANCE) & (layer[..., 3] > 127)


def _box(masks: list[np.ndarray]) -> str | None:
    if not masks:
        return None
    mask = np.any(masks, axis=0)
    if mask.mean() < MIN_PAINTED:
        return None
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
    height, width = mask.shape
    sides = (left / width, top / height, (right + 1) / width, (bottom + 1) / height)
    return ",".join(f"{side:.2f}".rstrip("0").rstrip(".") for side in sides)
