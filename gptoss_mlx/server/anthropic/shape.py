"""A problem in the shape that Anthropic's clients read."""

from __future__ import annotations

from typing import Literal, NotRequired

from starlette.types import Scope
from typing_extensions import TypedDict

from gptoss_mlx.errors import ContextError
from gptoss_mlx.server.problems import Problem

NO_THREADS = "thread_unsupported_request"
"""The code by which clients know that they must send the conversation in full."""


class ErrorCode(TypedDict):
    error_code: str


class ErrorDetail(TypedDict):
    type: str
    message: str
    details: NotRequired[ErrorCode]


class ErrorEnvelope(TypedDict):
    """Also the event of a stream that fails."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is one of Anthropic's API.

    Its models have the path that OpenAI's have; every client of Anthropic's sends the header.
    """
    path: str = scope["path"]
    if path.startswith("/v1/models"):
        return any(name == b"anthropic-version" for name, _ in scope["headers"])
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def envelope(problem: Problem, request_id: str) -> ErrorEnvelope:
    kind = "api_error" if problem.type == "server_error" else problem.type
    detail: ErrorDetail = {"type": kind, "message": str(problem)}
    if problem.code == NO_THREADS:
        detail["details"] = {"error_code": NO_THREADS}
    return {"type": "error", "error": detail, "request_id": request_id}


def too_long(error: ContextError, tokens: int | None = None) -> Problem:
    """In the words by which Claude Code knows that it must shorten the conversation.

    tokens: of the prompt, where the error does not know them.
    """
    most = 0 if error.context is None else error.context - 1  # a token is left for the answer
    tokens = error.tokens or tokens
    counts = f"more than {most} tokens" if tokens is None else f"{tokens} tokens > {most} maximum"
    return Problem(400, f"prompt is too long: {counts}", code="context_length_exceeded")
