"""InstantCharacter in JAX: FLUX.1-dev with the character adapter, in pure Flax."""

from ic_jax.pipeline import InstantCharacterPipeline as InstantCharacterPipeline
from ic_jax.pipeline import PipelineResult as PipelineResult
from ic_jax.version import __version__ as __version__
