"""Strangers at the server: bad bodies, no token, full queues, clients that go, its end."""

import json
import socket

import httpx
import pytest

from ic_jax import InstantCharacterPipeline
from infer.commands import main
from infer.serve import guard
from tests.serving import DEMO, DRAW, EDIT, PROMPT, ask, served
from tests.slow_pipeline import PATIENCE, SlowPipeline, eventually


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


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"prompt": ', 422, "is not JSON"),
        (b'{"prompt": "x", "seed": NaN}', 422, "NaN is not JSON"),
        (b"[" * 100_000, 422, "nested too deep"),
        (b'"prompt"', 422, "must be a JSON object"),
        (b"\xff\xfe", 422, "is not UTF-8"),
        (b"{}", 422, "prompt is missing"),
        (b" " * (guard.MAX_JSON + 1), 413, "the body has more than"),
        (iter([b" " * 600_000] * 2), 413, "the body has more than"),  # says no length
    ],
)
def test_bodies_that_are_no_request(http, body, status, message):
    answer = http.post(DRAW, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + bytes.fromhex(
        "0000000d49484452 0000ea60 0000ea60 08020000 00"  # 60 000 x 60 000 pixels
    )
    + bytes(4)
)


PICTURES = [(name, DEMO.read_bytes()) for name in ("image", "mask", "original")]


@pytest.mark.parametrize(
    ("files", "fields", "status", "message"),
    [
        ([("image", b"no picture")], {}, 422, "picture"),
        ([("image", DEMO.read_bytes()[:2000])], {}, 422, "picture"),
        ([("image", BOMB)], {}, 422, "picture"),
        ([("photo", DEMO.read_bytes())], {}, 422, "photo is a file"),
        ([("image", DEMO.read_bytes())], {"image": "/etc/passwd"}, 422, "unknown field image"),
        ([("image", DEMO.read_bytes())], {"n": "many"}, 422, "n is 'many'"),
        ([("image", DEMO.read_bytes())], {"loras[oil]": "0.5"}, 422, "no LoRA 'oil'"),
        ([("image", DEMO.read_bytes())], {"subject": "0" * 64}, 422, "exclude each other"),
        ([("image", bytes(21 * 1024**2))], {}, 422, "bytes; at most"),
        (PICTURES[1:2], {}, 422, "mask does nothing without original"),
        (PICTURES[:1], {"strength": "0.5"}, 422, "strength does nothing without original"),
        (PICTURES, {"strength": "2"}, 422, "strength is 2.0; it must be within (0, 1]"),
        (PICTURES, {"size": "4096x4096"}, 422, "a picture of 16777216 pixels is too large"),
        ([*PICTURES, PICTURES[2]], {}, 422, "2 files original; give one"),
        ([*PICTURES[1:], ("image", BOMB)], {}, 422, "the bytes are no picture"),
        ([("original", BOMB)], {}, 422, "original: the bytes are no picture"),
        (
            [("original", DEMO.read_bytes()), ("mask", BOMB)],
            {},
            422,
            "mask: the bytes are no picture",
        ),
    ],
)
def test_bad_pictures_and_forms(http, files, fields, status, message):
    files = [(name, ("file.png", data)) for name, data in files]
    answer = http.post(EDIT, data={"prompt": PROMPT, **fields}, files=files)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_only_this_machine_is_served_without_a_token(http):
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        assert http.get("/v1/models", headers=headers).status_code == 403
    for headers in ({"Host": "localhost:80"}, {"Host": "[::1]:80", "Origin": "http://127.0.0.1"}):
        assert http.get("/v1/models", headers=headers).status_code == 200


def test_a_token_is_asked_for(slow):
    with (
        served(slow, api_key="secret") as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE) as http,
    ):
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            for path in ("/v1/models", "/metrics", "/nowhere"):
                answer = http.get(path, headers=wrong)
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    401,
                    "invalid_api_key",
                )
        right = {"Authorization": "Bearer secret", "Host": "pictures.example"}
        assert http.get("/v1/models", headers=right).status_code == 200
        assert http.get("/health").status_code == 200


def test_addresses_of_others_need_a_token(capfd, monkeypatch):
    monkeypatch.delenv("IC_JAX_API_KEY", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "--host 0.0.0.0 lets others in; give --api-key" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert "Address already in use; give others" in capfd.readouterr().err


def test_a_full_queue_and_a_client_that_goes(pipe):
    slow = SlowPipeline(pipe)
    with served(slow, max_batch=1, max_waiting=1) as server:
        answers: dict[int, httpx.Response] = {}
        engine = server._engine
        threads = [ask(server, answers, seed=1)]
        eventually(lambda: engine.drawing == 1)
        body = {"prompt": PROMPT, "num_inference_steps": 1, "seed": 2}
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as gone:
            text = json.dumps(body)
            head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            gone.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            eventually(lambda: engine.waiting == 1)
        eventually(lambda: engine.waiting == 0)
        threads.append(ask(server, answers, seed=3))
        eventually(lambda: engine.waiting == 1)
        full = httpx.post(server.url + DRAW, json=body, timeout=PATIENCE)
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        slow.step.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [answers[seed].status_code for seed in (1, 3)] == [200, 200]
        assert slow.drawn == [[1], [3]]


def test_a_picture_that_takes_too_long(pipe):
    with served(SlowPipeline(pipe), max_batch=1, time_limit=0.05) as server:
        answers: dict[int, httpx.Response] = {}
        for thread in [ask(server, answers, seed=seed) for seed in (1, 2)]:
            thread.join(PATIENCE)
        for seed in (1, 2):
            assert answers[seed].status_code == 504
            assert answers[seed].json()["error"]["code"] == "time_limit"


def test_stopping_answers_everybody(pipe):
    slow = SlowPipeline(pipe)
    with served(slow, max_batch=1) as server:
        answers: dict[int, httpx.Response] = {}
        threads = [ask(server, answers, seed=1)]
        eventually(lambda: server._engine.drawing == 1)
        threads.append(ask(server, answers, seed=2))
        eventually(lambda: server._engine.waiting == 1)
        server.should_exit = True
        threads[1].join(PATIENCE)
        assert answers[2].status_code == 503
        assert answers[2].json()["error"]["code"] == "stopping"
        slow.step.set()
        threads[0].join(PATIENCE)
        assert answers[1].json()["data"][0]["seed"] == 1
