"""Errors of the server, in OpenAI's shape."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from ic_jax.preprocessing.images import ImageError
from infer.engine import QueueFullError, StoppedError, TimeLimitError, UnknownCharacterError

OF_ORIGINAL = ("original", "mask")  # files that messages begin with


class ApiError(Exception):
    """An answer that is no success.

    Attributes:
        status: of HTTP.
        param: the field that is wrong; None if it is none or several.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def response(self) -> JSONResponse:
        """Return the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": str(self),
            "type": kinds.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status, headers=self.headers)


def api_error(error: Exception, params: Mapping[str, str]) -> ApiError | None:
    """Return the answer to an error of a request; None if it is a defect.

    Args:
        error: of the engine or the pipeline, whose messages begin with the argument's name.
        params: the fields by the arguments that they set.
    """
    message = " ".join(str(error).split())
    match error:
        case ApiError():
            return error
        case UnknownCharacterError():
            return ApiError(404, message, param="subject", code="subject_not_found")
        case ImageError():
            head = message.partition(":")[0]
            name = head if head in OF_ORIGINAL else "image"
            return ApiError(422, message, param=name, code="invalid_image")
        case QueueFullError():
            headers = {"Retry-After": str(error.retry_after)}
            return ApiError(429, message, code="queue_full", headers=headers)
        case StoppedError():
            return ApiError(503, message, code="stopping")
        case TimeLimitError():
            return ApiError(504, message, code="time_limit")
        case FloatingPointError():
            return ApiError(500, message, code="not_finite")
        case ValueError():
            param = params.get(message.partition(" ")[0])
            return ApiError(422, message, param=param, code="invalid_value")
    return None
