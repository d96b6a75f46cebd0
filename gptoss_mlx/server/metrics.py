"""Metrics in Prometheus' text form, counted here and asked of the engines when they are read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gptoss_mlx.engine.events import FinishEvent

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
