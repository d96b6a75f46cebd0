"""Seconds that work takes on a device: with its queue empty before and after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Work = Callable[[], Any]

MEASURED = 0.02  # seconds between two events, at least


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device) -> float:
    """Of one call, with everything that it queues."""
    wait(device)
    begun = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begun


def median(work: Work, device: torch.device, runs: int = 5, budget: float = 3.0) -> float:
    """Of up to `runs` calls, fewer (but two) where they take more than `budget` seconds."""
    found: list[float] = []
    while len(found) < runs and (len(found) < 2 or sum(found) < budget):
        found.append(seconds(work, device))
    return statistics.median(found)


def each(calls: Sequence[Work], device: torch.device, waits: bool, runs: int = 5) -> float:
    """Of one of several calls, on average of them and as the median of `runs` measurements.

    On a card they are in a CUDA graph, so that no launch waits for Python, except where a call
    waits for the device itself. Calls go in turn: what they read should be more than a cache holds.
    """
    for call in calls[:2]:
        call()
    if device.type != "cuda" or waits:
        return median(lambda: _all(calls), device, runs) / len(calls)
    graph = _captured(calls, device)
    once = median(graph.replay, device, 2)
    passes = round(min(max(MEASURED / once, 1), 1000))
    return statistics.median(_replayed(graph, passes) for _ in range(runs)) / len(calls)


def _all(calls: Sequence[Work]) -> None:
    for call in calls:
        call()


def _replayed(graph: torch.cuda.CUDAGraph, passes: int) -> float:
    """Seconds of a replay between two events."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(passes):
        graph.replay()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000 / passes


def _captured(calls: Sequence[Work], device: torch.device) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        _all(calls[:2])
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _all(calls)
    return graph
