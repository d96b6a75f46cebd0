"""Recorded routing: which experts each decode step visited, layer by layer.

A trace also says, where it is known, which experts a look one layer ahead would have named: the
layer's own norm and router applied to the residual stream as it is just after the attention of the
layer before (x + attention), the earliest moment at which something can be read ahead. The first
layer has no layer before it.

`record` decodes given tokens one by one after a prefill that is not recorded; passages follow each
other without a mark, as turns of a conversation do for the banks. Traces are kept as .npz files of
four arrays (name, experts, chosen, predicted), so any runtime's routing can be replayed.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import Passage, held_out
from gptoss_mlx.backends.mlx.model import Block, Transformer, open_model
from gptoss_mlx.backends.mlx.ops.router_topk import router_topk
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.tiny import materialise

NOBODY = -1
"""In place of a predicted expert: nothing was predicted."""

Experts = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Trace:
    """Expert ids: chosen [steps, layers, k], predicted [steps, layers, any number] or None.

    chosen is ascending; predicted has the surest first, and NOBODY where nothing was known.
    Raises ValueError if the arrays disagree or a step names an expert twice or one there is not.
    """

    name: str
    experts: int
    chosen: Experts
    predicted: Experts | None = None

    def __post_init__(self) -> None:
        chosen = np.sort(_checked("chosen", self.chosen, 0, self.experts), axis=-1)
        object.__setattr__(self, "chosen", chosen)
        if self.predicted is None:
            return
        predicted = _checked("predicted", self.predicted, NOBODY, self.experts)
        object.__setattr__(self, "predicted", predicted)
        if predicted.shape[:2] != chosen.shape[:2]:
            raise ValueError(
                f"predicted {predicted.shape} is not of chosen's steps and layers, "
                f"{chosen.shape[:2]}"
            )

    @property
    def layers(self) -> int:
        return int(self.chosen.shape[1])

    @property
    def k(self) -> int:
        """Experts a step visits in a layer."""
        return int(self.chosen.shape[2])

    def stream(self, layer: int) -> list[list[int]]:
        """One layer's experts, step by step."""
        steps: list[list[int]] = self.chosen[:, layer].tolist()
        return steps

    def foreseen(self, layer: int) -> list[list[int]] | None:
        """What was predicted for one layer, step by step, surest first; None if nothing was."""
        if self.predicted is None or (self.predicted[:, layer] == NOBODY).all():
            return None
        rows: list[list[int]] = self.predicted[:, layer].tolist()
        return [[expert for expert in row if expert != NOBODY] for row in rows]


def _checked(what: str, array: NDArray[Any], least: int, experts: int) -> Experts:
    if array.ndim != 3 or array.dtype.kind not in "iu" or 0 in array.shape:
        raise ValueError(f"{what} is {array.dtype} {array.shape}, not ids [steps, layers, k]")
    if array.min() < least or array.max() >= experts:
        raise ValueError(f"{what} names {array.min()} to {array.max()} of {experts} experts")
    ordered = np.sort(array, axis=-1)
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != NOBODY)).any():
        raise ValueError(f"{what} names an expert twice in one step")
    return array.astype(np.int16)


def save(trace: Trace, path: Path) -> None:
    """Write a trace; `path` ends in .npz."""
    arrays: dict[str, Any] = {
        "name": np.array(trace.name),
        "experts": np.array(trace.experts),
        "chosen": trace.chosen,
    }
    if trace.predicted is not None:
        arrays["predicted"] = trace.predicted
    np.savez_compressed(path, **arrays)


def load(path: Path) -> Trace:
    """Read a trace. Raises CheckpointError naming the file and what is wrong with it."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Trace(
            str(arrays["name"]),
            int(arrays["experts"]),
            arrays["chosen"],
            arrays.get("predicted"),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: not a trace: it has no {error}") from error
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: not a trace: {error}") from error


def record_tiny(conversations: int) -> Trace:
    """The tiny model on `conversations` held-out conversations of each skill."""
    return record("tiny", materialise(), held_out(conversations))


def record(name: str, folder: Path, passages: Iterable[Passage]) -> Trace:
    """Decode each passage's reply on a checkpoint in float32, token by token."""
    chosen: list[Sequence[NDArray[Any]]] = []
    predicted: list[Sequence[NDArray[Any]]] = []
    with Checkpoint.open(folder) as checkpoint:
        model = open_model(checkpoint, dtype="float32")
    watch = _Watch(model)
    for passage in passages:
        state = model.new_state()
        if passage.scored_from:
            model.prefill(passage.ids[: passage.scored_from], state)
        for token in passage.ids[passage.scored_from : -1]:
            residuals = watch.step(token, state)
            here = zip(model.blocks, residuals, strict=True)
            ahead = zip(model.blocks[1:], residuals[:-1], strict=True)
            chosen.append([_choice(block, x) for block, x in here])
            nobody = np.full_like(chosen[-1][0], NOBODY)
            predicted.append([nobody, *(_surest(block, x) for block, x in ahead)])
    experts = checkpoint.config.num_local_experts
    return Trace(name, experts, np.array(chosen), np.array(predicted))


def _logits(block: Block, residual: mx.array) -> mx.array:
    """A block's norm and router on a residual stream [1, hidden] -> [1, experts]"""
    return block.moe.route(residual)[0]


def _choice(block: Block, residual: mx.array) -> NDArray[np.int64]:
    ids, _ = router_topk(_logits(block, residual), block.moe.k)
    choice: NDArray[np.int64] = np.array(ids)[0].astype(np.int64)
    return choice


def _surest(block: Block, residual: mx.array) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-np.array(_logits(block, residual))[0], kind="stable")
    return order[: block.moe.k]


class _Watch:
    """Keeps what every block's residual stream is just after its attention."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.residuals: list[mx.array] = []

    def step(self, token: int, state: Any) -> list[mx.array]:
        """Append a token to the sequence -> each block's x + attention, [1, hidden]."""
        self.residuals.clear()
        attends = [block.attend for block in self.model.blocks]
        for block in self.model.blocks:
            vars(block)["attend"] = self._watched(block.attend)
        try:
            mx.eval(self.model.hidden([token], state))
        finally:
            for block, attend in zip(self.model.blocks, attends, strict=True):
                block.attend = attend
        return self.residuals

    def _watched(self, attend: Any) -> Any:
        def watched(*given: Any) -> mx.array:
            y: mx.array = attend(*given)
            self.residuals.append(y)
            return y

        return watched
