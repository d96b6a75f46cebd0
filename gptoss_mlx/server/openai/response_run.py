"""A run: one response in the making, as the events of its stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent, PrefillEvent
from gptoss_mlx.server.job import Job
from gptoss_mlx.server.openai.item_writers import (
    CustomCallWriter,
    FunctionCallWriter,
    ItemPlace,
    ItemWriter,
    MessageWriter,
    ReasoningWriter,
)
from gptoss_mlx.server.openai.output_items import Phase
from gptoss_mlx.server.openai.response_events import LifeEvent, LifeType, ResponseEvent
from gptoss_mlx.server.openai.response_object import (
    Repeated,
    ResponseShown,
    begun,
    response_usage,
)
from gptoss_mlx.server.openai.response_tools import Toolbox
from gptoss_mlx.server.problems import problem_of

Settle: TypeAlias = Callable[["ResponseRun"], None]


@dataclass(frozen=True)
class Wanted:
    """What a response is to have beside its text."""

    logprobs: bool = False
    summary: bool = False
    sealed: bool = False


class ResponseRun:
    """shown: the response, with the items that are finished. `events` can be read once.

    settle: called with the run when it has ended, however it did.
    """

    def __init__(
        self, job: Job, echo: Repeated, tools: Toolbox, wanted: Wanted, settle: Settle
    ) -> None:
        self._job, self._tools, self._wanted, self._settle = job, tools, wanted, settle
        self.shown = begun(f"resp_{job.key}", job.created, job.model, echo)
        self._count = itertools.count()
        self._writer: ItemWriter | None = None
        self._message: int | None = None  # the number of the one that is written
        self._calls = 0

    @property
    def id(self) -> str:
        return self.shown["id"]

    def snapshot(self) -> ResponseShown:
        """The response with the item that is being written."""
        unfinished = [] if self._writer is None else [self._writer.item]
        return {**self.shown, "output": [*self.shown["output"], *unfinished]}

    def progress(self) -> ResponseEvent:
        """An event that tells nothing but that the run goes on."""
        return self._life("response.in_progress")

    def cancel(self) -> None:
        """End within a token, with what there is by then."""
        self._job.cancel()

    async def events(self) -> AsyncGenerator[ResponseEvent | PrefillEvent, None]:
        """The events; progress with the prompt goes with them. Closes the job at the end.

        Raises the error of a job that failed, whose last events `failure` then gives.
        """
        try:
            yield self._life("response.created")
            yield self._life("response.in_progress")
            async for _, piece in self._job.pieces():
                if isinstance(piece, PrefillEvent):
                    yield piece
                    continue
                made = self._finish(piece) if isinstance(piece, FinishEvent) else self._take(piece)
                for event in made:
                    yield event
        except Exception as error:  # of any kind: the response has failed
            self._fail(error)
            raise
        finally:
            self._job.close()
            if self.shown["status"] == "in_progress":  # the caller has left
                self.shown = {**self.snapshot(), "status": "cancelled"}
            self._settle(self)

    def failure(self, error: Exception) -> Iterator[ResponseEvent]:
        """The last events of a stream that fails."""
        problem = problem_of(error)
        yield {
            "type": "error",
            "sequence_number": self._number(),
            "code": problem.code,
            "message": str(problem),
            "param": problem.param,
        }
        yield self._life("response.failed")

    def _take(self, delta: Delta) -> Iterator[ResponseEvent]:
        """The events of a delta; none of a second call where only one is wanted."""
        if delta.message != self._message:
            yield from self._end_item()
            self._message = delta.message
            self._calls += delta.part == "call"
            if self._calls > 1 and not self.shown["parallel_tool_calls"]:
                return
            self._writer = self._new_writer(delta)
            yield from self._writer.begin()
        if self._writer is not None:
            yield from self._writer.push(delta)

    def _new_writer(self, delta: Delta) -> ItemWriter:
        place, wanted = ItemPlace(len(self.shown["output"]), self._number), self._wanted
        if delta.part == "reasoning":
            return ReasoningWriter(place, wanted.summary, wanted.sealed)
        if delta.part == "call":
            tool = self._tools.called(delta.name)
            return (CustomCallWriter if tool.is_custom else FunctionCallWriter)(place, tool)
        phase: Phase = "commentary" if delta.part == "preamble" else "final_answer"
        return MessageWriter(place, phase, self._job.tokenizer if wanted.logprobs else None)

    def _end_item(self, is_cut: bool = False) -> Iterator[ResponseEvent]:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        for event in writer.end("incomplete" if is_cut else "completed"):
            if event["type"] == "response.output_item.done":
                self.shown["output"].append(event["item"])
            yield event

    def _finish(self, finish: FinishEvent) -> Iterator[ResponseEvent]:
        is_cut = finish.reason in ("length", "cancelled")
        yield from self._end_item(is_cut)
        shown: ResponseShown = {
            **self.shown,
            "status": "incomplete" if is_cut else "completed",
            "service_tier": "default",
            "usage": response_usage(finish, sum(self._job.reasoning_tokens)),
        }
        if finish.reason == "cancelled":
            shown["status"] = "cancelled"
        elif is_cut:
            shown["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            shown["completed_at"] = int(time.time())
        self.shown = shown
        yield self._life("response.incomplete" if is_cut else "response.completed")

    def _fail(self, error: Exception) -> None:
        problem = problem_of(error)
        code = "invalid_prompt" if problem.status == 400 else "server_error"
        failed: ResponseShown = {
            **self.snapshot(),
            "status": "failed",
            "error": {"code": code, "message": str(problem)},
        }
        self.shown = failed

    def _life(self, type: LifeType) -> LifeEvent:
        shown: ResponseShown = {**self.shown, "output": list(self.shown["output"])}
        return {"type": type, "sequence_number": self._number(), "response": shown}

    def _number(self) -> int:
        return next(self._count)
