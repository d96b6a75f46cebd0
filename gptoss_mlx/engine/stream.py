"""One stream: a prompt read, tokens written, as events and as the steps of the model it asks for.

The loop is pipelined: the step after a token is queued before the token is read. Where the header
grammar then turns out to change its mask, only the choice is made again, from the same logits.
A stream does not take its steps itself: it gives out a `Step` and is sent the logits, so that
`alone` can drive one stream and `together` several, with a step of the model for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

from gptoss_mlx.engine.clock import Clock
from gptoss_mlx.engine.events import (
    Event,
    FinishEvent,
    FinishReason,
    Limit,
    PrefillEvent,
    TokenEvent,
)
from gptoss_mlx.engine.loop import Loop
from gptoss_mlx.engine.request import Request
from gptoss_mlx.engine.session import Session
from gptoss_mlx.engine.writer import PlainText, Writer
from gptoss_mlx.harmony import Parser
from gptoss_mlx.harmony.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """Asks for one more token in a session, to be answered with the logits behind it."""

    session: Session
    token: Any


SampledToken: TypeAlias = tuple[int, float | None, tuple[tuple[int, float], ...]]
"""A token's id, its log-probability, and the most probable ids with theirs."""

Ending: TypeAlias = tuple[FinishReason, Limit | None]

Run: TypeAlias = Generator[Event | Step, Any, None]
DecodeMany: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Iterable[Any]]


class Stream:
    """A request on a session that it has to itself.

    new_sampler: makes the request's sampler, once the prompt is read.
    """

    def __init__(
        self,
        session: Session,
        request: Request,
        tokenizer: Tokenizer,
        new_sampler: Callable[[], Any],
    ) -> None:
        self.session, self.request = session, request
        self.tokenizer, self.new_sampler = tokenizer, new_sampler

    def run(self) -> Generator[Event | Step, Any, FinishEvent]:
        """All but the last event, and the steps asked for; returns the last event."""
        clock, request = Clock(), self.request
        ending = yield from self._prefill(clock)
        if ending is None:
            ending = yield from self._write(clock)
        reason, limit = ending
        timings = clock.timings()
        return FinishEvent(reason, len(request.ids), clock.tokens, request.seed, timings, limit)

    def _prefill(self, clock: Clock) -> Generator[PrefillEvent, None, Ending | None]:
        """Bring the session to the prompt's last token, which the first decode step reads.

        A snapshot is taken there: the next turn's prompt has the same beginning.
        Returns what ended the stream on the way, if something did.
        """
        session, request = self.session, self.request
        reused = session.resume(request.ids)
        total = len(request.ids)
        yield PrefillEvent(reused, total, reused)
        for done in session.prefill(request.ids[reused:-1], (*request.marks, total - 1)):
            yield PrefillEvent(reused + done, total, reused)
            clock.prefilled(done, reused)
            if request.cancel():
                return "cancelled", None
            if clock.elapsed() > request.max_time:
                return "length", "max_time"
        clock.prefilled(session.state.offset - reused, reused)
        return None

    def _write(self, clock: Clock) -> Generator[TokenEvent | Step, Any, Ending]:
        """Generate text until something ends it; returns what that was."""
        ending: Ending = ("length", self.request.limit)
        writer = self._writer()
        loop = Loop() if self.request.stop_repetition else None
        decoding = self._decode()
        item: Step | SampledToken | None = next(decoding)
        while item is not None:
            if isinstance(item, Step):
                item = decoding.send((yield item))
                continue
            id, logprob, top = item
            if self.request.cancel():
                ending = ("cancelled", None)
                break
            clock.token()
            yield from writer.push(id, logprob, top)
            if id in self.tokenizer.stop_ids or writer.stopped:
                ending = ("stop", None)
                break
            if clock.elapsed() > self.request.max_time:
                ending = ("length", "max_time")
                break
            if loop is not None and loop.push(id):
                ending = ("length", "repetition")
                break
            item = next(decoding, None)
        yield from writer.finish()
        return ("tool_calls", None) if ending[0] == "stop" and writer.called else ending

    def _decode(self) -> Generator[Step | SampledToken, Any, None]:
        """Tokens, each read after the step behind it was asked for."""
        session, request, sampler = self.session, self.request, self.new_sampler()
        grammar = request.grammar
        logits = yield Step(session, request.ids[-1:])
        session.note(request.ids[-1])
        choice = sampler.choose(logits, 0, grammar and grammar.mask)
        for step in count(1):
            if step < request.max_tokens:
                logits = yield Step(session, choice.token)
                sampler.accept(choice)
                ahead = sampler.choose(logits, step, grammar and grammar.mask)
            id, logprob, top = choice.read()
            if step < request.max_tokens:
                session.note(id)
            yield id, logprob, top
            if step == request.max_tokens:
                return
            choice = ahead
            if grammar is not None:
                before, grammar = grammar, grammar.advance(id)
                if grammar.mask is not before.mask:
                    choice = sampler.choose(logits, step, grammar.mask)

    def _writer(self) -> Writer:
        request = self.request
        if request.encoding is not None:
            return Writer(Parser(request.encoding), request.stop)
        text = PlainText(self.tokenizer.decoder(), self.tokenizer.stop_ids)
        return Writer(text, request.stop)


def alone(run: Run) -> Generator[Event, None, None]:
    """Drive one stream: its events."""
    try:
        item = next(run, None)
        while item is not None:
            if isinstance(item, Step):
                with _telling([run]):
                    logits = item.session.decode(item.token)
                item = run.send(logits)
            else:
                yield item
                item = next(run, None)
    finally:
        run.close()


def together(
    runs: Sequence[Run], decode_many: DecodeMany, at_once: int
) -> Generator[tuple[int, Event], None, None]:
    """Drive several streams, up to `at_once` of them side by side, each step taken for all of them.

    Gives events with the number of their stream. One that ends makes room for the next.
    """
    waiting = deque(enumerate(runs))
    asking: dict[int, Step] = {}
    try:
        while waiting or asking:
            if waiting and len(asking) < at_once:
                i, run = waiting.popleft()
                yield from _advance(i, run, asking)
                continue
            steps = asking
            asking = {}
            with _telling(runs):
                logits = decode_many(
                    [step.token for step in steps.values()],
                    [step.session.state for step in steps.values()],
                )
            for i, row in zip(steps, logits, strict=True):
                yield from _advance(i, runs[i], asking, row)
    finally:
        for run in runs:
            run.close()


def _advance(
    i: int, run: Run, asking: dict[int, Step], logits: Any = None
) -> Iterator[tuple[int, Event]]:
    """Send a stream what it waits for; give its events until it asks again or ends."""
    try:
        item = run.send(logits)
        while not isinstance(item, Step):
            yield i, item
            item = next(run)
    except StopIteration:
        return
    asking[i] = item


@contextmanager
def _telling(runs: Iterable[Run]) -> Iterator[None]:
    """A step that fails has failed in every stream that it was for."""
    try:
        yield
    except BaseException as error:
        for run in runs:
            with suppress(BaseException):
                run.throw(error)
        raise
