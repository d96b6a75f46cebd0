"""A problem in the shape that Ollama's clients read, lines of JSON, and times as Go writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from typing_extensions import TypedDict

from gptoss_mlx.server.problems import Problem, problem_of
from gptoss_mlx.server.replies import encoded

NDJSON = "application/x-ndjson"

SECOND = 10**9
"""Nanoseconds, in which Ollama has all durations."""


class ErrorLine(TypedDict):
    error: str


def error_line(problem: Problem) -> ErrorLine:
    return {"error": str(problem)}


def failed(error: BaseException) -> bytes:
    """The frame of a stream that fails."""
    return line(error_line(problem_of(error)))


def line(value: object) -> bytes:
    return encoded(value) + b"\n"


def moment(nanoseconds: int) -> str:
    """A time since 1970 in RFC 3339."""
    seconds, rest = divmod(nanoseconds, SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def now() -> str:
    return moment(time.time_ns())
