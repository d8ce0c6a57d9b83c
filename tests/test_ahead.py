"""Compilation ahead of a call, while the weights are read, whose programs that call finds."""

import inspect
import re
import threading

import jax
import numpy as np
import pytest

from ic_jax import InstantCharacterPipeline, WeightsError, cli, compilation_cache, runner
from ic_jax.weights.model_folder import ModelFolder
from tests.conftest import TINY

STYLE = TINY / "style_lora.safetensors"
SIZES = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 32}
EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
OF_JAX = ("_multi_slice", "jit(_multi_slice)")  # splits what one device has over a mesh


@pytest.fixture
def work():
    """Threads and programs of tracing, lowering and compiling."""
    seen = []

    def listen(event, seconds, **details):
        if event in EVENTS and details.get("fun_name") not in OF_JAX:
            seen.append((threading.current_thread().name, details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def _ignore(*_):
    pass


slow = pytest.mark.slow  # each compiles all programs of a pipeline anew


def draw(pipe, **options):
    return pipe(
        ["a girl", "a boy"],
        subject_image=pipe.encode_subject(TINY / "reference.png"),
        negative_prompt="dark",
        true_cfg_scale=2.0,
        **SIZES,
        **options,
    ).images


@pytest.mark.parametrize("callback", [None, pytest.param(_ignore, marks=slow)])
@pytest.mark.usefixtures("ahead_is_empty")
def test_a_call_finds_what_was_compiled_ahead(tiny_model, work, callback):
    drawn, options = [], {"output_type": "np", "callback_on_step_end": callback}

    def ahead(pipe):
        pipe.load_lora_weights(STYLE)
        drawn.append(draw(pipe, **options))

    pipe = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", ahead=ahead)
    assert drawn == [[]]
    assert {thread for thread, _ in work} >= {compilation_cache.AHEAD}
    assert not compilation_cache.is_ahead()
    pipe.load_lora_weights(STYLE)
    work.clear()
    pictures = draw(pipe, **options)
    assert work == []
    plain = InstantCharacterPipeline.from_pretrained(tiny_model, "float32")
    plain.load_lora_weights(STYLE)
    np.testing.assert_array_equal(pictures, draw(plain, **options))


@pytest.fixture
def ahead_is_empty():
    """Nothing is found that another test has compiled."""
    jax.clear_caches()


def test_an_error_ahead_is_that_of_the_call(tiny_model):
    raised = []

    def ahead(pipe):
        try:
            pipe("a girl", height=63)
        except ValueError as error:
            raised.append(str(error))
            raise

    pipe = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", ahead=ahead)
    with pytest.raises(ValueError, match="height") as again:
        pipe("a girl", height=63)
    assert raised == [str(again.value)]


def test_a_model_that_cannot_be_read_does_not_wait(tiny_model, monkeypatch):
    """A compilation cannot be stopped: its thread is left, and the process ends around it."""
    go_on, exits = threading.Event(), []

    def damaged(*_, **__):
        raise WeightsError("damaged")

    monkeypatch.setattr(ModelFolder, "read_parameters", damaged)
    with pytest.raises(WeightsError, match=r"^damaged$"):
        InstantCharacterPipeline.from_pretrained(tiny_model, ahead=lambda pipe: go_on.wait())
    assert compilation_cache.is_ahead()
    monkeypatch.setattr(cli.os, "_exit", exits.append)
    with pytest.raises(SystemExit):
        cli.leave(3)
    assert exits == [3]
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == compilation_cache.AHEAD:
            thread.join()


def test_every_program_is_run_in_one_place():
    """Or it would not be compiled ahead."""
    kind, source = type(runner._decode), inspect.getsource(runner.Runner)
    programs = [name for name, value in vars(runner).items() if isinstance(value, kind)]
    assert len(programs) == 10
    for name in [*programs, "_jitted"]:
        assert re.findall(rf"[\w.]*\(?(?<!\w){name}\b", source) == [f"self._run({name}"], name
