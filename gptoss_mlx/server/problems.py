"""Problems: why a request is not answered, with its HTTP status, in one line without paths.

An API writes a problem in the shape that its clients read. What is a caller's mistake is a 400;
what a model wrote never is a problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException

from gptoss_mlx.errors import (
    CapacityError,
    ClosedError,
    ContextError,
    GptOssError,
    GrammarError,
    MemoryBudgetError,
    MessageError,
    ModelNotFoundError,
    OptionError,
    SamplingError,
)

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
"""Status -> type of the error; any other is "invalid_request_error"."""

_CODES: Mapping[type[GptOssError], str | None] = {
    ContextError: "context_length_exceeded",
    GrammarError: "invalid_schema",
    MessageError: None,
    SamplingError: None,
    OptionError: None,
}
"""The errors that are the caller's mistakes -> code."""

_UNAVAILABLE = (CapacityError, ClosedError, MemoryBudgetError)


class Problem(GptOssError):
    """code: a word for programs. param: the field of the request that is to blame.

    retry_after: seconds after which the same request may be answered.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response beside those that every response has."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def problem_of(error: BaseException) -> Problem:
    """The problem that an error is to a caller."""
    if isinstance(error, Problem):
        return error
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return Problem(400, str(error), code=code)
    if isinstance(error, HTTPException):  # by the router: no such path or method
        return Problem(error.status_code, error.detail)
    if isinstance(error, ModelNotFoundError):
        return Problem(404, str(error), code="model_not_found", param="model")
    if isinstance(error, _UNAVAILABLE):
        return Problem(503, str(error), code="unavailable", retry_after=5)
    # The text of any other may name files of this machine.
    said = str(error) if isinstance(error, GptOssError) else "it is in the server's log"
    return Problem(500, f"the server failed: {said}", code="server_error")
