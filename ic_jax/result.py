"""Result of a pipeline's call, which shows itself in notebooks."""

import base64
import io
from dataclasses import dataclass, fields
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Array
from PIL import Image

from ic_jax.contact_sheet import LARGE, Cell, draw_sheet, shown_side
from ic_jax.preprocessing.arguments import SamplingArguments

MOST_SHOWN = 16  # pictures in a notebook
NOT_SHOWN = ("num_images_per_prompt", "output_type")  # the pictures themselves say it


@dataclass(frozen=True)
class PipelineResult:
    """Pictures of one call; those of one prompt are neighbours. A notebook shows them.

    Attributes:
        images: PIL images; or float32 [b, height, width, 3] in 0..1; or packed latents [b, n, c].
        seeds: the seed of each picture; None if the call had `latents`.
        prompts: the prompt of each picture; None if the call had `prompt_embeds`.
        arguments: the call's numbers and choices, with the model's defaults filled in.
    """

    images: list[Image.Image] | np.ndarray | Array
    seeds: list[int] | None
    prompts: list[str] | None = None
    arguments: SamplingArguments | None = None

    def _repr_png_(self) -> bytes | None:
        """Return the picture, or a sheet of several with their prompts and seeds; for Jupyter."""
        pictures = self._pictures()
        if not pictures:
            return None
        if len(pictures) == 1:
            return _encoded(pictures[0], "PNG")
        labels = self._labels(len(pictures))
        texts = ["\n".join(filter(None, label)) for label in labels]
        rows: list[list[Cell]] = [list(row) for row in zip(texts, pictures, strict=True)]
        return _encoded(draw_sheet(["prompt and seed", ""], rows), "PNG")

    def _repr_html_(self) -> str | None:
        """Return the pictures, each above its prompt and seed, and the arguments; for Jupyter."""
        pictures = self._pictures()
        if not pictures:
            return None
        labels = self._labels(len(pictures))
        figures = "".join(map(_figure, pictures, labels))
        more = len(self.images) - len(pictures)
        facts = [f"{more} more pictures"] * (more > 0) + self._facts()
        row = f'<div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>'
        return f"{row}<div><small>{escape(', '.join(facts))}</small></div>"

    def _pictures(self) -> list[Image.Image]:
        """Return the first pictures; none where the images are latents."""
        if isinstance(self.images, list):
            return self.images[:MOST_SHOWN]
        if not isinstance(self.images, np.ndarray) or self.images.ndim != 4:
            return []
        return to_pil(self.images[:MOST_SHOWN])

    def _labels(self, count: int) -> list[tuple[str, str]]:
        """Return prompt and seed of each picture, "" where they are not known."""
        prompts = self.prompts or [""] * count
        seeds = [""] * count if self.seeds is None else [f"seed {seed}" for seed in self.seeds]
        return list(zip(prompts[:count], seeds[:count], strict=True))

    def _facts(self) -> list[str]:
        """Return the arguments that are not what every call has."""
        if self.arguments is None:
            return []
        values = [(f, getattr(self.arguments, f.name)) for f in fields(self.arguments)]
        told = [(f.name, x) for f, x in values if x not in (None, f.default)]
        return [f"{name}={_short(value)}" for name, value in told if name not in NOT_SHOWN]


def to_pil(images: np.ndarray) -> list[Image.Image]:
    """Convert float32 [b, height, width, 3] in 0..1 to pictures."""
    return [Image.fromarray(np.round(255 * pixels).astype(np.uint8)) for pixels in images]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figure(picture: Image.Image, label: tuple[str, str]) -> str:
    """Return a picture in a size that people see, above its prompt and seed."""
    side = shown_side(max(picture.size))
    width = max(round(side * picture.width / max(picture.size)), 1)
    shown = picture.copy()
    shown.thumbnail((LARGE, LARGE))  # a page of full-size pictures would weigh many megabytes
    data = base64.b64encode(_encoded(shown, "WEBP", quality=90)).decode()
    words = "<br>".join(escape(text) for text in label if text)
    return (
        f'<figure style="margin:0;width:{width}px">'
        f'<img src="data:image/webp;base64,{data}" width="{width}" alt="{escape(label[0])}">'
        f"<figcaption><small>{words}</small></figcaption></figure>"
    )


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()
