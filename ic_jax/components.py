"""Parts of a pipeline by the names that diffusers gives them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ic_jax.models.adapter import Adapter
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.flux import Flux
from ic_jax.models.siglip import SiglipVision
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae
from ic_jax.preprocessing.tokenizers import TextTokenizer
from ic_jax.runner import Runner
from ic_jax.weights.loading import Model


class Components:
    """Base class of a pipeline for the properties that are its model's components."""

    _model: Model
    _runner: Runner

    @property
    def transformer(self) -> Flux:
        """The FLUX transformer."""
        return self._runner.transformer

    @property
    def adapter(self) -> Adapter | None:
        """The InstantCharacter adapter; None if the model has none."""
        return self._model.adapter

    @property
    def vae(self) -> Vae:
        """The autoencoder."""
        return self._runner.vae

    @property
    def text_encoder(self) -> ClipText | None:
        """CLIP's text encoder; None if the model has none."""
        return self._model.clip

    @property
    def text_encoder_2(self) -> T5Encoder | None:
        """The T5 encoder; None if the model has none or `offload_encoders` is set."""
        return self._model.t5

    @property
    def image_encoder(self) -> SiglipVision | None:
        """The SigLIP encoder; None if the model has none or `offload_encoders` is set."""
        return self._model.siglip

    @property
    def image_encoder_2(self) -> Dinov2 | None:
        """The DINOv2 encoder; None if the model has none or `offload_encoders` is set."""
        return self._model.dinov2

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """CLIP's tokenizer; None if the model lacks a tokenizer."""
        return None if (pair := self._runner.tokenizer) is None else pair.clip

    @property
    def tokenizer_2(self) -> TextTokenizer | None:
        """T5's tokenizer; None if the model lacks a tokenizer."""
        return None if (pair := self._runner.tokenizer) is None else pair.t5

    @property
    def components(self) -> dict[str, Any]:
        """All components by the names of these properties, absent ones as None."""
        names = "transformer adapter vae text_encoder text_encoder_2 image_encoder image_encoder_2"
        names += " tokenizer tokenizer_2 scheduler"
        return {name: getattr(self, name) for name in names.split()}

    @property
    def dtype(self) -> np.dtype:
        """Type of all parameters and computation."""
        return np.dtype(self._runner.dtype)

    @property
    def mesh(self) -> Mesh | None:
        """Mesh that the parameters are sharded over; None on one device."""
        return self._runner.mesh

    @property
    def device(self) -> jax.Device:
        """Device of the parameters; the first of the mesh."""
        devices: set[Any] = self.transformer.proj_out.kernel[...].sharding.device_set
        return min(devices, key=lambda device: device.id)
