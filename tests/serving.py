"""A server in a thread of a test, and what tests ask of it."""

import threading
from contextlib import contextmanager
from pathlib import Path

import httpx

from infer.engine import Engine
from infer.engine.loading import LoadedModel
from infer.serve.application import application
from infer.serve.server import Server
from tests.slow_pipeline import PATIENCE, SlowPipeline, eventually

DEMO = Path(__file__).parent.parent / "infer" / "demo.png"
PROMPT = "A portrait of a person waving, in a red hoodie, on plain teal."
DRAW, EDIT = "/v1/images/generations", "/v1/images/edits"


@contextmanager
def served(pipe, api_key=None, **options):
    """Serve a pipeline as the model models/ic; `options` are the engine's."""
    engine = Engine(pipe, **options)
    app = application(engine, LoadedModel(pipe, "models/ic", {}), api_key)
    server = Server(app, engine, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    with engine:
        thread.start()
        eventually(lambda: server.started)
        try:
            yield server
        finally:
            if isinstance(pipe, SlowPipeline):
                pipe.step.set()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def ask(server, answers, **fields):
    """Ask for a picture in a thread, which puts the answer into `answers` under its seed."""

    def post():
        json = {"prompt": PROMPT, "num_inference_steps": 1, **fields}
        answers[fields["seed"]] = httpx.post(server.url + DRAW, json=json, timeout=PATIENCE)

    thread = threading.Thread(target=post)
    thread.start()
    return thread
