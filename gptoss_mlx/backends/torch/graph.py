"""A decoding step as a CUDA graph: one launch instead of hundreds.

A graph is bound to a batch size and to fixed addresses, so there is one for each bucket of batch
sizes, captured when it is first needed, with inputs of its own that are filled before each replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

BUCKETS = (1, 2, 4, 8, 16, 32)
WARM_UPS = 2  # calls before a capture: kernels compile and libraries set themselves up

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Graph(NamedTuple):
    """A captured step, whose `replay` computes logits [bucket, vocabulary] from the other two.

    ids [bucket]; where [2, bucket], positions and rows.
    """

    ids: torch.Tensor
    where: torch.Tensor
    logits: torch.Tensor
    replay: Callable[[], None]


class Graphs:
    """The graphs of a step. Called like the step itself: ids [n], where int32 [2, n] -> logits."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self._graphs: dict[int, Graph] = {}
        self._pool: Any = None

    def __call__(self, ids: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        n = len(ids)
        size = bucket(n)
        if n < size:
            # Padded with the first sequence, which writes the same values to the same places.
            ids = torch.cat((ids, ids[:1].expand(size - n)))
            where = torch.cat((where, where[:, :1].expand(2, size - n)), dim=1)
        if size not in self._graphs:
            self._graphs[size] = self.capture(ids, where)
        graph = self._graphs[size]
        graph.ids.copy_(ids)
        graph.where.copy_(where)
        graph.replay()
        # A copy: another stream may replay the graph before the sampler has read these logits.
        return graph.logits[:n].clone()

    def capture(self, ids: torch.Tensor, where: torch.Tensor) -> Graph:
        """Capture a step of this many sequences. The warm-up calls compute it for these inputs,
        which is harmless: a replay writes the same keys and values."""
        ids, where = ids.clone(), where.clone()
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.step(ids, where)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self.step(ids, where)
        self._pool = graph.pool()
        return Graph(ids, where, logits, graph.replay)


def bucket(sequences: int) -> int:
    """The least bucket that holds so many sequences."""
    return next(b for b in BUCKETS if b >= sequences)
