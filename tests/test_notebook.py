"""Results that notebooks display, the progress bar, and errors that name the right argument."""

import inspect
import io
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from ic_jax import InstantCharacterPipeline, PipelineResult, keywords, progress
from tests.conftest import TINY

# Of one shape, so that the sampler is compiled once.
CALL = {
    "prompt": ["a girl", "a boy"],
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "max_sequence_length": 32,
}


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error a terminal for the bar alone; returns what is written to it."""
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=written, modules={}))
    monkeypatch.setattr(progress, "_automatic", True)
    return written


# Results


def test_a_call_tells_its_arguments(pipe):
    result = pipe(seed=[3, 4], **CALL)
    assert result.prompts == ["a girl", "a boy"]
    assert (result.arguments.num_inference_steps, result.arguments.guidance_scale) == (2, 3.5)
    html = result._repr_html_()
    assert html.count("<img ") == 2
    assert "a girl" in html
    assert "seed 4" in html
    assert "height=64, width=64, num_inference_steps=2, guidance_scale=3.5" in html
    sheet = Image.open(io.BytesIO(result._repr_png_()))
    assert sheet.height > 2 * 256
    latents = pipe(output_type="latent", **CALL)
    assert latents._repr_html_() is latents._repr_png_() is None


def test_what_a_notebook_shows_is_the_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 48, 96, 3), np.uint8)
    result = PipelineResult(pixels.astype(np.float32) / 255, None)
    shown = Image.open(io.BytesIO(result._repr_png_()))
    np.testing.assert_array_equal(np.asarray(shown), pixels[0])
    assert 'width="288"' in result._repr_html_()  # small pictures are enlarged
    many = PipelineResult([Image.new("RGB", (8, 8))] * 20, list(range(20)))
    html = many._repr_html_()
    assert (html.count("<img "), "4 more pictures" in html) == (16, True)


def test_a_label_is_no_markup():
    prompt = '"><script>alert(1)</script>'
    html = PipelineResult([Image.new("RGB", (8, 8))], [0], [prompt])._repr_html_()
    assert "<script" not in html
    assert re.search(r'alt="[^"<>]*"', html)


# Progress


def test_the_bar_says_that_it_compiles_and_compiles_nothing_new(pipe, terminal):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event == progress.COMPILED else None
    )
    pipe._progress = progress.Progress()
    try:
        pipe.set_progress_bar_config(disable=True)
        plain = pipe(output_type="np", **CALL).images
        assert terminal.getvalue() == ""
        compiled.clear()
        pipe.set_progress_bar_config(desc="drawing")
        shown = pipe(output_type="np", **CALL).images
        pipe(output_type="np", **CALL)
    finally:
        pipe.set_progress_bar_config()
    assert compiled == []
    np.testing.assert_array_equal(plain, shown)
    text = terminal.getvalue()
    assert "drawing:   0%" in text
    assert progress.COMPILING in text  # this pipeline's first bar of the shape
    assert text.count("2/2") >= 2


def test_steps_are_counted_where_each_is_a_call(pipe, terminal):
    steps = []
    pipe(callback_on_step_end=lambda p, i, t, values: steps.append(i), **CALL)
    assert steps == [0, 1]
    assert "1/2" in terminal.getvalue()


def test_the_clock_moves_the_bar_up_to_the_last_step():
    bar = SimpleNamespace(total=4, n=0, refresh=lambda: None)
    timed = progress._Timed(bar, expected=10.0)
    waits = iter([False, False, True])
    timed._ended = SimpleNamespace(wait=lambda _: next(waits))
    for seconds, n in ((5.1, 2), (99.0, 3)):
        timed._start = progress.time.perf_counter() - seconds
        waits = iter([False, True])
        timed._tick()
        assert bar.n == n


@pytest.mark.parametrize(
    ("automatic", "disable", "shown"),
    [(True, None, True), (False, None, False), (False, False, True), (True, True, False)],
)
def test_programs_show_no_bar_unless_asked(terminal, monkeypatch, automatic, disable, shown):
    monkeypatch.setattr(progress, "_automatic", automatic)
    assert progress.BarConfig(disable).is_shown == shown


def test_no_bar_in_a_file_and_one_in_a_notebook(monkeypatch):
    monkeypatch.setattr(progress, "_automatic", True)
    modules = {}
    file = SimpleNamespace(stderr=io.StringIO(), modules=modules)
    monkeypatch.setattr(progress, "sys", file)
    assert not progress.BarConfig().is_shown
    modules["IPython"] = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    assert progress.BarConfig().is_shown


# Names


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"generator": 1}, "generator is unknown; use seed, a number"),
        ({"ip_adapter_image": 1}, "ip_adapter_image is unknown; use subject_image"),
        ({"num_inference_step": 1}, "is unknown; did you mean num_inference_steps?"),
        ({"zzz": 1}, "zzz is unknown"),
    ],
)
def test_an_unknown_keyword_of_a_call_names_ours(pipe, named, message):
    with pytest.raises(TypeError, match=re.escape(message)) as raised:
        pipe("a", **named)
    assert "\n" not in str(raised.value)


def test_unknown_keywords_of_loading_name_ours():
    load = InstantCharacterPipeline.from_pretrained
    for name, message in (("torch_dtype", "use dtype"), ("device_map", 'use mesh, such as "ten')):
        with pytest.raises(TypeError, match=message):
            load(TINY, **{name: "auto"})


def test_methods_of_other_pipelines_name_ours(pipe):
    with pytest.raises(AttributeError, match="has no to; use dtype and mesh of from_pretrained"):
        pipe.to("cuda")
    with pytest.raises(AttributeError, match="use offload_encoders=True of from_pretrained"):
        pipe.enable_model_cpu_offload()
    with pytest.raises(AttributeError, match="did you mean load_lora_weights"):
        pipe.load_lora_weight()
    assert not hasattr(pipe, "to")


def test_no_name_that_teaches_is_one_of_ours():
    call = inspect.signature(InstantCharacterPipeline.__call__).parameters
    load = inspect.signature(InstantCharacterPipeline.from_pretrained).parameters
    assert not keywords.CALL.keys() & call.keys()
    assert not keywords.FROM_PRETRAINED.keys() & load.keys()
    assert not keywords.METHODS.keys() & set(dir(InstantCharacterPipeline))
