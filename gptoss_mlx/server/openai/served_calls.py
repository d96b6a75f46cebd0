"""The served calls of one response: those that the server runs, with the container they run in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias, cast

from gptoss_mlx.engine.result import ToolCall
from gptoss_mlx.harmony.encoding import Encoding
from gptoss_mlx.server.containers import Container, Containers
from gptoss_mlx.server.openai.annotator import Annotator, MadeFile
from gptoss_mlx.server.openai.call_writers import CallWriter, CodeCallWriter, SearchCallWriter
from gptoss_mlx.server.openai.item_writers import ItemPlace
from gptoss_mlx.server.openai.output_items import Phase
from gptoss_mlx.server.openai.response_events import ResponseEvent
from gptoss_mlx.spec.recipients import type_of
from gptoss_mlx.tools.approval import DECLINED, Approval
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.citations import as_link, as_mark
from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.tool import Outcome, Tool

Judged: TypeAlias = Callable[[str], Awaitable[str]]

_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")


@dataclass(frozen=True)
class CallShown:
    """What a client wants to read of calls. sealed: all of them, to be sent back. in_links: marks
    of citations as links; not in an answer of a given form. asks: whether it can ask a person.
    root: the URL that the server is asked at, with a slash at its end.
    """

    outputs: bool = False
    sources: bool = False
    sealed: bool = False
    in_links: bool = True
    asks: bool = False
    root: str = "/"


class ServedCalls:
    """names: of the tools that the response may call. left: how many calls may still be run."""

    def __init__(
        self,
        containers: Containers,
        container: Container,
        names: list[str],
        encoding: Encoding,
        wanted: CallShown,
        most: int,
    ) -> None:
        self._containers, self._container, self._names = containers, container, names
        self._encoding, self._wanted = encoding, wanted
        self.left = self._most = min(most, containers.kit.most_calls)
        self._files: dict[str, MadeFile] = {}  # by their names
        self._waiting: dict[str, asyncio.Future[bool]] = {}  # for a person, by ids of items
        self._ended = threading.Event()
        self._is_open = True

    @property
    def container_id(self) -> str:
        return self._container.id

    def takes(self, recipient: str) -> bool:
        return type_of(recipient) in self._names

    def writer(self, place: ItemPlace, recipient: str) -> CallWriter:
        """The writer of a call that begins. Raises GptOssError."""
        wanted, tool = self._wanted, self._tool(type_of(recipient))
        if isinstance(tool, BrowserTool):
            return SearchCallWriter(place, recipient, tool, wanted.sources, wanted.sealed)
        return CodeCallWriter(place, self.container_id, wanted.outputs, wanted.sealed)

    def annotator(self, phase: Phase) -> Annotator:
        """Of a message of the response."""
        browser = self._container.tools.get("browser")
        written = as_link if self._wanted.in_links else as_mark
        reader = browser.citations(written) if isinstance(browser, BrowserTool) else None
        files = tuple(self._files.values()) if phase == "final_answer" else ()
        return Annotator(reader, files)

    async def run(self, writer: CallWriter, judged: Judged) -> AsyncGenerator[ResponseEvent, None]:
        """Run a call that was written, or tell the model why not. judged: what it gave as the model
        may read it. Raises what a tool does that is broken."""
        refusal = self._over()
        if refusal is None and self._must_ask(writer):
            waiting = self._waiting[writer.id] = asyncio.get_running_loop().create_future()
            yield {
                **writer.place.in_item(writer.id),
                "type": "response.tool_approval.requested",
                "tool": type_of(writer.recipient),
            }
            if not await waiting:
                refusal = DECLINED
        elif refusal is None:
            refusal = self._refusal(writer)
        if self._ended.is_set():
            for event in writer.abandon():
                yield event
            return
        outcome, page = Outcome(refusal or "", failed=True), None
        if refusal is None:
            for event in writer.start():
                yield event
            outcome, page = await self._call(writer.recipient, writer.arguments)
            text = await judged(outcome.text)
            if text != outcome.text:
                outcome, page = Outcome(text, failed=True), None
        made = [self._made(path) for path in outcome.files]
        images = [self._url(file) for file in made if is_image(file.name)]
        for event in writer.finish(outcome, images, page):
            yield event

    def answer(self, item_id: str, may_run: bool) -> bool:
        """A person's word on a call that waits for it; whether there is such a call."""
        waiting = self._waiting.pop(item_id, None)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(may_run)
        return True

    def cancel(self) -> None:
        """End what runs or waits; nothing is run after it."""
        self._ended.set()
        for id in list(self._waiting):
            self.answer(id, False)

    def close(self) -> None:
        """Let go of the container. May be called again."""
        if self._is_open:
            self._is_open = False
            self._containers.release(self._container)

    def _tool(self, name: str) -> Tool:
        return self._containers.tool(self._container, name, self._encoding)

    def _over(self) -> str | None:
        """What the model is told when it has called often enough."""
        if self.left <= 0:
            return f"No more calls are run: the limit is {self._most}."
        self.left -= 1
        return None

    def _must_ask(self, writer: CallWriter) -> bool:
        name = type_of(writer.recipient)
        return self._wanted.asks and self._containers.kit.rule(name) == "ask"

    def _refusal(self, writer: CallWriter) -> str | None:
        name = type_of(writer.recipient)
        call = ToolCall(writer.id, writer.recipient, writer.arguments, name)
        return Approval(self._containers.kit.rules).refusal(self._tool(name), call)

    async def _call(self, recipient: str, arguments: str) -> tuple[Outcome, Page | None]:
        """What the call gave, and the page that the browser then shows."""
        tool = self._tool(type_of(recipient))

        def work() -> tuple[Outcome, Page | None]:
            outcome = tool.call(recipient, arguments, self._ended.is_set)
            return outcome, tool.page() if isinstance(tool, BrowserTool) else None

        return await self._containers.run(self._container, tool, work, self._ended)

    def _made(self, path: Path) -> MadeFile:
        id = self._container.file_id(path)
        name = cast(str, self._container.file_name(id))
        self._files[name] = file = MadeFile(self.container_id, id, name)
        return file

    def _url(self, file: MadeFile) -> str:
        return f"{self._wanted.root}v1/containers/{file.container_id}/files/{file.id}/content"


def is_image(name: str) -> bool:
    """Whether a file is a picture that browsers show, by its name."""
    return PurePosixPath(name.lower()).suffix in _IMAGES
