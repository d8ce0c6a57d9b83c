"""InstantCharacter in JAX: FLUX.1-dev with the character adapter, in Flax.

- Pipeline: InstantCharacterPipeline, PipelineResult, SubjectPrompt
- Sampling: sample, prepare, step, SamplingRequest, TextEmbeddings, Subject, SubjectFeatures,
  ReferenceLatents, TrueCfg, Inpainting, Conditioning, noise, rope_table
- Models: Flux, Adapter, Vae, T5Encoder, ClipText, SiglipVision, Dinov2
- Pictures: prepare_subject, OnnxMatting
- Configs: FluxConfig, AdapterConfig, VaeConfig, T5Config, ClipConfig, SiglipConfig, Dinov2Config,
  SchedulerConfig, SamplingConfig, CONFIGS
- Weights: load_model, Model, ModelFolder, read_lora, write_lora, LoraFile, LoraDelta
- Devices: make_mesh, shardings
- Errors: ConfigError, ImageError, NotEnoughMemoryError, PromptError, ShardingError, WeightsError

Models are flax.nnx modules. The functions of sampling are pure, for your own jax.jit; the noise
schedule, packed latents and position ids that they need are in ic_jax.flow.
"""

from ic_jax.config import (
    CONFIGS,
    AdapterConfig,
    ClipConfig,
    ConfigError,
    Dinov2Config,
    FluxConfig,
    SamplingConfig,
    SchedulerConfig,
    SiglipConfig,
    T5Config,
    VaeConfig,
)
from ic_jax.matting import OnnxMatting
from ic_jax.memory import NotEnoughMemoryError
from ic_jax.models.adapter import Adapter
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux
from ic_jax.models.rope import rope_table
from ic_jax.models.siglip import SiglipVision
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae
from ic_jax.pipeline import InstantCharacterPipeline
from ic_jax.preprocessing.figures import prepare_subject
from ic_jax.preprocessing.images import ImageError
from ic_jax.preprocessing.tokenizers import PromptError
from ic_jax.result import PipelineResult
from ic_jax.runner import ReferenceLatents
from ic_jax.sampler import (
    Conditioning,
    Inpainting,
    SamplingRequest,
    Subject,
    TextEmbeddings,
    TrueCfg,
    noise,
    prepare,
    sample,
    step,
)
from ic_jax.sharding import ShardingError, make_mesh, shardings
from ic_jax.subjects import SubjectPrompt
from ic_jax.version import __version__
from ic_jax.weights.loading import Model, load_model
from ic_jax.weights.lora.delta import LoraDelta, LoraFile
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.writing import write_lora
from ic_jax.weights.model_folder import ModelFolder
from ic_jax.weights.tensors import WeightsError

__all__ = [
    "CONFIGS",
    "Adapter",
    "AdapterConfig",
    "ClipConfig",
    "ClipText",
    "Conditioning",
    "ConfigError",
    "Dinov2",
    "Dinov2Config",
    "Flux",
    "FluxConfig",
    "ImageError",
    "Inpainting",
    "InstantCharacterPipeline",
    "LoraDelta",
    "LoraFile",
    "Model",
    "ModelFolder",
    "NotEnoughMemoryError",
    "OnnxMatting",
    "PipelineResult",
    "PromptError",
    "ReferenceLatents",
    "SamplingConfig",
    "SamplingRequest",
    "SchedulerConfig",
    "ShardingError",
    "SiglipConfig",
    "SiglipVision",
    "Subject",
    "SubjectFeatures",
    "SubjectPrompt",
    "T5Config",
    "T5Encoder",
    "TextEmbeddings",
    "TrueCfg",
    "Vae",
    "VaeConfig",
    "WeightsError",
    "__version__",
    "load_model",
    "make_mesh",
    "noise",
    "prepare",
    "prepare_subject",
    "read_lora",
    "rope_table",
    "sample",
    "shardings",
    "step",
    "write_lora",
]
