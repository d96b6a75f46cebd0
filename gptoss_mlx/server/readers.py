"""Readers: threads that render prompts and compile schemas, so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypeVar

from gptoss_mlx.engine.options import Options, Prompt
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.engine.sequence import Sequence as Running
from gptoss_mlx.server.mailbox import Mailbox, Slot

T = TypeVar("T")
Asked: TypeAlias = tuple[Prompt, Options]

READERS = 4
"""Threads, so that a slow prompt delays few others."""


class Readers:
    """The threads of one server. Used in one event loop."""

    def __init__(self, most: int = READERS) -> None:
        self._threads = ThreadPoolExecutor(most, "gptoss_mlx reader")

    async def run(self, reading: Callable[[], T]) -> T:
        """What a function gives on one of the threads. Raises what it raises."""
        return await asyncio.wrap_future(self._threads.submit(reading))

    async def add(
        self, runner: Runner, asked: Sequence[Asked], *, urgent: bool = False
    ) -> tuple[list[Running], Mailbox]:
        """Queue prompts, all of them or none, with the mailbox of their events.

        urgent, and what it raises: as `Runner.add`.
        """
        mailbox = Mailbox(len(asked), runner.wake)
        adding = self._threads.submit(_add, runner, asked, mailbox.slots, urgent)
        try:
            return await asyncio.wrap_future(adding), mailbox
        except asyncio.CancelledError:
            adding.add_done_callback(partial(_drop, runner))
            raise

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def check(runner: Runner, asked: Sequence[Asked]) -> None:
    """Raise what `Runner.add` would, without computing anything."""
    for prompt, options in asked:
        runner.engine.preprocessor.request(prompt, **options)


def _add(runner: Runner, asked: Sequence[Asked], slots: list[Slot], urgent: bool) -> list[Running]:
    """Render, check and queue, once for each choice; all of them or none."""
    added: list[Running] = []
    try:
        for (prompt, options), slot in zip(asked, slots, strict=True):
            added.append(runner.add(prompt, slot, urgent=urgent, **options))
    except BaseException:
        runner.drop(added)
        raise
    return added


def _drop(runner: Runner, adding: Future[list[Running]]) -> None:
    """Drop what was added for a caller that has left."""
    if not adding.cancelled() and adding.exception() is None:
        runner.drop(adding.result())
