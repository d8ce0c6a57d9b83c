"""Settings of all tests, and the golden model that several tests share."""

import os
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiling, most of the tests' time, takes half as long; .ci/run tests parity with optimisations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import pytest
from jaxtyping import install_import_hook

# Ignored in what a shell starts in the background, and in the commands that tests interrupt then.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail where a test is skipped")
    parser.addoption("--again", action="store_true", help="repeat trials of faults that survived")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        *_, reason = report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason}, which --no-skips does not allow"
    return report


def convert(*arguments: Any) -> None:
    """Run `python -m convert` with `arguments`; it must succeed."""
    from convert.commands import main

    assert main([*map(str, arguments)]) == 0


def from_torch(out: Path, *options: str, source: Path = TINY) -> Path:
    """Convert the golden model, or `source` in its layout; return `out`."""
    adapter = ("--adapter", source / "instantcharacter_ip-adapter.bin")
    towers = ("--siglip", source / "siglip", "--dinov2", source / "dinov2")
    convert("from-torch", "--flux", source / "flux", *towers, *adapter, "--out", out, *options)
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Return the golden model as a MODEL folder, float32."""
    return from_torch(tmp_path_factory.mktemp("converted") / "tiny")


@pytest.fixture(scope="module")
def optax_promotes():
    """Adam's count is an integer that optax raises its decay to."""
    with jax.numpy_dtype_promotion("standard"):
        yield
