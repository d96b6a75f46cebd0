"""The service behind every API: takes what a request asks, and gives a job that answers it."""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from starlette.requests import Request

from gptoss_mlx.engine.options import Options
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.engine.sequence import Sequence
from gptoss_mlx.server.job import Ask, Job
from gptoss_mlx.server.mailbox import Mailbox, Slot
from gptoss_mlx.server.metrics import Metrics
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.registry import Entry, Registry
from gptoss_mlx.server.written import Written

logger = logging.getLogger(__name__)

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

    async def start(self, ask: Ask, *, keep_alive: float | None = None) -> Job:
        """Have a model answer. The job must be closed.

        keep_alive: seconds for which the model then stays loaded, instead of the policy's.
        Raises Problem or, for what is wrong with the prompt and its options, GptOssError.
        """
        if self.policy.log_prompts:
            logger.info("asked: %s", json.dumps(ask.prompt, default=str))
        entry = await self.registry.lease(ask.model)
        watch = self.metrics.watch(entry.name)
        taken = False
        try:
            self._check_queue(entry, ask.choices)
            entry.sequences += ask.choices
            taken = True
            sequences, mailbox = await self._add(entry, ask)
        except BaseException:
            self._release(entry, ask.choices if taken else 0, keep_alive)
            raise
        runner = _running(entry)
        release = partial(self._release, entry, ask.choices, keep_alive)
        return Job(entry.name, runner, mailbox, sequences, release, watch)

    async def count(self, ask: Ask) -> int:
        """The tokens of a prompt as `start` would render it. Raises as `start` does."""
        entry = await self.registry.lease(ask.model)
        try:
            engine = _running(entry).engine
            counting = self._readers.submit(partial(engine.count, ask.prompt, **ask.options))
            return await asyncio.wrap_future(counting)
        finally:
            self.registry.release(entry)

    async def close(self) -> None:
        """Unload all models; what still runs fails."""
        await self.registry.close()
        self._readers.shutdown(cancel_futures=True)

    def _check_queue(self, entry: Entry, more: int) -> None:
        if entry.sequences + more > entry.rows + self.policy.max_queue:
            raise Problem(
                503,
                f"{entry.sequences} requests run or wait, and {self.policy.max_queue} may wait",
                code="queue_full",
                retry_after=RETRY_SECONDS,
            )

    async def _add(self, entry: Entry, ask: Ask) -> tuple[list[Sequence], Mailbox]:
        runner = _running(entry)
        mailbox = Mailbox(ask.choices, runner.wake)
        adding = self._readers.submit(_add, runner, ask, mailbox.slots)
        try:
            return await asyncio.wrap_future(adding), mailbox
        except asyncio.CancelledError:
            adding.add_done_callback(partial(_drop, runner))
            raise

    def _release(self, entry: Entry, sequences: int, keep_alive: float | None) -> None:
        entry.sequences -= sequences
        self.registry.release(entry, keep_alive)


def _running(entry: Entry) -> Runner:
    assert entry.runner is not None, "a model is not unloaded while it is leased"
    return entry.runner


def _add(runner: Runner, ask: Ask, slots: list[Slot]) -> list[Sequence]:
    """Render, check and queue, once for each choice; all of them or none."""
    added: list[Sequence] = []
    try:
        for number, slot in enumerate(slots):
            options: Options = ask.options
            if (seed := options.get("seed")) is not None:
                options = {**options, "seed": seed + number}
            added.append(runner.add(ask.prompt, slot, **options))
    except BaseException:
        runner.drop(added)
        raise
    return added


def _drop(runner: Runner, adding: Future[list[Sequence]]) -> None:
    """Drop what was added for a caller that has left."""
    if not adding.cancelled() and adding.exception() is None:
        runner.drop(adding.result())
