"""A gate before every step of the engines: a test lets as many through as it likes."""

from __future__ import annotations

import threading

import pytest

from gptoss_mlx.engine.loop import Loop

LONG = 60.0  # seconds that nothing here takes


class Gate:
    """Open at first. taken: steps taken so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self._permits = threading.Semaphore(0)
        self._closed = False
        self.waiting = threading.Event()
        step = Loop.step

        def gated(loop: Loop) -> None:
            if self._closed:
                self.waiting.set()
                assert self._permits.acquire(timeout=LONG)
            step(loop)
            self.taken += 1

        monkeypatch.setattr(Loop, "step", gated)

    def close(self) -> None:
        """Hold every step from the next one on."""
        self._closed = True

    def let(self, steps: int) -> None:
        """Let so many through, and wait until they are done and the next one waits, if any."""
        for _ in range(steps):
            assert self.waiting.wait(LONG)
            self.waiting.clear()
            self._permits.release()

    def open(self) -> None:
        self._closed = False
        self._permits.release()
