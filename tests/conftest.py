"""Settings of all tests, and the golden model and its conversions that several tests share."""

import gc
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiling is most of the tests' time: without LLVM's expensive passes, modules side by side and
# MLIR for every fusion (JAX 0.12 insists on it) it takes a quarter. .ci/run tests parity with all.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true":
    os.environ["XLA_FLAGS"] = " ".join(
        (
            *os.environ.get("XLA_FLAGS", "").split(),
            "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
            "--xla_cpu_parallel_codegen_split_count=1",
        )
    )

import jax
import pytest
from jaxtyping import install_import_hook
from PIL import Image, ImageOps

gc.set_threshold(20_000, 5, 10)  # as in the commands; else it takes a sixth of the time to trace

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
ADAPTER = "instantcharacter_ip-adapter"  # its file but for the ending
REFERENCE = TINY / "reference.png"
SMALL = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "max_sequence_length": 32,
    "output_type": "latent",
}


# Files with tests of minutes. They begin first, or one core would wait for the other at the end.
LONG = (
    "pipeline_calls",
    "train_all",
    "train_runs",
    "first_run",
    "multihost_adapter",
    "serve_process",
    "sharding",
    "training",
    "infer",
    "train_cache",
    "train_new",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = [f"test_{name}.py" for name in LONG]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else 99)


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
    adapter = ("--adapter", source / f"{ADAPTER}.bin")
    towers = ("--siglip", source / "siglip", "--dinov2", source / "dinov2")
    convert("from-torch", "--flux", source / "flux", *towers, *adapter, "--out", out, *options)
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Return the golden model as a MODEL folder, float32."""
    return from_torch(tmp_path_factory.mktemp("converted") / "tiny")


@pytest.fixture(scope="module")
def pipe(tiny_model):
    """The golden model's pipeline."""
    from ic_jax import InstantCharacterPipeline

    return InstantCharacterPipeline.from_pretrained(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def portraits() -> list[Image.Image]:
    """Two characters: the reference, and its colours turned around."""
    reference = Image.open(REFERENCE).convert("RGB")
    return [reference, ImageOps.invert(reference)]


@pytest.fixture(scope="module")
def subjects(pipe, portraits):
    """The features of `portraits`."""
    return [pipe.encode_subject(portrait) for portrait in portraits]


@pytest.fixture
def flux(tmp_path):
    """A copy of the golden FLUX as published, for a test to change."""
    return Path(shutil.copytree(TINY / "flux", tmp_path / "flux"))


@pytest.fixture
def run(tmp_path, capsys):
    """Runs `python -m convert`; gives its exit status and its error line, having checked that a
    failure left nothing and took one line."""
    from convert.commands import main

    def run(*arguments, out=tmp_path / "out" / "MODEL"):
        status = main([*map(str, arguments), *([] if out is None else ["--out", str(out)])])
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        if status and out:
            assert not out.exists()
            assert not out.parent.exists() or not [*out.parent.iterdir()]
        assert len(lines) == bool(status)
        return status, "".join(lines)

    return run


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def optax_promotes():
    """Adam's count is an integer that optax raises its decay to."""
    with jax.numpy_dtype_promotion("standard"):
        yield
