"""Settings of all tests, and the golden model that several tests share."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from jaxtyping import install_import_hook

# In tests alone, arrays are checked against the shapes in the array code's signatures.
ARRAY_CODE = ["ic_jax.models", "ic_jax.models.features", "ic_jax.flow", "ic_jax.sampler"]
install_import_hook(ARRAY_CODE, "beartype.beartype")

CACHE = Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_num_cpu_devices", 8)  # for meshes
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

GOLDENS = Path(__file__).parent / "goldens"
TINY = GOLDENS / "tiny_instantcharacter"


def from_torch(out: Path, *options: str) -> Path:
    """Convert the golden model with the command that users run; return `out`."""
    from convert.commands import main

    sources = ["--flux", TINY / "flux", "--siglip", TINY / "siglip", "--dinov2", TINY / "dinov2"]
    sources += ["--adapter", TINY / "instantcharacter_ip-adapter.bin", "--out", out]
    assert main(["from-torch", *map(str, sources), *options]) == 0
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Return the golden model as a MODEL folder, float32."""
    return from_torch(tmp_path_factory.mktemp("converted") / "tiny")
