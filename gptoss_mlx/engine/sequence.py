"""A sequence: one request on its way through the engine, and the events it gives.

It waits, prefills chunk by chunk, decodes token by token and finishes, as `Loop` schedules it.
Decoding is pipelined: the step after a token is queued before the token is read. While the device
computes that step, the token's events are given and the grammar's next mask is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

from gptoss_mlx.backends.protocol import AnyModel, Array, Choice, Draw, Sampler, State
from gptoss_mlx.engine.clock import Clock
from gptoss_mlx.engine.events import Event, FinishEvent, FinishReason, Limit, PrefillEvent
from gptoss_mlx.engine.repetition import Repetition
from gptoss_mlx.engine.request import Request
from gptoss_mlx.engine.session import Session
from gptoss_mlx.engine.writer import PlainText, Writer
from gptoss_mlx.harmony import Parser
from gptoss_mlx.harmony.tokenizer import Tokenizer

Ending: TypeAlias = tuple[FinishReason, Limit | None]


class Outlet(Protocol):
    """Where the events of a sequence go."""

    def put(self, event: Event) -> None: ...

    def fail(self, error: BaseException) -> None:
        """The sequence ends with an error instead of a `FinishEvent`."""

    def is_full(self) -> bool:
        """Whether the sequence must pause until events have been taken (backpressure)."""


class Sequence:
    """A request in progress. `session`: its state on the device while it runs, else None.
    is_urgent: whether it is before those that wait."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, outlet: Outlet, is_urgent: bool = False
    ) -> None:
        self.request, self.outlet, self.is_urgent = request, outlet, is_urgent
        self.session: Session | None = None
        self.finished = False
        self._cancelled = False
        self._stop_ids = tokenizer.stop_ids
        self._writer = _writer(request, tokenizer)
        self._repetition = Repetition() if request.stop_repetition else None
        self._grammar = request.grammar
        self._clock, self._reused = Clock(), 0
        self._prefilling: Iterator[int] = iter(())
        self._sampler: Sampler[Array] | None = None
        self._choice: Choice[Array] | None = None  # the token to be read next
        self._chosen = 0  # tokens chosen, one not read yet included

    def cancel(self) -> None:
        """End within one token, or one chunk of the prompt. Any thread may call this."""
        self._cancelled = True

    @property
    def is_over(self) -> bool:
        """Whether it has finished, or was cancelled: one that waits then need not begin."""
        return self.finished or self._cancelled

    def finish_early(self) -> None:
        """Finish one that was cancelled while it waited."""
        if not self.finished:
            self._finish(("cancelled", None))

    def fail(self, error: BaseException) -> None:
        """End with an error. The session's state may be inconsistent by then, and is freed."""
        self.finished = True
        session = self.leave()
        if session is not None:
            session.close()
        self.outlet.fail(error)

    def leave(self) -> Session | None:
        """Let go of all that is on the device, and return the session. Whoever keeps a sequence
        that has ended, or was dropped, keeps no memory of the model."""
        session, self.session = self.session, None
        self._prefilling = iter(())
        self._sampler = self._choice = None
        return session

    @property
    def state(self) -> State:
        return self._open.state

    @property
    def in_prefill(self) -> bool:
        """Whether tokens of the prompt are still to be read."""
        return self._sampler is None

    @property
    def token(self) -> list[int] | Array:
        """The input of the next decode step: the prompt's last token, then the one chosen last."""
        return self.request.ids[-1:] if self._choice is None else self._choice.token

    @property
    def wants_logits(self) -> bool:
        """Whether another token is to be chosen after the last one."""
        return self._chosen < self.request.max_tokens

    def begin(self) -> None:
        """Reuse the prefix that the session has in common with the prompt."""
        self._clock = Clock()
        session, ids = self._open, self.request.ids
        self._reused = session.resume(ids)
        self.outlet.put(PrefillEvent(self._reused, len(ids), self._reused))
        # The prompt's last token is read by the first decode step.
        self._prefilling = session.prefill(ids[self._reused : -1], self.request.marks)

    def prefill(self, model: AnyModel, chunk: int) -> None:
        """Prefill up to `chunk` tokens of the prompt; after its last ones, make the sampler."""
        request = self.request
        if self._finished_in_prefill():
            return
        self._open.chunk = chunk
        computed = next(self._prefilling, None) is not None
        self._clock.prefilled(self.state.offset - self._reused, self._reused)
        if computed:
            self.outlet.put(PrefillEvent(self.state.offset, len(request.ids), self._reused))
        if self.state.offset == len(request.ids) - 1:
            next(self._prefilling, None)  # takes the snapshot at the prompt's end
            if not self._finished_in_prefill():
                self._sampler = model.sampler(request.sampling, request.seed, request.ids)

    def _finished_in_prefill(self) -> bool:
        """Finish if the sequence was cancelled, or its time is over, since a chunk was read."""
        if self.state.offset == self._reused:
            return False
        if self._is_cancelled():
            self._finish(("cancelled", None))
        elif self._clock.elapsed() > self.request.max_time:
            self._finish(("length", "max_time"))
        return self.finished

    def read(self) -> None:
        """Wait for the token chosen last, and give its events. The decode step that takes it as
        input is queued by now, if another token is wanted."""
        choice, self._choice = self._choice, None
        if choice is None:
            self._open.note(self.request.ids[-1])
            return
        id, logprob, top = choice.read()
        if self.wants_logits:
            self._open.note(id)
        if self._is_cancelled():
            return self._finish(("cancelled", None))
        self._clock.token()
        for event in self._writer.push(id, logprob, top):
            self.outlet.put(event)
        if (ending := self._ending(id)) is not None:
            return self._finish(ending)
        if self._grammar is not None:
            self._grammar = self._grammar.advance(id)
        assert self._sampler is not None
        self._sampler.accept(choice)

    def draw(self, row: int) -> Draw[Sampler[Array]]:
        """How to choose the next token, from row `row` of the decode step's logits."""
        assert self._sampler is not None
        mask = None if self._grammar is None else self._grammar.mask
        return Draw(row, self._sampler, self._chosen, mask)

    def take(self, choice: Choice[Array]) -> None:
        """Take the next token, which the device may still have to compute."""
        self._choice = choice
        self._chosen += 1

    def _ending(self, id: int) -> Ending | None:
        """Why the token just read is the last one, if it is."""
        if id in self._stop_ids or self._writer.stopped:
            return "stop", None
        if self._clock.elapsed() > self.request.max_time:
            return "length", "max_time"
        if self._repetition is not None and self._repetition.push(id):
            return "length", "repetition"
        if not self.wants_logits:
            return "length", self.request.limit
        return None

    def _finish(self, ending: Ending) -> None:
        for event in self._writer.finish():
            self.outlet.put(event)
        if self._clock.tokens and not self._writer.reasoned:  # else the reasoning is dropped later
            self._open.mark_answer()
        reason, limit = ending
        if reason == "stop" and self._writer.called:
            reason = "tool_calls"
        request, self.finished = self.request, True
        self.outlet.put(
            FinishEvent(
                reason=reason,
                prompt_tokens=len(request.ids),
                completion_tokens=self._clock.tokens,
                seed=request.seed,
                timings=self._clock.timings(),
                limit=limit,
                stopped_by=self._writer.stopped_by,
            )
        )

    def _is_cancelled(self) -> bool:
        return self._cancelled or self.request.cancel()

    @property
    def _open(self) -> Session:
        assert self.session is not None, "the sequence has not begun, or has finished"
        return self.session


def _writer(request: Request, tokenizer: Tokenizer) -> Writer:
    if request.encoding is not None:
        return Writer(Parser(request.encoding), request.stop)
    text = PlainText(tokenizer.decoder(), tokenizer.stop_ids)
    return Writer(text, request.stop)
