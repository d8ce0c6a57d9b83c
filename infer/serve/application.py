"""Routes of the server."""

import asyncio
import base64
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ic_jax.untrusted_files import parse_json
from infer import picture_file
from infer.engine import Character, Drawing, Engine, Original
from infer.engine.drawing import MAX_CHARACTERS
from infer.engine.loading import LoadedModel
from infer.serve.errors import OF_ORIGINAL, ApiError, api_error
from infer.serve.fields import PARAMS, Fields, form_values, read_fields
from infer.serve.guard import Guard
from infer.serve.metrics import Metrics

BODY_SECONDS = 60  # for a client to send its request
MAX_TEXTS = 64  # fields of a form that are no files
CLIENT_GONE = 499  # nobody reads it; nginx's number, for the metrics
Endpoint = Callable[[Request], Awaitable[Response]]


def application(engine: Engine, model: LoadedModel, api_key: str | None) -> ASGIApp:
    """Return the ASGI application.

    Args:
        engine: one that is started and stopped by the caller.
        model: what the engine draws with.
        api_key: token that clients must send; None serves this machine alone.
    """
    service = Service(engine, model)
    routes = {
        "/v1/images/generations": ("POST", service.generations),
        "/v1/images/edits": ("POST", service.edits),
        "/v1/models": ("GET", service.models),
        "/health": ("GET", service.health),
        "/metrics": ("GET", service.metrics),
    }
    app = Starlette(
        routes=[
            Route(path, _answering_errors(endpoint), methods=[method])
            for path, (method, endpoint) in routes.items()
        ],
        exception_handlers={HTTPException: _http_error},
    )
    return service.counters.count_requests(Guard(app, api_key), set(routes))


class Service:
    """Endpoints over an engine."""

    def __init__(self, engine: Engine, model: LoadedModel):
        self._engine, self._model = engine, model
        self.model_id = model.name.rstrip("/").rpartition("/")[2].replace(" ", "-")
        self.counters = Metrics(engine)
        self._started = int(time.time())

    async def generations(self, request: Request) -> Response:
        """Draw from a prompt, and from characters that are named by hash."""
        _check_content_type(request, "application/json")
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.body()
        values = parse_json(body, "the body")
        if not isinstance(values, dict):
            raise ApiError(422, "the body must be a JSON object", code="invalid_value")
        fields = read_fields(values)
        characters = [self._engine.characters.get(name) for name in fields.hashes]
        return await self._draw(request, fields, characters)

    async def edits(self, request: Request) -> Response:
        """Draw the characters of the pictures that are sent, or over a picture."""
        _check_content_type(request, "multipart/form-data")
        async with asyncio.timeout(BODY_SECONDS):
            form = await request.form(max_files=MAX_TEXTS, max_fields=MAX_TEXTS)
        try:
            fields, files = await _read_form(form)
        finally:
            await form.close()
        _check_files(fields, files)
        kept, original = self._engine.characters, None
        characters = [kept.get(name) for name in fields.hashes]
        characters += [await asyncio.to_thread(kept.add, picture) for picture in files["image"]]
        if files["original"]:
            mask = files["mask"][0] if files["mask"] else None
            inputs = (self._engine.pipe, files["original"][0], mask, *fields.sides)
            original = await asyncio.to_thread(Original.read, *inputs)
        return await self._draw(request, fields, characters, original)

    async def models(self, _: Request) -> Response:
        """List the one model, and the LoRAs that requests may name."""
        sampling = self._engine.pipe.sampling
        entry = {
            "id": self.model_id,
            "object": "model",
            "created": self._started,
            "owned_by": "ic_jax",
            "size": f"{sampling.width}x{sampling.height}",
            "loras": {name: lora.lora.weight for name, lora in self._model.loras.items()},
        }
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(self, _: Request) -> Response:
        """Say whether the engine takes requests."""
        counts = {"waiting": self._engine.waiting, "drawing": self._engine.drawing}
        if self._engine.stopping:
            return JSONResponse({"status": "stopping", **counts}, 503)
        return JSONResponse({"status": "ok", **counts})

    async def metrics(self, _: Request) -> Response:
        """Return the counters."""
        return Response(self.counters.text(), media_type="text/plain; version=0.0.4")

    async def _draw(
        self,
        request: Request,
        fields: Fields,
        characters: list[Character],
        original: Original | None = None,
    ) -> Response:
        """Queue the pictures of a request, wait for them, and answer."""
        if fields.model not in (None, self.model_id):
            message = f"there is no model {fields.model!r}; this server has {self.model_id}"
            raise ApiError(404, message, param="model", code="model_not_found")
        drawings = self._engine.submit_all(fields.requests(characters, original))
        for drawing in drawings:
            self.counters.watch(drawing)
        images = await _unless_gone(request, drawings)
        if images is None:
            return Response(status_code=CLIENT_GONE)
        return await asyncio.to_thread(self._answer, fields, drawings, images)

    def _answer(
        self, fields: Fields, drawings: list[Drawing], images: list[Image.Image]
    ) -> Response:
        ending, data = f".{fields.output_format}", []
        for drawing, image in zip(drawings, images, strict=True):
            told = self._model.metadata(drawing, lambda character: f"sha256:{character.sha256}")
            # Paths of this machine are nothing for its clients.
            loras = [f"{name}={weight!r}" for name, weight in drawing.request.loras]
            told |= {"model": self.model_id, "lora": loras}
            text = base64.b64encode(picture_file.encode(image, ending, told)).decode()
            if fields.response_format == "url":
                entry = {"url": f"data:image/{fields.output_format};base64,{text}"}
            else:
                entry = {"b64_json": text}
            data.append({**entry, "seed": drawing.request.seed})
        settings, characters = drawings[0].settings, drawings[0].request.characters
        return JSONResponse(
            {
                "created": int(time.time()),
                "model": self.model_id,
                "size": f"{settings.width}x{settings.height}",
                "output_format": fields.output_format,
                "subjects": [character.sha256 for character in characters],
                "data": data,
            }
        )


def _answering_errors(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint whose errors are answers; a defect is said, without the request."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except TimeoutError:
            message = f"the request was not sent within {BODY_SECONDS} s"
            return ApiError(408, message, code="slow_request").response()
        except Exception as error:
            if (known := api_error(error, PARAMS)) is None:
                traceback.print_exc()
                known = ApiError(500, "the server failed; its log says more", code="internal")
            return known.response()

    return answer


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return ApiError(error.status_code, error.detail, headers=headers).response()


def _check_content_type(request: Request, wanted: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError(415, f"Content-Type is {kind!r}; it must be {wanted}", code="content_type")


async def _read_form(form: FormData) -> tuple[Fields, dict[str, list[bytes]]]:
    """Return the fields and the files of a form, by their names."""
    texts: list[tuple[str, str]] = []
    files: dict[str, list[bytes]] = {name: [] for name in ("image", *OF_ORIGINAL)}
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            texts.append((name, value))
        elif name.removesuffix("[]") in files:
            files[name.removesuffix("[]")].append(await value.read())
        else:
            message = f"{name} is a file; files are image (a character), original and mask"
            raise ApiError(422, message, param=name, code="unknown_parameter")
    return read_fields(form_values(texts)), files


def _check_files(fields: Fields, files: Mapping[str, list[bytes]]) -> None:
    """Raise ApiError for files that do not go together."""
    images, originals, masks = (len(files[name]) for name in ("image", "original", "mask"))
    lone_mask = (
        "mask does nothing without original, the picture to draw over (image is a character)"
    )
    is_empty = not (images or originals or fields.hashes)
    for is_wrong, param, message in (
        (originals > 1, "original", f"{originals} files original; give one"),
        (masks > 1, "mask", f"{masks} files mask; give one"),
        (masks > originals, "mask", lone_mask),
        (images and fields.subject, "subject", "subject and image exclude each other; give one"),
        (
            is_empty or images > MAX_CHARACTERS,
            "image",
            f"{images} pictures in image; give 1 to {MAX_CHARACTERS} characters",
        ),
    ):
        if is_wrong:
            raise ApiError(422, message, param=param, code="invalid_value")


async def _unless_gone(request: Request, drawings: list[Drawing]) -> list[Image.Image] | None:
    """Return the pictures; None if the client has gone, for which nothing more is drawn."""
    pictures: asyncio.Future[Any] = asyncio.gather(*map(asyncio.wrap_future, drawings))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({pictures, gone}, return_when=asyncio.FIRST_COMPLETED)
        return pictures.result() if pictures.done() else None
    finally:
        gone.cancel()
        pictures.cancel()
        for drawing in drawings:
            drawing.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
