"""Activations of drawing in closed form, against compiled programs, and the check of memory."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ic_jax import auto_mesh, memory, runner, sampler
from ic_jax.activations import Drawing, decoding_numbers, kept_numbers, sampling_numbers
from ic_jax.memory import NotEnoughMemoryError, Room
from ic_jax.models.target import compiling_for
from ic_jax.models.unstacked import compiler_options, drawing_form
from ic_jax.sharding import make_mesh, parse
from infer.commands import main as infer
from infer.plan_command import request_shapes
from tests import toy

GB = 1e9
FULL = Drawing(1024, 1024, steps=28, text_length=512, subjects=1)
ROOT = Path(__file__).parent.parent
PLANS = json.loads((ROOT / "benchmarks" / "plans.json").read_text())


def plan(command: str, program: int = 0) -> dict[str, int]:
    """Return the bytes of a compiled program of the published model."""
    return PLANS[f"infer plan --topology {command}"]["plans"][program]["bytes per device"]


@pytest.mark.parametrize("command", ["h100:1", "h200:1"])
def test_sampling_takes_no_less_than_was_counted(command):
    """Count 88 to 93% of what the whole program takes for the published model, at full size."""
    compiled = plan(f"{command} --height 1024 --width 1024")["temporaries, results and code"]
    counted = 2 * sampling_numbers(auto_mesh.published_configs(), FULL)
    assert 0.88 * compiled < counted < 0.94 * compiled


def test_what_is_kept_of_every_step_and_a_step():
    """Compare with programs that sample step by step, one of them sharded over four devices."""
    configs = auto_mesh.published_configs()
    kept = 2 * kept_numbers(configs["transformer"], configs["adapter"], FULL)
    step = 2 * sampling_numbers(configs, FULL) - kept
    for mesh, devices in (("data=1", 1), ("tensor=4", 4)):
        sizes = plan(f"v6e:2x2 --mesh {mesh} --split-prepare", 1)
        assert 0.97 < kept / sizes["request"] < 1
        assert 0.9 < step / devices / sizes["temporaries, results and code"] < 0.95


def test_toy_programs_take_no_less_than_was_counted(monkeypatch):
    """Compile for this CPU: decoding takes 7 numbers where 5 are counted."""
    # Scores of a block of queries are not counted, and are much where the model is narrow.
    monkeypatch.setattr("ic_jax.models.attention.CPU_BLOCK", 32)
    drawing = Drawing(256, 256, steps=2, text_length=32)
    configs = toy.CONFIGS | {"vae": replace(toy.CONFIGS["vae"], block_out_channels=(8, 16))}
    shapes = auto_mesh.shapes(configs, jnp.float32)
    args = SimpleNamespace(height=256, width=256, batch=1, text_length=32, steps=2, reference=False)
    request = request_shapes(args, shapes, make_mesh(parse("data=1")))._replace(subject=None)
    request = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), request)
    form = partial(drawing_form, platform="cpu")
    flux, _ = jax.eval_shape(form, shapes["transformer"], None)
    sample = jax.jit(sampler.sample, compiler_options=compiler_options("cpu"))
    taken = sample.lower(flux, None, request).compile().memory_analysis().temp_size_in_bytes
    assert 0.5 * taken < 4 * sampling_numbers(configs, drawing) < taken

    side = 256 // configs["vae"].downscale // 2
    latents = jax.ShapeDtypeStruct((1, side**2, 4 * configs["vae"].latent_channels), jnp.float32)
    decode = runner._decode.lower(shapes["vae"], latents, grid=(side, side)).compile()
    taken = decode.memory_analysis().temp_size_in_bytes
    assert 0.6 * taken < 4 * decoding_numbers(configs, drawing) < taken
    with compiling_for("tpu"):
        assert decoding_numbers(configs, drawing) == 256 * 256 * (16 + 8)


def error(monkeypatch, room, drawing, dtype="bfloat16", **options) -> str:
    """Return the message for the published model in a room; "" if it fits."""
    monkeypatch.setattr(Room, "of", lambda devices: room)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 8 * GB)
    monkeypatch.setattr(memory, "shapes_of", lambda _, dtype: auto_mesh.published(dtype))
    try:
        options |= {"drawing": drawing}
        memory.check_inference(SimpleNamespace(path="models/ic"), dtype, None, **options)
    except NotEnoughMemoryError as error:
        return str(error)
    return ""


def test_the_message_counts_them_and_says_what_would_fit(monkeypatch):
    """Weights of 42.4 GB fit into 43; the picture decoded beside them does not."""
    room = Room("each GPU", 43 * GB, is_machine=False)
    assert error(monkeypatch, room, None) == ""
    assert error(monkeypatch, room, FULL) == (
        "models/ic: the model in bfloat16 and 1024 x 1024 pixels needs 43.8 GB of each GPU, where "
        "43.0 GB are free; what fits: 512 x 512 pixels (42.8 GB), offloaded encoders (39.3 GB), "
        "a mesh of tensor=2 (22.0 GB)"
    )
    assert error(monkeypatch, room, replace(FULL, height=512, width=512)) == ""


def test_the_message_says_how_many_fit_at_once(monkeypatch):
    room = Room("each GPU", 46 * GB, is_machine=False)
    assert error(monkeypatch, room, replace(FULL, pictures=8)).startswith(
        "models/ic: the model in bfloat16 and 8 pictures of 1024 x 1024 pixels needs 53.2 GB of "
        "each GPU, where 46.0 GB are free; what fits: 2 at once (45.1 GB), 512 x 512 pixels"
    )


def test_offloaded_encoders_are_not_in_memory_while_it_draws(monkeypatch):
    """T5 beside FLUX is the peak of a small picture; decoding is that of a large one."""
    room = Room("each GPU", 40 * GB, is_machine=False)
    assert error(monkeypatch, room, FULL, offload_encoders=True) == ""
    large = replace(FULL, height=4096, width=4096)
    line = error(monkeypatch, room, large, offload_encoders=True)
    assert "4096 x 4096 pixels needs 51.3 GB" in line
    assert "what fits: 2048 x 2048 pixels (39.3 GB), a mesh of tensor=2" in line


def test_the_command_counts_the_pictures_that_it_draws(monkeypatch, tmp_path, capsys):
    """The small model fits into 120 MB, and 4096 pixels a side do not; nothing is read."""
    monkeypatch.setattr(memory, "free_host_memory", lambda: 0.12 * GB)
    monkeypatch.setattr("ic_jax.weights.loading.load_model", None)
    options = ["--out", str(tmp_path / "a.png"), "--width", "4096", "--height", "4096"]
    assert infer(options) == 2
    line = capsys.readouterr().err
    assert "and 4096 x 4096 pixels needs" in line
    assert "what fits: 512 x 512 pixels (0.1 GB)" in line


@pytest.mark.parametrize("command", ["serve --max-batch 7", "app"])
def test_servers_count_the_pictures_that_they_draw_at_once(monkeypatch, capsys, command):
    monkeypatch.setattr(memory, "free_host_memory", lambda: 0.052 * GB)
    monkeypatch.setattr("ic_jax.weights.loading.load_model", None)
    monkeypatch.setattr("infer.app.app_command.signal.signal", lambda *_: None)
    assert infer([*command.split(), "--dtype", "float32"]) == 2
    assert "and 4 pictures of 128 x 128 pixels needs" in capsys.readouterr().err
