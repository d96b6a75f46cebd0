"""A job: what one request has the engine do, read as deltas."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gptoss_mlx.engine.deltas import Delta, Splitter
from gptoss_mlx.engine.events import FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.engine.options import Options, Prompt
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.engine.sequence import Sequence as Running
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.blocked import Blocked
from gptoss_mlx.server.mailbox import Mailbox
from gptoss_mlx.server.metrics import Meter
from gptoss_mlx.spec.sampling import MAX_SEED


@dataclass(frozen=True)
class Held:
    """Progress with an answer that is held back until it was judged. tokens: written so far."""

    tokens: int


Progress: TypeAlias = PrefillEvent | Held
Piece: TypeAlias = Progress | Delta | FinishEvent | Blocked


@dataclass(frozen=True)
class Ask:
    """What a request of any API asks of a model; None is the first one.

    choices: how many answers; the seeds of a given seed follow each other. further: more prompts,
    each with as many choices, which are numbered on.
    """

    model: str | None
    prompt: Prompt
    options: Options
    choices: int = 1
    further: Sequence[Prompt] = ()

    @property
    def sequences(self) -> list[tuple[Prompt, Options]]:
        """The prompt and the options of each choice, by number."""
        seeded = [_seeded(self.options, i) for i in range(self.choices)]
        return [(prompt, options) for prompt in (self.prompt, *self.further) for options in seeded]


class Job:
    """The sequences of one request. `pieces` can be read once; `close` ends what still runs.

    model: the name it goes by. created: seconds since 1970. choices: how many answers there are.
    reasoning_tokens: those of each choice that are reasoning.
    """

    def __init__(
        self,
        model: str,
        runner: Runner,
        mailbox: Mailbox,
        sequences: Sequence[Running],
        release: Callable[[], None],
        watch: Meter,
    ) -> None:
        self.model, self.created = model, int(time.time())
        self.key = secrets.token_hex(12)
        self.choices = len(sequences)
        self.reasoning_tokens = [0] * len(sequences)
        self._runner, self._mailbox, self._sequences = runner, mailbox, sequences
        self._release, self._watch = release, watch
        self._unfinished, self._is_closed = len(sequences), False

    @property
    def tokenizer(self) -> Tokenizer:
        return self._runner.engine.tokenizer

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Progress with the prompt, deltas and the end of each choice, with the choice's number.

        Raises the error of a choice that failed.
        """
        splitters = [Splitter() for _ in self._sequences]
        while self._unfinished:
            for i, event in await self._mailbox.take():
                if not isinstance(event, TokenEvent):
                    if isinstance(event, FinishEvent):
                        self._unfinished -= 1
                        self._watch.finish(event)
                    yield i, event
                    continue
                self._count(i, event)
                if (delta := splitters[i].push(event)) is not None:
                    yield i, delta

    def _count(self, choice: int, token: TokenEvent) -> None:
        if token.id is not None:
            self.reasoning_tokens[choice] += token.channel == "analysis"
            self._watch.token()

    async def result(self, text: str) -> str:
        """What a call gave that the server has run, as the model may read it."""
        return text

    def cancel(self) -> None:
        """End within a token: what runs still gives what it has, and a `FinishEvent`."""
        for sequence in self._sequences:
            sequence.cancel()
        self._runner.wake()

    def close(self) -> None:
        """Cancel what has not finished, within a token, and let go of the model. May be called
        again."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._unfinished:
            self._watch.cancel()
            self._runner.drop(self._sequences)
            self._unfinished = 0
        self._release()


def _seeded(options: Options, choice: int) -> Options:
    seed = options.get("seed")
    return options if seed is None else {**options, "seed": (seed + choice) % (MAX_SEED + 1)}
