"""ComfyUI node that draws with a server of `python -m infer serve`.

Copy this file into ComfyUI's folder `custom_nodes` (docs/comfyui.md). It needs neither JAX nor
ic_jax there: pictures go to the server and come back over HTTP.
"""

import base64
import http.client
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from PIL import Image

SERVER = os.environ.get("IC_JAX_SERVER", "http://127.0.0.1:8000")
# Never a widget: a workflow is stored in every picture that ComfyUI saves.
API_KEY = os.environ.get("IC_JAX_API_KEY")
SECONDS = 3600  # to wait for an answer; the server's own time limit ends a request before
MOST_BYTES = 2**29  # of an answer
MODELS_OWN = -1.0  # of a scale: the model's default
TICK = 0.2  # seconds between two looks at ComfyUI's button that interrupts


class InstantCharacterServer(io.ComfyNode):
    """Node that asks a server for pictures of a character."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        side = {"default": 0, "min": 0, "max": 4096, "step": 16}
        scale = {"optional": True, "default": MODELS_OWN, "min": MODELS_OWN, "step": 0.05}
        own = "-1 is the model's default"
        size = "0 is that of the original, or the model's own"
        return io.Schema(
            node_id="IcJaxInstantCharacter",
            display_name="InstantCharacter (ic_jax server)",
            category="api/ic_jax",
            description="Draw a character, known from one picture, in the scene of a prompt.",
            inputs=[
                io.String.Input("prompt", multiline=True, tooltip="the scene"),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 10, control_after_generate=True),
                io.Int.Input("pictures", default=1, min=1, max=10, tooltip="seeds count up"),
                io.Image.Input("character", optional=True, tooltip="its reference picture"),
                io.Image.Input("original", optional=True, tooltip="picture to draw over"),
                io.Mask.Input("mask", optional=True, tooltip="where the original is drawn anew"),
                io.Float.Input("subject_scale", max=10.0, tooltip=own, **scale),
                io.Int.Input("width", optional=True, tooltip=size, **side),
                io.Int.Input("height", optional=True, tooltip=size, **side),
                io.Int.Input("steps", optional=True, default=0, min=0, max=100),
                io.Float.Input("guidance_scale", max=100.0, tooltip=own, **scale),
                io.Float.Input("true_cfg_scale", max=100.0, tooltip=own, **scale),
                io.String.Input("negative_prompt", optional=True, multiline=True, default=""),
                io.String.Input(
                    "loras", optional=True, default="", tooltip="the server's, such as ink=0.8"
                ),
                io.String.Input("server", optional=True, default=SERVER),
                # Workflows store widgets by their order: new ones come last.
                io.Float.Input("strength", max=1.0, tooltip="of drawing over; -1 is 0.6", **scale),
            ],
            outputs=[io.Image.Output(display_name="pictures")],
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        seed: int,
        pictures: int,
        character: torch.Tensor | None = None,
        original: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        width: int = 0,
        height: int = 0,
        steps: int = 0,
        negative_prompt: str = "",
        loras: str = "",
        server: str = SERVER,
        **scales: float,
    ) -> io.NodeOutput:
        """Ask for the pictures; [b, height, width, 3] in 0..1."""
        fields: dict[str, Any] = {"prompt": prompt, "seed": seed, "n": pictures}
        fields |= {name: value for name, value in scales.items() if value != MODELS_OWN}
        if width and height:
            fields["size"] = f"{width}x{height}"
        if steps:
            fields["num_inference_steps"] = steps
        if negative_prompt:
            fields["negative_prompt"] = negative_prompt
        if loras.strip():
            fields["loras"] = _loras(loras)
        if mask is not None:
            mask = mask.reshape(-1, *mask.shape[-2:])  # some nodes leave the batch's axis out
            if not mask.any():
                raise ValueError("mask is 0 everywhere, so that nothing would be drawn anew")
        files = {"image": character, "original": original, "mask": mask}
        sent = [(n, _png(x)) for n, batch in files.items() if batch is not None for x in batch]
        if not sent:
            body, kind = json.dumps(fields).encode(), "application/json"
            answer = _post(server, "/v1/images/generations", body, kind)
        else:
            body, kind = _form(fields, sent)
            answer = _post(server, "/v1/images/edits", body, kind)
        drawn = [_pixels(base64.b64decode(entry["b64_json"])) for entry in answer["data"]]
        return io.NodeOutput(torch.from_numpy(np.stack(drawn)))


class IcJaxExtension(ComfyExtension):
    """Extension that registers the node."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node."""
        return [InstantCharacterServer]


async def comfy_entrypoint() -> IcJaxExtension:
    """Return the extension; ComfyUI calls this."""
    return IcJaxExtension()


def _loras(text: str) -> dict[str, float]:
    """Return weights by name of "ink=0.8, line"; a name alone has weight 1."""
    pairs = [entry.strip().partition("=") for entry in text.split(",") if entry.strip()]
    try:
        return {name.strip(): float(weight or 1) for name, _, weight in pairs}
    except ValueError:
        raise ValueError(f"loras is {text!r}; write NAME=WEIGHT, ...") from None


def _png(picture: torch.Tensor) -> bytes:
    """Return a picture of ComfyUI, [h, w, c] or a mask's [h, w] in 0..1, as a file.

    The same picture gives the same bytes every time.
    """
    pixels = np.round(255 * picture.cpu().numpy().clip(0, 1)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _pixels(png: bytes) -> np.ndarray:
    picture = Image.open(BytesIO(png), formats=("PNG",)).convert("RGB")
    return np.asarray(picture, np.float32) / 255


def _form(fields: dict[str, Any], pictures: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return a multipart form of fields and named pictures, and its content type."""
    boundary = uuid.uuid4().hex
    texts = {name: value for name, value in fields.items() if name != "loras"}
    texts |= {f"loras[{name}]": weight for name, weight in fields.get("loras", {}).items()}
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    lines = [f'{part}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in texts.items()]
    for name, picture in pictures:
        head = f'{part}"{name}"; filename="{name}.png"\r\nContent-Type: image/png\r\n\r\n'
        lines.append(head.encode() + picture + b"\r\n")
    body = b"".join(lines) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _post(server: str, path: str, body: bytes, kind: str) -> dict[str, Any]:
    """Return the server's answer; one line says what is wrong."""
    url = urlsplit(server)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"server is {server!r}; it must begin with http:// or https://")
    headers = {"Content-Type": kind, "Accept": "application/json"}
    # A workflow of somebody else may name another server, which must not get the key.
    if API_KEY and server.rstrip("/") == SERVER.rstrip("/"):
        headers["Authorization"] = f"Bearer {API_KEY}"
    secure = url.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(url.hostname, url.port, timeout=SECONDS)

    def ask() -> tuple[int, bytes]:
        connection.request("POST", url.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(MOST_BYTES)

    try:
        status, content = _interruptible(ask, connection)
    except (OSError, http.client.HTTPException) as error:
        remedy = "start one with `python -m infer serve`"
        raise RuntimeError(f"{server} does not answer ({error}); {remedy}") from None
    try:
        answer = json.loads(content)
    except ValueError:
        answer = {}
    if status != 200 or "data" not in answer:
        told = answer.get("error", {}).get("message", f"no answer of an ic_jax server, {status}")
        raise RuntimeError(f"{server}: {told}")
    return answer


def _interruptible(
    ask: Callable[[], tuple[int, bytes]], connection: http.client.HTTPConnection
) -> tuple[int, bytes]:
    """Return `ask()`; where ComfyUI is interrupted meanwhile, the server is told by hanging up."""
    answers: list[tuple[int, bytes]] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(TICK)
            _check_interrupt()
    finally:
        with suppress(OSError, AttributeError):  # it is not connected, or no longer
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    if errors:
        raise errors[0]
    return answers[0]


def _check_interrupt() -> None:
    """Raise ComfyUI's own exception if its user has interrupted the workflow."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return
    throw_exception_if_processing_interrupted()
