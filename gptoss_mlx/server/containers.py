"""Containers: the tools of each conversation, with its interpreter, its files and its pages.

Interpreters are bounded in number, and end when nobody has called them for a while; the next call
then starts another one and tells the model. Files and pages last longer, until there are too many
conversations.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from starlette.requests import Request

from gptoss_mlx.harmony.encoding import Encoding
from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.tools.tool import Tool

T = TypeVar("T")

MOST_CONTAINERS = 64
MOST_INTERPRETERS = 8
MOST_APART = 32
"""Calls of servers that all conversations share, at a time; they keep no others waiting."""

IDLE_SECONDS = 20 * 60
"""After which an interpreter that nobody calls is ended."""

_ENDING = 15.0  # seconds for calls to end when the server does
_INTERPRETED = "python"  # the tool that holds a process


def containers_of(request: Request) -> Containers:
    """The containers of the app that a request came to."""
    containers: Containers = request.app.containers
    return containers


class Container:
    """The tools of one conversation; its folder is made by the tool that needs it.

    users: responses that are being made with it. is_awake: whether its interpreter may run. lock:
    held while a call runs, since a tool is called by one thread at a time.
    """

    def __init__(self, folder: Path, id: str) -> None:
        self.id, self.folder = id, folder
        self.tools: dict[str, Tool] = {}
        self.users = 0
        self.is_awake = False
        self.lock = asyncio.Lock()
        self.expiry: asyncio.TimerHandle | None = None
        self._files: dict[str, str] = {}

    def file_id(self, path: Path) -> str:
        """The id by which a file of the folder can be asked for from now on."""
        name = path.relative_to(self.folder).as_posix()
        id = f"cfile_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        self._files[id] = name
        return id

    def file_name(self, id: str) -> str | None:
        """The path of a file in the folder."""
        return self._files.get(id)

    def close(self) -> None:
        """End what the tools hold; they can be called again."""
        for tool in self.tools.values():
            tool.close()


class Containers:
    """Those of one server, in the order in which they were used. Used in one event loop."""

    def __init__(
        self,
        kit: Toolkit | None = None,
        *,
        most: int = MOST_CONTAINERS,
        interpreters: int = MOST_INTERPRETERS,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self.kit = kit or Toolkit()
        self._most, self._interpreters, self._idle = most, interpreters, idle
        self._all: OrderedDict[str, Container] = OrderedDict()
        self._turns = asyncio.Semaphore(interpreters)
        self._threads = ThreadPoolExecutor(interpreters, "gptoss_mlx tool")
        self._apart = ThreadPoolExecutor(MOST_APART, "gptoss_mlx server")
        self._running: dict[asyncio.Task[None], threading.Event] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._all)

    @property
    def awake(self) -> int:
        """How many interpreters may run."""
        return sum(container.is_awake for container in self._all.values())

    def find(self, id: str | None) -> Container | None:
        return None if id is None else self._all.get(id)

    def lease(self, id: str | None) -> Container:
        """A container for a response to use, a new one if there is none of the id any more."""
        container = self.find(id) or self._new()
        container.users += 1
        self._all.move_to_end(container.id)
        return container

    def release(self, container: Container) -> None:
        """A response has ended that used it."""
        container.users -= 1
        self._drop_oldest()

    def tool(self, container: Container, name: str, encoding: Encoding) -> Tool:
        """A container's tool, made when it is asked for first. Raises GptOssError."""
        if name not in container.tools:
            container.tools[name] = self.kit.makers[name](container.folder, encoding)
        return container.tools[name]

    async def apart(self, work: Callable[[], T]) -> T:
        """What a function gives that asks a shared server, run on a thread for these."""
        return await asyncio.get_running_loop().run_in_executor(self._apart, work)

    async def run(
        self,
        container: Container,
        tool: Tool,
        work: Callable[[], T],
        ended: threading.Event,
        *,
        apart: bool = False,
    ) -> T:
        """What a function gives that calls a container's tool, run on a thread of the tools.

        ended: what the call looks at to end early; it is set when this is cancelled, and when the
        server ends. The container stays busy until the call has ended, but for a tool that is
        called apart, as those of shared servers are.
        """
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        calling = self.apart(work) if apart else self._run(container, tool, work)
        task = asyncio.ensure_future(_settle(calling, result))
        self._running[task] = ended
        task.add_done_callback(lambda task: self._running.pop(task))
        if self._is_closed:
            ended.set()
        try:
            return await result
        except asyncio.CancelledError:
            ended.set()
            raise

    async def close(self) -> None:
        """End every call and every interpreter, and remove the folders unless they are to stay."""
        self._is_closed = True
        for ended in self._running.values():
            ended.set()
        if self._running:
            await asyncio.wait(set(self._running), timeout=_ENDING)
        for container in list(self._all.values()):
            if container.expiry is not None:
                container.expiry.cancel()
            await self._on_thread(container.close)
        self._all.clear()
        self._threads.shutdown(wait=False)
        self._apart.shutdown(wait=False, cancel_futures=True)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    async def _run(self, container: Container, tool: Tool, work: Callable[[], T]) -> T:
        async with self._turns, container.lock:
            if tool.name == _INTERPRETED:
                await self._wake(container)
            try:
                return await self._on_thread(work)
            finally:
                self._keep_for_a_while(container)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _wake(self, container: Container) -> None:
        """Let a container's interpreter run; where there are enough, the one used longest ago ends.

        Fewer calls than interpreters run at a time, so that one of them is idle.
        """
        if container.is_awake:
            return
        awake = [one for one in self._all.values() if one.is_awake]
        container.is_awake = True
        if len(awake) >= self._interpreters:
            await self._rest(next(one for one in awake if not one.lock.locked()))

    async def _rest(self, container: Container) -> None:
        container.is_awake = False
        async with container.lock:
            container.is_awake = False  # a call may have come before
            await self._on_thread(container.close)

    def _keep_for_a_while(self, container: Container) -> None:
        if container.id in self._all:
            self._all.move_to_end(container.id)
        if container.expiry is not None:
            container.expiry.cancel()
        loop = asyncio.get_running_loop()
        container.expiry = loop.call_later(self._idle, self._expire, container)

    def _expire(self, container: Container) -> None:
        if container.is_awake and not container.lock.locked() and not self._is_closed:
            self._later(self._rest(container))

    def _new(self) -> Container:
        id = f"cntr_{token_hex(16)}"
        self._all[id] = container = Container((self._root() / id).resolve(), id)
        return container

    def _root(self) -> Path:
        """Where the folders are."""
        if self.kit.files is not None:
            return self.kit.files
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(
                prefix="gptoss-containers-", ignore_cleanup_errors=True
            )
        return Path(self._temporary.name)

    def _drop_oldest(self) -> None:
        """Drop those used longest ago of which there are too many, unless they are being used."""
        idle = [one for one in self._all.values() if not one.users and not one.lock.locked()]
        for container in idle[: max(0, len(self._all) - self._most)]:
            del self._all[container.id]
            if container.expiry is not None:
                container.expiry.cancel()
            if not self._is_closed:
                self._later(self._drop(container))

    async def _drop(self, container: Container) -> None:
        await self._rest(container)
        if self.kit.files is None:
            await self._on_thread(lambda: shutil.rmtree(container.folder, ignore_errors=True))

    def _later(self, doing: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(doing)
        self._running[task] = threading.Event()
        task.add_done_callback(lambda task: self._running.pop(task))


async def _settle(calling: Awaitable[T], result: asyncio.Future[T]) -> None:
    """A call's own task, which goes on when nobody waits for the result any more."""
    try:
        given = await calling
    except Exception as error:  # of any kind: it is the caller's
        if not result.done():
            result.set_exception(error)
    else:
        if not result.done():
            result.set_result(given)
