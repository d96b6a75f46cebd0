"""The service behind every API: takes what a request asks, and gives a job that answers it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.server.guarded_job import GuardedJob
from gptoss_mlx.server.job import Ask, Job
from gptoss_mlx.server.metrics import Metrics
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.readers import Asked, Readers, check
from gptoss_mlx.server.registry import Registry, ServedModel
from gptoss_mlx.server.screening import Screening
from gptoss_mlx.server.text_guard import TextGuard
from gptoss_mlx.server.written import Written

logger = logging.getLogger(__name__)
T = TypeVar("T")
RETRY_SECONDS = 2


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.service
    return service


class Service:
    """The models, and who may use them. Made in the event loop that it is used in. guard: of what
    is asked and answered; None for none."""

    def __init__(self, registry: Registry, policy: Policy, guard: TextGuard | None = None) -> None:
        self.registry, self.policy, self.metrics = registry, policy, Metrics()
        self.metrics.observe(registry.all)
        self.written, self.guard = Written(), guard
        if guard is not None:
            self.metrics.observe_guard(guard)
        self._readers = Readers()

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
        entry, judge = await self._lease(ask.model)
        asked, taken = ask.sequences, 0
        try:
            if after is None:
                self._check_queue(entry, len(asked))
            else:
                after.close()
            taken = len(asked)
            entry.sequences += taken
            release = partial(self._release, entry, taken, keep_alive, judge)
            job = await self._job(entry, judge, asked, release)
        except BaseException:
            self._release(entry, taken, keep_alive, judge)
            raise
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
            return await self._readers.run(partial(reading, _running(entry).engine))
        finally:
            self.registry.release(entry)

    async def count(self, ask: Ask) -> int:
        """The tokens of a prompt as `start` would render it. Raises as `start` does."""
        return await self.read(ask.model, lambda engine: engine.count(ask.prompt, **ask.options))

    async def result(self, model: str | None, text: str) -> str:
        """What a call gave, as a model and the client may read it, where no job of theirs runs yet;
        see `Job.result`. Raises Problem."""
        if self.guard is None:
            return text
        entry, judge = await self._lease(model)
        try:
            return await Screening(self.guard, _running(judge or entry)).result(text)
        finally:
            self._release(entry, 0, None, judge)

    async def close(self) -> None:
        """Unload all models; what still runs fails."""
        await self.registry.close()
        self._readers.close()
        if self.guard is not None:
            self.guard.close()

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

    async def _lease(self, model: str | None) -> tuple[ServedModel, ServedModel | None]:
        """A model, and the one that judges what it reads and writes, if it is another. That comes
        first, so that none waits for it with a model that must leave to make room."""
        judge = None if self.guard is None else await self.registry.lease_judge()
        try:
            return await self.registry.lease(model), judge
        except BaseException:
            if judge is not None:
                self.registry.release(judge)
            raise

    async def _job(
        self,
        entry: ServedModel,
        judge: ServedModel | None,
        asked: list[Asked],
        release: Callable[[], None],
    ) -> Job:
        """What answers; with a guard nothing is queued before it was judged."""
        runner, watch = _running(entry), self.metrics.watch(entry.name)
        if self.guard is None:
            sequences, mailbox = await self._readers.add(runner, asked)
            return Job(entry.name, runner, mailbox, sequences, release, watch)
        await self._readers.run(partial(check, runner, asked))
        screening = Screening(self.guard, runner if judge is None else _running(judge))
        add = partial(self._readers.add, runner)
        return GuardedJob(entry.name, runner, asked, add, release, watch, screening)

    def _release(
        self,
        entry: ServedModel,
        sequences: int,
        keep_alive: float | None,
        judge: ServedModel | None,
    ) -> None:
        entry.sequences -= sequences
        self.registry.release(entry, keep_alive)
        if judge is not None:
            self.registry.release(judge)


def _running(entry: ServedModel) -> Runner:
    assert entry.runner is not None, "a model is not unloaded while it is leased"
    return entry.runner
