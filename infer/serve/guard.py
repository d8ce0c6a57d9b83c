"""What a request passes before it is read: who asks, and how much is sent."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infer.engine.address import is_loopback
from infer.serve.errors import ApiError

MAX_JSON = 1024**2  # bytes of a body
MAX_FORM = 64 * 1024**2
OPEN = ("/health",)  # needs no token


class Guard:
    """ASGI middleware that asks for the token, and limits bodies.

    Without a token the server is for this machine alone: a request that was addressed to another
    name, or that comes from another site's page in a browser, is refused.
    """

    def __init__(self, app: ASGIApp, api_key: str | None):
        self._app, self._api_key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, limit = Headers(scope=scope), MAX_JSON
        if headers.get("content-type", "").startswith("multipart/form-data"):
            limit = MAX_FORM
        try:
            if self._api_key is None:
                _check_from_here(headers)
            elif scope["path"] not in OPEN:
                _check_token(headers, self._api_key)
            _check_length(headers.get("content-length", "0"), limit)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        return await self._app(scope, _limited(receive, limit), send)


def _check_from_here(headers: Headers) -> None:
    hosts = {"Host": f"//{headers.get('host', '')}", "Origin": headers.get("origin")}
    for name, address in hosts.items():
        if address is not None and not is_loopback(_host(address)):
            message = f"{name} {headers[name]!r} is not this machine; start with --api-key for that"
            raise ApiError(403, message, code="not_from_here")


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _check_token(headers: Headers, api_key: str) -> None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(token.strip().encode(), api_key.encode())
    if kind.lower() != "bearer" or not is_right:
        message = "the token is missing or wrong; send Authorization: Bearer TOKEN"
        wanted = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, message, code="invalid_api_key", headers=wanted)


def _check_length(length: str, limit: int) -> None:
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise ApiError(400, "Content-Length is no number", code="invalid_request")
    if int(length) > limit:
        raise _too_large(limit)


def _limited(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that refuses to go beyond `limit` bytes, whatever the headers said."""
    total = 0

    async def receive_some() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise _too_large(limit)
        return message

    return receive_some


def _too_large(limit: int) -> ApiError:
    message = f"the body has more than {limit} bytes; send smaller or fewer pictures"
    return ApiError(413, message, code="too_large", headers={"Connection": "close"})
