"""Responses, `POST /v1/responses`, and those that are kept: read, deleted, cancelled, listed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from secrets import token_hex
from time import monotonic, time
from typing import Literal, Protocol

from pydantic import StrictBool, StrictStr
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.engine.options import Options
from gptoss_mlx.errors import ContextError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.bodies import Body, read_body
from gptoss_mlx.server.containers import Containers, containers_of
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.job import Job, Progress
from gptoss_mlx.server.openai.input_items import is_instruction, without_orphans
from gptoss_mlx.server.openai.output_items import public
from gptoss_mlx.server.openai.paging import page_of
from gptoss_mlx.server.openai.response_events import ResponseEvent
from gptoss_mlx.server.openai.response_object import ResponseHead, ResponseShown
from gptoss_mlx.server.openai.response_run import ResponseRun
from gptoss_mlx.server.openai.response_servers import ResponseServers
from gptoss_mlx.server.openai.response_store import store_of
from gptoss_mlx.server.openai.responses_request import Asked, ResponsesRequest
from gptoss_mlx.server.openai.served_calls import ServedCalls
from gptoss_mlx.server.openai.stream import progress_text
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import FrameStream, JSONReply, comment, encoded, event, reply
from gptoss_mlx.server.service import Service, service_of

QUIET_SECONDS = 30
"""The longest time without an event."""


class Start(Protocol):
    """Starts a job for items. change: of the options. after: a job of the same request."""

    def __call__(
        self,
        items: Sequence[JSON],
        change: Options | None = None,
        after: Job | None = None,
    ) -> Awaitable[Job]: ...


class Word(Body):
    """A person's word on a call that waits for it."""

    item_id: StrictStr
    approve: StrictBool


class Approved(TypedDict):
    item_id: str
    approve: bool


class Deleted(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


async def create(request: Request) -> Response:
    """The endpoint that makes a response."""
    body = await read_body(request, ResponsesRequest)
    service, store, containers = service_of(request), store_of(request), containers_of(request)
    servers = await ResponseServers.open(body.servers(containers.kit), containers)
    _at_end(servers.close)
    asked = body.read(store, containers.kit, servers)
    servers.heard(asked.items)
    earlier = store.thread(body.previous_response_id)
    container = _container(asked, containers) or store.container(body.previous_response_id)
    start = partial(_start, service, asked, cuts=body.truncation == "auto")
    job, head = await _begin(service, asked, start)
    calls, encoding = None, head.tokenizer.harmony
    if (asked.tools.served or servers) and encoding is not None:
        calls = ServedCalls(
            containers,
            containers.lease(container),
            asked.tools.served,
            encoding,
            body.calls_shown(str(request.base_url)),
            body.most_calls(containers.kit),
            servers,
        )

    def settle(run: ResponseRun) -> None:
        if calls is not None:
            calls.close()
        if store.running.pop(run.id, None) is not None and body.is_stored:
            kept = run.container_id or store.container(body.previous_response_id)
            if run.blocked is not None and run.blocked.shown["what"] == "input":
                store.keep(run.shown, earlier, (), kept)  # as if it had not been asked
            else:
                store.keep(run.shown, asked.items, run.kept, kept)

    async def go_on(job: Job | None, further: Sequence[JSON], change: Options) -> Job:
        return await start([*asked.items, *further], change, job)

    run = ResponseRun(
        job,
        head,
        body.echo(),
        asked.tools,
        body.wanted,
        settle,
        calls=calls,
        go_on=go_on,
        judged=partial(service.result, body.model),
        choice=asked.options.get("tool_choice"),
        approved=asked.approved,
    )
    store.running[run.id] = run
    _at_end(run.close)  # a generator that was never begun ends nothing
    if not body.stream:
        return await reply(request, collect(run))
    framed = FramedRun(run)
    return FrameStream(framed.frames(), service.policy, beat=framed.beat)


async def show(request: Request) -> Response:
    if request.query_params.get("stream", "").lower() == "true":
        raise Problem(400, "stream: a response is streamed once, when it is made", param="stream")
    return JSONReply(store_of(request).response(request.path_params["id"]))


async def delete(request: Request) -> Response:
    """Delete a response; one that runs is cancelled first."""
    store, id = store_of(request), request.path_params["id"]
    if (run := store.running.pop(id, None)) is not None:
        run.cancel()
    else:
        store.remove(id)
    deleted: Deleted = {"id": id, "object": "response", "deleted": True}
    return JSONReply(deleted)


async def cancel(request: Request) -> Response:
    """Cancel a response that runs; one that has ended is shown as it is."""
    store, id = store_of(request), request.path_params["id"]
    response = store.response(id)
    if (run := store.running.get(id)) is not None:
        run.cancel()
        cancelled: ResponseShown = {**response, "status": "cancelled"}
        return JSONReply(cancelled)
    return JSONReply(response)


async def approve(request: Request) -> Response:
    """Let a call run that waits for a person's word, or decline it. Not of OpenAI's API."""
    word = await read_body(request, Word)
    run = store_of(request).running.get(request.path_params["id"])
    if run is None or not run.answer(word.item_id, word.approve):
        raise Problem(404, f"no call {shown(word.item_id)} waits for approval", param="item_id")
    approved: Approved = {"item_id": word.item_id, "approve": word.approve}
    return JSONReply(approved)


async def input_items(request: Request) -> Response:
    """What a response was asked with, the newest first; earlier turns included."""
    items = [public(item) for item in store_of(request).find(request.path_params["id"]).items]
    return JSONReply(page_of(items, request.query_params))


class FramedRun:
    """A run as server-sent events."""

    def __init__(self, run: ResponseRun) -> None:
        self._run, self._told = run, monotonic()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The last event ends the response, whatever happens."""
        try:
            async with aclosing(self._run.events()) as events:
                async for one in events:
                    if isinstance(one, Progress):
                        yield self.beat(progress_text(one))
                    else:
                        yield self._frame(one)
        except Exception as error:  # of any kind: the stream ends with it
            for last in self._run.failure(error):
                yield self._frame(last)

    def beat(self, text: str = "waiting") -> bytes:
        """A comment, or an event if the last one is long ago: clients that wait for events, as
        Codex does for five minutes, pass over comments."""
        if monotonic() - self._told < QUIET_SECONDS:
            return comment(text)
        return self._frame(self._run.progress())

    def _frame(self, one: ResponseEvent) -> bytes:
        self._told = monotonic()
        return event(one, one["type"])


async def collect(run: ResponseRun) -> ResponseShown:
    """The response when it has ended. Raises the error of a run that failed."""
    async with aclosing(run.events()) as events:
        async for _ in events:
            pass
    return run.shown


def _at_end(close: Callable[[], None]) -> None:
    """Call a function when the task of this request ends."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    task.add_done_callback(lambda _: close())


async def _begin(service: Service, asked: Asked, start: Start) -> tuple[Job | None, ResponseHead]:
    """The first turn, unless approved calls are run before it; and what the response begins with.
    Raises Problem or GptOssError."""
    if not asked.approved:
        job = await start(asked.items)
        return job, ResponseHead(job.key, job.model, job.created, job.tokenizer)
    for call in asked.approved:
        asked.tools.servers.named(call.label, call.name)
    entry = await service.load(asked.model)
    tokenizer = await service.read(asked.model, lambda engine: engine.tokenizer)
    return None, ResponseHead(token_hex(12), entry.name, int(time()), tokenizer)


def _container(asked: Asked, containers: Containers) -> str | None:
    """The id of the container that a request names. Raises Problem."""
    id = asked.tools.container
    if id is not None and asked.tools.served and containers.find(id) is None:
        said = f"tools: no container has the id {shown(id)}, or not any more"
        raise Problem(404, said, code="container_expired", param="tools")
    return id


async def _start(
    service: Service,
    asked: Asked,
    items: Sequence[JSON],
    change: Options | None = None,
    after: Job | None = None,
    *,
    cuts: bool,
) -> Job:
    """Start a job. cuts: without the oldest items, instructions aside, if all do not fit the
    context. Raises ContextError."""
    while True:
        try:
            return await service.start(asked.ask(items, change), after=after)
        except ContextError:
            fewer = _without_oldest(items) if cuts else items
            if len(fewer) == len(items):
                raise
            items = fewer


def _without_oldest(items: Sequence[JSON]) -> list[JSON]:
    """The items without an eighth of them, in bytes, from the beginning.

    So a prompt is rendered few times, and its new beginning serves for several turns. The last item
    stays: where it cannot, all do.
    """
    sizes = [len(encoded(item)) for item in items]
    over, kept = sum(sizes) / 8, list[JSON]()
    for i, item in enumerate(items):
        if over > 0 and i < len(items) - 1 and not is_instruction(item):
            over -= sizes[i]
        else:
            kept.append(item)
    fewer = without_orphans(kept)
    return fewer if fewer and fewer[-1] is items[-1] else list(items)
