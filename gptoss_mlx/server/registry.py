"""The registry of models: loads one when it is asked for, and unloads one that nobody asks.

All models share one budget of memory. One that is asked for takes the place of those that nobody
uses, the one used longest ago first, if it does not fit beside them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from gptoss_mlx.engine.engine import Engine, open_engine
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.errors import ClosedError, MemoryBudgetError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.models.checkpoint import Progress
from gptoss_mlx.models.names import ALIASES, full_name
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.unavailable import dead, load_failed, loading
from gptoss_mlx.settings import Settings

logger = logging.getLogger(__name__)
Opener: TypeAlias = Callable[[str, Settings, Progress], Engine]
Status: TypeAlias = Literal["unloaded", "loading", "ready", "failed"]


class ServedModel:
    """A model by name.

    argument: as `load` takes it. name: what it goes by, without a path. done, total: bytes read of
    the weights while it loads. rows: sequences that it decodes at a time. sequences: those that it
    was given and that have not finished. leases: requests that use it. keep_alive: seconds that it
    stays loaded when nobody uses it; infinity for ever. is_asked_for: whether a request has it
    loaded, and waits. is_given_up: whether it is not to be loaded any more.
    """

    def __init__(self, argument: str, settings: Settings) -> None:
        self.argument, self.settings = argument, settings
        self.id = full_name(argument)
        self._name = Path(self.id).resolve().name if Path(self.id).exists() else None
        self.created = int(time.time())
        self.done = self.total = 0
        self.error: BaseException | None = None
        self.runner: Runner | None = None
        self.rows = self.leases = self.sequences = 0
        self.last_used = 0.0
        self.keep_alive = math.inf
        self.expiry: asyncio.TimerHandle | None = None
        self.loading: asyncio.Task[None] | None = None
        self.is_asked_for = self.is_given_up = False

    @property
    def name(self) -> str:
        return self._name or self.id.rpartition("/")[2]

    @property
    def publisher(self) -> str:
        """Whose model it is by its id: "openai"; "local" for a folder."""
        owner, slash, _ = self.id.rpartition("/")
        return owner if slash and self._name is None and "/" not in owner else "local"

    @property
    def names(self) -> set[str]:
        """Every name it may be asked for by, in lower case."""
        others = {alias for alias, id in ALIASES.items() if id == self.id}
        return {n.lower() for n in (self.argument, self.id, self.name, f"{self.name}:latest")} | {
            *others
        }

    @property
    def status(self) -> Status:
        if self.runner is not None:
            return "ready" if self.runner.is_alive else "failed"
        if self.loading is not None:
            return "loading"
        return "failed" if self.error is not None else "unloaded"

    @property
    def engine(self) -> Engine | None:
        return None if self.runner is None else self.runner.engine

    @property
    def context(self) -> int | None:
        """Tokens; None before it was loaded."""
        engine = self.engine
        return self.settings.context if engine is None else engine.context

    @property
    def nbytes(self) -> int:
        """Bytes that it takes by plan; 0 if it is not loaded."""
        plan = None if self.engine is None else self.engine.plan
        return 0 if plan is None else plan.total

    @property
    def running(self) -> int:
        return min(self.sequences, self.rows)

    @property
    def waiting(self) -> int:
        return self.sequences - self.running

    @property
    def expires_in(self) -> float:
        """Seconds until it is unloaded, if nobody asks it before; infinity for never, as before it
        was asked for the first time."""
        if self.leases:
            return self.keep_alive
        if self.expiry is None:
            return math.inf
        return max(0.0, self.last_used + self.keep_alive - time.monotonic())

    def stats(self) -> dict[str, float]:
        """`Engine.stats`, and whether it is loaded."""
        engine = self.engine
        if engine is None:
            return {"loaded": 0}
        with suppress(ClosedError):
            return {"loaded": 1, **engine.stats()}
        return {"loaded": 0}


@dataclass(frozen=True)
class Alias:
    """Another name for a model: `name`, or with a star at its end all that begin so."""

    name: str
    model: str | None = None

    def fits(self, name: str) -> bool:
        if self.name.endswith("*"):
            return name.startswith(self.name[:-1].lower())
        return name == self.name.lower()


Watching: TypeAlias = Callable[[ServedModel], AbstractContextManager[Progress]]
"""Shows how far a model is loaded, for as long as the context lasts."""


@contextmanager
def _unseen(entry: ServedModel) -> Iterator[Progress]:
    yield lambda done, total: None


class Registry:
    """The models of a server, the first of which is the one meant where no name is given.

    keep_alive: seconds after which one that nobody uses is unloaded; None for never. opener: opens
    an engine, in a thread. judge: a model that judges for the others, which may be one of them: it
    is loaded before any of them, and stays as long as one is. Used in one event loop.
    """

    def __init__(
        self,
        entries: Iterable[ServedModel],
        aliases: Iterable[Alias] = (),
        keep_alive: float | None = None,
        opener: Opener = open_engine,
        watch: Watching = _unseen,
        judge: ServedModel | None = None,
    ) -> None:
        self.entries, self.judge = tuple(entries), judge
        hidden = () if judge is None or judge in self.entries else (judge,)
        self.all = (*self.entries, *hidden)
        self.aliases = tuple(aliases)
        self._opener, self._watch = opener, watch
        self._lock, self._released = asyncio.Lock(), asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._keep_alive = math.inf if keep_alive is None else keep_alive
        for entry in self.all:
            entry.keep_alive = self._keep_alive

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.entries)

    def find(self, name: str | None) -> ServedModel:
        """The model of a name. Raises Problem."""
        if not name:
            return self.entries[0]
        wanted = name.lower()
        for entry in self.entries:
            if wanted in entry.names:
                return entry
        for alias in self.aliases:
            if alias.fits(wanted):
                return self.find(alias.model)
        known = ", ".join(entry.name for entry in self.entries)
        raise Problem(
            404,
            f"the model {shown(name)} is not served here: use {known}",
            code="model_not_found",
            param="model",
        )

    def load(self, entry: ServedModel) -> asyncio.Task[None]:
        """The loading of a model, begun if it was not; of the judge before it."""
        if self.judge is not None and self.judge is not entry:
            self.load(self.judge)
        if entry.loading is None:
            entry.error, entry.keep_alive = None, self._keep_alive
            entry.loading = asyncio.create_task(self._load(entry))
        return entry.loading

    async def lease(self, name: str | None) -> ServedModel:
        """A model that is not unloaded before it is released, loaded if it was not.

        Raises Problem, also where the server has just begun to load it: the caller is told how far
        that is.
        """
        return await self._lease(self.find(name))

    async def lease_judge(self) -> ServedModel | None:
        """The judge, if there is one, as `lease` gives a model."""
        return None if self.judge is None else await self._lease(self.judge)

    async def _lease(self, entry: ServedModel) -> ServedModel:
        while entry.status != "ready":
            if entry.status == "failed" and entry.runner is not None:
                raise dead(entry.name)
            if entry.status == "loading" and not entry.is_asked_for:
                raise loading(entry.name, entry.done, entry.total)
            entry.is_asked_for = True
            await asyncio.shield(self.load(entry))
            if entry.error is not None:
                raise load_failed(entry.name)
        entry.leases += 1
        return entry

    def release(self, entry: ServedModel, keep_alive: float | None = None) -> None:
        """Give a lease back. keep_alive: what its request asked for, instead of what was."""
        entry.leases -= 1
        entry.last_used = time.monotonic()
        if keep_alive is not None:
            entry.keep_alive = keep_alive
        self._released.set()
        self._rest(entry)

    def expire(self, entry: ServedModel) -> None:
        """Unload a model that is loaded as soon as nobody uses it."""
        if entry.status == "ready":
            entry.leases += 1
            self.release(entry, 0.0)

    def unload(self, entry: ServedModel) -> asyncio.Task[None]:
        """Give a model's memory back; what still runs fails. It counts as unloaded at once."""
        runner, entry.runner, entry.loading = entry.runner, None, None
        task = asyncio.create_task(_close(runner))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        if self.judge is not None and self.judge is not entry and self.judge.runner is not None:
            self._rest(self.judge)
        return task

    async def close(self) -> None:
        """Unload all; what still runs fails."""
        for entry in self.all:
            entry.is_given_up = True
        begun = [e.loading for e in self.all if e.loading is not None]
        await asyncio.gather(*begun, *self._closing)
        await asyncio.gather(*map(self.unload, self.all))

    def _rest(self, entry: ServedModel) -> None:
        """Begin the time after which a model that nobody uses is unloaded."""
        if entry.expiry is not None:
            entry.expiry.cancel()
            entry.expiry = None
        if entry.keep_alive < math.inf and entry.leases == 0 and not self._is_needed(entry):
            loop = asyncio.get_running_loop()
            entry.expiry = loop.call_later(entry.keep_alive, self._unload_idle, entry)

    def _unload_idle(self, entry: ServedModel) -> None:
        entry.expiry = None
        if entry.leases == 0 and not self._is_needed(entry):
            self.unload(entry)

    def _is_needed(self, entry: ServedModel) -> bool:
        """Whether this is the judge of a model that is loaded."""
        others = (other for other in self.entries if other is not entry)
        return entry is self.judge and any(other.loading is not None for other in others)

    async def _load(self, entry: ServedModel) -> None:
        """Open a model in a thread; its error is kept, for whoever asks for it."""
        try:
            async with self._lock:
                engine = await self._open(entry)
                entry.rows = engine.model.rows
                entry.runner = Runner(engine)
                if not entry.is_asked_for:  # else it is leased now, and rests after that
                    self._rest(entry)
        except Exception as error:  # of any kind: it is told to whoever asks for the model
            logger.error("the model %s cannot be loaded: %s", entry.name, error)
            entry.error = error
            entry.loading = None

    async def _open(self, entry: ServedModel) -> Engine:
        while True:
            await asyncio.gather(*self._closing)
            others = [other for other in self.all if other.runner is not None]
            movable = [other for other in others if other is not self.judge]
            try:
                settings = replace(entry.settings, memory=self._left(entry, others))
                return await asyncio.to_thread(self._open_now, entry, settings)
            except MemoryBudgetError:
                if not movable:
                    raise
                await self._make_room(movable)

    def _open_now(self, entry: ServedModel, settings: Settings) -> Engine:
        with self._watch(entry) as show:

            def progress(done: int, total: int) -> None:
                if entry.is_given_up:
                    raise ClosedError("the server ends")  # which ends the loading
                entry.done, entry.total = done, total
                show(done, total)

            return self._opener(entry.argument, settings, progress)

    def _left(self, entry: ServedModel, others: Iterable[ServedModel]) -> int | None:
        """Bytes for a model beside others; None leaves it to the machine."""
        budget = entry.settings.memory
        for other in others:
            plan = None if other.engine is None else other.engine.plan
            budget = budget or (None if plan is None else plan.budget)
        used = sum(other.nbytes for other in others)
        return None if budget is None else max(1, budget - used)

    async def _make_room(self, others: list[ServedModel]) -> None:
        """Unload the idle model that was used longest ago; wait for one if all are used."""
        while not (idle := [other for other in others if other.leases == 0]):
            self._released.clear()
            await self._released.wait()
        await self.unload(min(idle, key=lambda other: other.last_used))


async def _close(runner: Runner | None) -> None:
    if runner is not None:
        await asyncio.to_thread(runner.close)
