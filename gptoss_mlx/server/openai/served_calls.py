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
from gptoss_mlx.server.openai.mcp_items import ApprovedCall
from gptoss_mlx.server.openai.mcp_writers import McpCallWriter, McpRequestWriter
from gptoss_mlx.server.openai.output_items import Phase
from gptoss_mlx.server.openai.response_events import ResponseEvent
from gptoss_mlx.server.openai.response_servers import ResponseServers
from gptoss_mlx.spec.recipients import type_of
from gptoss_mlx.tools.approval import DECLINED, Approval, Rule
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.citations import as_link, as_mark
from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.tool import Outcome, Tool
from gptoss_mlx.tools.tool_server import Listing

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
    """names: of the tools that the response may call; servers: of further ones. left: how many
    calls may still be run."""

    def __init__(
        self,
        containers: Containers,
        container: Container,
        names: list[str],
        encoding: Encoding,
        wanted: CallShown,
        most: int,
        servers: ResponseServers,
    ) -> None:
        self._containers, self._container, self._names = containers, container, names
        self._encoding, self._wanted = encoding, wanted
        self._servers = servers
        self._server_tools: dict[str, Tool] = {}  # by labels
        self.left = self._most = most
        self._files: dict[str, MadeFile] = {}  # by their names
        self._waiting: dict[str, asyncio.Future[bool]] = {}  # for a person, by ids of items
        self._ended = threading.Event()
        self._is_open = True

    @property
    def container_id(self) -> str:
        return self._container.id

    async def relist(self) -> None:
        """Read anew which tools the servers have."""
        await self._servers.relist()

    def news(self) -> list[tuple[str, Listing]]:
        """The lists of tools that the client has not read so far, by their servers' labels."""
        return self._servers.news()

    def takes(self, recipient: str) -> bool:
        return type_of(recipient) in self._names or self._servers.call(recipient) is not None

    def writer(self, place: ItemPlace, recipient: str) -> CallWriter | McpRequestWriter:
        """The writer of a call that begins, or of the question whether it may run. Raises
        GptOssError."""
        if (call := self._servers.call(recipient)) is not None:
            asks = call.must_ask and not self._wanted.asks and self.left > 0
            is_request = asks and call.server.rule != "deny"
            return McpRequestWriter(place, call) if is_request else McpCallWriter(place, call)
        wanted, tool = self._wanted, self._tool(type_of(recipient))
        if isinstance(tool, BrowserTool):
            return SearchCallWriter(place, recipient, tool, wanted.sources, wanted.sealed)
        return CodeCallWriter(place, self.container_id, wanted.outputs, wanted.sealed)

    def approved(self, place: ItemPlace, call: ApprovedCall) -> McpCallWriter:
        """The writer of a call that a person has agreed to. Raises Problem."""
        named = self._servers.named(call.label, call.name)
        return McpCallWriter(place, named, call.request)

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
                "tool": self._name(writer),
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
            outcome, page = await self._call(writer)
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

    def _tool_of(self, writer: CallWriter) -> Tool:
        if not isinstance(writer, McpCallWriter):
            return self._tool(type_of(writer.recipient))
        server = writer.call.server
        if server.label not in self._server_tools:
            made = server.server.tool(self._container.folder)
            self._server_tools[server.label] = made
        return self._server_tools[server.label]

    def _name(self, writer: CallWriter) -> str:
        """The tool's, or the server's label."""
        if isinstance(writer, McpCallWriter):
            return writer.call.server.label
        return type_of(writer.recipient)

    def _rule(self, writer: CallWriter) -> Rule:
        """What becomes of a call, by the rule and, of a server's tool, the client's wish."""
        if not isinstance(writer, McpCallWriter):
            return self._containers.kit.rule(type_of(writer.recipient))
        if writer.call.server.rule == "deny":
            return "deny"
        asks = writer.call.must_ask and writer.approval_request_id is None
        return "ask" if asks else "allow"

    def _over(self) -> str | None:
        """What the model is told when it has called often enough."""
        if self.left <= 0:
            return f"No more calls are run: the limit is {self._most}."
        self.left -= 1
        return None

    def _must_ask(self, writer: CallWriter) -> bool:
        return self._wanted.asks and self._rule(writer) == "ask"

    def _refusal(self, writer: CallWriter) -> str | None:
        name = self._name(writer)
        if isinstance(writer, McpCallWriter) and self._servers.call(writer.recipient) is None:
            return f"The server {name} has no tool {writer.call.tool.name} now."
        call = ToolCall(writer.id, writer.recipient, writer.arguments, name)
        return Approval({name: self._rule(writer)}).refusal(name, call)

    async def _call(self, writer: CallWriter) -> tuple[Outcome, Page | None]:
        """What the call gave, and the page that the browser then shows."""
        tool = self._tool_of(writer)

        def work() -> tuple[Outcome, Page | None]:
            outcome = tool.call(writer.recipient, writer.arguments, self._ended.is_set)
            return outcome, tool.page() if isinstance(tool, BrowserTool) else None

        apart = isinstance(writer, McpCallWriter)
        return await self._containers.run(self._container, tool, work, self._ended, apart=apart)

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
