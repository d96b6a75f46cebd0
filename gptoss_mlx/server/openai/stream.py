"""The server-sent events of an answer in chunks, as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

from gptoss_mlx.server.job import Held, Progress
from gptoss_mlx.server.openai.shape import error_event
from gptoss_mlx.server.replies import comment, event


class Chunked(Protocol):
    """An answer in chunks. `last_chunk`: the one with the counts, after all others."""

    def chunks(self) -> AsyncGenerator[Mapping[str, object] | Progress, None]: ...
    def last_chunk(self) -> Mapping[str, object]: ...


def progress_text(progress: Progress) -> str:
    """How far a prompt is read, or an answer written that is held back until it was judged."""
    if isinstance(progress, Held):
        return f"held {progress.tokens}"
    return f"prefill {progress.done}/{progress.total}"


async def frames(answer: Chunked, with_usage: bool) -> AsyncGenerator[bytes, None]:
    """The chunks as events; an error is one as well."""
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Progress):
                    yield comment(progress_text(chunk))
                else:
                    yield event({**chunk, "usage": None} if with_usage else chunk)
        if with_usage:
            yield event(answer.last_chunk())
    except Exception as error:  # of any kind: the stream ends with it
        yield error_event(error)
    yield b"data: [DONE]\n\n"
