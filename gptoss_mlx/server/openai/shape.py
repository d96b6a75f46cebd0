"""A problem in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing_extensions import TypedDict

from gptoss_mlx.server.problems import Problem, problem_of
from gptoss_mlx.server.replies import event


class ErrorBody(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorShown(TypedDict):
    error: ErrorBody


def error_shown(problem: Problem) -> ErrorShown:
    return {
        "error": {
            "message": str(problem),
            "type": problem.type,
            "param": problem.param,
            "code": problem.code,
        }
    }


def error_event(error: BaseException) -> bytes:
    """The frame of a stream that fails."""
    return event(error_shown(problem_of(error)))
