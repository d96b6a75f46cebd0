"""A guarded job: a request is judged before a model reads it, and an answer before it is given.

Nothing of an answer is told before all of it has passed; until then there is progress alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.events import FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.engine.sequence import Sequence as Running
from gptoss_mlx.server.blocked import NOTHING_READ, Blocked, blocked_answer, blocked_request
from gptoss_mlx.server.job import Held, Job, Piece
from gptoss_mlx.server.mailbox import Mailbox
from gptoss_mlx.server.metrics import Meter
from gptoss_mlx.server.readers import Asked
from gptoss_mlx.server.screening import Screening
from gptoss_mlx.tools.guard.verdict import GuardEvent

T = TypeVar("T")
Add: TypeAlias = Callable[[list[Asked]], Awaitable[tuple[list[Running], Mailbox]]]

STEP = 16
"""Tokens of an answer between two pieces that tell of progress."""

_NOT_JUDGED = "[blocked: the result could not be judged]"


class GuardedJob(Job):
    """asked: what each choice asks. add: queues it, once it was judged."""

    def __init__(
        self,
        model: str,
        runner: Runner,
        asked: list[Asked],
        add: Add,
        release: Callable[[], None],
        watch: Meter,
        screening: Screening,
    ) -> None:
        super().__init__(model, runner, Mailbox(len(asked), runner.wake), [], release, watch)
        self.choices = len(asked)
        self.reasoning_tokens = [0] * self.choices
        self._asked, self._add, self._screening = asked, add, screening
        self._held: list[list[Delta]] = [[] for _ in asked]
        self._written, self._told = [0] * self.choices, [0] * self.choices  # tokens
        self._judging: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """As `Job.pieces`, with a choice that is blocked ending so."""
        screened = await self._unless_cancelled(self._screen())
        if not isinstance(screened, list):
            for i in range(self.choices):
                yield i, self._unread(screened)
            return
        self._sequences, self._mailbox = await self._add(screened)
        self._unfinished = self.choices
        if self._is_cancelled:
            super().cancel()
        async for i, piece in super().pieces():
            if isinstance(piece, Delta):
                self._held[i].append(piece)
                if self._written[i] >= self._told[i] + STEP:
                    self._told[i] = self._written[i]
                    yield i, Held(self._written[i])
            elif isinstance(piece, FinishEvent):
                given, end = await self._judged(i, piece)
                for delta in given:
                    yield i, delta
                yield i, end
            elif isinstance(piece, PrefillEvent):
                yield i, piece

    async def result(self, text: str) -> str:
        read = await self._unless_cancelled(self._screening.result(text))
        return _NOT_JUDGED if read is None else read

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._judging is not None:
            self._judging.cancel()
        super().cancel()

    def close(self) -> None:
        if self._judging is not None:
            self._judging.cancel()
        super().close()

    async def _screen(self) -> list[Asked] | GuardEvent:
        """What is asked, of which each prompt was judged once; or why it is blocked."""
        known: dict[int, Any] = {}
        out: list[Asked] = []
        for prompt, options in self._asked:
            if id(prompt) not in known:
                screened, refusal = await self._screening.prompt(prompt, self.tokenizer)
                if refusal is not None:
                    return refusal
                known[id(prompt)] = screened
            out.append((known[id(prompt)], options))
        return out

    def _unread(self, refusal: GuardEvent | None) -> Blocked | FinishEvent:
        """The end of a choice whose prompt no model has read: it is blocked, or was cancelled."""
        if refusal is None:
            return replace(NOTHING_READ, reason="cancelled")
        self._screening.remember("output", [refusal.line])
        return blocked_request(refusal)

    async def _judged(
        self, choice: int, finish: FinishEvent
    ) -> tuple[list[Delta], FinishEvent | Blocked]:
        """What may be given of a choice that has ended, and its end. Of one that is cancelled
        nothing is judged, and nothing given."""
        held, self._held[choice] = self._held[choice], []
        if self._is_cancelled or finish.reason == "cancelled":
            return [], finish
        found = await self._unless_cancelled(self._screening.turn(held))
        if found is None:
            return [], replace(finish, reason="cancelled", limit=None)
        given, refusal = found
        if refusal is None:
            return list(given), finish
        blocked = blocked_answer(refusal, finish, self._screening.guard.policy)
        self._screening.remember("output", [blocked.line])
        return [], blocked

    async def _unless_cancelled(self, judging: Coroutine[Any, Any, T]) -> T | None:
        """What it gives; None where `cancel` has ended it."""
        if self._is_cancelled:
            judging.close()
            return None
        self._judging = task = asyncio.ensure_future(judging)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._is_cancelled and current is not None and not current.cancelling():
                return None
            raise
        finally:
            self._judging = None

    def _count(self, choice: int, token: TokenEvent) -> None:
        super()._count(choice, token)
        self._written[choice] += token.id is not None
