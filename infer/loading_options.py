"""How drawing commands load their model: options that they share, and what pictures tell of it."""

import argparse

import jax

from ic_jax import cli
from ic_jax.config import SamplingConfig
from ic_jax.version import __version__
from ic_jax.weights.loading import read_config
from ic_jax.weights.model_folder import ModelFolder

DTYPES = ("bfloat16", "float32")


def add_arguments(parser: cli.Arguments) -> None:
    """Add the options that say how a model is loaded."""
    add = parser.add_argument
    dtype = "dtype of weights and computation (default: bfloat16; float32 on a CPU)"
    add("--dtype", choices=DTYPES, help=dtype)
    mesh = "mesh of devices for the model, such as data=2,tensor=4 (docs/sharding.md)"
    add("--mesh", metavar="AXES", default="auto", help=mesh)
    offload = "load T5, SigLIP and DINOv2 only to encode, and free them before sampling"
    add("--offload-encoders", action="store_true", help=offload)
    unverified = "load the model without comparing its files with their checksums"
    add("--no-verify", action="store_true", help=unverified)
    cli.add_compile_cache(parser)


def dtype_of(args: argparse.Namespace) -> str:
    """Return the dtype that the parsed options ask for, or the device's default."""
    # XLA widens every bfloat16 weight on a CPU, at every step.
    return args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def default_sampling(model: ModelFolder) -> SamplingConfig:
    """Return the model's own sampling settings, or those of FLUX.1-dev."""
    return read_config(model, "sampling") if "sampling" in model.components else SamplingConfig()


def environment() -> dict[str, str]:
    """Return what pictures tell of where they were drawn, with which pixels differ a little."""
    device = jax.devices()[0].device_kind
    return {"ic_jax": __version__, "jax": jax.__version__, "device": device}
