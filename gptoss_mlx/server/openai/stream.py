"""The server-sent events of an answer in chunks, as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

from gptoss_mlx.engine.events import PrefillEvent
from gptoss_mlx.server.openai.shape import error_event
from gptoss_mlx.server.replies import comment, event


class Chunked(Protocol):
    """An answer in chunks. `last_chunk`: the one with the counts, after all others."""

    def chunks(self) -> AsyncGenerator[Mapping[str, object] | PrefillEvent, None]: ...
    def last_chunk(self) -> Mapping[str, object]: ...


async def frames(answer: Chunked, with_usage: bool) -> AsyncGenerator[bytes, None]:
    """The chunks as events; an error is one as well."""
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, PrefillEvent):
                    yield comment(f"prefill {chunk.done}/{chunk.total}")
                else:
                    yield event({**chunk, "usage": None} if with_usage else chunk)
        if with_usage:
            yield event(answer.last_chunk())
    except Exception as error:  # of any kind: the stream ends with it
        yield error_event(error)
    yield b"data: [DONE]\n\n"
