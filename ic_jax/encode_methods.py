"""Methods of a pipeline that encode texts and pictures, and decode latents."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from ic_jax.config import SamplingConfig
from ic_jax.models.features import SubjectFeatures
from ic_jax.preprocessing import arguments
from ic_jax.preprocessing.images import Fit, Picture, encoder_pixels, read_rgb, to_square
from ic_jax.request import Prompts, encode_texts
from ic_jax.result import to_pil
from ic_jax.runner import ReferenceLatents, Runner
from ic_jax.weights.encoders import Encoders
from ic_jax.weights.lora.lora_set import LoraSet


class EncodeMethods:
    """Base class of a pipeline for its methods that encode and decode."""

    sampling: SamplingConfig
    _encoders: Encoders
    _loras: LoraSet
    _runner: Runner

    def encode_prompt(
        self,
        prompt: Prompts,
        prompt_2: Prompts | None = None,
        max_sequence_length: int | None = None,
        *,
        triggers: bool = True,
    ) -> tuple[Float[Array, "p t e"], Float[Array, "p d"]]:
        """Encode prompts with T5 and CLIP; return `prompt_embeds` and `pooled_prompt_embeds`.

        Args:
            prompt: a text, or a list of p.
            prompt_2: separate text for T5; None or "" uses `prompt`.
            max_sequence_length: T5 tokens t, at most 512; the model's default.
            triggers: whether the active LoRAs' trigger words go before the prompt; not wanted for
                a negative prompt.

        Raises:
            ValueError: the model has no text encoders, or prompts that cannot be used.
        """
        length = max_sequence_length or self.sampling.max_sequence_length
        arguments.check_count("max_sequence_length", length, 512)
        words = self._loras.triggers if triggers else []
        texts = encode_texts(self._runner, prompt, prompt_2, length, triggers=words)
        return texts.embeds, texts.pooled

    def encode_subject(
        self, image: Picture | Sequence[Picture], fit: Fit = "pad"
    ) -> SubjectFeatures:
        """Encode one picture or a list; the result serves as `subject_image` in any call.

        Args:
            image: pictures as `__call__` takes them.
            fit: see `subject_fit` of `__call__`.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: the model has no adapter, or no image encoders.
        """
        arguments.check_choice("fit", fit, ("pad", "stretch"))
        return self._runner.encode_pictures(arguments.as_list("subject_image", image), fit)

    def preview_subject(self, image: Picture, fit: Fit = "pad") -> Image.Image:
        """Return what the encoders see of a subject's picture: for FLUX.1-dev 768 pixels square.

        Give `prepare_subject(image)` to see a character that is cut out of its ground.

        Args:
            image: picture as `__call__` takes it.
            fit: see `subject_fit` of `__call__`.

        Raises:
            ImageError: a picture that cannot be read.
            ValueError: the model has no image encoders.
        """
        arguments.check_choice("fit", fit, ("pad", "stretch"))
        (siglip,) = self._encoders.get("siglip")
        if siglip is None:
            raise ValueError("the model has no image encoders; convert it with --siglip")
        seen = encoder_pixels(to_square(read_rgb(image), fit), siglip.config.image_size)
        return Image.fromarray(seen)

    def encode_reference(
        self, image: Picture | Sequence[Picture], *, resize: bool = True
    ) -> ReferenceLatents:
        """Encode one picture or a list; the result serves as `reference_image` in any call.

        Args:
            image: pictures as `__call__` takes them. All get the size of the first.
            resize: whether to the nearest of Kontext's sizes; otherwise the first keeps its sides,
                rounded down to multiples of 16. Fewer pixels take less time at every step.

        Raises:
            ImageError: a picture that cannot be read or is too small.
        """
        pictures = arguments.as_list("reference_image", image)
        return self._runner.encode_references(pictures, resize=resize)

    def decode_latents(
        self, latents: Float[Array, "b n c"] | np.ndarray, height: int, width: int
    ) -> list[Image.Image]:
        """Decode packed latents, such as those of a callback, to pictures.

        Args:
            latents: as `output_type="latent"` gives them.
            height: of the pictures in pixels; likewise `width`.
            width: see `height`.

        Raises:
            ValueError: the latents have another shape than such pictures.
        """
        runner = self._runner
        grid = runner.grid(height, width)
        shape = (None, grid[0] * grid[1], runner.transformer.config.in_channels)
        arguments.check_shape("latents", latents, shape)
        return to_pil(runner.decode(jnp.asarray(latents), grid))
