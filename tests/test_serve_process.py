"""The server as a process, with the small model: many clients, killed ones, and its end."""

import json
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import jax
import openai
import pytest

from benchmarks import serving
from ic_jax import InstantCharacterPipeline
from tests.slow_pipeline import PATIENCE, eventually

FIFTY = {"num_inference_steps": 50}


@pytest.fixture
def optimized(monkeypatch):
    """Drawing that is compiled as for users: hundreds of pictures take longer than compilation."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow  # starts a server and draws 240 pictures twice
def test_200_requests_of_8_clients_are_none_lost_and_none_mixed_up(optimized, monkeypatch):
    monkeypatch.setattr(serving, "STEPS", 2)
    requests = serving.requests(200)
    pipe = InstantCharacterPipeline.from_pretrained(dtype="float32")
    expected = serving.expected(pipe, requests)
    measured = serving.measure(serving.BATCH, requests, expected)
    assert len(measured["seconds"]) == 200
    assert measured["largest difference"] <= 1  # float32 rounds to 1e-5, then to a byte
    after_a_fifth, after_all = measured["MiB"]
    assert after_all < 1.05 * after_a_fifth
    assert measured["exit code"] == 0


@pytest.mark.slow  # starts a server, which compiles
def test_killed_clients_and_sigterm_in_the_middle():
    """A killed client's picture is given up; at SIGTERM only the picture being drawn is sent."""
    with serving.ServerProcess("--max-batch", "1", "--no-warm-up") as server:
        clients = [_send(server, {"prompt": serving.PROMPTS[0], **FIFTY}) for _ in range(8)]
        eventually(lambda: server.metric("ic_jax_pictures_waiting") == 7)
        for client in clients:  # as the kernel does for a process that is killed
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        eventually(lambda: server.metric('ic_jax_pictures_total{end="cancelled"}') == 8)
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(_ask, server, seed) for seed in range(8)]
            eventually(lambda: server.metric("ic_jax_pictures_drawing") == 1)
            eventually(lambda: server.metric("ic_jax_pictures_waiting") == 7)
            server.process.send_signal(signal.SIGTERM)
            results = sorted(answer.result() for answer in answers)
        server.process.wait(PATIENCE)
    assert results[0] < 8  # the seed of the one that was being drawn
    assert results[1:] == [503] * 7
    assert server.process.returncode == 0


def _ask(server, seed):
    """Ask for a picture; return its seed, or the status of the error."""
    with server.client() as client:
        try:
            answer = client.images.generate(
                prompt=serving.PROMPTS[0], extra_body={"seed": seed, **FIFTY}
            )
        except openai.InternalServerError as error:
            return error.status_code
    return answer.data[0].seed


def _send(server, body):
    """Send a request and do not wait for the answer; return the connection."""
    client = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    text = json.dumps(body)
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    client.sendall((head + text).encode())
    return client
