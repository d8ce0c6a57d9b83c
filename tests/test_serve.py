"""The server, as OpenAI's own client and strangers meet it."""

import base64
import hashlib
import io
import re
import shlex
import shutil
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from ic_jax import InstantCharacterPipeline
from infer.picture_file import read_metadata
from infer.subject_options import subject_option
from tests.serving import DEMO, DRAW, EDIT, PROMPT, served
from tests.slow_pipeline import PATIENCE, SlowPipeline

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pipe():
    return InstantCharacterPipeline.from_pretrained(dtype="float32")


@pytest.fixture(scope="module")
def slow(pipe):
    slow = SlowPipeline(pipe)
    slow.step.set()
    return slow


@pytest.fixture(scope="module")
def server(slow):
    with served(slow) as server:
        yield server


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def client_of(server, **options):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, **options)


def picture(item, key="b64_json"):
    return Image.open(io.BytesIO(base64.b64decode(getattr(item, key).rpartition(",")[2])))


def test_openais_client_draws_a_character_and_draws_it_again_by_its_hash(pipe):
    ours = {"seed": 5, "num_inference_steps": 3}
    with served(pipe, max_batch=4) as server, client_of(server) as client:
        with DEMO.open("rb") as file:
            edited = client.images.edit(image=file, prompt=PROMPT, n=3, extra_body=ours)
        digest = hashlib.sha256(DEMO.read_bytes()).hexdigest()
        side = pipe.sampling.height
        assert (edited.subjects, edited.size) == ([digest], f"{side}x{side}")
        assert [item.seed for item in edited.data] == [5, 6, 7]
        again = client.images.generate(
            prompt=PROMPT,
            response_format="url",
            output_format="webp",
            extra_body={**ours, "seed": 6, "subject": digest},
        )
    common = {"num_inference_steps": 3, "callback_on_step_end": lambda *_: None}
    drawn = pipe([PROMPT] * 4, subject_image=DEMO, seed=[5, 6, 7, 7], **common).images
    for item, image in zip(edited.data, drawn[:3], strict=True):
        difference = np.asarray(picture(item), np.int32) - np.asarray(image, np.int32)
        assert np.abs(difference).max() <= 1
    assert again.data[0].url.startswith("data:image/webp;base64,")
    small = np.asarray(picture(again.data[0], "url"), np.int32) - np.asarray(drawn[1], np.int32)
    assert np.abs(small).mean() < 3  # WebP loses a little
    told = read_metadata(io.BytesIO(base64.b64decode(edited.data[1].b64_json)))
    assert (told["seed"], told["model"], told["subject"]) == (6, "ic", f"sha256:{digest}")


def test_a_picture_is_drawn_over_as_the_pipeline_draws_over_it(pipe):
    """In the shapes of the test above: 3 of 4 steps, and a batch of 4."""
    common, side = {"num_inference_steps": 4, "strength": 0.7}, pipe.sampling.height
    picture = DEMO.read_bytes()
    with served(pipe) as server:
        files = [("image", picture), ("original", picture)]
        data = {"prompt": PROMPT, "size": f"{side}x{side}", "n": 3, "seed": 5, **common}
        answer = httpx.post(server.url + EDIT, data=data, files=files, timeout=PATIENCE).json()
    over = {"subject_image": DEMO, "image": [DEMO] * 4, "height": side, "width": side}
    common |= {"callback_on_step_end": lambda *_: None}
    drawn = pipe([PROMPT] * 4, seed=[5, 6, 7, 7], **over, **common).images
    for item, image in zip(answer["data"], drawn[:3], strict=True):
        sent = Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))
        difference = np.asarray(sent, np.int32) - np.asarray(image, np.int32)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"promt": "x"}, 422, "promt", "unknown field promt; did you mean prompt?"),
        ({"guidance": 3.5}, 422, "guidance", "did you mean guidance_scale?"),
        ({"n": 0}, 422, "n", "n is 0; it must be a whole number from 1 to 10"),
        ({"n": "2"}, 422, "n", "n is '2'; it must be of type int"),
        ({"size": "big"}, 422, "size", "must be auto or WIDTHxHEIGHT"),
        ({"size": "100x100"}, 422, "size", "height is 100; it must be a multiple of 16"),
        ({"size": "4096x4096"}, 422, None, "a picture of 16777216 pixels is too large"),
        ({"seed": -1}, 422, "seed", "seed -1"),
        ({"quality": "high"}, 422, "quality", "quality 'high' has no effect here"),
        ({"stream": True}, 422, "stream", "stream True has no effect here"),
        ({"subject_scale": 1}, 422, "subject_scale", "does nothing without a subject"),
        ({"subject": "/etc/passwd"}, 404, "subject", "no character is kept under"),
        ({"subject": 7}, 422, "subject", "subject must be a text"),
        ({"regions": ["left"]}, 422, "regions", "1 regions for 0 characters"),
        ({"loras": {"oil": 1}}, 422, None, "there is no LoRA 'oil'; known are ink"),
        ({"loras": {"ink": "much"}}, 422, None, "the weight of LoRA 'ink' is 'much'"),
        ({"loras": ["ink"]}, 422, "loras", "must be an object of weights by name"),
        ({"model": "dall-e-3"}, 404, "model", "there is no model 'dall-e-3'; this server has ic"),
        ({"response_format": "png"}, 422, "response_format", "must be one of b64_json, url"),
        ({"num_inference_steps": 1000}, 422, "num_inference_steps", "at most 100"),
        ({"prompt": "x" * 40_000}, 422, "prompt", "longer than 32000 characters"),
        ({"seed": 666}, 500, None, "not finite"),
    ],
)
def test_errors_have_openais_shape(http, fields, status, param, message):
    answer = http.post(DRAW, json={"prompt": PROMPT, "num_inference_steps": 1, **fields})
    error = answer.json()["error"]
    assert answer.status_code == status
    assert message in error["message"]
    assert error["param"] == param
    assert {"type", "code"} < set(error)


def test_examples_of_the_page(server, tmp_path, monkeypatch):
    """Its curl commands and its Python, asked of a server that is there."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEMO, "girl.png")
    digest = hashlib.sha256(DEMO.read_bytes()).hexdigest()
    page = (ROOT / "docs" / "serving.md").read_text().replace("http://127.0.0.1:8000", server.url)
    page = page.replace("SHA-256 OF girl.png", digest)
    curls = re.findall(r"^```bash\n(curl .*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name in ("ana", "ben", "room", "chair"):
        shutil.copy(DEMO, f"{name}.png")
    for command in curls:
        _, url, *options = shlex.split(command.replace("\\\n", ""))
        values = [value.split("=", 1) for flag, value in pairs(options) if flag == "-F"]
        if values:
            files = [(x, Path(y[1:]).read_bytes()) for x, y in values if y.startswith("@")]
            texts: dict[str, list[str]] = {}
            for name, text in values:
                if not text.startswith("@"):
                    texts.setdefault(name, []).append(text)
            answer = httpx.post(url, data=texts, files=files, timeout=PATIENCE)
        else:
            (header, body) = (value for _, value in pairs(options))
            headers = dict([header.split(": ")])
            answer = httpx.post(url, content=body, headers=headers, timeout=PATIENCE)
        assert answer.json()["data"][0]["seed"] == 7
        assert set(answer.json()["subjects"]) == {digest}
    assert len(curls) == 4
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(example, "<docs/serving.md>", "exec"), {})
    assert Image.open("drawn.png").getpixel((0, 0)) == 7


def test_characters_of_a_picture_have_their_regions(server, slow):
    """From OpenAI's client, whose lists become fields with [] in a form."""
    ours = {"num_inference_steps": 1, "regions": ["left", "0.5,0,1,1"], "subject_scale": [1, 0.5]}
    mirrored = io.BytesIO()
    Image.open(DEMO).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "PNG")
    files = [DEMO.read_bytes(), mirrored.getvalue()]
    with client_of(server) as client:
        sent = client.images.edit(image=files, prompt=PROMPT, extra_body=ours)
        hashes = [hashlib.sha256(file).hexdigest() for file in files]
        assert sent.subjects == hashes
        client.images.generate(prompt=PROMPT, extra_body={**ours, "subject": hashes})
        ((first, second),) = slow.arguments["subjects"]
        assert (first.scale, first.region) == (1, "left")
        told = read_metadata(io.BytesIO(base64.b64decode(sent.data[0].b64_json)))
        options = [subject_option(text) for text in told["subjects"]]
        assert [option.placing for option in options] == [(1, "left"), (0.5, (0.5, 0, 1, 1))]
        assert told["subjects"][0] == f"sha256:{hashes[0]}@left:1"
        assert (told["subject"], told["subjects_sha256"]) == (None, hashes)
        assert (second.scale, second.region) == (0.5, (0.5, 0, 1, 1))
        with pytest.raises(openai.UnprocessableEntityError, match="'/etc/passwd' is none of all"):
            client.images.edit(
                image=files, prompt=PROMPT, extra_body={"regions": ["/etc/passwd", "all"]}
            )


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def right_half(*sides):
    """Return a mask as a transparent hole of a grey picture, and in black and white."""
    grey, white = np.full((*sides, 4), 128, np.uint8), np.zeros((*sides, 3), np.uint8)
    white[:, sides[1] // 2 :] = 255
    grey[..., 3] = 255 - white[..., 0]
    return grey, white


def test_a_mask_is_drawn_anew_where_it_is_transparent_or_else_white(http, slow):
    original = png(np.full((100, 200, 3), 50, np.uint8))
    fields = {"prompt": PROMPT, "num_inference_steps": 1, "seed": 3}
    for mask in map(png, right_half(100, 200)):
        files = [("original", original), ("mask", mask)]
        answer = http.post(EDIT, data={**fields, "strength": "0.9"}, files=files).json()
        assert answer["size"] == "176x96"  # of the model's area, in the picture's proportion
        ((image,), (drawn,)) = (slow.arguments[x] for x in ("image", "mask_image"))
        assert (image.shape, drawn.shape) == ((96, 176, 3), (96, 176))
        assert drawn[:, :84].max() == 0
        assert drawn[:, 92:].min() == 255
        assert (slow.arguments["strength"], slow.arguments["subject_image"]) == (0.9, None)
        data = base64.b64decode(answer["data"][0]["b64_json"])
        told = read_metadata(io.BytesIO(data))
        assert told["image_sha256"] == hashlib.sha256(original).hexdigest()
        assert told["mask"] == f"sha256:{hashlib.sha256(mask).hexdigest()}"
        assert (told["strength"], told["height"], told["width"]) == (0.9, 96, 176)
    files = [("image", DEMO.read_bytes()), ("original", original)]
    http.post(EDIT, data={**fields, "size": "96x96"}, files=files).raise_for_status()
    assert len(slow.arguments["subject_image"]) == 1
    assert slow.arguments["image"][0].shape == (96, 96, 3)
    assert (slow.arguments["mask_image"], slow.arguments["strength"]) == (None, 0.6)


def pairs(options):
    return list(zip(options[::2], options[1::2], strict=True))


def test_openais_client_knows_the_errors(server):
    with client_of(server) as client:
        with pytest.raises(openai.UnprocessableEntityError, match="did you mean seed"):
            client.images.generate(prompt=PROMPT, extra_body={"sead": 1})
        with pytest.raises(openai.NotFoundError, match="no character is kept"):
            client.images.generate(prompt=PROMPT, extra_body={"subject": "0" * 64})
        assert [model.id for model in client.models.list()] == ["ic"]


def test_other_answers(slow):
    with served(slow) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        _check_other_answers(http)


def _check_other_answers(http):
    missing = http.get("/nowhere")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "Not Found")
    assert http.get(DRAW).status_code == 405
    assert http.post(DRAW, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert http.post(EDIT, json={}).status_code == 415
    assert http.get("/health").json() == {"status": "ok", "waiting": 0, "drawing": 0}
    drawn = http.post(DRAW, json={"prompt": PROMPT, "num_inference_steps": 1, "n": 2})
    assert len(drawn.json()["data"]) == 2
    assert len({item["seed"] for item in drawn.json()["data"]}) == 2
    metrics = http.get("/metrics").text
    assert f'ic_jax_requests_total{{path="{DRAW}",status="200"}} 1.0' in metrics
    assert 'ic_jax_pictures_total{end="drawn"} 2.0' in metrics
    assert "process_resident_memory_bytes" in metrics
