"""Continuous batching: any number of sequences on one model, a step at a time.

A step prefills one chunk of one prompt, for which it admits a sequence if there is a row, and
decodes one token for every sequence that is past its prompt, all together. A step that fails fails
the sequences that were in it and no other, and the loop goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Lock, get_ident
from typing import TypeVar

from gptoss_mlx.backends.protocol import AnyModel, Array, Draw, Sampler
from gptoss_mlx.engine.idle import Idle
from gptoss_mlx.engine.prefix import PrefixStore
from gptoss_mlx.engine.sequence import Sequence
from gptoss_mlx.errors import ClosedError

SHARE = 4
"""A prompt's chunk is divided by it while other sequences decode."""

T = TypeVar("T")


class Loop:
    """The scheduler: sequences that wait for a session, and active ones that have one.

    Any thread may call any method; steps are taken one after the other. `idle`: the sessions of
    sequences that ended, whose prefixes the next ones may reuse.
    """

    def __init__(self, model: AnyModel, store: PrefixStore | None = None) -> None:
        self._model: AnyModel | None = model
        self._idle: Idle | None = Idle(model, store or PrefixStore(model, 0))
        self._added: SimpleQueue[Sequence] = SimpleQueue()
        self._dropped: SimpleQueue[Sequence] = SimpleQueue()
        self._waiting: deque[Sequence] = deque()
        self._active: list[Sequence] = []
        self._computed: list[Sequence] = []  # in this step, or in one that was interrupted
        self._lock = Lock()
        self._stepper: int | None = None  # the thread that takes a step

    @property
    def model(self) -> AnyModel:
        """Raises ClosedError."""
        if self._model is None:
            raise ClosedError("the engine is closed")
        return self._model

    @property
    def idle(self) -> Idle:
        """Raises ClosedError."""
        if self._idle is None:
            raise ClosedError("the engine is closed")
        return self._idle

    @property
    def is_closed(self) -> bool:
        return self._model is None

    @property
    def finished(self) -> bool:
        """Whether there is nothing to do until a sequence is added."""
        return self._added.empty() and not (self._waiting or self._active)

    @property
    def is_ready(self) -> bool:
        """Whether a step would do something now: not if all that is under way rests. Raises
        ClosedError."""
        _ = self.model
        return self.run(self._is_ready)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. That does not wait for a step."""
        self._added.put(sequence)
        if self.is_closed and not self._is_stepping():  # meanwhile: nobody else would fail it
            self.run(self._settle)

    def step(self) -> None:
        """Prefill a chunk of one prompt, and decode a token of every sequence past its prompt.

        An error fails the sequences it concerns. Raises ClosedError; interrupts pass through.
        """
        self.run(self._step)

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Remove sequences, whether they have finished or not."""
        for sequence in sequences:
            self._dropped.put(sequence)
        if not self._lock.locked():  # else the next step does it
            self.run(self._settle)

    def close(self) -> None:
        """Fail every sequence, and release the model."""
        self._model = None
        if not self._is_stepping():  # else that step does it when it ends
            self.run(self._settle)

    def run(self, call: Callable[[], T]) -> T:
        """Make a call with exclusive use of the model: no step runs meanwhile.

        Raises RuntimeError within such a call, which would wait for itself.
        """
        if self._is_stepping():
            raise RuntimeError("the engine was asked for a step within a step")
        with self._lock:
            self._stepper = get_ident()
            try:
                return call()
            finally:
                self._stepper = None
                if self._model is None:
                    self._let_go()

    def _is_stepping(self) -> bool:
        """Whether this thread is within a step, as when a callback calls the engine."""
        return self._stepper == get_ident() and self._lock.locked()

    def _step(self) -> None:
        self._settle()
        self._end_cancelled()
        ready = self._ready()
        self._prefill(ready)
        self._decode(ready)
        self._retire()

    def _is_ready(self) -> bool:
        queued = not (self._added.empty() and self._dropped.empty())
        return queued or any(not s.outlet.is_full() for s in (*self._active, *self._waiting))

    def _settle(self) -> None:
        """Take in added sequences, remove dropped ones, and fail those an interrupt left behind."""
        self._fail(ClosedError("the step was interrupted"))
        while not self._added.empty():
            sequence = self._added.get()
            if sequence.is_urgent:
                self._waiting.appendleft(sequence)
            else:
                self._waiting.append(sequence)
        gone = set[Sequence]()
        while not self._dropped.empty():
            gone.add(self._dropped.get())
        if gone:
            self._waiting = deque(s for s in self._waiting if s not in gone)
            self._retire(gone)

    def _end_cancelled(self) -> None:
        """Finish what was cancelled while it waits, also where there is no row for it."""
        for sequence in [s for s in self._waiting if s.is_over]:
            with self._failing([sequence]):
                self._waiting.remove(sequence)
                sequence.finish_early()

    def _ready(self) -> list[Sequence]:
        """The active sequences that this step computes.

        One whose outlet is full rests. It takes no row meanwhile: its reader may have turned to
        another stream.
        """
        return [sequence for sequence in self._active if not sequence.outlet.is_full()]

    def _prefill(self, ready: list[Sequence]) -> None:
        """Prefill a chunk of the prompt that is being read, or else of the next that waits.

        One prompt after the other: the next begins where the marks of the one before let it, as
        when several have one system prompt. The chunk is smaller while others decode, since each of
        their tokens waits for one.
        """
        model = self.model
        waiting = any(not sequence.in_prefill for sequence in ready)
        chunk = max(1, model.chunk // SHARE) if waiting else model.chunk
        sequence = next((s for s in ready if s.in_prefill), None) or self._admit(ready)
        if sequence is not None:
            with self._failing([sequence]):
                sequence.prefill(model, chunk)

    def _admit(self, ready: list[Sequence]) -> Sequence | None:
        """Give a session to the first sequence that waits, if there is a row for it."""
        waiting = [s for s in self._waiting if not s.outlet.is_full()]
        for sequence in waiting if len(ready) < self.model.rows else ():
            with self._failing([sequence]):
                self._waiting.remove(sequence)
                self._active.append(sequence)
                others = [s.session for s in self._active if s.session is not None]
                sequence.session = self.idle.choose(sequence.request.ids, others)
                self.idle.remove(sequence.session)
                sequence.begin()
                ready.append(sequence)
                return sequence
        return None

    def _decode(self, ready: list[Sequence]) -> None:
        """Queue the next decode step for all that decode; while the device computes it, read the
        tokens chosen before; then queue the choice of the next ones."""
        decoding = [s for s in ready if not (s.in_prefill or s.finished)]
        batch = decoding[: self.model.rows]
        if len(batch) < len(decoding):  # streams that rested are read again: take turns
            self._active.sort(key=batch.__contains__)
        with self._failing(batch):
            model, asking = self.model, [s for s in batch if s.wants_logits]
            tokens, states = [s.token for s in asking], [s.state for s in asking]
            logits = model.decode(tokens, states) if asking else None
            for sequence in batch:
                _try(sequence, sequence.read)
            draws = dict[Sequence, Draw[Sampler[Array]]]()
            for row, sequence in enumerate(asking):
                _try(sequence, partial(_add_draw, draws, sequence, row))
            if logits is not None:
                choices = model.choose(logits, [*draws.values()])
                for sequence, choice in zip(draws, choices, strict=True):
                    sequence.take(choice)

    def _retire(self, gone: Collection[Sequence] = ()) -> None:
        """Remove finished and dropped sequences, and keep their sessions while there are rows."""
        for sequence in [s for s in self._active if s.finished or s in gone]:
            self._active.remove(sequence)
            session = sequence.leave()
            if session is not None and self._idle is not None:
                self._idle.keep(session, len(self._active))

    def _let_go(self) -> None:
        """Fail every sequence, and free all that is on the device."""
        self._settle()
        while self._active or self._waiting:
            (self._active or self._waiting).pop().fail(ClosedError("the engine is closed"))
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    @contextmanager
    def _failing(self, sequences: list[Sequence]) -> Iterator[None]:
        """Fail these sequences if the block raises; only interrupts are raised again."""
        self._computed = [*sequences]
        try:
            yield
        except Exception as error:  # of any kind: it is raised where their events are taken
            self._fail(error)
        except BaseException:
            self._fail(ClosedError("the step was interrupted"))
            raise
        self._computed = []

    def _fail(self, error: Exception) -> None:
        """Fail the sequences being computed. If an interrupt stops this, the next call fails the
        rest."""
        while self._computed:
            sequence = self._computed[-1]
            if sequence.session is not None and self._idle is not None:  # it was taken just now
                self._idle.remove(sequence.session)
            if not sequence.finished:
                sequence.fail(error)
            self._computed.pop()


def _add_draw(draws: dict[Sequence, Draw[Sampler[Array]]], sequence: Sequence, row: int) -> None:
    draws[sequence] = sequence.draw(row)  # computes the mask, which may fail


def _try(sequence: Sequence, call: Callable[[], None]) -> None:
    """Make a call for one sequence; an error fails that sequence alone."""
    try:
        if not sequence.finished:
            call()
    except Exception as error:  # of any kind: it is raised where its events are taken
        sequence.fail(error)
