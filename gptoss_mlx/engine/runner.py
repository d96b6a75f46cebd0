"""A thread that takes an engine's steps: what a server needs to answer any number of callers.

It sleeps while there is nothing to compute. It lives until it is closed; an error that no sequence
is to blame for ends it, fails every sequence and is told by `error`, so that nobody waits for a
loop that is dead.
"""

from __future__ import annotations

from collections.abc import Collection
from threading import Event, Thread
from time import monotonic
from typing import Unpack

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.options import Options, Prompt
from gptoss_mlx.engine.sequence import Outlet, Sequence
from gptoss_mlx.errors import ClosedError


class Runner:
    """Owns an engine, and closes it. Any thread may call any method but `close`, which the runner's
    own must not."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wanted, self._closing = Event(), False
        self._error: BaseException | None = None
        self._begun: float | None = None
        self._thread = Thread(target=self._run, name="gptoss_mlx engine", daemon=True)
        self._thread.start()

    def add(
        self, prompt: Prompt, outlet: Outlet, *, urgent: bool = False, **options: Unpack[Options]
    ) -> Sequence:
        """Queue a prompt. Its events are put into the outlet on the runner's thread.

        urgent, options and errors: as `Engine.add`; ClosedError also once `close` was called.
        """
        if self._closing:
            raise ClosedError("the engine is about to close")
        if self._error is not None:
            raise ClosedError(f"the engine has ended: {self._error}")
        sequence = self.engine.add(prompt, outlet, urgent=urgent, **options)
        self.wake()
        return sequence

    def drop(self, sequences: Collection[Sequence]) -> None:
        """Remove sequences, whether they wait, run or have finished."""
        self.engine.drop(sequences)
        self.wake()

    def wake(self) -> None:
        """Look for something to do: to be called when an outlet that was full no longer is."""
        self._wanted.set()

    @property
    def is_alive(self) -> bool:
        """Whether prompts are still answered."""
        return self._thread.is_alive() and not self.engine.is_closed

    @property
    def error(self) -> BaseException | None:
        """What ended the thread, if an error did."""
        return self._error

    @property
    def step_seconds(self) -> float:
        """How long the step under way has taken so far; 0 between two steps."""
        begun = self._begun
        return 0.0 if begun is None else monotonic() - begun

    def close(self, grace: float = 0.0) -> None:
        """Take no more prompts, let those under way go on for `grace` seconds at most, fail the
        rest, and close the engine. May be called again."""
        self._closing = True
        self.wake()
        self._thread.join(grace)
        self.engine.close()
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not (self._closing and self.engine.finished):
                self._wanted.wait()
                self._wanted.clear()
                while self.engine.is_ready:
                    self._begun = monotonic()
                    self.engine.step()
                    self._begun = None
        except ClosedError:  # by `close`, or by whoever else has the engine
            pass
        except BaseException as error:  # of any kind: told by `error`
            self._error = error
        finally:
            self._begun = None
            self.engine.close()
