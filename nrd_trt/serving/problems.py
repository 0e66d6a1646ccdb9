"""What a client is told when something is refused: always ``{"error": {"type", "message"}}``."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nrd_trt.errors import NrdTrtError


class Refusal(NrdTrtError):
    """A request is not served.

    Args:
        status: HTTP status code.
        kind: Name of the problem for programs, e.g. ``"TooLarge"``.
        message: Sentence for the user, in three parts.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})

    def response(self) -> JSONResponse:
        """Return it as an answer."""
        return _answer(self.status, self.kind, str(self), self.headers)


def answer_problems(app: FastAPI) -> None:
    """Give every error of `app` the one form."""

    @app.exception_handler(NrdTrtError)
    async def ours(request: Request, error: NrdTrtError) -> JSONResponse:
        return error.response() if isinstance(error, Refusal) else _answer(422, type(error).__name__, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])
        return _answer(422, "ConfigError", f"{where}: {first['msg']}; /docs lists the parameters.")

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.scope['path']}: {error.detail}; /docs lists what there is."
        return _answer(error.status_code, "NotServed", message, error.headers)

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> JSONResponse:
        return _answer(500, type(error).__name__, "internal error; the terminal of the server shows it.")


def _answer(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)
