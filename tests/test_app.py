"""The page of `python -m infer app`: its events without a browser, and once over the network.

`python -m tests.app_in_browser` tries it in a browser.
"""

import json
import os
import socket
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from ic_jax import InstantCharacterPipeline
from infer import demo
from infer.app.app_command import USER
from infer.app.events import Events
from infer.app.form import Form
from infer.app.page import show
from infer.app.studio import Studio
from infer.commands import main
from infer.engine import Engine
from infer.engine.loading import LoadedModel
from infer.picture_file import encode, read_metadata

STEPS = 3  # as in the engine's tests, whose programs are used again
HERE = SimpleNamespace(session_hash="here")


@pytest.fixture(scope="module")
def engine():
    pipe = InstantCharacterPipeline.from_pretrained(dtype="float32")
    with Engine(pipe, max_batch=1) as engine:
        yield engine


@pytest.fixture
def studio(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return Studio(engine, LoadedModel(engine.pipe, demo.MODEL_NAME, {}), tmp_path)


def form(studio, **values) -> Form:
    few = {"prompt": demo.PROMPT, "num_inference_steps": STEPS, "random_seed": False}
    return Form(**vars(studio.empty()) | few | values)


def drawn(events, values, kept=None):
    """Return what drawing shows, one after another."""
    return list(events.draw_form(HERE, [], kept or {}, *values))


def test_a_picture_is_drawn_and_drawn_again_from_what_it_tells(studio):
    events = Events(studio)
    subject = (str(demo.SUBJECT), None, None)
    asked = form(studio, files=subject, seed=7, subject_scale=0.8)
    first, *meanwhile, last = drawn(events, asked.values())
    assert first.seed == 7
    assert any(isinstance(x.picture, Image.Image) for x in meanwhile)
    assert any("step 1 of 3" in x.status for x in meanwhile)
    told = read_metadata(Path(last.picture))
    assert (told["prompt"], told["seed"], told["subject_scale"]) == (demo.PROMPT, 7, 0.8)
    assert (told["subject"], told["lora"]) == ("demo.png", [])
    assert "Steps: 3, Sampler: Euler" in Image.open(last.picture).text["parameters"]
    kept, note, *values = events.take(last.chosen)
    assert (kept, note, Form.read(values)) == ({}, "", asked)
    again = drawn(events, values)[-1]
    assert Path(again.picture).read_bytes() == Path(last.picture).read_bytes()
    described, button = events.describe(again.chosen)
    assert (described, button.interactive) == (told, True)


def test_characters_are_drawn_where_they_are_put(studio, tmp_path):
    events = Events(studio)
    ben = tmp_path / "ben@home.png"
    Image.open(demo.SUBJECT).convert("RGB").rotate(90).save(ben)
    two = form(studio, files=(str(demo.SUBJECT), str(ben), None), places=("left", "0.5,0,1,1", ""))
    last = drawn(events, two.values())[-1]
    told = read_metadata(Path(last.picture))
    assert (told["subject"], len(told["subjects_sha256"])) == (None, 2)
    assert told["subjects"] == ["demo.png@left", "ben@home.png@0.5,0,1,1"]
    _, _, *values = events.take(last.chosen)
    assert Form.read(values) == replace(two, places=(*two.places[:2], "anywhere"))
    studio.uploads.clear()  # as on another page
    *_, missing = studio.form_of(last.chosen)
    assert missing == [
        f"its character is not here: add {x!r}" for x in ("demo.png", "ben@home.png")
    ]
    (request,) = studio.requests(replace(two, places=("anywhere",) * 3), {})
    assert [placed.region for placed in request.subjects] == [None, None]


def clicked(events, number, waiting, places, x, y):
    """Return what a click on a character's canvas of a wide picture gives."""
    return events.put_corner(SimpleNamespace(index=[x, y]), number, waiting, 128, 64, *places)


def test_two_clicks_on_its_canvas_put_a_character_in_a_box(studio):
    events, places = Events(studio), ("anywhere", "left", "nowhere yet")
    place, waiting, seen, *_ = clicked(events, 0, None, places, 168, 112)
    assert (place["__type__"], waiting, seen.size) == ("update", (0, (0.75, 1.0)), (224, 112))
    assert clicked(events, 0, waiting, places, 169, 20)[1] == (0, (169 / 224, 20 / 112))  # too near
    assert clicked(events, 1, waiting, places, 56, 28)[1] == (1, (0.25, 0.25))  # another's canvas
    assert clicked(events, 0, waiting, places, 2, 110)[1] == (0, (2 / 224, 110 / 112))  # as low
    assert clicked(events, 0, waiting, places, 2, 28)[0] == "0,0.25,0.75,1"  # at the edge
    place, waiting, *seen = clicked(events, 0, waiting, places, 56, 28)
    assert (place, waiting) == ("0.25,0.25,0.75,1", None)
    first, second, third, waiting = events.show_places(128, 64, place, *places[1:])
    assert waiting is None
    assert [x.tobytes() for x in seen] == [x.tobytes() for x in (first, second, third)]
    assert events.show_places(128, None, *places) == [gr.skip()] * 4  # a side is being written
    endless = events.show_places(128, 64, "0,0,1e9,1e9", None, "0,0,inf,inf")[0]
    assert endless.tobytes() == events.show_places(128, 64, *["anywhere"] * 3)[0].tobytes()
    inside, left = (140, 70), (28, 14)
    assert [x.getpixel(inside) == (255, 255, 255) for x in (first, second)] == [False, True]
    assert [x.getpixel(left) == (255, 255, 255) for x in (first, second)] == [True, False]
    assert first.getpixel((55, 27)) == second.getpixel((55, 27)) == (209, 73, 91)  # its outline


def test_a_character_is_cut_out_of_its_ground(studio, tmp_path):
    file = tmp_path / "ana.png"
    picture = Image.new("RGB", (200, 100), "teal")
    picture.paste("red", (120, 20, 160, 80))
    picture.save(file)
    cut = Events(studio).cut_out(str(file))
    assert Path(cut).name == "ana-cut.png"
    left, *_, right = (Events(studio).preview(x).getpixel((48, 48)) for x in (str(file), cut, cut))
    assert (left[0] > 200, right[0] > 200) == (False, True)


def test_an_uploaded_picture_tells_its_arguments_and_opens_no_file(studio, tmp_path):
    """It is a stranger's: the character must have been uploaded, whatever path it names."""
    metadata = {"ic_jax": "0", "prompt": "a person", "seed": 3, "model": "m", "dtype": "bfloat16"}
    metadata |= {"subject": "/etc/passwd", "subject_sha256": "0" * 64, "lora": []}
    metadata |= {"negative_prompt": "hat", "negative_subject_scale": 0.5, "max_sequence_length": 20}
    metadata |= {"true_cfg_scale": 2.0, "guidance_scale": 3.5, "num_inference_steps": 2}
    metadata |= {"width": 96, "height": 96, "sigmas": None}
    file = tmp_path / "earlier.png"
    file.write_bytes(encode(Image.new("RGB", (96, 96)), ".png", metadata))
    told, kept, differing = studio.form_of(str(file))
    assert (told.prompt, told.seed, told.negative_prompt, told.files[0]) == (
        *("a person", 3, "hat"),
        None,
    )
    assert kept == {"negative_subject_scale": 0.5, "max_sequence_length": 20}
    assert differing == [
        "the picture's model is 'm'",
        "the picture's dtype is bfloat16",
        "its character is not here: add '/etc/passwd'",
    ]
    (request,) = studio.requests(form(studio, files=(str(demo.SUBJECT), None, None)), kept)
    assert request.negative_subject_scale == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": ["style.safetensors=1.0"]}, "LoRA 'style.safetensors=1.0' is not among"),
        ({"sigmas": [1.0, 0.5]}, "a picture with sigmas is drawn again by `infer"),
        ({"hat": 1}, "earlier.png cannot be drawn again: "),
        ({"grid": "0"}, "earlier.png is a contact sheet"),
        (None, "earlier.png does not tell how it was drawn"),
    ],
)
def test_a_picture_that_cannot_be_drawn_again_says_why(studio, tmp_path, changes, message):
    file = tmp_path / "earlier.png"
    if changes is None:
        Image.new("RGB", (8, 8)).save(file)
    else:
        told = {"prompt": "x", "seed": 0, "model": "m", "dtype": "float32"} | changes
        file.write_bytes(encode(Image.new("RGB", (8, 8)), ".webp", told))
    with pytest.raises(gr.Error) as caught:
        Events(studio).open(str(file))
    assert message in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture <b>", "bad&lt;.png: "),
        (b"", "bad&lt;.png: "),
        (demo.SUBJECT.read_bytes()[:900], "bad&lt;.png"),
    ],
)
def test_a_bad_file_says_what_is_wrong(studio, tmp_path, data, message):
    file = tmp_path / "bad<.png"
    file.write_bytes(data)
    for act in (Events(studio).preview, lambda f: drawn(Events(studio), _with(studio, f))):
        with pytest.raises(gr.Error) as caught:
            act(str(file))
        assert message in caught.value.message
        assert str(tmp_path) not in caught.value.message
        assert "\n" not in caught.value.message


def _with(studio, file):
    return form(studio, files=(file, None, None)).values()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100}, "width is 100"),
        ({"places": ("here", "", "")}, "a character cannot stand 'here'"),
        ({"places": ("0.5,0,0.2,1", "", "")}, "is no box"),
        ({"seed": -1}, "seed -1"),
        ({"num_inference_steps": 1000}, "num_inference_steps is 1000"),
        ({"negative_prompt": "hat", "true_cfg_scale": 1}, "does nothing at true_cfg_scale 1"),
    ],
)
def test_values_that_cannot_be_used_are_one_line(studio, values, message):
    values = {"files": (str(demo.SUBJECT), None, None)} | values
    with pytest.raises(gr.Error, match=message):
        drawn(Events(studio), form(studio, **values).values())


def test_cancelling_ends_the_drawings_of_that_page_alone(studio):
    events = Events(studio)
    running = events.draw_form(HERE, [], {}, *form(studio, pictures=2).values())
    next(running)
    events.cancel(SimpleNamespace(session_hash="elsewhere"))
    drawings = events._running["here"]
    assert not any(drawing.cancelled() for drawing in drawings)
    events.cancel(HERE)
    with pytest.raises(gr.Error, match="cancelled"):
        list(running)
    with pytest.raises(CancelledError):
        drawings[1].result(0)
    left = events.draw_form(HERE, [], {}, *form(studio).values())
    next(left)
    (drawing,) = events._running["here"]
    left.close()  # as when the page is closed
    assert drawing.cancelled()


def test_examples_are_those_that_the_loaded_model_knows(studio, monkeypatch):
    assert studio.prompts() == list(demo.EXAMPLES)
    tokenizer = studio.engine.pipe.tokenizer_2
    assert not any(tokenizer.unknown(text) for text in studio.prompts())
    monkeypatch.setattr(type(tokenizer), "words", None)
    assert "guitar" in studio.prompts()[0]


def test_a_client_draws_over_the_network(studio):
    from gradio_client import Client, handle_file

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    blocks = show(studio, "127.0.0.1", port, lambda user, word: (user, word) == (USER, "open"))
    try:
        client = Client(blocks.local_url, verbose=False, auth=(USER, "open"))
        arguments = {"character": handle_file(str(demo.SUBJECT)), "num_inference_steps": STEPS}
        picture = client.predict(demo.PROMPT, api_name="/draw", seed=5, **arguments)
        told = json.loads(Image.open(picture).text["ic_jax"])
        assert (told["seed"], told["subject"]) == (5, "demo.png")
        assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/draw"]
    finally:
        blocks.close(verbose=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in; give --password"),
        (["--host", "0.0.0.0", "--password", "x", "--mcp"], "--mcp asks callers for no password"),
        (["--host", "nowhere.invalid", "--password", "x"], "--host nowhere.invalid"),
        (["--lora", "style.safetensors"], "--lora style.safetensors: requests name it"),
        (["--share"], "unrecognized arguments: --share"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, capfd):
    try:
        code = main(["app", "--no-compile-cache", *arguments])
    except SystemExit as end:
        code = end.code
    assert code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
