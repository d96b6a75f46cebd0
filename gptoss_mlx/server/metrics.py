"""Metrics in Prometheus' text form, counted here and asked of the engines when they are read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gptoss_mlx.engine.events import FinishEvent
from gptoss_mlx.tools.guard.verdict import Verdict, What

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)


class Observed(Protocol):
    """A model that is measured when metrics are read."""

    @property
    def name(self) -> str: ...

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    def stats(self) -> dict[str, float]: ...


class Judging(Protocol):
    """A guard that is measured when metrics are read: how often a kind of text got each label, and
    how many were blocked."""

    @property
    def judged(self) -> Mapping[tuple[What, Verdict], int]: ...

    @property
    def blocked(self) -> Mapping[What, int]: ...


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "HTTP requests", "path", "status")
        self.finished = self._counter("finished", "Sequences that have ended", "model", "reason")
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self.reused = self._counter("reused_tokens", "Tokens of prompts not computed", "model")
        self.generated = self._counter("generated_tokens", "Tokens generated", "model")
        self.first = self._histogram("first_token_seconds", "Request to first token", _SECONDS)
        self.between = self._histogram("token_seconds", "Token to token", _BETWEEN)

    def watch(self, model: str) -> Meter:
        return Meter(self, model)

    def observe(self, models: Iterable[Observed]) -> None:
        """Ask these models whenever metrics are read; they may change meanwhile."""
        self._registry.register(_Gauges(models))

    def observe_guard(self, guard: Judging) -> None:
        """Ask a guard whenever metrics are read."""
        self._registry.register(_Judged(guard))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"gptoss_{name}", says, labels, registry=self._registry)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"gptoss_{name}", says, ("model",), registry=self._registry, buckets=buckets
        )


class Meter:
    """The clock of one request, started when it is made."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        # Looked up once: a look-up takes as long as the counting.
        self._generated = metrics.generated.labels(model)
        self._between = metrics.between.labels(model)
        self._last = time.perf_counter()
        self._is_first = True

    def token(self) -> None:
        """Note that a token has come."""
        now = time.perf_counter()
        metric = self._metrics.first.labels(self._model) if self._is_first else self._between
        metric.observe(now - self._last)
        self._generated.inc()
        self._last, self._is_first = now, False

    def finish(self, event: FinishEvent) -> None:
        metrics, timings = self._metrics, event.timings
        metrics.finished.labels(self._model, event.reason).inc()
        metrics.prompt.labels(self._model).inc(event.prompt_tokens)
        metrics.reused.labels(self._model).inc(timings.reused_tokens)

    def cancel(self) -> None:
        self._metrics.finished.labels(self._model, "cancelled").inc()


class _Gauges(Collector):
    """What is asked for, not counted."""

    def __init__(self, models: Iterable[Observed]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        gauges: dict[str, GaugeMetricFamily] = {}
        for model in self._models:
            values = {"running": model.running, "waiting": model.waiting, **model.stats()}
            for name, value in values.items():
                if name not in gauges:
                    says = f"{name} of a model".replace("_", " ")
                    gauges[name] = GaugeMetricFamily(f"gptoss_{name}", says, labels=["model"])
                gauges[name].add_metric([model.name], value)
        yield from gauges.values()


class _Judged(Collector):
    """What a guard has counted."""

    def __init__(self, guard: Judging) -> None:
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        judged = CounterMetricFamily(
            "gptoss_guard_judged", "Texts that got a label", labels=["what", "label"]
        )
        for (what, label), count in sorted(self._guard.judged.items()):
            judged.add_metric([what, label], count)
        blocked = CounterMetricFamily(
            "gptoss_guard_blocked", "Texts that went no further", labels=["what"]
        )
        for what, count in sorted(self._guard.blocked.items()):
            blocked.add_metric([what], count)
        yield judged
        yield blocked
