"""Settings that every test runs under, and the toy models that several tests share."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from jaxtyping import install_import_hook

# Shapes in the array code's signatures are checked here and cost nothing elsewhere.
ARRAY_CODE = ["ic_jax.models", "ic_jax.models.features", "ic_jax.flow", "ic_jax.sampler"]
install_import_hook(ARRAY_CODE, "beartype.beartype")

CACHE = Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_num_cpu_devices", 8)  # for what is spread over devices
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

GOLDENS = Path(__file__).parent / "goldens"
TINY = GOLDENS / "tiny_instantcharacter"


def from_torch(out: Path, *options: str) -> Path:
    """The whole golden model, converted as a person would."""
    from convert.commands import main

    sources = ["--flux", TINY / "flux", "--siglip", TINY / "siglip", "--dinov2", TINY / "dinov2"]
    sources += ["--adapter", TINY / "instantcharacter_ip-adapter.bin", "--out", out]
    assert main(["from-torch", *map(str, sources), *options]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The golden model as a MODEL folder, float32."""
    return from_torch(tmp_path_factory.mktemp("converted") / "tiny")
