"""Answers that are no success: RFC 9457 problem details. Their texts are constant: nothing of a request is repeated."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

KIND = "application/problem+json"

_RETRY_AFTER = "2"


class Refused(Exception):
    """A request that gets no 2xx; ``more`` are further members of its problem details."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: object) -> None:
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.more = more


def make_problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: object) -> Response:
    """An answer with problem details; a 503 says when to come back."""
    retry = {"Retry-After": _RETRY_AFTER} if status == 503 else {}
    return JSONResponse(
        {"type": "about:blank", "title": _find_phrase(status), "status": status, "detail": detail, **more},
        status_code=status,
        headers={**retry, **(headers or {})},
        media_type=KIND,
    )


def _find_phrase(status: int) -> str:
    """A route may be configured to use a status that HTTP does not name, such as 499."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


async def _answer_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return make_problem(error.status, error.detail, error.headers, **error.more)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = {
        404: "There is nothing here; /openapi.json says what there is.",
        405: "This method is not known here; /openapi.json says which are.",
    }
    return make_problem(
        error.status_code, detail.get(error.status_code, "The request cannot be understood."), dict(error.headers or {})
    )


async def _answer_unforeseen(request: Request, error: Exception) -> Response:
    return make_problem(500, "Something is wrong here; nothing is known to have been done. Send it again.")


HANDLERS: Any = {Refused: _answer_refused, HTTPException: _answer_http_error, Exception: _answer_unforeseen}
"""For an application's ``exception_handlers``."""
