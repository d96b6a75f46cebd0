"""A run: one response in the making, as the events of its stream.

It is made of the model's turns. Calls of the server's tools are run between them; a turn that calls
the client's functions, or none, is the last one.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Protocol, TypeAlias, cast

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent, FinishReason
from gptoss_mlx.engine.options import Options
from gptoss_mlx.server.blocked import Blocked
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.job import Job, Progress
from gptoss_mlx.server.openai.call_writers import CallWriter
from gptoss_mlx.server.openai.item_writers import ItemPlace
from gptoss_mlx.server.openai.mcp_items import ApprovedCall
from gptoss_mlx.server.openai.mcp_writers import list_events
from gptoss_mlx.server.openai.output_items import OutputItem
from gptoss_mlx.server.openai.refusal_writer import RefusalWriter
from gptoss_mlx.server.openai.response_events import LifeEvent, LifeType, ResponseEvent
from gptoss_mlx.server.openai.response_object import (
    Repeated,
    ResponseHead,
    ResponseShown,
    TurnEnd,
    begun,
    ended,
    ended_by,
)
from gptoss_mlx.server.openai.response_tools import Toolbox
from gptoss_mlx.server.openai.response_writers import RUN, Wanted, Writer, Writers
from gptoss_mlx.server.openai.served_calls import Judged, ServedCalls
from gptoss_mlx.server.problems import problem_of

Settle: TypeAlias = Callable[["ResponseRun"], None]


class GoOn(Protocol):
    """Has the model take another turn: what it reads further, and the options that change."""

    def __call__(self, job: Job | None, further: list[JSON], change: Options) -> Awaitable[Job]: ...


class ResponseRun:
    """shown: the response, with the items that are finished. kept: these items, with what only the
    model reads. `events` can be read once; `close` ends a run of which nobody has read them.

    job: the first turn; None where `approved` calls are run before it. calls: those that the server
    runs; None where it runs none. go_on: asked after they were run. settle: called with the run
    when it has ended, however it did. judged: what a call that runs before the first turn gave, as
    it may be read. blocked: how the guard ended the run.
    """

    def __init__(
        self,
        job: Job | None,
        head: ResponseHead,
        echo: Repeated,
        tools: Toolbox,
        wanted: Wanted,
        settle: Settle,
        *,
        calls: ServedCalls | None = None,
        go_on: GoOn,
        judged: Judged,
        choice: str | JSON | None = None,
        approved: Sequence[ApprovedCall] = (),
    ) -> None:
        self._job, self._tools, self._settle = job, tools, settle
        self._served, self._continue, self._choice = calls, go_on, choice
        self._writers = Writers(tools, calls, wanted, head.tokenizer)
        self._approved, self._judged = approved, judged
        self.shown = begun(f"resp_{head.key}", head.created, head.model, echo)
        self.kept: list[JSON] = []
        self._count = itertools.count()
        self._turns: list[TurnEnd] = []
        self._is_cancelled = self._is_settled = False
        self.blocked: Blocked | None = None
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._writer: Writer | None = None
        self._message: int | None = None  # the number of the one that is written
        self._calls = 0
        self._due: list[CallWriter] = []  # calls that are written and not over

    @property
    def id(self) -> str:
        return self.shown["id"]

    @property
    def container_id(self) -> str | None:
        return None if self._served is None else self._served.container_id

    def snapshot(self) -> ResponseShown:
        """The response with the items that are being written or run."""
        output = list(self.shown["output"])
        for writer in self._due:
            output[writer.place.index] = writer.item
        if self._writer is not None:
            output.append(self._writer.item)
        return {**self.shown, "output": output}

    def progress(self) -> ResponseEvent:
        """An event that tells nothing but that the run goes on."""
        return self._life("response.in_progress")

    def cancel(self) -> None:
        """End within a token, with what there is by then."""
        self._is_cancelled = True
        if self._job is not None:
            self._job.cancel()
        if self._served is not None:
            self._served.cancel()

    def answer(self, item_id: str, may_run: bool) -> bool:
        """A person's word on a call that waits for it; whether there is such a call."""
        return self._served is not None and self._served.answer(item_id, may_run)

    async def events(self) -> AsyncGenerator[ResponseEvent | Progress, None]:
        """The events; progress goes with them. Closes the job at the end.

        Raises the error of a job that failed, whose last events `failure` then gives.
        """
        try:
            yield self._life("response.created")
            yield self._life("response.in_progress")
            for event in self._list_tools():
                yield event
            reason = None
            if self._job is None:
                async with aclosing(self._run_approved()) as events:
                    async for event in events:
                        yield event
                reason = await self._next_turn()
            while reason is None:
                assert self._job is not None
                async for _, piece in self._job.pieces():
                    if isinstance(piece, Progress):
                        yield piece
                        continue
                    for event in self._read(piece):
                        yield event
                async with aclosing(self._run_calls()) as events:
                    async for event in events:
                        yield event
                reason = await self._next_turn()
                for event in self._list_tools():
                    yield event
            yield self._finish(reason)
        except Exception as error:  # of any kind: the response has failed
            self._fail(error)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Cancel what has not ended, and settle. May be called again."""
        if self._is_settled:
            return
        self._is_settled = True
        if self._job is not None:
            self._job.close()
        if self.shown["status"] == "in_progress":  # the caller has left
            self._abandon()
            self.shown = {**self.shown, "status": "cancelled"}
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

    def _read(self, piece: Delta | FinishEvent | Blocked) -> Iterator[ResponseEvent]:
        if isinstance(piece, Delta):
            yield from self._take(piece)
            return
        assert self._job is not None
        finish = piece.finish if isinstance(piece, Blocked) else piece
        self._turns.append(TurnEnd(finish, sum(self._job.reasoning_tokens)))
        if isinstance(piece, Blocked):
            self.blocked = piece
            writer = RefusalWriter(self._place(), piece.line)
            yield from self._seen(writer, writer.write())
        else:
            yield from self._end_item(finish.reason in ("length", "cancelled"))

    def _take(self, delta: Delta) -> Iterator[ResponseEvent]:
        """The events of a delta; none of a second call where only one is wanted."""
        if delta.message != self._message:
            yield from self._end_item()
            self._message = delta.message
            self._calls += delta.part == "call"
            if self._calls > 1 and not self.shown["parallel_tool_calls"]:
                return
            self._writer = self._writers.new(self._place(), delta)
            yield from self._writer.begin()
        if self._writer is not None:
            yield from self._writer.push(delta)

    def _end_item(self, is_cut: bool = False) -> Iterator[ResponseEvent]:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        yield from self._seen(writer, writer.end("incomplete" if is_cut else "completed"))
        if isinstance(writer, RUN) and not is_cut:
            self._wait(writer)

    def _seen(
        self, writer: Writer | RefusalWriter, made: Iterator[ResponseEvent]
    ) -> Iterator[ResponseEvent]:
        """Events, of which the one that ends an item puts it where it belongs."""
        for event in made:
            if event["type"] == "response.output_item.done":
                self._put(event["output_index"], event["item"], writer.kept)
                self._due = [due for due in self._due if due is not writer]
            yield event

    def _wait(self, writer: CallWriter) -> None:
        """A call is written, and is to be run."""
        self._put(writer.place.index, writer.item, writer.kept)
        self._due.append(writer)

    def _put(self, index: int, item: OutputItem, kept: JSON) -> None:
        self.shown["output"][index : index + 1] = [item]
        self.kept[index : index + 1] = [kept]

    async def _run_calls(self) -> AsyncGenerator[ResponseEvent, None]:
        """Run the calls of the turn, one after another; none of a turn that was cut short."""
        is_whole = not self._turns or self._turns[-1].finish.reason == "tool_calls"
        while self._due:
            writer = self._due[0]
            if self._served is None or not is_whole or self._is_cancelled:
                for event in self._seen(writer, writer.abandon()):
                    yield event
            else:
                judged = self._judged if self._job is None else self._job.result
                async with aclosing(self._served.run(writer, judged)) as events:
                    async for event in events:
                        for one in self._seen(writer, iter((event,))):
                            yield one

    def _list_tools(self) -> Iterator[ResponseEvent]:
        """The lists of servers' tools that are new or have changed."""
        for label, listing in [] if self._served is None else self._served.news():
            for event in list_events(self._place(), label, listing):
                if event["type"] == "response.output_item.done":
                    self._put(event["output_index"], event["item"], cast(JSON, event["item"]))
                yield event

    async def _run_approved(self) -> AsyncGenerator[ResponseEvent, None]:
        for approved in self._approved:
            assert self._served is not None
            writer = self._served.approved(self._place(), approved)
            for event in writer.whole(approved.arguments):
                yield event
            self._wait(writer)
            async with aclosing(self._run_calls()) as events:
                async for event in events:
                    yield event

    async def _next_turn(self) -> FinishReason | None:
        """Let the model read what its calls gave; why the response ends, where it does."""
        reason: FinishReason = self._turns[-1].finish.reason if self._turns else "tool_calls"
        served = self._served
        if self._is_cancelled and reason == "tool_calls":
            return "cancelled"
        if served is None or reason != "tool_calls" or self._waits_for_client:
            return reason
        await served.relist()
        change: Options = {
            "tools": self._tools.offered,
            "tool_choice": self._tools.later_choice(self._choice, may_call=served.left > 0),
        }
        most = self.shown["max_output_tokens"]
        if most is not None:
            left = most - sum(turn.finish.completion_tokens for turn in self._turns)
            if left <= 0:
                return "length"
            change["max_tokens"] = left
        self._job = await self._continue(self._job, self.kept, change)
        self._begin_turn()
        if self._is_cancelled:
            self._job.cancel()
        return None

    @property
    def _waits_for_client(self) -> bool:
        """Whether the client has to run a function, or to ask a person."""
        return any(
            "call_id" in item or item["type"] == "mcp_approval_request"
            for item in self.shown["output"]
        )

    def _finish(self, reason: FinishReason) -> ResponseEvent:
        self.shown = ended(self.shown, reason, self._turns, self.blocked)
        ended_well = self.shown["status"] == "completed"
        return self._life("response.completed" if ended_well else "response.incomplete")

    def _abandon(self) -> None:
        """Leave what is not over as it is, without events: nobody reads them."""
        unfinished = [*self._due, *([] if self._writer is None else [self._writer])]
        self._due, self._writer = [], None
        for writer in unfinished:
            if isinstance(writer, RUN):
                writer.stop()
                self._put(writer.place.index, writer.item, writer.kept)
            else:
                item = writer.item
                self._put(len(self.kept), item, cast(JSON, item))

    def _fail(self, error: Exception) -> None:
        self._abandon()
        self.shown = ended_by(error, self.shown)

    def _life(self, type: LifeType) -> LifeEvent:
        shown: ResponseShown = {**self.shown, "output": list(self.shown["output"])}
        return {"type": type, "sequence_number": self._number(), "response": shown}

    def _place(self) -> ItemPlace:
        """Of the next item."""
        return ItemPlace(len(self.shown["output"]), self._number)

    def _number(self) -> int:
        return next(self._count)
