"""Reads the JSON body of a request into a pydantic model: bounded in size, depth and time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.service import service_of

BIG = 1 << 20
"""Bytes of a body that is parsed in a thread, since the event loop would stand still."""

_NOT_QUOTED = ("tools",)  # fields that may hold secrets


class Body(BaseModel):
    """A request's fields. Those that are not known are ignored, and null is not given."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


T = TypeVar("T", bound=Body)


async def read_body(request: Request, kind: type[T]) -> T:
    """Raises Problem."""
    policy = service_of(request).policy
    _check_type(request)
    data = await _read(request, policy)
    if len(data) > BIG:
        return await asyncio.to_thread(_parse, data, kind)
    return _parse(data, kind)


def _check_type(request: Request) -> None:
    """A page of another origin may send other types without asking first, and is to be stopped by
    this. `curl -d` sends a form's type unless told otherwise; no page can hide that it is one."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == "application/json" or given.endswith("+json"):
        return
    from_page = "origin" in request.headers or "sec-fetch-site" in request.headers
    if given in ("", "application/x-www-form-urlencoded") and not from_page:
        return
    raise Problem(415, f"the content type is {shown(given)}, but must be application/json")


async def _read(request: Request, policy: Policy) -> bytes:
    limit = policy.body_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:19]) > limit:
        raise _too_large(limit)
    data = bytearray()
    chunks = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(policy.body_seconds):
                data += await anext(chunks)
        except StopAsyncIteration:
            return bytes(data)
        except TimeoutError:
            raise Problem(
                408, f"the body did not go on within {policy.body_seconds:g} seconds"
            ) from None
        if len(data) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body has more than the {limit} bytes that are allowed")


def _parse(data: bytes, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise Problem(400, f"the body is not valid JSON: {shown(first['msg'])}")
    field = ".".join(str(part) for part in first["loc"])
    is_quoted = first["type"] != "missing" and field.partition(".")[0] not in _NOT_QUOTED
    given = f", not {shown(first['input'])}" if is_quoted else ""
    raise Problem(400, f"{field or 'the body'}: {first['msg']}{given}", param=field or None)
