"""Seconds and tokens of one generation."""

from __future__ import annotations

from time import perf_counter

from gptoss_mlx.engine.events import Timings


class Clock:
    """A timer of one generation, started when it is made."""

    def __init__(self) -> None:
        self.tokens = 0
        self._start = self._prefilled = self._first = self._last = perf_counter()
        self._prefill_tokens = self._reused = 0

    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return perf_counter() - self._start

    def prefilled(self, tokens: int, reused: int) -> None:
        """Note that the prompt has been read: tokens computed, and tokens reused from before."""
        self._prefilled = self._first = self._last = perf_counter()
        self._prefill_tokens, self._reused = tokens, reused

    def token(self) -> None:
        """Note that one more token has been generated."""
        self._last = perf_counter()
        self.tokens += 1
        if self.tokens == 1:
            self._first = self._last

    def timings(self) -> Timings:
        return Timings(
            prefill=self._prefilled - self._start,
            decode=self._last - self._prefilled,
            first_token=self._first - self._start,
            prefill_tokens=self._prefill_tokens,
            reused_tokens=self._reused,
            decode_tokens=self.tokens,
        )
