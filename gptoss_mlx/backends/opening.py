"""A model opened on the backend that was chosen, as it was planned."""

from __future__ import annotations

from gptoss_mlx.backends.backend import Backend
from gptoss_mlx.backends.protocol import AnyModel, sealed
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.plan.memory import Plan, wired_bytes


def open_model(
    chosen: Backend,
    checkpoint: Checkpoint,
    plan: Plan,
    progress: Progress | None = None,
    threads: int | None = None,
) -> AnyModel:
    """Load a checkpoint as planned. The tensor library is imported only here.

    threads: of the kernels for CPUs; by default one for each fast core.
    Raises what the backend's `open_model` raises.
    """
    if chosen.backend == "mlx":
        from gptoss_mlx.backends.mlx import model as mlx

        return sealed(
            mlx.open_model(
                checkpoint,
                dtype=plan.dtype,
                embedding=plan.embedding,
                slots=plan.slots,
                kv_bits=plan.kv_bits,
                chunk=plan.chunk,
                rows=plan.rows,
                cache_limit=plan.cache_limit,
                wired=wired_bytes(plan),
                progress=progress,
            )
        )
    if chosen.backend == "cpu":
        from gptoss_mlx.backends.cpu import model as cpu

        return sealed(
            cpu.open_model(
                checkpoint,
                dtype=plan.dtype,
                embedding=plan.embedding,
                slots=plan.slots,
                kv_bits=plan.kv_bits,
                context=plan.context,
                chunk=plan.chunk,
                rows=plan.rows,
                threads=threads,
                progress=progress,
            )
        )
    from gptoss_mlx.backends.torch import model as torch

    return sealed(
        torch.open_model(
            checkpoint,
            device=chosen.device,
            dtype=plan.dtype,
            context=plan.context,
            rows=plan.rows,
            slots=plan.slots,
            chunk=plan.chunk,
            progress=progress,
        )
    )
