"""The service behind every API: takes what a request asks, and gives a job that answers it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypeVar

from starlette.requests import Request

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.options import Options, Prompt
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.engine.sequence import Sequence
from gptoss_mlx.server.job import Ask, Job
from gptoss_mlx.server.mailbox import Mailbox, Slot
from gptoss_mlx.server.metrics import Metrics
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.registry import Registry, ServedModel
from gptoss_mlx.server.written import Written

logger = logging.getLogger(__name__)
T = TypeVar("T")
Asked: TypeAlias = tuple[Prompt, Options]

READERS = 4
"""Threads that render prompts and compile schemas, so that a slow one delays few others."""

RETRY_SECONDS = 2


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.service
    return service


class Service:
    """The models, and who may use them. Made in the event loop that it is used in."""

    def __init__(self, registry: Registry, policy: Policy) -> None:
        self.registry, self.policy, self.metrics = registry, policy, Metrics()
        self.metrics.observe(registry)
        self.written = Written()
        self._readers = ThreadPoolExecutor(READERS, "gptoss_mlx reader")

    async def start(
        self, ask: Ask, *, keep_alive: float | None = None, after: Job | None = None
    ) -> Job:
        """Have a model answer. The job ends with the task that starts it, if it was not closed
        before: a generator that was never begun closes nothing.

        keep_alive: seconds for which the model then stays loaded, instead of the policy's. after: a
        job of the same request that has ended; it is closed, and this one takes its place.
        Raises Problem or, for what is wrong with the prompt and its options, GptOssError.
        """
        if self.policy.log_prompts:
            prompts = (ask.prompt, *ask.further)
            logger.info("asked: %s", json.dumps(prompts, default=str))
        entry = await self.registry.lease(ask.model)
        watch = self.metrics.watch(entry.name)
        asked, taken = ask.sequences, 0
        try:
            if after is None:
                self._check_queue(entry, len(asked))
            else:
                after.close()
            taken = len(asked)
            entry.sequences += taken
            sequences, mailbox = await self._add(entry, asked)
        except BaseException:
            self._release(entry, taken, keep_alive)
            raise
        runner = _running(entry)
        release = partial(self._release, entry, taken, keep_alive)
        job = Job(entry.name, runner, mailbox, sequences, release, watch)
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        task.add_done_callback(lambda _: job.close())
        return job

    async def load(self, model: str | None, *, keep_alive: float | None = None) -> ServedModel:
        """Load a model, if it is not, without a prompt. Raises Problem."""
        entry = await self.registry.lease(model)
        self.registry.release(entry, keep_alive)
        return entry

    async def read(self, model: str | None, reading: Callable[[Engine], T]) -> T:
        """What a function gives for a model's engine, called on a reader's thread: without a step
        of the model. Raises Problem or what the function raises."""
        entry = await self.registry.lease(model)
        try:
            engine = _running(entry).engine
            return await asyncio.wrap_future(self._readers.submit(reading, engine))
        finally:
            self.registry.release(entry)

    async def count(self, ask: Ask) -> int:
        """The tokens of a prompt as `start` would render it. Raises as `start` does."""
        return await self.read(ask.model, lambda engine: engine.count(ask.prompt, **ask.options))

    async def close(self) -> None:
        """Unload all models; what still runs fails."""
        await self.registry.close()
        self._readers.shutdown(cancel_futures=True)

    def _check_queue(self, entry: ServedModel, more: int) -> None:
        most = entry.rows + self.policy.max_queue
        if more > most:
            raise Problem(400, f"{more} answers are asked for, but {most} may run or wait")
        if entry.sequences + more > most:
            raise Problem(
                503,
                f"{entry.sequences} requests run or wait, and {self.policy.max_queue} may wait",
                code="queue_full",
                retry_after=RETRY_SECONDS,
            )

    async def _add(self, entry: ServedModel, asked: list[Asked]) -> tuple[list[Sequence], Mailbox]:
        runner = _running(entry)
        mailbox = Mailbox(len(asked), runner.wake)
        adding = self._readers.submit(_add, runner, asked, mailbox.slots)
        try:
            return await asyncio.wrap_future(adding), mailbox
        except asyncio.CancelledError:
            adding.add_done_callback(partial(_drop, runner))
            raise

    def _release(self, entry: ServedModel, sequences: int, keep_alive: float | None) -> None:
        entry.sequences -= sequences
        self.registry.release(entry, keep_alive)


def _running(entry: ServedModel) -> Runner:
    assert entry.runner is not None, "a model is not unloaded while it is leased"
    return entry.runner


def _add(runner: Runner, asked: list[Asked], slots: list[Slot]) -> list[Sequence]:
    """Render, check and queue, once for each choice; all of them or none."""
    added: list[Sequence] = []
    try:
        for (prompt, options), slot in zip(asked, slots, strict=True):
            added.append(runner.add(prompt, slot, **options))
    except BaseException:
        runner.drop(added)
        raise
    return added


def _drop(runner: Runner, adding: Future[list[Sequence]]) -> None:
    """Drop what was added for a caller that has left."""
    if not adding.cancelled() and adding.exception() is None:
        runner.drop(adding.result())
