"""InstantCharacter adapter: the projector and the image-prompt attention."""

from flax import nnx

from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.models.image_prompt import ImagePromptStacks
from ic_jax.models.projector import Projector


class Adapter(nnx.Module):
    """All that InstantCharacter adds to FLUX; 2.8 B parameters at the published sizes."""

    def __init__(self, config: AdapterConfig, flux: FluxConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image_proj = Projector(config, rngs=rngs)
        self.ip_adapter = ImagePromptStacks(config, flux, rngs=rngs)
