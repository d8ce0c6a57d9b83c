"""Pictures to draw over and their masks: reading, common size and the mask of the latents.

Source: diffusers `FluxImg2ImgPipeline` and `FluxInpaintPipeline`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from ic_jax.preprocessing.arguments import as_list
from ic_jax.preprocessing.images import Picture, read_rgb, read_rgba

STRENGTH = 0.6  # the published pipelines' default


@dataclass(frozen=True)
class Originals:
    """Pictures to draw over, each with a mask or none.

    Attributes:
        pictures: RGB, of any sizes.
        masks: likewise; bright parts are drawn anew. None draws over all.
    """

    pictures: list[UInt8[np.ndarray, "h w 3"]]
    masks: list[UInt8[np.ndarray, "h w 3"]] | None

    @classmethod
    def read(
        cls,
        image: Picture | Sequence[Picture] | None,
        mask_image: Picture | Sequence[Picture] | None,
        strength: Any,
    ) -> Self | None:
        """Read the pictures of a call; None if it has none.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: a mask or a strength without a picture.
        """
        if image is None:
            for name, value in (("mask_image", mask_image), ("strength", strength)):
                if value is not None:
                    raise ValueError(f"{name} does nothing without image, the picture to draw over")
            return None
        pictures = [read_rgb(x) for x in as_list("image", image)]
        if mask_image is None:
            return cls(pictures, None)
        return cls(pictures, [read_mask(x) for x in as_list("mask_image", mask_image)])

    def size(
        self, height: int | None, width: int | None, area: int, multiple: int
    ) -> tuple[int, int]:
        """Return height and width to draw at: those given, or else the first picture's.

        A picture of more than `area` pixels is made smaller, down to these. Of a single given side
        the other one follows, with the picture's aspect ratio.

        Args:
            height: in pixels, or None.
            width: likewise.
            area: the model's default height times width.
            multiple: pixels of a token, to a multiple of which sides are rounded.
        """
        own_height, own_width = self.pictures[0].shape[:2]
        if height is not None:
            scale = height / own_height
        elif width is not None:
            scale = width / own_width
        else:
            scale = min(1.0, math.sqrt(area / (own_height * own_width)))

        def rounded(side: int) -> int:
            return max(round(side * scale / multiple), 1) * multiple

        height = rounded(own_height) if height is None else height
        return height, rounded(own_width) if width is None else width

    def resized(
        self, height: int, width: int, downscale: int
    ) -> tuple[UInt8[np.ndarray, "r h w 3"], Bool[np.ndarray, "m y x"] | None]:
        """Return the pictures at one size, and the masks of their latents, True to draw anew.

        A latent pixel has the value of the first of its mask's pixels.

        Args:
            height: in pixels.
            width: likewise.
            downscale: pixels along a side of a latent pixel.
        """
        pixels, grey = self.at_size(height, width)
        return pixels, None if grey is None else grey[:, ::downscale, ::downscale] > 127

    def at_size(
        self, height: int, width: int
    ) -> tuple[UInt8[np.ndarray, "r h w 3"], UInt8[np.ndarray, "m h w"] | None]:
        """Return the pictures and grey masks at one size, by Lanczos resampling.

        What has the size already is returned as it is.

        Args:
            height: in pixels.
            width: likewise.
        """
        pixels = np.stack([np.asarray(_resize(x, height, width)) for x in self.pictures])
        if self.masks is None:
            return pixels, None
        grey = [np.asarray(_resize(x, height, width).convert("L")) for x in self.masks]
        return pixels, np.stack(grey)


def read_mask(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Read a mask; bright parts of the result are drawn anew.

    In a mask with any transparency its transparent parts are, as in OpenAI's image API; in any
    other one the bright parts, as in diffusers.

    Raises:
        ImageError: as `read_rgb`.
    """
    rgba = read_rgba(picture)
    colours, alpha = rgba[..., :3], rgba[..., 3:]
    return colours if alpha.min() == 255 else np.repeat(255 - alpha, 3, axis=-1)


def _resize(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> Image.Image:
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
